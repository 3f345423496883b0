"""Pictures for the notebooks, in one style.

Every function that draws returns a matplotlib Figure which a notebook shows by ending a cell with it. Frames are uint8
(..., 64, 64, 3). Colours are those of Okabe & Ito (2008), which people with any colour vision can tell apart, and lines
differ in their markers too.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from wm_lib import doctor
from wm_lib.doctor import Diagnosis
from wm_lib.evaluation import t_quantile

BLUE, ORANGE, GREEN, PINK, SKY, RED = COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
MARKERS = "osD^vP"
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.dpi": 80,
    "grid.alpha": 0.3,
}
FRAME_INCHES = 1.1


@dataclass(frozen=True)
class Board:
    """What `wm doctor` found, as a table in green, amber and red; in text it is the table of the terminal."""

    diagnosis: Diagnosis

    def _repr_html_(self) -> str:
        # Colour, sign and word say the same, so that nobody needs to see the colour.
        looks = {"ok": (GREEN, "✓"), "slow": (ORANGE, "!")}
        rows = []
        for name, component in self.diagnosis.components.items():
            colour, sign = looks.get(component.status, (RED, "✗"))
            status = f'<td style="background:{colour};color:black">{sign} {component.status.replace("_", " ")}</td>'
            cells = (f"{component.seconds:.1f}", component.version or "", component.hint)
            others = "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in cells)
            rows.append(f'<tr><th scope="row">{html.escape(name)}</th>{status}{others}</tr>')
        head = "".join(f'<th scope="col">{name}</th>' for name in ("component", "status", "seconds", "version", "hint"))
        caption = html.escape(doctor.summary(self.diagnosis))
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{''.join(rows)}</table>"

    def __repr__(self) -> str:
        return f"{doctor.table(self.diagnosis)}\n\n{doctor.summary(self.diagnosis)}"


def frame_rows(
    rows: Mapping[str, np.ndarray], columns: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Frames in labelled rows, one below the other, for comparing column by column.

    Args:
        rows: Label -> frames (n, 64, 64, 3); the same n in every row.
        columns: A heading for every column.
        title: Heading of the whole.
    """
    num_columns = len(next(iter(rows.values())))
    size = (FRAME_INCHES * num_columns + 1.2, FRAME_INCHES * len(rows) + (0.5 if title or columns else 0.1))
    figure, axes = _subplots(len(rows), num_columns, size)
    for row, (label, frames) in enumerate(rows.items()):
        for column, frame in enumerate(frames):
            _picture(axes[row, column], frame)
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center")
    for axis, heading in zip(axes[0], columns or (), strict=False):
        axis.set_title(heading)
    if title:
        figure.suptitle(title)
    return figure


def frame_grid(frames: np.ndarray, columns: int = 8, title: str | None = None) -> Figure:
    """Frames (n, 64, 64, 3) in reading order."""
    columns = min(columns, len(frames))
    lines = -(-len(frames) // columns)
    figure, axes = _subplots(lines, columns, (FRAME_INCHES * columns, FRAME_INCHES * lines + (0.4 if title else 0)))
    for axis, frame in zip(axes.flat, frames, strict=False):
        _picture(axis, frame)
    for axis in axes.flat[len(frames) :]:
        axis.remove()
    if title:
        figure.suptitle(title)
    return figure


def maps(pictures: Mapping[str, np.ndarray]) -> Figure:
    """Pictures side by side: colour ones (height, width, 3) as they are, numbers (height, width) with a scale."""
    figure, axes = _subplots(1, len(pictures), (3.0 * len(pictures), 2.6))
    for axis, (label, values) in zip(axes[0], pictures.items(), strict=True):
        _picture(axis, values, "cividis")
        axis.set_title(label)
        if values.ndim == 2:
            figure.colorbar(axis.images[0], ax=axis, shrink=0.8)
    return figure


def over_time(values: np.ndarray, xlabel: str, ylabel: str, title: str) -> Figure:
    """Numbers (time, n) as a picture, time to the right; colours are cut at the 1st and 99th percentile."""
    figure, axes = _subplots(1, 1, (8, 3))
    low, high = np.percentile(values, (1, 99))
    picture = axes[0, 0].imshow(values.T, aspect="auto", cmap="cividis", vmin=low, vmax=high)
    axes[0, 0].set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes[0, 0].grid(False)
    figure.colorbar(picture, ax=axes[0, 0])
    return figure


def bars(values: Mapping[str, float], ylabel: str, title: str | None = None, log: bool = False) -> Figure:
    """One bar for each name, with its value written on it; log: on a logarithmic scale, for values above 0."""
    figure, axes = _subplots(1, 1, (max(4.0, 1.2 * len(values)), 2.8))
    drawn = axes[0, 0].bar(list(values), list(values.values()), color=BLUE, width=0.6)
    axes[0, 0].bar_label(drawn, fmt=lambda value: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}")
    if log:
        axes[0, 0].set_yscale("log")
    axes[0, 0].margins(y=0.15)
    axes[0, 0].axhline(0, color="black", linewidth=0.8)
    axes[0, 0].set(ylabel=ylabel, title=title)
    return figure


def action_histogram(action: np.ndarray, labels: Sequence[str]) -> Figure:
    """How often each action was chosen, in percent.

    Args:
        action: Integers of any shape, indices into `labels`.
        labels: Name of every action.
    """
    share = 100 * np.bincount(np.ravel(action), minlength=len(labels)) / np.size(action)
    return bars(dict(zip(labels, share.tolist(), strict=True)), "% of decisions", "Actions")


def lines(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    log: bool = False,
) -> Figure:
    """Curves, name -> (x, y), in one panel; without any it says that there is nothing to draw."""
    figure, axes = _subplots(1, 1, (6.5, 3))
    _draw_lines(axes[0, 0], curves)
    axes[0, 0].set(xlabel=xlabel, ylabel=ylabel, title=title)
    if log and curves:
        axes[0, 0].set_yscale("log")
    return figure


def learning_curves(
    scalars: Mapping[str, tuple[np.ndarray, np.ndarray]],
    panels: Mapping[str, Sequence[str]],
    xlabel: str,
) -> Figure:
    """What a training logged.

    Args:
        scalars: What `events.read_scalars` returns.
        panels: Title of a panel -> names of the scalars in it; names that were not logged are left out.
        xlabel: What a step is.
    """
    figure, axes = _subplots(1, len(panels), (4.2 * len(panels), 3))
    for axis, (title, names) in zip(axes[0], panels.items(), strict=True):
        _draw_lines(axis, {name.replace("_", " "): scalars[name] for name in names if name in scalars})
        axis.set(title=title, xlabel=xlabel)
    return figure


def bands(
    panels: Mapping[str, Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]],
    ylabel: str,
    levels: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Repeated trainings: every curve thin, and over the x that all of a name share their mean with its 95 % interval.

    Args:
        panels: Label of the x axis -> name -> curves (x, y), x rising.
        ylabel: What y is.
        levels: Name -> y of a horizontal line.
        title: Heading of the whole.
    """
    figure, axes = _subplots(1, len(panels), (5.0 * len(panels), 4.2))
    for axis, (xlabel, groups) in zip(axes[0], panels.items(), strict=True):
        for i, (name, curves) in enumerate(groups.items()):
            colour = COLOURS[i % len(COLOURS)]
            for x, y in curves:
                axis.plot(x, y, color=colour, linewidth=0.8, alpha=0.5)
            if curves:
                x, mean, half = band(curves)
                style = {"marker": MARKERS[i % len(MARKERS)], "markersize": 4, "markevery": max(1, len(x) // 12)}
                axis.plot(x, mean, color=colour, linewidth=2, label=name, **style)
                axis.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
        for i, (name, y) in enumerate((levels or {}).items()):
            axis.axhline(y, color="black", linewidth=1, linestyle=("--", ":", "-.")[i % 3], label=name)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        if axis.get_xlim()[1] >= 10_000:
            axis.xaxis.set_major_formatter(EngFormatter())  # 200 k, 1 M
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def band(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of curves (x, y) over the x they share, and half its 95 % interval (Student's t; 0 for one curve)."""
    end = min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x[x <= end] for x, _ in curves]))
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    half = np.zeros(len(grid))
    if len(curves) > 1:
        half = t_quantile(0.975, len(curves) - 1) * values.std(axis=0, ddof=1) / np.sqrt(len(curves))
    return grid, values.mean(axis=0), half


def intervals(measured: Mapping[str, Sequence[float]], xlabel: str, level: float, title: str | None = None) -> Figure:
    """Means with their 95 % intervals, one below the other.

    Args:
        measured: Name -> mean, lower and upper end of its interval.
        xlabel: What is measured.
        level: What to compare with, a vertical line.
        title: Heading.
    """
    figure, axes = _subplots(1, 1, (6.5, 0.6 + 0.32 * max(1, len(measured))))
    for y, (mean, low, high) in enumerate(measured.values()):
        axes[0, 0].errorbar(mean, y, xerr=[[mean - low], [high - mean]], color=BLUE, marker="o", capsize=4)
    axes[0, 0].axvline(level, color="black", linestyle="--", linewidth=1)
    axes[0, 0].set(xlabel=xlabel, title=title)
    axes[0, 0].set_yticks(range(len(measured)), list(measured))
    axes[0, 0].invert_yaxis()  # the first name on top
    return figure


def scores(manifests: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean score of each task with its 95 % interval, beside random play and the target.

    Every task has its own panel and scale, since a point in Pong is no point in CarRacing.

    Args:
        manifests: With task, target, score and random_score (each with mean and ci95, which may hold None).
    """
    figure, axes = _subplots(1, max(1, len(manifests)), (2.6 * max(1, len(manifests)), 3.2))
    if not manifests:
        _draw_lines(axes[0, 0], {})
    for axis, manifest in zip(axes[0], manifests, strict=False):
        for x, (key, colour) in enumerate({"random_score": ORANGE, "score": BLUE}.items()):
            mean, interval = manifest[key]["mean"], manifest[key]["ci95"]
            axis.bar(x, mean, color=colour, width=0.6)
            if None not in interval:
                error = [[mean - interval[0]], [interval[1] - mean]]
                axis.errorbar(x, mean, error, color="black", capsize=6)
        axis.axhline(manifest["target"], color=GREEN, linestyle="--", linewidth=2)
        axis.annotate("target", (-0.3, manifest["target"]), xytext=(0, 3), textcoords="offset points")
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks([0, 1], ["random", "agent"])
        axis.margins(y=0.15)
        axis.set_title(manifest["task"])
    axes[0, 0].set_ylabel("mean return")
    return figure


def _subplots(num_rows: int, num_columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure in our style and its axes (num_rows, num_columns)."""
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(num_rows, num_columns, figsize=size, squeeze=False)
    plt.close(figure)  # else the notebook would draw it twice, as the cell's value and as an open figure
    return figure, axes


def _picture(axis: Axes, picture: np.ndarray, cmap: str | None = None) -> None:
    axis.imshow(picture, cmap=cmap, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def _draw_lines(axis: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for i, (name, (x, y)) in enumerate(curves.items()):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axis.plot(x, y, label=name, markersize=4, markevery=max(1, len(x) // 12), **style)
    if curves:
        axis.legend(frameon=False)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    else:
        axis.text(0.5, 0.5, "nothing to draw yet", ha="center", va="center", transform=axis.transAxes)
