"""The harness of `wm compare`: what is measured when, what is not measured twice, what a clock counts, and resuming."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pipeline import TINY, write_config

from wm_lib import cli, compare, efficiency, report
from wm_lib.compare import Judge
from wm_lib.config import load_config
from wm_lib.control.pixels import ZOO
from wm_lib.efficiency import Row, summarise
from wm_lib.errors import StageError, UsageError
from wm_lib.evaluation import summarise as interval_of_mean
from wm_lib.events import Stopwatch, read_scalars
from wm_lib.pipeline import Pipeline
from wm_lib.rows import read_rows
from wm_lib.tasks import get_task

TASK = get_task("breakout")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What is measured when

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)


class Cheap:
    """Stands for `evaluate`: the mean action of an agent on four frames. Keeps what it was asked, may die in a call."""

    def __init__(self, die_at: int = -1, score: float | None = None) -> None:
        self.die_at, self.score = die_at, score
        self.calls: list[tuple[int, int]] = []

    def __call__(self, task: Any, make_agent: Any, episodes: int, seed: int) -> dict[str, Any]:
        self.calls.append((episodes, seed))
        if len(self.calls) == self.die_at:
            raise KeyboardInterrupt
        agent = make_agent(4)
        for slot in range(4):
            agent.reset_slot(slot, seed + slot)
        actions = agent(FRAMES, np.ones(4, bool))
        return interval_of_mean([float(x) for x in actions] if self.score is None else [self.score] * 4, range(4))


class Still:
    """An agent that does nothing."""

    def __call__(self, obs: np.ndarray, first: np.ndarray) -> np.ndarray:
        return np.zeros(len(obs))

    def reset_slot(self, slot: int, seed: int) -> None:
        pass


def judge(root: Path, every: int = 100) -> Judge:
    config = load_config("smoke", "breakout")
    config = config.model_copy(update={"compare": config.compare.model_copy(update={"every": every})})
    return Judge(TASK, config, root, "ours", 0, Stopwatch(root / "clock.json"))


def test_once_in_every_so_many_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap, made = Cheap(), []
    monkeypatch.setattr(compare, "evaluate", cheap)

    def learn(judging: Judge, decisions: range) -> None:
        with judging.clock:
            for at in decisions:
                if judging.is_due(at):
                    judging.measure(lambda num_envs: Still(), at)
                    made.append(at)

    learn(judge(tmp_path), range(30, 331, 30))
    assert made == [120, 210, 300]
    assert cheap.calls == [(2, compare.FIRST_SEED)] * 3
    # A training that was stopped at 250 goes on from its checkpoint at 210: that row is handed back, not made again.
    made.clear()
    learn(judge(tmp_path), range(210, 451, 30))
    assert made == [210, 300, 420]
    assert [row.decisions for row in read_rows(tmp_path / "curves.csv", Row)] == [120, 210, 300, 420]
    with (last := judge(tmp_path)).clock:
        row = last.measure(lambda num_envs: Still(), 450, "final")
    assert cheap.calls[3:] == [(2, compare.FIRST_SEED), (2, 10_000)] and last.final == row
    assert read_scalars(tmp_path / "tensorboard" / "ours-0")["score"][0].tolist() == [120, 210, 300, 420]


# All of it, with cheap measurements

SETTINGS = TINY | {
    "compare": {"every": 48, "episodes": 2, "max_factor": 9},
    "rounds": {"vae_updates": 4, "controller_steps": 32},
    "gates": {"stop": False, "probe_decisions": 0},
}
MEASURED = [
    ("random", "final", 0),
    ("ours", "curve", 80),  # 64 collected, 16 of the controller
    ("ours", "curve", 96),
    ("ours", "curve", 128),  # the end of the first round
    ("ours", "curve", 208),  # 64 more collected
    ("ours", "curve", 224),
    ("ours", "final", 224),
    ("ppo", "curve", 1024),
    ("ppo", "curve", 2048),  # 9 x 224 in whole rollouts
    ("ppo", "final", 2048),
]


def run(folder: Path, evaluate: Cheap, **changes: Any) -> dict[str, Any]:
    config = write_config(folder.with_suffix(".yaml"), **SETTINGS | changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "evaluate", evaluate)
        patch.setitem(ZOO, "breakout", replace(ZOO["breakout"], num_epochs=1))  # how well it learns is not asked here
        return compare.compare("breakout", "smoke", folder, range(1), config, rounds=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, Cheap())
    return folder


def rows_of(folder: Path) -> list[Row]:
    return read_rows(folder / "compare" / "breakout" / "curves.csv", Row)


def test_both_are_measured_on_the_way_and_at_the_end(whole: Path) -> None:
    rows = rows_of(whole)
    assert [(row.agent, row.kind, row.decisions) for row in rows] == MEASURED
    for agent in ("ours", "ppo"):
        own = [row for row in rows if row.agent == agent]
        assert all(a.cpu_seconds < b.cpu_seconds for a, b in zip(own, own[1:-1], strict=False))
        assert own[0].cpu_seconds > 0 and own[0].interruptions == own[-1].interruptions == 0
    result = json.loads((whole / "compare" / "breakout" / "comparison.json").read_text())
    again = summarise(rows, TASK.target, result["config"]["collect"]["num_steps"])
    assert {name: result[name] for name in again} == again
    assert result["levels"]["1.0"]["ratio"] is None  # neither learned anything
    assert (whole / "compare" / "breakout" / "comparison.png").stat().st_size > 5000


def test_our_controllers_are_those_of_the_training(whole: Path) -> None:
    """The last one measured while it learned plays like the one that was saved."""
    root = whole / "compare" / "breakout"
    made = Pipeline.open("breakout", "smoke", root / "ours-0", 0, whole.with_suffix(".yaml"), rounds=2)
    assert made.facts("controller")["facts"]["real_steps"] == 32
    evaluate = Cheap()
    score = evaluate(TASK, compare.agent_maker(TASK, made.world_model(), made.controller()), 2, compare.FIRST_SEED)
    assert score["mean"] == next(row.score for row in rows_of(whole) if row.decisions == 224)


def test_stopped_again_and_again_it_ends_with_the_same_rows(whole: Path, tmp_path: Path) -> None:
    folder, stops = tmp_path / "run", 0
    while True:
        try:
            run(folder, Cheap(die_at=4))
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 3
    ours, theirs = rows_of(folder), rows_of(whole)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.agent, a.seed, a.kind, a.decisions, a.score) == (b.agent, b.seed, b.kind, b.decisions, b.score)
    assert ours[-1].interruptions > 0


def test_what_is_finished_is_neither_trained_nor_measured_again(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def forbidden(*args: Any, **options: Any) -> None:
        raise AssertionError("nothing is to be trained")

    root, before = whole / "compare" / "breakout", rows_of(whole)
    result = (root / "comparison.json").read_text()
    monkeypatch.setattr(Pipeline, "run_stage", forbidden)
    run(whole, Cheap(die_at=1))
    for name in ("comparison.json", "comparison.png"):
        (root / name).unlink()
    monkeypatch.setattr(compare, "evaluate", forbidden)
    arguments = ["compare", "--task", "breakout", "--run-dir", str(whole), "--replot"]
    monkeypatch.chdir(whole)
    assert cli.main([*arguments, "--json", "out.json"]) == 0
    assert "PPO / ours" in capsys.readouterr().out
    assert rows_of(whole) == before
    assert (root / "comparison.json").read_text() == result == Path("out.json").read_text()
    assert (root / "comparison.png").exists()
    # Published, it can be drawn again without the run.
    (whole / "README.md").write_text("".join(report.marks("comparison")))
    assert cli.main([*arguments, "--publish"]) == 0
    shipped = whole / "assets" / "manifests" / "compare" / "breakout"
    assert read_rows(shipped.with_suffix(".csv"), Row) == before
    assert compare.redraw(whole / "elsewhere" / "breakout") == json.loads(shipped.with_suffix(".json").read_text())
    table = report.table_in((whole / "README.md").read_text(), "comparison")
    assert table == efficiency.overview([json.loads(result)]) == compare.overview_of_shipped(whole)
    assert shipped.with_suffix(".png").read_bytes() == (root / "comparison.png").read_bytes()
    assert "--run-dir" not in json.loads(result)["command"]
    assert compare.find_result("breakout", "smoke", whole / "nowhere") == json.loads(result)
    assert compare.find_result("pong", "smoke", whole / "nowhere") is None
    # What was drawn from published rows is no result of its own.
    copied = compare.folder_of("breakout", "smoke", whole / "elsewhere")
    assert compare.redraw(copied) and compare.find_result("breakout", "smoke", whole / "elsewhere") == json.loads(
        result
    )
    with pytest.raises(StageError, match="has no rows of its own to publish"):
        compare.publish(copied, whole)


def test_other_settings_are_not_mixed_in(whole: Path) -> None:
    with pytest.raises(UsageError, match="holds a comparison with another config; give another --run-dir"):
        run(whole, Cheap(), vae=TINY["vae"] | {"beta": 0.5})


def test_two_at_once_are_not_let_in(tmp_path: Path) -> None:
    folder = compare.folder_of("breakout", "smoke", tmp_path / "run")
    folder.mkdir(parents=True)
    with compare.take_lock(folder / "compare.lock"), pytest.raises(UsageError, match="another wm compare is at work"):
        run(tmp_path / "run", Cheap(die_at=1))
    assert [path.name for path in folder.iterdir()] == ["compare.lock"]


def test_ppo_stops_at_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = Cheap(score=300.0)
    monkeypatch.setattr(compare, "evaluate", cheap)
    opened = Pipeline.open("breakout", "smoke", tmp_path / "ours-0")
    for _ in range(2):
        compare.train_ppo(opened, Judge.of(opened, tmp_path, "ppo"), 10**6)
        rows = read_rows(tmp_path / "curves.csv", Row)
        assert [(row.kind, row.decisions) for row in rows] == [("curve", 2048), ("final", 2048)]
    assert len(cheap.calls) == 2


# All of it, as it is


def test_the_command_at_budget_smoke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "mine.yaml", compare={"max_factor": 1})
    arguments = "compare --task breakout --seeds 1 --budget smoke --config mine.yaml --run-dir run --json out.json"
    assert cli.main(arguments.split()) == 0
    found = json.loads(Path("out.json").read_text())
    assert {"schema", "task", "target", "seeds", "levels", "at_100k", "final", "curves", "commit"} <= found.keys()
    assert (found["task"], found["seeds"], found["target"]) == ("breakout", [0], 300)
    assert found["final"]["ours"]["decisions"] == 1536 and found["final"]["ppo"]["decisions"] == 2048
    for row in rows_of(tmp_path / "run"):
        assert 0 <= row.score <= 30 and row.ci_low <= row.score <= row.ci_high and row.episodes == 2
    assert "PPO from pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, told", [("--seeds 0", "--seeds must be at least 1"), ("--seed -1", "seed must be")]
)
def test_bad_arguments(arguments: str, told: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert cli.main(["compare", "--task", "pong", "--run-dir", str(tmp_path / "run"), *arguments.split()]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_to_draw_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match="nothing measured in .*pong yet; type: wm compare --task pong"):
        compare.redraw(compare.folder_of("pong", "smoke", tmp_path / "run"))
