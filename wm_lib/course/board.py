"""The board of a curriculum: how far it is, as text and as a picture; `wm_lib.course.session` adds the buttons.

Everything on it is read from the run's folder (the journal, the logs, the scalars, the artefacts), so any process may
look at a curriculum that another one runs.
"""

from __future__ import annotations

import base64
import html
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wm_lib.attempts import Try
from wm_lib.child import tail_of
from wm_lib.course.plots import BLUE, GREEN
from wm_lib.curriculum import Curriculum
from wm_lib.curriculum_report import make_report
from wm_lib.errors import StageError
from wm_lib.events import read_scalars
from wm_lib.journal import results_of
from wm_lib.report import aligned, interval

if TYPE_CHECKING:
    from wm_lib.pipeline import Pipeline

COLUMNS = ("task", "state", "mode", "round", "score", "target")
NUM_PICTURES, PICTURE_STRIDE = 5, 6
_RETURNS = ("return", "best_return")  # of PPO, of evolution
_TIME_LEFT = re.compile(r"^(.*?):.*?(\d+)%.*<((?:\d+:)?\d+:\d+)")


@dataclass(frozen=True)
class Snapshot:
    """A curriculum at one moment.

    Attributes:
        rows: For each task `task`, `state` (waiting, running, paused, stopped, reached, not reached, failed), `mode`,
            `round`, `score` and `ci95` of its last measurement or None, `target` or None where the score is simulated.
        attempt: What is tried now, or was last; None before the beginning.
        doing: The child's last line, with the time that this part of its work will still take.
        curve: Steps and mean returns of C's training in the last try.
        minutes_left: Of the tasks after this one, if they take as long as those before; None if that cannot be said.
    """

    rows: list[dict[str, Any]]
    attempt: Try | None
    doing: str
    curve: tuple[np.ndarray, np.ndarray]
    minutes_left: float | None


def look(curriculum: Curriculum) -> Snapshot:
    """How far a curriculum is."""
    records = curriculum.records()
    begin = records[0] if records else {"modes": dict.fromkeys(curriculum.configs, "")}
    event = records[-1]["event"] if records else ""
    now = event if event in ("paused", "stopped") else "running"
    tries = [record for record in records if record["event"] == "try"]
    rows, attempt = [], None
    if tries:
        last = tries[-1]
        name = f"{last['task']}-{last['mode']}-round-{last['round']}.json"
        attempt = Try(last["task"], last["mode"], last["round"], curriculum.directory / name)
    for task in curriculum.configs:
        results = results_of(records, task)
        scored = [result for result in results if result["score"] is not None]
        status = curriculum.next_try(task, begin, results) if records else "waiting"
        if isinstance(status, Try):
            mode, number = status.mode, status.round
            status = now if attempt and attempt.task == task else "waiting"
        else:
            final = (scored or results or [{"mode": begin["modes"][task], "round": ""}])[-1]
            mode, number = final["mode"], final["round"]
        rows.append(
            {
                "task": task,
                "state": status.replace("_", " "),
                "mode": mode,
                "round": number,
                "score": scored[-1]["score"] if scored else None,
                "ci95": scored[-1]["ci95"] if scored else None,
                "target": None if mode == "simulation" else curriculum.target(task),
            }
        )
    spent = [row["minutes"] for row in make_report(curriculum, records)["stages"]] if records else []
    waiting = sum(row["state"] == "waiting" for row in rows)
    left = waiting * sum(spent) / len(spent) if spent else None
    doing = tail_of(attempt.log).rpartition("\n")[2] if event in ("try", "paused", "resumed") and attempt else ""
    if (found := _TIME_LEFT.search(doing)) is not None:
        doing = f"{found[1]}: {found[2]} %, {found[3]} left of it"
    return Snapshot(rows, attempt, doing, _curve(curriculum, attempt), left)


def _curve(curriculum: Curriculum, attempt: Try | None) -> tuple[np.ndarray, np.ndarray]:
    nothing = (np.zeros(0, np.int64), np.zeros(0))
    if attempt is None:
        return nothing
    logs = (curriculum.run_dir / attempt.task).rglob("controller/scalars.jsonl")
    newest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
    scalars = read_scalars(newest.parent) if newest else {}
    return next((scalars[name] for name in _RETURNS if name in scalars), nothing)


def table(snapshot: Snapshot) -> list[tuple[str, ...]]:
    """A row of COLUMNS for each task."""
    return [
        (
            row["task"],
            row["state"],
            row["mode"],
            str(row["round"]),
            "" if row["score"] is None else interval({"mean": row["score"], "ci95": row["ci95"]}),
            "" if row["target"] is None else f"{row['target']:g}",
        )
        for row in snapshot.rows
    ]


def text(snapshot: Snapshot) -> str:
    """The board in words."""
    done = sum(row["state"] in ("reached", "not reached", "failed") for row in snapshot.rows)
    left = "" if not snapshot.minutes_left else f"; about {snapshot.minutes_left:.0f} minutes for the tasks after this"
    return f"{aligned([COLUMNS, *table(snapshot)])}\n{done} of {len(snapshot.rows)} tasks done{left}. {snapshot.doing}"


def pictures(run: Pipeline) -> dict[str, np.ndarray]:
    """What the agent saw, what V keeps of it, and what M dreams from its first frame on, given the same actions.

    Returns:
        Title -> frames uint8 (NUM_PICTURES, 64, 64, 3); what the round has not made yet is left out.
    """
    found: dict[str, np.ndarray] = {}
    length = (NUM_PICTURES - 1) * PICTURE_STRIDE + 1
    try:
        data = run.rollouts()
        frames, action = (
            np.array(data.frames[-1][0][:length]),
            data.action[len(data.action) - len(data.frames[-1])][:length],
        )
        found["the agent sees"] = frames[::PICTURE_STRIDE]
        world_model = run.world_model()
        found["V keeps"] = world_model.decode(world_model.encode(frames[::PICTURE_STRIDE]))
        z, h, rng = world_model.encode(frames[:1]), world_model.initial_state(1), np.random.default_rng(run.seed)
        dreamt = [z]
        for t in range(len(frames) - 1):
            z, _, _, h = world_model.imagine(z, action[t : t + 1], h, 0.5, rng)
            dreamt.append(z)
        found["M dreams"] = world_model.decode(np.concatenate(dreamt[::PICTURE_STRIDE]))
    except (StageError, ImportError):
        pass
    return found


def draw(snapshot: Snapshot, shown: Mapping[str, np.ndarray] | None = None) -> Figure:
    """The board as a picture: a score against its target for each task, the learning curve, and the pictures."""
    shown, num = shown or {}, len(snapshot.rows)
    figure = Figure(figsize=(max(7.0, 1.9 * num), 4.6 + 0.9 * len(shown)), dpi=80, layout="constrained")
    grid = figure.add_gridspec(2 + len(shown), 1, height_ratios=[2, 2, *[0.9] * len(shown)])
    panels = grid[0].subgridspec(1, num)
    for i, row in enumerate(snapshot.rows):
        _draw_score(figure.add_subplot(panels[i]), row)
    axes = figure.add_subplot(grid[1])
    axes.plot(*snapshot.curve, color=BLUE, marker=".")
    title = f"training of {snapshot.attempt.task}, round {snapshot.attempt.round}" if snapshot.attempt else "training"
    axes.set(title=title, ylabel="mean return")
    axes.grid(alpha=0.3)
    if not len(snapshot.curve[0]):
        axes.text(0.5, 0.5, "no episode has ended yet", ha="center", va="center", transform=axes.transAxes)
    for i, (title, frames) in enumerate(shown.items()):
        axes = figure.add_subplot(grid[2 + i])
        axes.imshow(np.concatenate(frames, axis=1), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title, fontsize="small")
    return figure


def _draw_score(axes: Axes, row: Mapping[str, Any]) -> None:
    if row["score"] is not None:
        axes.bar(0, row["score"], width=0.6, color=BLUE)
        if None not in row["ci95"]:
            low, high = row["ci95"]
            axes.errorbar(0, row["score"], [[row["score"] - low], [high - row["score"]]], color="black", capsize=6)
    if row["target"] is not None:
        axes.axhline(row["target"], color=GREEN, linestyle="--", linewidth=2)
        axes.annotate("target", (-0.45, row["target"]), xytext=(0, 3), textcoords="offset points", fontsize="small")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlim=(-0.5, 0.5), xticks=[])
    axes.margins(y=0.2)
    axes.set_title(f"{row['task']}\n{row['state']}{', simulated' * (row['mode'] == 'simulation')}", fontsize="small")


def describe(snapshot: Snapshot) -> str:
    """What the picture shows, for those who cannot see it."""
    told = [f"{task}: {state}{', score ' + score if score else ''}" for task, state, _, _, score, _ in table(snapshot)]
    return "Scores against targets and the learning curve. " + "; ".join(told)


def to_png(figure: Figure) -> bytes:
    """The picture as a file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save(curriculum: Curriculum) -> Path:
    """Draw the board into the run's folder, without V and M, so that no torch is loaded; returns the path."""
    path = curriculum.directory / "board.png"
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(to_png(draw(look(curriculum))))
    os.replace(temporary, path)
    return path


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows; in text it is its description."""

    png: bytes
    description: str

    def _repr_html_(self) -> str:
        words = html.escape(self.description, quote=True)
        return f'<img src="data:image/png;base64,{base64.b64encode(self.png).decode()}" alt="{words}">'

    def __repr__(self) -> str:
        return self.description
