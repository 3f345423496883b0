"""The loop that V and M share: its schedule, its clipping, and that a kill leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wm_lib import checkpoints
from wm_lib.events import read_scalars
from wm_lib.models import training
from wm_lib.models.training import one_cycle


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The learning rate


def test_the_rate_rises_for_a_tenth_and_falls_to_zero() -> None:
    rates = np.array([one_cycle(step, 1000, 2e-3) for step in range(1000)])
    np.testing.assert_allclose(rates[:100], 2e-3 * (np.arange(100) + 0.5) / 100)  # a straight line up
    assert rates.argmax() == 100 and rates[100] == pytest.approx(2e-3, rel=1e-5)
    assert rates[549:551].mean() == pytest.approx(1e-3)  # half of a cosine's way down
    assert rates[99:549].sum() == pytest.approx(2e-3 * 450 - rates[550:].sum(), rel=1e-2)  # symmetric about it
    assert 0 < rates[-1] < 1e-5 * 2e-3


@given(num_updates=st.integers(1, 3000), peak=st.floats(1e-6, 1))
@settings(max_examples=60, deadline=None)
def test_the_rate_of_any_length_has_one_peak_and_ends_near_zero(num_updates: int, peak: float) -> None:
    rates = np.array([one_cycle(step, num_updates, peak) for step in range(num_updates)])
    assert (rates > 0).all() and (rates <= peak * (1 + 1e-9)).all()
    top = int(rates.argmax())
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all()
    if num_updates >= 20:
        assert rates[top] > 0.97 * peak and rates[-1] < 0.002 * peak


# The loop


class Slope(nn.Module):
    """One number; the loss is the number times a steepness, so its gradient is the same for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1, dtype=torch.float64))


def test_the_loop_steps_by_the_scheduled_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Under a constant gradient Adam's moments cancel and a step is as long as the rate itself.
    monkeypatch.setattr(training, "BLOCK", 7)
    model, seen = Slope(), []

    def update(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        assert step == len(seen)
        seen.append(model.x.item())
        return model.x.sum(), {}

    training.run(
        model, update, lambda rng: {}, num_updates=30, learning_rate=0.01, seed=0, directory=tmp_path, name="x"
    )
    lengths = -np.diff([*seen, model.x.item()])
    np.testing.assert_allclose(lengths, [one_cycle(step, 30, 0.01) for step in range(30)], atol=1e-9)


@pytest.mark.parametrize("steepness, clipped", [(3.0, 3.0), (1e6, 5.0)])
def test_long_gradients_are_clipped_and_short_ones_are_not(steepness: float, clipped: float, tmp_path: Path) -> None:
    model, norms = Slope(), []

    def update(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if step:
            norms.append(model.x.grad.norm().item())  # still that of the last update
        return steepness * model.x.sum(), {}

    training.run(
        model, update, lambda rng: {}, num_updates=4, learning_rate=0.01, seed=0, directory=tmp_path, name="x",
        max_grad_norm=5.0,
    )  # fmt: skip
    assert norms == pytest.approx([clipped] * 3, rel=1e-5)


def test_parts_are_logged_now_and_then_and_held_out_figures_at_every_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "BLOCK", 20)
    model = Slope()

    def update(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return model.x.sum(), {"number": torch.tensor(float(step))}

    training.run(
        model, update, lambda rng: {"held_out": 5.0}, num_updates=55, learning_rate=0.01, seed=0,
        directory=tmp_path, name="x",
    )  # fmt: skip
    scalars = read_scalars(tmp_path)
    assert [values.tolist() for values in scalars["number"]] == [[25, 50], [24, 49]]
    assert [values.tolist() for values in scalars["held_out"]] == [[20, 40, 55], [5, 5, 5]]


# Being interrupted


def regress(
    directory: Path, *, seed: int = 3, num_updates: int = 10, kill_update: int | None = None,
    kill_held_out: int | None = None,
) -> tuple[nn.Module, int]:  # fmt: skip
    """Fit a small network to random data, drawing from both generators; returns it and the updates made here.

    Args:
        kill_update: Interrupted in this update.
        kill_held_out: Interrupted in the measurement after this update, before the checkpoint is written.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 1)).to(memory_format=torch.channels_last)
    made, reached = 0, -1

    def update(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal made, reached
        if step == kill_update:
            raise KeyboardInterrupt
        made, reached = made + 1, step
        x = torch.randn(8, 2, 4, 4) + torch.from_numpy(rng.normal(size=(8, 2, 4, 4)).astype(np.float32))
        loss = (model(x)[:, 0] - x.sum((1, 2, 3))).square().mean()
        return loss, {"loss": loss.detach()}

    def held_out(rng: np.random.Generator) -> dict[str, float]:
        if reached == kill_held_out:
            raise KeyboardInterrupt
        return {"held_out": model(torch.randn(4, 2, 4, 4)).mean().item() + rng.normal()}

    training.run(
        model, update, held_out, num_updates=num_updates, learning_rate=0.05, seed=seed, directory=directory, name="fit"
    )
    return model, made


def same_parameters(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def assert_same_run(a: Path, b: Path) -> None:
    """Weights and Adam's moments to the last bit, and the same log."""
    ours, meta = checkpoints.load(a / "checkpoint.safetensors")
    theirs, other = checkpoints.load(b / "checkpoint.safetensors")
    assert ours.keys() == theirs.keys() and meta["step"] == other["step"]
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert (a / "scalars.jsonl").read_text() == (b / "scalars.jsonl").read_text()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "BLOCK", 4)


@pytest.mark.parametrize(
    "kill, left",
    [
        ({"kill_update": 2}, 10),  # before the first checkpoint
        ({"kill_update": 4}, 6),  # at a border, just after a checkpoint
        ({"kill_update": 6}, 6),  # inside a block
        ({"kill_held_out": 7}, 6),  # after a block's last update, before its checkpoint
        ({"kill_update": 9}, 2),  # inside the last, shorter block
    ],
)
def test_a_killed_run_ends_like_an_undisturbed_one(
    kill: dict[str, int], left: int, tmp_path: Path, small_blocks: None
) -> None:
    whole, made = regress(tmp_path / "whole")
    assert made == 10
    with pytest.raises(KeyboardInterrupt):
        regress(tmp_path / "killed", **kill)
    resumed, made = regress(tmp_path / "killed")
    assert made == left
    assert same_parameters(whole, resumed)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_run_killed_while_it_writes_a_checkpoint_ends_like_an_undisturbed_one(
    nth: int, tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors are renamed into place, the sidecar still tells of the checkpoint before."""
    whole, _ = regress(tmp_path / "whole")
    write_json, written = checkpoints.write_json, 0

    def killed(path: Path, content: dict) -> None:
        nonlocal written
        written += 1
        if written == nth:
            raise KeyboardInterrupt
        write_json(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            regress(tmp_path / "killed")
    resumed, _ = regress(tmp_path / "killed")
    assert same_parameters(whole, resumed)


def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path: Path, small_blocks: None) -> None:
    regress(tmp_path / "whole")
    for kill in (3, 5, 5, 8, 9):
        with pytest.raises(KeyboardInterrupt):
            regress(tmp_path / "killed", kill_update=kill)
    regress(tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_is_not_trained_again(tmp_path: Path, small_blocks: None) -> None:
    whole, _ = regress(tmp_path)
    again, made = regress(tmp_path)
    assert made == 0
    assert same_parameters(whole, again)


def test_every_block_and_every_seed_draws_its_own_numbers(tmp_path: Path, small_blocks: None) -> None:
    drawn: dict[int, list[float]] = {}
    for seed in (1, 2):
        model = Slope()

        def update(
            step: int, rng: np.random.Generator, model: Slope = model, seed: int = seed
        ) -> tuple[Tensor, dict[str, Tensor]]:
            drawn.setdefault(seed, []).extend([rng.random(), float(torch.rand(()))])
            return model.x.sum(), {}

        training.run(
            model, update, lambda rng: {}, num_updates=12, learning_rate=0.01, seed=seed,
            directory=tmp_path / str(seed), name="x",
        )  # fmt: skip
    assert len(set(drawn[1] + drawn[2])) == 48


def test_a_damaged_checkpoint_is_not_half_read(tmp_path: Path, small_blocks: None) -> None:
    whole, _ = regress(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        regress(tmp_path / "killed", kill_update=6)
    path = tmp_path / "killed" / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    resumed, made = regress(tmp_path / "killed")
    assert made == 10  # started afresh
    assert same_parameters(whole, resumed)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_bfloat16_only_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.full((4, 4), 1 + 2**-12)  # bfloat16 has 8 bits and rounds this to 1
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        with training.fast_autocast():
            product = a @ torch.eye(4)
        assert product.dtype == expected
        assert product[0, 0].item() == (1.0 if fast else a[0, 0].item())
