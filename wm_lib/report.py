"""Scores for people: a mean with its interval, and the table of a run, from the manifests that evaluation wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wm_lib import checkpoints
from wm_lib.errors import StageError
from wm_lib.tasks import TASKS

START, END = "<!-- results:start -->", "<!-- results:end -->"  # in README.md
PROTOCOL_EPISODES = 100
COLUMNS = ("task", "agent", "random play", "target", "episodes", "real decisions", "minutes")


def interval(score: dict[str, Any]) -> str:
    """A score as "mean [low, high]" with its 95 % interval; the mean alone for a single episode."""
    low, high = score["ci95"]
    return f"{score['mean']:.1f}" if low is None else f"{score['mean']:.1f} [{low:.1f}, {high:.1f}]"


def beats_random(manifest: dict[str, Any]) -> bool:
    """Whether the agent's interval lies wholly above random play's."""
    low, high = manifest["score"]["ci95"][0], manifest["random_score"]["ci95"][1]
    return low is not None and high is not None and low > high


def is_provisional(score: dict[str, Any], target: float) -> bool:
    """Whether a better measurement is expected: the target is missed, or the episodes are fewer than the protocol's.

    A simulated task has no target (NaN), so that none can be missed.
    """
    return score["mean"] < target or score["episodes"] < PROTOCOL_EPISODES


def find_manifests(folder: Path, mode: str = "full") -> list[dict[str, Any]]:
    """The manifests of a run folder (the last round's of each task) or of `assets/manifests`, in the tasks' order."""
    found = []
    for task in TASKS:
        if mode != "full":
            path = folder / task / mode / "evaluate" / "manifest.json"
            found += [checkpoints.read_json(path)] if path.exists() else []
            continue
        rounds = sorted(folder.glob(f"{task}/round-*/evaluate/manifest.json"), key=lambda path: int(path.parts[-3][6:]))
        paths = [folder / task / "evaluate" / "manifest.json", *rounds, folder / f"{task}.json"]
        paths = [path for path in paths if path.exists()]
        if paths:
            found.append(checkpoints.read_json(paths[-1]))
    return found


def results_rows(manifests: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row of `COLUMNS` for each manifest; a simulated score says so and stands beside no target."""
    return [
        (
            f"{manifest['task']} (simulated)" if manifest.get("mode") == "simulation" else manifest["task"],
            interval(manifest["score"]),
            interval(manifest["random_score"]),
            "none" if manifest.get("mode") == "simulation" else f"{manifest['target']:g}",
            str(manifest["score"]["episodes"]),
            f"{manifest['real_steps']['total']:,}",
            f"{sum(manifest['minutes'].values()):.0f}",
        )
        for manifest in manifests
    ]


def results_table(manifests: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    return aligned([COLUMNS, *results_rows(manifests)])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of these rows, the head first, aligned so that it reads well as plain text too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def html_page(title: str, body: str) -> str:
    """A page of HTML with this heading."""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:16px sans-serif;max-width:60em;margin:auto}td,th{padding:.3em 1em;text-align:left}</style>"
        f"<h1>{title}</h1>{body}</html>\n"
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    lines = ["".join(f"<th>{name}</th>" for name in header)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table>"


def publish(run_dir: Path, root: Path) -> list[dict[str, Any]]:
    """Copy the manifests of a run to `assets/manifests` and put the table of all that are there into README.md.

    Raises:
        StageError: README.md has no place for the table.
    """
    shipped = root / "assets" / "manifests"
    for manifest in find_manifests(run_dir):
        manifest["provisional"] = is_provisional(manifest["score"], manifest["target"])
        # Where it lay on one machine is of no use on another.
        manifest["command"] = re.sub(r" --run-dir ('[^']*'|\S+)", "", manifest["command"])
        checkpoints.write_json(shipped / f"{manifest['task']}.json", manifest)
    manifests = find_manifests(shipped)
    write_readme(root / "README.md", manifests)
    return manifests


def write_readme(readme: Path, manifests: list[dict[str, Any]]) -> None:
    """Put the table of the shipped manifests between the marks in README.md.

    Raises:
        StageError: The marks are not there.
    """
    text = readme.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise StageError(f"{readme} has no place for the table; put {START} and {END} where it belongs")
    readme.write_text(f"{before}{START}\n{results_table(manifests)}\n{END}{after}", encoding="utf-8")
