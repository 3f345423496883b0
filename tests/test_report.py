"""The table of results says what the manifests say."""

from __future__ import annotations

from pathlib import Path

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
    }


def test_an_interval_reads_as_mean_and_bounds_and_one_episode_has_none() -> None:
    assert report.interval({"mean": 1.25, "ci95": [0.5, 2.0]}) == "1.2 [0.5, 2.0]"
    assert report.interval({"mean": -3.0, "ci95": [None, None]}) == "-3.0"


def test_an_agent_beats_random_play_only_with_intervals_apart() -> None:
    assert report.beats_random(manifest("pong", 5, 4, 6, -19))
    assert not report.beats_random(manifest("pong", 5, -19.5, 6, -19))
    assert not report.beats_random(manifest("pong", 5, None, None, -19))
    assert not report.beats_random(manifest("pong", 5, 4, 6, None))


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
    assert cells == ["pong", "5.0 [4.0, 6.0]", "-20.0 [-21.0, -19.0]", "18", "30", "1,040,960", "6"]
    assert "431.1 [400.0, 462.0]" in lines[3]


def test_the_readme_keeps_everything_around_the_table(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{report.START}\nold\n{report.END}\n\nprose\n")
    for _ in range(2):  # writing it again changes nothing
        report.write_readme(readme, [manifest("pong", 5.04, 4, 6, -19)])
        before, _, rest = readme.read_text().partition(report.START)
        table, _, after = rest.partition(report.END)
        assert (before, after) == ("# Title\n", "\n\nprose\n")
        assert table == "\n" + report.results_table([manifest("pong", 5.04, 4, 6, -19)]) + "\n"


def test_a_readme_without_marks_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.START} only")
    with pytest.raises(StageError, match="no place for the table"):
        report.write_readme(readme, [])
    assert readme.read_text() == f"{report.START} only"


def test_publishing_copies_the_manifests_and_marks_what_the_protocol_does_not_yet_support(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"{report.START}{report.END}")
    run = tmp_path / "run"
    for task, mean, episodes in (("pong", 20.0, 30), ("breakout", 5.0, 100), ("car-racing", 19.0, 100)):
        made = manifest(task, mean, 4, 6, -19)
        made["score"]["episodes"] = episodes
        made["command"] = f"wm train --task {task} --run-dir '/here and/there' --seed 3"
        checkpoints.write_json(run / task / "evaluate" / "manifest.json", made)
    published = report.publish(run, tmp_path)
    assert [m["provisional"] for m in published] == [True, True, False]
    assert published[0]["command"] == "wm train --task pong --seed 3"
    assert published == report.find_manifests(tmp_path / "assets" / "manifests")
    assert report.results_table(published) in (tmp_path / "README.md").read_text()
