"""How fast: parts of the library beside a plain way of doing the same work, on this machine, in this process.

Ours and the reference take turns, so that a machine that slows down slows both. What is compared with what stands in
`bench_pairs.py`, `bench_acting.py` and `bench_cluster.py`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from wm_lib import bench_acting, bench_pairs
from wm_lib.bench_cluster import scale_overhead
from wm_lib.bench_pairs import Pair, Work
from wm_lib.config import load_config
from wm_lib.errors import UsageError
from wm_lib.events import Progress
from wm_lib.settings import Config
from wm_lib.tasks import TASKS, Task, get_task

PIECE_SECONDS, WARM_UP_SECONDS = 1.5, 0.3  # what is timed at a stretch, and what comes before

BENCHES: dict[str, tuple[Callable[[Task, Config, int, ExitStack], Pair | dict[str, Any]], tuple[str, ...]]] = {
    "collect": (bench_acting.collect, ("gymnasium", "envpool", "cv2")),
    "vae_encode": (bench_pairs.vae_encode, ("torch",)),
    "vae_train": (bench_pairs.vae_train, ("torch",)),
    "vae_loss": (bench_pairs.vae_loss, ("torch", "gymnasium", "envpool", "cv2")),
    "mdn_rnn_train": (bench_pairs.mdn_rnn_train, ("torch",)),
    "dream_step": (bench_acting.dream_step, ("torch", "gymnasium", "envpool", "cv2")),
    "cma_generation": (bench_acting.cma_generation, ()),
    "widget_redraw": (bench_pairs.widget_redraw, ("torch", "gymnasium", "cv2", "ipywidgets")),
    "scale_overhead": (scale_overhead, ("distributed", "torch", "envpool", "cv2")),
}  # name -> what makes the pair, or the whole row, and the packages it needs


def run_bench(
    names: Sequence[str] = (),
    task: str | None = None,
    *,
    budget: str = "auto",
    file: str | Path | None = None,
    seed: int = 0,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure the rows of these names, or all.

    Args:
        task: Name or environment id; None is CarRacing, and for dream_step the task with the lowest ratio.
        budget, file: Where the sizes come from, see `load_config`.
        seed: Of weights, noise and environments.
        rounds: How often ours and the reference take turns, at least 1.

    Returns:
        `rows`: dicts of name, unit, ours, reference, ratio, spread (see `measure`) and detail; `left_out`: name ->
        reason, where a package is missing.

    Raises:
        UsageError: Unknown name or task, or fewer than one round.
    """
    chosen = list(dict.fromkeys(names or BENCHES))
    for name in chosen:
        if name not in BENCHES:
            raise UsageError(f"unknown bench '{name}'; choose one of {', '.join(BENCHES)}")
    if rounds < 1:
        raise UsageError(f"--rounds must be at least 1, got {rounds}")
    given = [get_task(task)] if task else None
    rows, left_out = [], {}
    with Progress("bench", len(chosen), "row") as progress:
        for name in chosen:
            tasks = given or (list(TASKS.values()) if name == "dream_step" else [TASKS["car-racing"]])
            if reason := _missing(name, tasks[0]):
                left_out[name] = reason
            else:
                found = [_row(name, each, load_config(budget, each.name, file), seed, rounds) for each in tasks]
                rows.append(min(found, key=lambda row: row["ratio"]))
                if len(tasks) > 1:
                    ratios = [f"{each.name} {row['ratio']:.1f}" for each, row in zip(tasks, found, strict=True)]
                    rows[-1]["detail"] += f"; the lowest of {', '.join(ratios)}"
            progress.update(1)
    return {"rows": rows, "left_out": left_out}


def measure(
    ours: Work, reference: Work, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Time two works in turns.

    Returns:
        `ours` and `reference`: median units a second over the rounds; `ratio`: median of the rounds' ratios;
        `spread`: largest minus smallest of these ratios, as a fraction of `ratio`.
    """
    pieces = [(work, _repetitions(work, clock)) for work in (ours, reference)]
    speeds = np.array([[_speed(work, times, clock) for work, times in pieces] for _ in range(rounds)])
    ratios = speeds[:, 0] / speeds[:, 1]
    figures = (*np.median(speeds, axis=0), np.median(ratios), np.ptp(ratios) / np.median(ratios))
    return dict(zip(("ours", "reference", "ratio", "spread"), map(float, figures), strict=True))


def table(result: dict[str, Any]) -> str:
    """What `run_bench` returned as aligned text."""
    cells = [("name", "unit", "ours", "reference", "ratio", "spread", "detail")]
    for row in result["rows"]:
        speeds = (f"{row['ours']:,.0f}", f"{row['reference']:,.0f}", f"{row['ratio']:.2f}", f"{row['spread']:.0%}")
        cells.append((row["name"], row["unit"], *speeds, row["detail"]))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    form = "  ".join(f"{{:{'>' if 2 <= i <= 5 else '<'}{width}}}" for i, width in enumerate(widths))
    left_out = [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    return "\n".join([form.format(*line).rstrip() for line in cells] + left_out)


def _row(name: str, task: Task, config: Config, seed: int, rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        pair = BENCHES[name][0](task, config, seed, stack)
        if isinstance(pair, dict):
            return {"name": name, **pair}
        measured = measure(pair.ours, pair.reference, rounds)
        return {"name": name, "unit": pair.unit, **measured, "detail": pair.detail()}


def _repetitions(work: Work, clock: Callable[[], float]) -> int:
    """How often the work fits into a piece; finding out is the warm-up."""
    work()  # the first call allocates and sets up
    start, calls, elapsed = clock(), 0, 0.0
    while elapsed < WARM_UP_SECONDS or not calls:
        work()
        calls, elapsed = calls + 1, clock() - start
    return max(1, round(PIECE_SECONDS * calls / elapsed))


def _speed(work: Work, times: int, clock: Callable[[], float]) -> float:
    start = clock()
    units = sum(work() for _ in range(times))
    return units / (clock() - start)


def _missing(name: str, task: Task) -> str | None:
    packages = BENCHES[name][1]
    if name == "collect":  # its reference plays in Gymnasium
        packages += ("ale_py",) if task.atari else ("Box2D", "pygame")
    for package in packages:
        try:
            importlib.import_module(package)
        except (ImportError, OSError) as error:
            return f"cannot import {package} ({error}); type: pip install -r requirements.txt"
    return None
