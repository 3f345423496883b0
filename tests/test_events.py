import json
import sys
from pathlib import Path

import numpy as np
import pytest

from wm_lib import events
from wm_lib.events import Progress, Stopwatch, read_scalars


def run(log_dir, start, stop, every=10, total=100, sign=1.0):
    with Progress("train", total, "update", log_dir, start=start) as progress:
        for step in range(start + 1, stop + 1):
            progress.update(1, **({"loss": sign / step, "norm": step**2} if step % every == 0 else {}))
    return progress


def lines(log_dir):
    return (log_dir / "scalars.jsonl").read_text().splitlines()


def test_scalars_are_read_back(tmp_path):
    assert run(tmp_path, 0, 100).step == 100
    found = read_scalars(tmp_path)
    steps = np.arange(10, 101, 10)
    for name, expected in (("loss", 1 / steps), ("norm", steps**2)):
        np.testing.assert_array_equal(found[name][0], steps)
        np.testing.assert_array_equal(found[name][1], expected)
    assert json.loads(lines(tmp_path)[0]) == {"step": 10, "loss": 0.1, "norm": 100.0}


def test_every_line_is_there_before_update_returns(tmp_path):
    with Progress("train", 2, "update", tmp_path) as progress:
        progress.update(1, loss=3.0)
        assert read_scalars(tmp_path)["loss"][1].tolist() == [3.0]


def test_names_may_differ_from_line_to_line(tmp_path):
    with Progress("train", None, "update", tmp_path) as progress:
        progress.update(5, **{"loss/kl": np.float32(0.5)})
        progress.update(0, score=-21)
        progress.update(5, score=float("nan"))
    found = read_scalars(tmp_path)
    assert found["loss/kl"][0].tolist() == [5]
    assert found["score"][0].tolist() == [5, 10]
    assert found["score"][1][0] == -21 and np.isnan(found["score"][1][1])
    for line in lines(tmp_path):
        json.loads(line, parse_constant=pytest.fail)  # strict JSON: no NaN


def test_step_is_not_a_scalar(tmp_path):
    with Progress("train", 1, "update", tmp_path) as progress, pytest.raises(ValueError, match="step"):
        progress.update(1, step=3)


def test_nothing_logged(tmp_path):
    assert read_scalars(tmp_path / "none") == {}
    with Progress("train", 3, "update") as progress:
        progress.update(3, loss=1.0)
    assert list(tmp_path.iterdir()) == []


def test_resumed_run_writes_what_an_undisturbed_one_writes(tmp_path):
    run(tmp_path / "whole", 0, 100)
    run(tmp_path / "killed", 0, 70, sign=1.0)
    with (tmp_path / "killed" / "scalars.jsonl").open("a") as file:
        file.write('{"step": 71, "los')  # killed in the middle of a line
    run(tmp_path / "killed", 40, 100)  # the last checkpoint was at 40
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_start_at_zero_forgets_an_earlier_run(tmp_path):
    with Progress("train", 1, "update", tmp_path) as progress:
        progress.update(0, loss=9.0)
    with Progress("train", 1, "update", tmp_path) as progress:
        progress.update(1, loss=3.0)
    assert read_scalars(tmp_path)["loss"][1].tolist() == [3.0]
    run(tmp_path, 0, 100)
    run(tmp_path, 0, 20, sign=-1.0)
    assert read_scalars(tmp_path)["loss"][1].tolist() == [-0.1, -0.05]


def test_tensorboard_reads_the_event_file(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, 0, 70, sign=-1.0)
    run(tmp_path, 40, 100)
    accumulator = accumulators.EventAccumulator(str(tmp_path))
    accumulator.Reload()
    for name, (steps, values) in read_scalars(tmp_path).items():
        found = accumulator.Scalars(name)
        assert [event.step for event in found] == steps.tolist()
        np.testing.assert_allclose([event.value for event in found], values, rtol=1e-6)  # float32 there
    assert accumulator.Scalars("loss")[0].value < 0 < accumulator.Scalars("loss")[-1].value


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    run(tmp_path, 0, 100)
    assert [path.name for path in tmp_path.iterdir()] == ["scalars.jsonl"]


def test_bar_in_a_log_is_short_and_ascii(tmp_path, capsys):
    run(tmp_path, 50, 100)
    text = capsys.readouterr().err
    assert text.isascii() and len(text.splitlines()) <= 4
    assert "train: 100%" in text and "100/100" in text and "loss=0.01" in text


# The clock


class Time:
    """A wall clock that goes twice as fast as the CPU's."""

    now = 0.0

    def perf_counter(self) -> float:
        return 2 * self.now

    def process_time(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(events, "time", made)
    return made


def test_the_clock_counts_training_and_nothing_else(time: Time, tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    clock = Stopwatch(path)
    time.now = 100
    with clock:
        time.now += 5
        with clock.paused():
            assert (clock.cpu, clock.wall) == (5, 10)
            time.now += 50
        time.now += 3
    time.now += 1000
    with Stopwatch(path) as again:
        time.now += 2
    assert (again.cpu, again.wall, again.interruptions) == (10, 20, 0)


@pytest.mark.parametrize("measuring", [False, True])
def test_an_interruption_is_remembered(time: Time, tmp_path: Path, measuring: bool) -> None:
    path = tmp_path / "clock.json"
    clock = Stopwatch(path).__enter__()
    time.now += 5
    if measuring:
        clock.paused().__enter__()
        time.now += 5
    killed = json.loads(path.read_text())  # what a kill -9 leaves
    assert killed == {"wall": 10.0 * measuring, "cpu": 5.0 * measuring, "interruptions": 0, "running": True}
    with pytest.raises(KeyboardInterrupt), Stopwatch(path) as second:
        time.now += 1
        raise KeyboardInterrupt
    assert second.interruptions == 1
    with Stopwatch(path) as third:
        pass
    assert (third.interruptions, third.cpu) == (2, 5 * measuring + 1)
    assert Stopwatch(path).interruptions == 2
