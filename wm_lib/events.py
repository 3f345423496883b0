"""Progress of a long loop: a bar for people, scalars.jsonl for programs, an event file for TensorBoard; and a clock."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from tqdm.std import tqdm

from wm_lib import checkpoints

_SCALARS = "scalars.jsonl"


class Progress:
    """Count steps on a bar and log scalars; a context manager.

    `log_dir/scalars.jsonl` has one line for each `update` with scalars, {"step": int, name: value}, handed to
    the system before `update` returns; a value that is not finite stands there as null. The TensorBoard event
    file beside it holds the same values and is left out where tensorboard is not installed.

    Args:
        desc: What runs, at the left of the bar.
        total: Steps in all, those before `start` included; None if not known.
        unit: What a step is, in the singular.
        log_dir: Folder for the scalars; None = none are kept.
        start: Steps made before. Above 0 the run goes on: scalars up to `start` are kept, later ones are
            dropped, because they are about to be made again. 0 starts afresh.
    """

    def __init__(self, desc: str, total: int | None, unit: str, log_dir: Path | None = None, start: int = 0) -> None:
        self.step = start
        self._bar_options: dict[str, Any] = {"desc": desc, "total": total, "unit": unit, "initial": start}
        self._log_dir = None if log_dir is None else Path(log_dir)

    def __enter__(self) -> Self:
        if not sys.stderr.isatty():  # papermill, CI, a log file: few lines, plain characters
            self._bar_options |= {"mininterval": 10.0, "ascii": True}
        self._file, self._events = None, None
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            kept = _rewind(self._log_dir / _SCALARS, self.step)
            self._file = (self._log_dir / _SCALARS).open("a", encoding="utf-8")
            self._events = _event_writer(self._log_dir)
            for line in kept:
                self._write_events(line)
        self._bar = tqdm(**self._bar_options, file=sys.stderr, miniters=1, dynamic_ncols=sys.stderr.isatty())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()

    def update(self, n: int, /, **scalars: float) -> None:
        """Go `n` steps on; the scalars, if any, belong to the step then reached.

        Raises:
            ValueError: A scalar is called "step".
        """
        if "step" in scalars:
            raise ValueError("a scalar cannot be called 'step': that is the x-axis")
        self.step += n
        if scalars:
            values = {name: float(value) for name, value in scalars.items()}
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
            line = {name: value if math.isfinite(value) else None for name, value in values.items()}
            line = {"step": self.step, **line}
            if self._file is not None:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            self._write_events(line)
        self._bar.update(n)

    def _write_events(self, line: dict[str, Any]) -> None:
        if self._events is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=math.nan if value is None else value)
            for name, value in line.items()
            if name != "step"
        ]
        self._events.add_event(Event(wall_time=time.time(), step=line["step"], summary=Summary(value=values)))


def read_scalars(log_dir: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read what was logged, while the run goes on or after.

    Returns:
        For each name the steps, int64 (N,), and the values, float64 (N,), NaN where one was not finite. Empty
        where nothing was logged.
    """
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for line in _read_lines(Path(log_dir) / _SCALARS):
        for name, value in line.items():
            if name != "step":
                steps, values = columns.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(math.nan if value is None else value)
    return {name: (np.array(steps, np.int64), np.array(values, float)) for name, (steps, values) in columns.items()}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # the line at which a killed run stopped
            break
    return lines


def _rewind(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the lines after `step` (all, if it is 0), and return the others."""
    kept = [line for line in _read_lines(path) if step > 0 and line["step"] <= step]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)
    return kept


def _event_writer(log_dir: Path) -> Any:
    """A new event file in place of the old ones, which the caller writes again; None without tensorboard."""
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        return None
    for old in log_dir.glob("events.out.tfevents.*"):
        old.unlink()
    return EventFileWriter(str(log_dir), flush_secs=10)


class Stopwatch:
    """Wall and CPU seconds of a training, kept in a file so that a later process goes on counting.

    CPU seconds are those of this process with all its threads, not of Gymnasium's workers. What a kill -9 interrupts is
    not counted, what is done twice after it is; `interruptions` says how often that may have been.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        kept = checkpoints.read_json(path) if path.exists() else {"wall": 0.0, "cpu": 0.0, "interruptions": 0}
        self.wall, self.cpu = kept["wall"], kept["cpu"]
        self.interruptions = kept["interruptions"] + kept.get("running", False)

    def __enter__(self) -> Self:
        self._since = time.perf_counter(), time.process_time()
        self._write(running=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._add()
        self._write(running=kind is not None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens in here."""
        self._add()
        self._write(running=True)
        try:
            yield
        finally:
            self._since = time.perf_counter(), time.process_time()

    def _add(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.wall, self.cpu = self.wall + now[0] - self._since[0], self.cpu + now[1] - self._since[1]
        self._since = now

    def _write(self, running: bool) -> None:
        kept = {"wall": self.wall, "cpu": self.cpu, "interruptions": self.interruptions, "running": running}
        checkpoints.write_json(self.path, kept)
