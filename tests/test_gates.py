"""Every gate lets healthy data through and fires on data that is planted to be bad."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wm_lib import checkpoints, probes, stages
from wm_lib.config import load_config
from wm_lib.drift import open_loop_error
from wm_lib.errors import StageError
from wm_lib.gates import (
    Gate,
    active_units,
    drift_bounded,
    enough_episodes,
    frames_are_alive,
    nll_beats_copy_last,
    prediction_beats_copy_last,
    probe_error,
    report,
    require,
)
from wm_lib.models.vae import VAE, save_vae
from wm_lib.probes import probe
from wm_lib.rollouts import Rollouts
from wm_lib.stages import _check_latents
from wm_lib.tasks import get_task
from wm_lib.worlds.truth import names

NUM_SEQUENCES, LENGTH = 4, 40


def check(gate: Gate, passed: bool) -> Gate:
    """The outcome, and what every gate must offer: words for people, numbers that JSON can hold."""
    assert gate.passed is passed
    assert gate.measured and gate.expected and gate.advice and gate.values
    assert all(value is None or math.isfinite(value) for value in gate.values.values())
    return gate


# Frames


def moving(num_sequences: int = NUM_SEQUENCES, length: int = LENGTH) -> np.ndarray:
    """A white square of four pixels that wanders over black."""
    frames = np.zeros((num_sequences, length, 64, 64, 3), np.uint8)
    for s, t in np.ndindex(num_sequences, length):
        x, y = (3 * t + 11 * s) % 60, (t + 17 * s) % 60
        frames[s, t, y : y + 2, x : x + 2] = 255
    return frames


def make_rollouts(directory: Path, frames: np.ndarray, episode_length: int = 10) -> Rollouts:
    shape = frames.shape[:2]
    first = np.zeros(shape, bool)
    first[:, ::episode_length] = True
    ends = np.zeros(shape, bool)
    ends[:, :-1] = first[:, 1:]
    nothing = np.zeros(shape, np.uint8)
    arrays = {"frames": frames, "action": nothing, "reward": nothing.astype(np.float32), "terminated": ends,
              "truncated": nothing.astype(bool), "lost": nothing.astype(bool), "first": first}  # fmt: skip
    checkpoints.save(directory / "shard-0000.safetensors", arrays, {})
    return Rollouts(directory)


def test_frames_that_live_pass(tmp_path: Path) -> None:
    gate = check(frames_are_alive(make_rollouts(tmp_path, moving())), True)
    assert gate.values["moving"] == 1 and gate.values["single_colour"] == 0 and gate.values["distinct"] > 0.5


def test_a_few_blank_frames_are_forgiven(tmp_path: Path) -> None:
    frames = moving()
    frames[:, 5] = 0
    check(frames_are_alive(make_rollouts(tmp_path, frames)), True)


def test_black_frames_are_caught(tmp_path: Path) -> None:
    gate = check(frames_are_alive(make_rollouts(tmp_path, np.zeros_like(moving()))), False)
    assert gate.measured.startswith("100% of the frames black")


def test_every_other_frame_black_is_caught(tmp_path: Path) -> None:
    frames = moving()
    frames[:, ::2] = 0
    assert check(frames_are_alive(make_rollouts(tmp_path, frames)), False).values["black"] == pytest.approx(
        0.5, abs=0.1
    )


def test_frames_of_one_colour_are_caught(tmp_path: Path) -> None:
    frames = np.zeros_like(moving())
    frames[:] = np.random.default_rng(0).integers(40, 255, size=(*frames.shape[:2], 1, 1, 3))  # another one each time
    gate = check(frames_are_alive(make_rollouts(tmp_path, frames)), False)
    assert gate.values["single_colour"] == 1 and gate.values["black"] == 0 and gate.values["moving"] == 1


def test_pictures_that_hang_are_caught(tmp_path: Path) -> None:
    frames = np.repeat(moving(16, 10)[:, :1], 10, axis=1)  # another one in each sequence, so not all alike
    gate = check(frames_are_alive(make_rollouts(tmp_path, frames)), False)
    assert gate.values["moving"] == 0 and gate.values["distinct"] > 0.1


def test_frames_that_are_all_alike_are_caught(tmp_path: Path) -> None:
    frames = np.tile(moving(1, 2), (NUM_SEQUENCES, LENGTH // 2, 1, 1, 1))  # the same two again and again
    gate = check(frames_are_alive(make_rollouts(tmp_path, frames)), False)
    assert gate.values["moving"] == 1 and gate.values["distinct"] < 0.1


def test_an_environment_that_ends_at_every_step_is_survived(tmp_path: Path) -> None:
    assert frames_are_alive(make_rollouts(tmp_path, moving(), episode_length=1)).passed


def test_episodes_are_counted(tmp_path: Path) -> None:
    gate = check(enough_episodes(make_rollouts(tmp_path / "many", moving())), True)
    assert gate.values["begun"] == 16 and gate.values["finished"] == 12
    one = make_rollouts(tmp_path / "one", moving(1), episode_length=LENGTH)
    gate = check(enough_episodes(one), False)
    assert gate.measured == "1 episodes begun, 0 finished"
    check(enough_episodes(one, minimum=1), True)


# V


def test_latents_in_use_pass_and_collapsed_ones_fire() -> None:
    rng = np.random.default_rng(0)
    mu = rng.normal(size=(5, 100, 32)).astype(np.float32)
    assert check(active_units(mu), True).values["active"] == 32
    mu[..., 7:] = 3 + 0.01 * rng.normal(size=(5, 100, 25))  # a constant is no information, however large
    gate = check(active_units(mu), False)
    assert gate.measured == "7 of 32 latent units active" and gate.expected == "at least 8"
    check(active_units(mu, min_share=0.2), True)
    check(active_units(np.zeros((10, 2), np.float32)), False)


def seeing(lost: bool) -> dict[str, dict[str, float | None]]:
    """A real probe on latents that hold the ball, or lost it."""
    rng = np.random.default_rng(1)
    ball = rng.uniform(5, 58, size=(12, 60, 2))
    z = rng.normal(size=(12, 60, 4))
    if not lost:
        z[..., :2] = ball / 20 - 1.5 + 0.02 * rng.normal(size=ball.shape)
    episode = np.repeat(np.arange(12)[:, None], 60, axis=1)
    return probe(z, ball, np.ones(ball.shape, bool), episode, ("ball_x", "ball_y"))


def test_a_ball_that_can_be_read_passes_and_a_lost_one_fires() -> None:
    gate = check(probe_error(seeing(lost=False)), True)
    assert gate.values["ball_x"] < 1 < 10 < gate.values["ball_x_mean"]
    gate = check(probe_error(seeing(lost=True)), False)
    assert "ball_x" in gate.advice and "ball_y" in gate.advice
    half = seeing(lost=False) | {"ball_y": seeing(lost=True)["ball_y"]}
    assert "ball_x" not in check(probe_error(half), False).advice
    check(probe_error(half, only=("ball_x",)), True)
    gate = check(probe_error(seeing(lost=False), limits={"ball_x": 0.01}), False)
    assert "ball_x 0.01" in gate.expected


def test_nothing_to_probe_is_not_a_pass() -> None:
    unseen = {"median_error": None, "mean_baseline_error": None, "r2": None, "num_test": 0}
    gate = probe_error({"ball_x": unseen})
    assert not gate.passed and "ball_x not in sight" in gate.measured
    gate = check(probe_error(seeing(lost=False) | {"paddle_x": unseen}), False)  # a ball never served has no place
    assert "paddle_x not in sight" in gate.measured and "frames" in gate.advice
    check(probe_error(seeing(lost=False) | {"paddle_x": unseen}, only=("ball_x", "ball_y")), True)
    broken = {"ball_x": {"median_error": math.nan, "mean_baseline_error": 10.0, "r2": None, "num_test": 50}}
    check(probe_error(broken), False)


# M


def test_m_must_beat_copying() -> None:
    check(nll_beats_copy_last({"nll": -3.0, "copy_last_nll": 4.0}), True)
    check(nll_beats_copy_last({"nll": 5.0, "copy_last_nll": 4.0}), False)
    check(nll_beats_copy_last({"nll": 4.0, "copy_last_nll": 4.0}), False)
    check(nll_beats_copy_last({"nll": 3.5, "copy_last_nll": 4.0}, margin=1.0), False)
    for broken in (math.nan, math.inf, -math.inf):
        gate = check(nll_beats_copy_last({"nll": broken, "copy_last_nll": 4.0}), False)
        assert gate.values["nll"] is None


def test_a_reservoir_must_beat_copying_by_a_twentieth() -> None:
    check(prediction_beats_copy_last({"z_mse": 0.94, "copy_mse": 1.0}), True)
    check(prediction_beats_copy_last({"z_mse": 0.96, "copy_mse": 1.0}), False)
    for broken in (math.nan, math.inf):
        gate = check(prediction_beats_copy_last({"z_mse": broken, "copy_mse": 1.0}), False)
        assert gate.values["z_mse"] is None


class Swing:
    """A pendulum pushed by the actions, whose next place depends on the last two; h is [the z before, whether any]."""

    z_dim, feature_dim, state_dim = 2, 4, 3

    def __init__(self, growth: float = 1.0) -> None:
        self.growth = growth

    def encode(self, frames: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    decode = features = encode

    def initial_state(self, batch: int) -> np.ndarray:
        return np.zeros((batch, 3), np.float32)

    def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        return np.concatenate([z, np.ones((len(z), 1))], 1).astype(np.float32)

    def imagine(
        self, z: np.ndarray, action: np.ndarray, h: np.ndarray, temperature: float, rng: np.random.Generator,
        done_threshold: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        assert temperature == 0
        turn = np.array([[math.cos(0.4), math.sin(0.4)], [-math.sin(0.4), math.cos(0.4)]])
        push = 0.3 * (action[:, None] - 1) * np.array([1.0, 0.5])
        place = 0.9 * z @ turn + push + 0.2 * np.sin(h[:, :2]) + 0.3 * (1 - h[:, 2:])
        place = (self.growth * place).astype(np.float32)
        return place, np.zeros(len(z)), np.zeros(len(z), bool), self.step(z, action, h)


def swinging(num_sequences: int = 6, length: int = 120, episode_length: int = 57) -> dict[str, np.ndarray]:
    """What really happens in `Swing`, in episodes that do not know of each other."""
    rng = np.random.default_rng(2)
    world = Swing()
    shape = (num_sequences, length)
    action, first = rng.integers(3, size=shape), np.zeros(shape, bool)
    first[:, ::episode_length] = True
    mu = np.zeros((*shape, 2), np.float32)
    for t in range(length):
        if first[0, t]:
            z, h = rng.normal(size=(num_sequences, 2)).astype(np.float32), world.initial_state(num_sequences)
        mu[:, t] = z
        z, _, _, h = world.imagine(z, action[:, t], h, 0.0, rng)
    latents = {"mu": mu, "action": action.astype(np.uint8), "first": first}
    return latents | {"terminated": np.zeros(shape, bool)}


def test_a_model_that_knows_the_world_does_not_drift() -> None:
    # Exactly right only if memory, actions and episodes are lined up with the dream.
    latents = swinging()
    found = open_loop_error(Swing(), latents)
    assert [name for name in found if name.startswith("error")] == ["error_1", "error_5", "error_15", "error_50"]
    for k in (1, 5, 15, 50):
        assert found[f"error_{k}"] < 1e-4 < 0.1 < found[f"copy_{k}"]
    gate = check(drift_bounded(Swing(), latents), True)
    latents["terminated"][:, 9::10] = True  # a life of ten steps, then another serve
    assert set(open_loop_error(Swing(), latents)) == {"spread", "error_1", "copy_1", "error_5", "copy_5"}
    mortal = open_loop_error(Swing(), latents, horizons=(10,), num_starts=10_000)
    assert set(mortal) == {"spread"}  # ten steps from anywhere go past an end
    assert "k=50" in gate.measured and "copying" in gate.measured


def test_the_error_of_copying_is_over_every_moment_of_an_episode() -> None:
    latents = swinging(3, 40, 17)
    found = open_loop_error(Swing(), latents, horizons=(5, 30), num_starts=10_000)
    assert "error_30" not in found  # no episode is that long
    squares = [
        np.square(mu[t + 5] - mu[t])
        for mu in latents["mu"]
        for t in range(35)
        if t // 17 == (t + 5) // 17  # the same episode
    ]
    assert found["copy_5"] == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)
    mu = latents["mu"].reshape(-1, 2)
    assert found["spread"] == pytest.approx(np.sqrt(np.square(mu - mu.mean(0)).mean()), rel=1e-5)
    chosen = open_loop_error(Swing(), latents, sequences=np.array([1]), horizons=(5,), num_starts=10_000)
    assert chosen["spread"] != found["spread"]


def test_models_that_drift_fire() -> None:
    latents = swinging()
    gate = check(drift_bounded(Swing(growth=1.25), latents), False)
    assert gate.values["error_50"] > 10 * gate.values["error_1"]
    gate = check(drift_bounded(Swing(growth=1e6), latents), False)  # beyond every number
    assert "inf" in gate.measured and gate.values["error_50"] is None
    check(drift_bounded(Swing(growth=math.nan), latents), False)
    gate = drift_bounded(Swing(), swinging(2, 20, 10), horizons=(15, 50))
    assert not gate.passed and "no episode is long enough" in gate.measured


def test_the_neural_world_model_can_be_judged() -> None:
    pytest.importorskip("torch")
    from wm_lib.models.mdn_rnn import MDNRNN
    from wm_lib.models.neural import NeuralWorldModel
    from wm_lib.models.vae import VAE

    gate = drift_bounded(NeuralWorldModel(VAE(2), MDNRNN(2, 3, rnn_size=8), recent_z=2), swinging(), horizons=(1, 15))
    assert gate.values["error_15"] > 0 and gate.values["spread"] > 0


# What people read


def outcome(name: str, passed: bool) -> Gate:
    return Gate(name, passed, f"{name} measured", f"{name} expected", f"{name} advice", {"value": 1.0})


def test_the_report_has_a_row_for_each_gate_and_advice_for_those_that_failed() -> None:
    lines = report([outcome("frames", True), outcome("drift", False)]).splitlines()
    table, advice = lines[:4], lines[4:]
    assert len({len(line) for line in table}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[2] == ["frames", "ok", "frames measured", "frames expected"]
    assert cells[3] == ["drift", "FAILED", "drift measured", "drift expected"]
    assert advice == ["drift: drift advice"]


def test_a_failed_gate_stops_with_one_line() -> None:
    require([])
    require([outcome("frames", True)])
    with pytest.raises(StageError) as caught:
        require([outcome("frames", True), outcome("nll", False), outcome("drift", False)])
    message = str(caught.value)
    assert "\n" not in message
    for part in ("nll measured", "nll expected", "nll advice", "--force goes on", "drift"):
        assert part in message
    assert "frames" not in message


def test_gates_can_be_kept_as_json(tmp_path: Path) -> None:
    gate = drift_bounded(Swing(growth=1e6), swinging())
    checkpoints.write_json(tmp_path / "gates.json", [asdict(gate)])
    assert checkpoints.read_json(tmp_path / "gates.json")[0]["name"] == "drift"


@pytest.mark.parametrize("blur, max_pixels, lost", [(3, 0.7, "ball_x"), (3, 0, ""), (0.1, 0.7, ""), (99, 0, "ball_x")])
def test_the_gate_behind_v_holds_the_ball_to_its_pixels_and_the_paddle_to_half_the_mean(
    blur: float, max_pixels: float, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted eyes: z is the truth about Breakout itself, the ball's x and the paddle's blurred by so many pixels."""
    task, rng = get_task("breakout"), np.random.default_rng(0)
    columns = names(task)
    values = rng.uniform(0, 64, (8, 60, len(columns)))
    blurred = np.isin(columns, ("ball_x", "paddle_x")) * np.where(np.array(columns) == "ball_x", blur, 2.0)
    truth = {
        "z": values + rng.normal(size=values.shape) * blurred,
        "values": values,
        "visible": np.ones(values.shape, bool),
        "episode": np.repeat(np.arange(8)[:, None], 60, axis=1),
    }
    monkeypatch.setattr(probes, "play", lambda *args: truth)
    save_vae(tmp_path / "vae.safetensors", VAE(3), {})
    config = load_config("full", "breakout", None)
    settings = config.gates.model_copy(update={"max_pixels": max_pixels, "min_active_share": 0.5})
    run = SimpleNamespace(task=task, seed=0, previous=None, config=config.model_copy(update={"gates": settings}))
    run.weights = lambda stage: tmp_path / f"{stage}.safetensors"
    run.latents = lambda: {"mu": rng.normal(size=(4, 9, 3))}
    units, seen = _check_latents(run, {})
    check(units, True)
    check(seen, not lost)
    assert (lost in seen.advice) and "paddle_x" not in seen.advice


def test_in_later_rounds_the_gate_behind_v_looks_at_the_agents_play_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted eyes that see the ball in random play and lose it in the agent's."""
    task, rng = get_task("breakout"), np.random.default_rng(0)
    values = rng.uniform(0, 64, (8, 60, len(names(task))))
    truth = {"values": values, "visible": values > 0, "episode": np.repeat(np.arange(8)[:, None], 60, axis=1)}
    ball = np.isin(names(task), ("ball_x", "ball_y"))
    sights = {"random": values, "agent": np.where(ball, rng.uniform(0, 64, values.shape), values)}
    monkeypatch.setattr(probes, "play", lambda task, eyes, policy, *rest: truth | {"z": sights[policy]})
    monkeypatch.setattr(stages, "_random_player", lambda *args: "random")
    monkeypatch.setattr(stages, "_sampled_player", lambda *args: "agent")
    save_vae(tmp_path / "vae.safetensors", VAE(3), {})
    before = SimpleNamespace(world_model=lambda bf16: None, controller=lambda: None)
    run = SimpleNamespace(task=task, seed=0, previous=before, config=load_config("laptop", "breakout"))
    run.weights = lambda stage: tmp_path / f"{stage}.safetensors"
    run.latents = lambda: {"mu": rng.normal(size=(4, 9, 3))}
    units, random, agent = _check_latents(run, {})
    check(random, True)
    check(agent, False)
    assert (random.name, agent.name) == ("probe", "probe_agent")
    assert "ball_x" in agent.advice and "paddle_x" not in agent.advice
