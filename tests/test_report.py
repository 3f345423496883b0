"""The table of results says what the manifests say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wm_lib import checkpoints, report
from wm_lib.errors import StageError


def manifest(task: str, mean: float, low: float | None, high: float | None, random_high: float | None) -> dict:
    return {
        "task": task,
        "target": 18.0,
        "score": {"mean": mean, "ci95": [low, high], "episodes": 30},
        "random_score": {"mean": -20.0, "ci95": [None if random_high is None else -21.0, random_high]},
        "real_steps": {"total": 1_040_960},
        "minutes": {"collect": 0.6, "vae": 5.6},
        "rounds": 2,
        "failed_gates": [],
        "command": f"wm train --task {task} --budget laptop --rounds 2",
    }


def test_an_interval_reads_as_mean_and_bounds_and_one_episode_has_none() -> None:
    assert report.interval({"mean": 1.25, "ci95": [0.5, 2.0]}) == "1.2 [0.5, 2.0]"
    assert report.interval({"mean": -3.0, "ci95": [None, None]}) == "-3.0"


def test_an_agent_beats_random_play_only_with_intervals_apart() -> None:
    assert report.beats_random(manifest("pong", 5, 4, 6, -19))
    assert not report.beats_random(manifest("pong", 5, -19.5, 6, -19))
    assert not report.beats_random(manifest("pong", 5, None, None, -19))
    assert not report.beats_random(manifest("pong", 5, 4, 6, None))


@pytest.mark.parametrize(
    ("mean", "low", "high", "said"),
    [
        (18.6, 18.2, 19.1, "18 reached"),
        (18.6, 18.0, 19.2, "18 reached"),
        (18.0, 17.2, 18.8, "18 reached by the mean"),
        (19.0, None, None, "18 reached by the mean"),
        (17.9, 17.0, 18.8, "18 missed"),
    ],
)
def test_a_target_is_reached_by_the_whole_interval_by_the_mean_or_not(mean, low, high, said) -> None:
    assert report.reached(manifest("pong", mean, low, high, -20)["score"], 18.0) == said


def test_manifests_are_found_in_a_run_and_in_the_shipped_folder_in_the_tasks_order(tmp_path: Path) -> None:
    for task in ("car-racing", "pong"):
        checkpoints.write_json(tmp_path / "run" / task / "evaluate" / "manifest.json", {"task": task})
        checkpoints.write_json(tmp_path / "shipped" / f"{task}.json", {"task": task})
    for folder in ("run", "shipped"):
        assert [m["task"] for m in report.find_manifests(tmp_path / folder)] == ["pong", "car-racing"]
    assert report.find_manifests(tmp_path / "nothing") == []


def test_the_table_holds_every_figure_and_its_columns_line_up() -> None:
    table = report.results_table([manifest("pong", 5.04, 4, 6, -19), manifest("car-racing", 431.06, 400, 462, -20)])
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:6] == ["pong", "5.0 [4.0, 6.0]", "-", "-", "-20.0 [-21.0, -19.0]", "18 missed"]
    longest = max(report.published(report.project_root(), "pong"), key=lambda entry: entry["decisions"])
    assert cells[6:] == [f"{longest['score']:.1f}", "30", "laptop, 2 rounds", "1,040,960", "6"]
    sticky = manifest("pong", 5.04, 4, 6, -19) | {"sticky_score": {"mean": 3.0, "ci95": [1, 5]}}
    sticky["check_score"] = {"mean": 4.5, "ci95": [4, 5]}
    assert "| 5.0 [4.0, 6.0] | 4.5 [4.0, 5.0] | 3.0 [1.0, 5.0]" in report.results_table([sticky])
    assert "431.1 [400.0, 462.0]" in lines[3]
    once = manifest("pong", 5.04, 4, 6, -19) | {"rounds": 1, "command": "wm train --task pong --budget full"}
    assert "| 5.0 [4.0, 6.0] (a gate failed) |" in report.results_table([sticky | {"failed_gates": ["probe"]}])
    assert "| full   |" in report.results_table([once])
    assert "| -      |" in report.results_table([once | {"command": "wm train --task pong"}])


def test_the_readme_keeps_everything_around_its_tables(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n<!-- b:start -->\nold\n<!-- b:end -->\n\nprose\n<!-- a:start --><!-- a:end -->")
    for _ in range(2):  # writing it again changes nothing
        report.put_table(readme, "b", "| new |")
        report.put_table(readme, "a", "| other |")
        assert readme.read_text() == (
            "# Title\n<!-- b:start -->\n| new |\n<!-- b:end -->\n\nprose\n<!-- a:start -->\n| other |\n<!-- a:end -->"
        )
    assert report.table_in(readme.read_text(), "b") == "| new |"


def test_a_readme_without_marks_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- b:end --> <!-- b:start --> only")
    with pytest.raises(StageError, match="no place for the table"):
        report.put_table(readme, "b", "| new |")
    assert readme.read_text() == "<!-- b:end --> <!-- b:start --> only"
    assert report.table_in(readme.read_text(), "b") is None


@pytest.fixture
def measured(tmp_path: Path):
    """A function: a run in `tmp_path / "run"` with a score of a task and the weights it is of; V is in `dtype`."""
    (tmp_path / "README.md").write_text("".join(report.marks("results")))

    def measure(task: str, mean: float, episodes: int = 100, dtype: type = np.float16, **values: object) -> Path:
        folder = tmp_path / "run" / task
        made = manifest(task, mean, 4, 6, -19) | {"mode": "full"} | values
        made["score"]["episodes"] = episodes
        made["command"] = f"wm train --task {task} --run-dir '/here and/there' --config '/a b/my own.yaml' --seed 3"
        arrays = {"vae": np.linspace(0, 1, 7, dtype=dtype), "mdn_rnn": np.ones(2, np.float16)}
        arrays["controller"] = np.linspace(0, 1, 5, dtype=np.float32)
        arrays = {stage: (array + mean).astype(array.dtype) for stage, array in arrays.items()}
        made["weights"] = {
            name: checkpoints.save(folder / stage / name, {"w": arrays[stage]}, {"task": task})
            for stage, name in report.WEIGHTS.items()
        }
        checkpoints.write_json(folder / "evaluate" / "manifest.json", made)
        return folder

    return measure


def published_mean(root: Path, task: str) -> float:
    return checkpoints.read_json(root / "assets" / "manifests" / f"{task}.json")["score"]["mean"]


def test_publishing_copies_the_manifests_and_marks_what_the_protocol_does_not_yet_support(tmp_path, measured) -> None:
    for task, mean, episodes in (("pong", 20.0, 30), ("breakout", 5.0, 100), ("car-racing", 19.0, 100)):
        measured(task, mean, episodes)
    published, refused = report.publish(tmp_path / "run", tmp_path)
    assert [m["provisional"] for m in published] == [True, True, False] and refused == []
    assert published[0]["command"] == "wm train --task pong --config 'my own.yaml' --seed 3"
    assert published == report.find_manifests(tmp_path / "assets" / "manifests")
    assert report.results_table(published) in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_publishing_ships_the_weights_in_half_precision(tmp_path, measured, dtype) -> None:
    run = measured("pong", 20.0, dtype=dtype)
    before = checkpoints.read_json(run / "evaluate" / "manifest.json")["weights"]
    ((published,), _) = report.publish(tmp_path / "run", tmp_path)
    shipped = tmp_path / "assets" / "weights" / "pong"
    for stage, name in report.WEIGHTS.items():
        assert published["weights"][name] == checkpoints.sha256_file(shipped / name)
        tensors, meta = checkpoints.load(shipped / name)
        assert meta["task"] == "pong"
        original = checkpoints.load(run / stage / name)[0]["w"]
        if stage == "controller":
            assert tensors["w"].dtype == np.float32 and (tensors["w"] == original).all()
        else:
            assert tensors["w"].dtype == np.float16 and (tensors["w"] == original.astype(np.float16)).all()
    # What the run kept in half precision already is shipped byte for byte.
    changed = {name for name, sha in before.items() if published["weights"][name] != sha}
    assert changed == (set() if dtype == np.float16 else {"vae.safetensors"})


def test_a_worse_score_is_not_published_unless_forced(tmp_path, measured) -> None:
    for task in ("pong", "breakout"):
        measured(task, 20.0)
    report.publish(tmp_path / "run", tmp_path)
    weights = {path: path.read_bytes() for path in (tmp_path / "assets" / "weights" / "pong").iterdir()}
    measured("pong", 19.0)
    measured("breakout", 21.0)
    published, refused = report.publish(tmp_path / "run", tmp_path)
    assert refused == ["pong (19.0 is below the published 20.0)"]
    assert [m["score"]["mean"] for m in published] == [20.0, 21.0]
    assert weights == {path: path.read_bytes() for path in weights}
    assert report.publish(tmp_path / "run", tmp_path, force=True)[1] == []
    assert published_mean(tmp_path, "pong") == 19.0
    measured("pong", 19.0)  # as good is good enough: what is published can be published again
    assert report.publish(tmp_path / "run", tmp_path)[1] == []


def test_a_score_of_fewer_games_is_not_published_unless_forced(tmp_path, measured) -> None:
    measured("pong", 20.0)
    report.publish(tmp_path / "run", tmp_path)
    measured("pong", 21.0, episodes=30)
    assert report.publish(tmp_path / "run", tmp_path)[1] == ["pong (30 games are fewer than the 100 published)"]
    assert published_mean(tmp_path, "pong") == 20.0
    assert report.publish(tmp_path / "run", tmp_path, force=True)[1] == []


def test_scores_of_other_modes_are_not_compared(tmp_path, measured) -> None:
    measured("pong", 20.0)
    report.publish(tmp_path / "run", tmp_path)
    measured("pong", 19.0, mode="simulation")
    assert report.publish(tmp_path / "run", tmp_path)[1] == []


@pytest.mark.parametrize("how", ["trained again", "missing", "damaged"])
def test_weights_that_the_score_is_not_of_are_not_shipped(tmp_path, measured, how) -> None:
    run = measured("pong", 20.0)
    path = run / "controller" / "controller.safetensors"
    if how == "trained again":
        checkpoints.save(path, {"w": np.zeros(5, np.float32)}, {})
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    told = {"trained again": "after its score was measured.*wm train", "missing": "is missing", "damaged": "is damaged"}
    with pytest.raises(StageError, match=told[how]):
        report.publish(tmp_path / "run", tmp_path)
    assert not (tmp_path / "assets").exists()


def test_the_weights_of_the_last_round_are_shipped(tmp_path, measured) -> None:
    first = measured("pong", 18.0)
    later = first.rename(tmp_path / "round-2")
    measured("pong", 20.0)
    later.rename(first / "round-2")
    ((published,), _) = report.publish(tmp_path / "run", tmp_path)
    assert published["score"]["mean"] == 18.0
    shipped = checkpoints.load(tmp_path / "assets" / "weights" / "pong" / "vae.safetensors")[0]["w"]
    assert shipped[0] == 18.0
