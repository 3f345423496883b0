"""Planted measurements give the ratios that a pencil gives, and every figure follows from the rows of the CSV."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wm_lib import checkpoints, efficiency
from wm_lib.efficiency import Curve, Row, curves_of, ratio_interval, summarise, tables
from wm_lib.errors import StageError
from wm_lib.evaluation import summarise as interval_of_mean
from wm_lib.report import published
from wm_lib.rows import append_row, read_rows
from wm_lib.tasks import TASKS

COMPARISONS = Path(__file__).parent.parent / "assets" / "manifests" / "compare"
RANDOM, TARGET = -20.0, 20.0


def row(agent: str, seed: int, decisions: int, score: float, kind: str = "curve") -> Row:
    return Row(agent, seed, kind, decisions, score, score - 1, score + 1, 20, decisions / 100, decisions / 150, 0)


def training(agent: str, seed: int, slope: float, end: int, every: int = 7000, ceiling: float = 100.0) -> list[Row]:
    """A score that rises from random play in a straight line, up to a ceiling."""
    times = [*range(every, end, every), end]
    scores = [min(ceiling, RANDOM + slope * t) for t in times]
    return [row(agent, seed, t, s) for t, s in zip(times, scores, strict=True)] + [
        row(agent, seed, end, scores[-1] - 0.5, "final")
    ]


OURS, PPO = (1e-3, 0.8e-3, 0.5e-3), (0.4e-3, 0.2e-3, 0.25e-3)  # points a decision


def planted(
    ceiling: float = 100.0, ppo_end: int = 240_000, our_ceiling: float = 100.0, our_end: int = 80_000
) -> list[Row]:
    rows = [Row("random", 0, "final", 0, RANDOM, RANDOM - 1, RANDOM + 1, 30, 0.0, 0.0, 0)]
    for seed in range(3):
        rows += training("ours", seed, OURS[seed], our_end, ceiling=our_ceiling)
        rows += training("ppo", seed, PPO[seed], ppo_end, ceiling=ceiling)
    return rows


@pytest.mark.parametrize("level", [-19.0, -3.7, 0.0, 11.1])
def test_a_straight_line_is_crossed_where_it_is(level: float) -> None:
    times = np.array([0.0, 3, 4, 11, 50])
    curve = Curve(times, 2 * times - 20, times)
    assert curve.crossing(level) == pytest.approx((level + 20) / 2)
    assert curve.at((level + 20) / 2) == pytest.approx(level)


def test_the_first_crossing_counts_and_none_is_none() -> None:
    curve = Curve(np.array([0.0, 10, 20, 30, 40]), np.array([0.0, 8, 2, 9, 1]), np.zeros(5))
    assert curve.crossing(4) == 5
    assert curve.crossing(8) == 10
    assert curve.crossing(8.5) == pytest.approx(20 + 10 * 6.5 / 7)
    assert curve.crossing(9.1) is None
    assert curve.at(40.1) is None and curve.at(40) == 1


def test_levels_of_straight_lines_in_closed_form() -> None:
    found = summarise(planted(), TARGET)
    assert found["seeds"] == [0, 1, 2] and list(found["levels"]) == ["0.25", "0.5", "0.75", "1.0"]
    for share, level in found["levels"].items():
        way = float(share) * (TARGET - RANDOM)
        ours, ppo = (np.mean([way / slope for slope in slopes]) for slopes in (OURS, PPO))
        assert level["score"] == pytest.approx(RANDOM + way)
        assert level["ours_steps"] == pytest.approx(ours) and level["ppo_steps"] == pytest.approx(ppo)
        assert level["ratio"] == pytest.approx(ppo / ours)
        assert level["ci95"][0] < level["ratio"] < level["ci95"][1]
        assert not level["lower_bound"] and not level["upper_bound"]
        assert level["ours_reached"] == level["ppo_reached"] == 3


def test_how_long_ppo_takes_to_our_score_at_100_000_decisions() -> None:
    level = summarise(planted(our_end=140_000, our_ceiling=0.0, ppo_end=500_000), TARGET)["as_ours"]
    by_seed = [min(0.0, RANDOM + slope * 100_000) for slope in OURS]
    way = np.mean(by_seed) - RANDOM
    assert level["score"] == pytest.approx(RANDOM + way)
    assert level["ours_steps"] == 100_000 and level["ours_reached"] == 3
    assert level["ppo_steps"] == pytest.approx(np.mean([way / slope for slope in PPO]))
    assert level["ratio"] == pytest.approx(level["ppo_steps"] / 100_000)
    assert level["ci95"][0] < level["ratio"] < level["ci95"][1]
    bound = summarise(planted(our_end=240_000, ceiling=-15), TARGET)["as_ours"]
    assert bound["lower_bound"] and bound["ppo_steps"] == 240_000 and bound["ci95"] == [None, None]
    assert summarise(planted(), TARGET)["as_ours"] is None  # shorter


def test_nobody_is_asked_for_more_than_the_target_and_no_better_than_random_is_0() -> None:
    assert summarise(planted(our_end=140_000, ppo_end=500_000), TARGET)["as_ours"]["score"] == TARGET  # of 46
    found = summarise(planted(our_end=140_000, our_ceiling=RANDOM - 1), TARGET) | {"task": "pong"}
    assert found["as_ours"]["ratio"] == 0 and not found["as_ours"]["lower_bound"]
    assert "| 0.00" in efficiency.overview([found])


def test_while_data_is_collected_our_agent_is_random_play() -> None:
    found = summarise(planted(), TARGET, collected=6000)
    ours, ppo = found["curves"]["ours"][0], found["curves"]["ppo"][0]
    assert ours["decisions"][:3] == [0, 6000, 7000] and ppo["decisions"][:2] == [0, 7000]
    assert ours["score"][:2] == [RANDOM, RANDOM] and ours["cpu_seconds"][:2] == [0, 0]
    early = RANDOM + 0.7 * OURS[0] * 7000
    curve = Curve(*(np.array(ours[name]) for name in ("decisions", "score", "cpu_seconds")))
    assert curve.crossing(early) == pytest.approx(6700)


def test_ppo_that_never_arrives_gives_a_lower_bound() -> None:
    found = summarise(planted(ceiling=-0.5), TARGET)["levels"]
    assert not found["0.25"]["lower_bound"]
    for share in ("0.5", "0.75", "1.0"):
        level = found[share]
        assert level["lower_bound"] and not level["upper_bound"]
        assert (level["ppo_reached"], level["ours_reached"]) == (0, 3)
        ours = np.mean([float(share) * 40 / slope for slope in OURS])
        assert level["ppo_steps"] == 240_000 and level["ratio"] == pytest.approx(240_000 / ours)


def test_one_seed_that_stops_short_is_enough_for_a_lower_bound() -> None:
    level = summarise(planted(ppo_end=150_000), TARGET)["levels"]["1.0"]  # seed 1 would take 200,000, seed 2 160,000
    assert level["lower_bound"] and level["ppo_reached"] == 1 and level["ci95"] == [None, None]
    assert level["ppo_steps"] == pytest.approx((100_000 + 150_000 + 150_000) / 3)


def test_if_ours_never_arrives_it_is_an_upper_bound_and_if_neither_does_nothing() -> None:
    level = summarise(planted(our_ceiling=5), TARGET)["levels"]["0.75"]
    assert level["upper_bound"] and not level["lower_bound"] and level["ci95"] == [None, None]
    assert level["ours_steps"] == 80_000
    level = summarise(planted(our_ceiling=5, ceiling=5), TARGET)["levels"]["0.75"]
    assert level["ratio"] is None and level["ci95"] == [None, None]
    assert not level["upper_bound"] and not level["lower_bound"]


def test_the_bootstrap_is_the_enumeration_of_all_resamples_of_three_seeds() -> None:
    above, below = [310.0, 271.0, 402.0], [97.0, 141.0, 113.0]
    means = [[np.mean(pick) for pick in itertools.product(values, repeat=3)] for values in (above, below)]
    exact = np.array([a / b for a in means[0] for b in means[1]])  # 27 * 27 equally likely ratios
    assert len(exact) == 729
    low, high = ratio_interval(above, below)
    for bound, share in ((low, 0.025), (high, 0.975)):
        assert (exact < bound * (1 - 1e-9)).mean() <= share + 0.005
        assert (exact <= bound * (1 + 1e-9)).mean() >= share - 0.005
    assert min(exact) < low < np.mean(above) / np.mean(below) < high < max(exact)
    assert ratio_interval([310.0], below) == [None, None]
    assert ratio_interval([5.0, 5.0], [2.0, 2.0]) == [2.5, 2.5]


def test_scores_at_100_k_and_at_the_end() -> None:
    found = summarise(planted(), TARGET)
    assert found["at_100k"]["ours"] is None  # it was trained for 80,000
    small = found["at_100k"]["ppo"]
    assert small["by_seed"] == pytest.approx([RANDOM + slope * 1e5 for slope in PPO])
    assert small["mean"] == pytest.approx(np.mean(small["by_seed"]))
    half = 4.302652729911275 * np.std(small["by_seed"], ddof=1) / math.sqrt(3)  # t quantile, 2 degrees of freedom
    assert small["ci95"] == pytest.approx([small["mean"] - half, small["mean"] + half])
    final = found["final"]["ours"]
    assert final["by_seed"] == pytest.approx([RANDOM + slope * 80_000 - 0.5 for slope in OURS])
    assert (final["decisions"], final["cpu_seconds"], final["interruptions"]) == (80_000, 800, 0)


def test_of_one_seed_the_interval_is_that_of_its_episodes() -> None:
    rows = [each for each in planted() if each.seed == 0]
    found = summarise(rows, TARGET)
    assert found["seeds"] == [0]
    last = next(each for each in rows if (each.agent, each.kind) == ("ours", "final"))
    assert found["final"]["ours"]["ci95"] == [last.ci_low, last.ci_high]
    assert found["levels"]["0.5"]["ci95"] == [None, None]
    small = found["at_100k"]["ppo"]  # the nearest measurement is at 98,000, its interval two points wide
    assert small["ci95"] == pytest.approx([small["mean"] - 1, small["mean"] + 1])


def test_a_seed_counts_when_both_are_through() -> None:
    rows = planted()
    unfinished = [each for each in rows if (each.agent, each.seed, each.kind) != ("ppo", 1, "final")]
    found = summarise(unfinished, TARGET)
    assert found["seeds"] == [0, 2]
    assert [curve["seed"] for curve in found["curves"]["ppo"]] == [0, 1, 2]
    with pytest.raises(StageError, match="no seed of the comparison is through yet"):
        summarise([each for each in rows if each.kind == "curve" or each.agent == "random"], TARGET)
    with pytest.raises(StageError, match="random play was not measured"):
        summarise(rows[1:], TARGET)


def test_rows_may_come_in_any_order() -> None:
    rows = planted()
    assert summarise(rows[:1] + rows[:0:-1], TARGET) == summarise(rows, TARGET)


# The CSV


def test_rows_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "curves.csv"
    rows = [row("ours", 0, 10, 1 / 3), row("ppo", 2, 20_000_000, -1e-17, "final")]
    assert read_rows(path, Row) == []
    for each in rows:
        append_row(path, each)
    assert read_rows(path, Row) == rows
    assert path.read_text().splitlines()[0].startswith("agent,seed,kind,decisions,score,ci_low,ci_high,episodes,")


def test_killed_while_a_row_is_written_the_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curves.csv"
    append_row(path, row("ours", 0, 10, 1.5))
    before = path.read_bytes()

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            append_row(path, row("ours", 0, 20, 2.5))
    assert path.read_bytes() == before
    append_row(path, row("ours", 0, 20, 2.5))
    assert [each.decisions for each in read_rows(path, Row)] == [10, 20]


@pytest.mark.parametrize("line", ["ours,0,curve,ten,1,1,1,2,3,4,0", "ours,0,curve,10", "ours,0,curve,10,,,,2,3,4,0"])
def test_a_damaged_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "curves.csv"
    append_row(path, row("ours", 0, 10, 1.5))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(StageError, match=r"curves.csv, row 2 is damaged"):
        read_rows(path, Row)


# For people


def test_the_tables_say_what_is_a_bound_and_what_others_published() -> None:
    found = summarise(planted(ceiling=-0.5), TARGET)
    others = [
        {"agent": "SimPLe", "decisions": 100_000, "score": 12.82, "by_seed": [12.82] * 5},
        {"agent": "PPO (zoo)", "decisions": 10_000_000, "score": 20.989},
    ]
    lines = tables(found, others).splitlines()
    (half,) = [line for line in lines if line.startswith("| 50%")]
    assert "at least" in half and "240,000 (3 of 3 seeds never)" in half
    (quarter,) = [line for line in lines if line.startswith("| 25%")]
    assert "at least" not in quarter and "never" not in quarter
    (simple,) = [line for line in lines if "SimPLe (published)" in line]
    assert simple.index("12.8") < simple.index("100,000")
    (zoo,) = [line for line in lines if "PPO (zoo) (published)" in line]
    assert zoo.index("21.0") < zoo.index("10,000,000")
    assert [line for line in efficiency.published_table(others).splitlines()[2:] if "(published)" not in line] == []
    shown = efficiency.overview([found | {"task": "pong"}], [entry | {"task": "pong"} for entry in others])
    *_, head, _, last = shown.splitlines()
    assert head.split("|")[1:3] == [" published, at 100,000 decisions ", " SimPLe (seeds: 5) "] and "zoo" not in head
    assert [cell.strip() for cell in last.split("|")[1:3]] == ["pong", "12.8"]


def test_the_overview_has_a_line_for_each_task_with_its_seeds_and_a_ratio_under_1_as_plainly() -> None:
    swapped = {"ours": "ppo", "ppo": "ours"}
    worse = [replace(each, agent=swapped.get(each.agent, each.agent)) for each in planted(ceiling=-0.5)]
    one = [each for each in planted(ceiling=-10.5, our_ceiling=-0.5) if each.seed == 0]
    results = [summarise(rows, TARGET) | {"task": task} for task, rows in (("pong", worse), ("breakout", one))]
    lines = efficiency.overview(results).splitlines()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    pong, breakout = lines[2], lines[3]
    assert pong[:2] == ["pong", "3"] and breakout[:2] == ["breakout", "1"]
    ratio = np.mean([1 / slope for slope in OURS]) / np.mean([1 / slope for slope in PPO])
    early = np.mean([(20 - 0.5) / slope for slope in OURS]) / 100_000  # to the ceiling, where all three are by then
    assert pong[2].startswith(f"{early:.2f} [")
    assert pong[3].startswith(f"{ratio:.2f} [") and ratio < 1
    assert pong[4].startswith("at most 0.")
    assert breakout[2:] == ["-", "at least 24.00", "neither", "neither", "neither"]
    agents = efficiency.AGENTS.values()
    assert [line[:3] for line in lines[7:9]] == [["pong", agent, "3"] for agent in agents]
    assert [line[:3] for line in lines[9:]] == [["breakout", agent, "1"] for agent in agents]
    assert "wm compare" in efficiency.overview([])


def test_the_picture_has_every_seed_the_mean_and_the_lines_of_others() -> None:
    found = summarise(planted(), TARGET) | {"task": "pong", "target": TARGET}
    drawn = efficiency.figure(found, [{"agent": "PPO (zoo)", "decisions": 10_000_000, "score": 20.989}])
    for axis, column, unit in zip(drawn.axes, ("decisions", "cpu_seconds"), (1, 3600), strict=True):
        thin = [line for line in axis.get_lines() if line.get_linewidth() == 0.8]
        assert len(thin) == 6
        np.testing.assert_allclose(thin[3].get_xdata(), np.array(found["curves"]["ppo"][0][column]) / unit)
        np.testing.assert_allclose(thin[3].get_ydata(), found["curves"]["ppo"][0]["score"])
        labels = [line.get_label() for line in axis.get_lines()]
        assert {"world model (seeds: 3)", "PPO from pixels (seeds: 3)", "target", "random play"} <= set(labels)
        assert "PPO (zoo), 10 M decisions (published)" in labels
    (mean,) = [line for line in drawn.axes[0].get_lines() if str(line.get_label()).startswith("world model")]
    np.testing.assert_allclose(mean.get_ydata(), RANDOM + np.mean(OURS) * mean.get_xdata())


# What is shipped


def test_published_values_are_the_means_of_their_seeds_and_name_a_source() -> None:
    entries = checkpoints.read_json(COMPARISONS / "published.json")["entries"]
    assert {entry["task"] for entry in entries} <= set(TASKS)
    for entry in entries:
        assert entry["source"].startswith("https://") and entry["decisions"] >= efficiency.SMALL
        if "by_seed" in entry:
            assert entry["score"] == pytest.approx(np.mean(entry["by_seed"]), abs=0.006)
    root = COMPARISONS.parent.parent.parent
    assert len(published(root, "pong")) == 8 and len(published(root, "car-racing")) == 1


def test_every_figure_of_a_shipped_comparison_follows_from_its_rows() -> None:
    for path in sorted(set(COMPARISONS.glob("*.json")) - {COMPARISONS / "published.json"}):
        found, rows = checkpoints.read_json(path), read_rows(path.with_suffix(".csv"), Row)
        assert found["task"] == path.stem and found["target"] == TASKS[path.stem].target
        again = summarise(rows, found["target"], found["config"]["collect"]["num_steps"])
        assert {name: found[name] for name in again} == again
        for agent, final in found["final"].items():
            last = {each.seed: each for each in rows if (each.agent, each.kind) == (agent, "final")}
            scores = [last[seed].score for seed in found["seeds"]]
            assert final["mean"] == pytest.approx(interval_of_mean(scores, found["seeds"])["mean"])
    assert curves_of(planted(), "ours")[1].crossing(0) == pytest.approx(20 / OURS[1])
