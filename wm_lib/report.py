"""Scores for people: a mean with its interval, the table of a run, and what is published with the weights behind it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wm_lib import checkpoints
from wm_lib.errors import StageError
from wm_lib.folders import in_project, project_root
from wm_lib.tasks import TASKS

PROTOCOL_EPISODES = 100
COLUMNS = (
    "task", "agent", "on other seeds", "sticky actions", "random play", "target", "others", "episodes", "budget",
    "decisions", "minutes",
)  # fmt: skip
WEIGHTS = {stage: f"{stage}.safetensors" for stage in ("vae", "mdn_rnn", "controller")}  # of an agent: V, M and C


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


def reached(score: dict[str, Any], target: float) -> str:
    """The target, and whether the score comes up to it: with its whole interval, by its mean alone, or not."""
    if score["mean"] < target:
        return f"{target:g} missed"
    low = score["ci95"][0]
    return f"{target:g} reached" if low is not None and low >= target else f"{target:g} reached by the mean"


def find_manifests(folder: Path, mode: str = "full") -> list[dict[str, Any]]:
    """The manifests of a run folder (the last round's of each task) or of `assets/manifests`, in the tasks' order."""
    return [checkpoints.read_json(path) for path in _manifest_paths(folder, mode)]


def _manifest_paths(folder: Path, mode: str = "full") -> list[Path]:
    found = []
    for task in TASKS:
        if mode == "full":
            rounds = folder.glob(f"{task}/round-*/evaluate/manifest.json")
            rounds = sorted(rounds, key=lambda path: int(path.parts[-3][6:]))
            paths = [folder / task / "evaluate" / "manifest.json", *rounds, folder / f"{task}.json"]
        else:
            paths = [folder / task / mode / "evaluate" / "manifest.json"]
        found += [path for path in paths if path.exists()][-1:]
    return found


def results_rows(manifests: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row of `COLUMNS` for each manifest; a simulated score says so and stands beside no target."""
    return [
        (
            f"{manifest['task']} (simulated)" if manifest.get("mode") == "simulation" else manifest["task"],
            interval(manifest["score"]) + (" (a gate failed)" if manifest["failed_gates"] else ""),
            *(interval(manifest[name]) if name in manifest else "-" for name in ("check_score", "sticky_score")),
            interval(manifest["random_score"]),
            "none" if manifest.get("mode") == "simulation" else reached(manifest["score"], manifest["target"]),
            _elsewhere(manifest),
            str(manifest["score"]["episodes"]),
            _budget(manifest),
            f"{manifest['real_steps']['total']:,}",
            f"{sum(manifest['minutes'].values()):.0f}",
        )
        for manifest in manifests
    ]


def _elsewhere(manifest: dict[str, Any]) -> str:
    """The score of the longest training that others report of this task."""
    others = published(project_root(), manifest["task"])
    if manifest.get("mode") == "simulation" or not others:
        return "-"
    return f"{max(others, key=lambda entry: entry['decisions'])['score']:.1f}"


def published(root: Path, task: str) -> list[dict[str, Any]]:
    """What others report of a task, from `assets/manifests/compare/published.json`; each entry names its source."""
    path = root / "assets" / "manifests" / "compare" / "published.json"
    return [entry for entry in checkpoints.read_json(path)["entries"] if entry["task"] == task] if path.exists() else []


def _budget(manifest: dict[str, Any]) -> str:
    words = shlex.split(manifest["command"])
    budget = words[words.index("--budget") + 1] if "--budget" in words else "-"
    return budget if manifest["rounds"] == 1 else f"{budget}, {manifest['rounds']} rounds"


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


def anywhere(command: str) -> str:
    """A command without the places of one machine: no folder of the run, a settings file as `in_project` names it."""
    words = shlex.split(command)
    if "--run-dir" in words:
        at = words.index("--run-dir")
        del words[at : at + 2]
    if "--config" in words:
        at = words.index("--config") + 1
        words[at] = in_project(words[at])
    return shlex.join(words)


def publish(run_dir: Path, root: Path, force: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """Ship the weights and manifests of a run in `assets`, and put the table of all that are there into README.md.

    Args:
        run_dir: `runs/<run>`; of each task its last round that has a score.
        root: The repository.
        force: Whether to publish also what is worse than what is there.

    Returns:
        All published manifests; and for each task of the run that was left as it was, being worse, why.

    Raises:
        StageError: Weights are missing, damaged, or not those that the score was measured with; or README.md has no
            place for the table.
    """
    assets, refused = root / "assets", []
    for path in _manifest_paths(run_dir):
        manifest = checkpoints.read_json(path)
        task, mean = manifest["task"], manifest["score"]["mean"]
        published = assets / "manifests" / f"{task}.json"
        if published.exists() and not force:
            before = checkpoints.read_json(published)
            score, episodes = before["score"], manifest["score"]["episodes"]
            if before["mode"] == manifest["mode"] and score["mean"] > mean:
                refused.append(f"{task} ({mean:.1f} is below the published {score['mean']:.1f})")
                continue
            if score["episodes"] > episodes:
                refused.append(f"{task} ({episodes} games are fewer than the {score['episodes']} published)")
                continue
        manifest["provisional"] = is_provisional(manifest["score"], manifest["target"])
        manifest["command"] = anywhere(manifest["command"])
        manifest["weights"] = ship_weights(path.parents[1], assets / "weights" / task, manifest["weights"])
        checkpoints.write_json(published, manifest)
    manifests = find_manifests(assets / "manifests")
    put_table(root / "README.md", "results", results_table(manifests))
    return manifests, refused


def publish_score(root: Path, task: str, name: str, measured: dict[str, Any], weights: dict[str, str]) -> None:
    """Put another measurement of the shipped agent of a task into its manifest, and the table into README.md.

    Args:
        root: The repository.
        name: "score", "sticky_score" or "random_score". A score of games that the published one has none of becomes
            its `check_score`: what was chosen by some games is measured by others.
        measured: What `wm_lib.evaluation.evaluate` returned.
        weights: File -> sha256 of what played; empty for random play.

    Raises:
        StageError: No agent of this task is shipped, another one was measured, or its games began with another seed.
    """
    path = root / "assets" / "manifests" / f"{task}.json"
    if not path.exists():
        raise StageError(f"no agent of {task} is shipped; type: wm report --publish")
    manifest = checkpoints.read_json(path)
    if weights and weights != manifest["weights"]:
        raise StageError("these are not the shipped weights; leave --run-dir and --budget out, or: wm report --publish")
    seeds = manifest["score"]["seeds"]
    if name == "score" and not set(seeds) & set(measured["seeds"]):
        name = "check_score"
    elif measured["seeds"][0] != seeds[0]:
        raise StageError(f"published scores begin with seed {seeds[0]}, this one with {measured['seeds'][0]}")
    manifest[name] = measured
    manifest["provisional"] = is_provisional(manifest["score"], manifest["target"])
    checkpoints.write_json(path, manifest)
    put_table(root / "README.md", "results", results_table(find_manifests(root / "assets" / "manifests")))


def ship_weights(run: Path, folder: Path, measured: dict[str, str]) -> dict[str, str]:
    """Copy V, M and C of a round to `folder`; V and M in half precision, as which they were loaded to be measured.

    Args:
        run: Folder of the round's stages.
        folder: Where to.
        measured: File -> sha256, of the weights that the score is of.

    Returns:
        File -> sha256 of the copies; the same, unless a file of the run was in single precision.

    Raises:
        StageError: A file is missing, damaged, or another one was measured. Nothing is written then.
    """
    loaded = {}
    for stage, name in WEIGHTS.items():
        path = run / stage / name
        tensors, meta = checkpoints.load(path)
        if meta["sha256"] != measured.get(name):
            raise StageError(f"{path} was made after its score was measured; `wm train --component all` measures again")
        loaded[name] = (tensors if stage == "controller" else checkpoints.half(tensors)), meta
    return {name: checkpoints.save(folder / name, tensors, meta) for name, (tensors, meta) in loaded.items()}


def put_table(document: Path, name: str, table: str) -> None:
    """Put a table between its marks, `<!-- name:start -->` and `<!-- name:end -->`.

    Raises:
        StageError: The marks are not there.
    """
    text = document.read_text(encoding="utf-8")
    if (place := _place(text, name)) is None:
        raise StageError(f"{document} has no place for the table; put {' and '.join(marks(name))} where it belongs")
    begin, end = place
    document.write_text(f"{text[:begin]}\n{table}\n{text[end:]}", encoding="utf-8")


def table_in(text: str, name: str) -> str | None:
    """What stands between the marks of this name; None without marks."""
    place = _place(text, name)
    return None if place is None else text[slice(*place)].strip()


def marks(name: str) -> tuple[str, str]:
    """What stands before and after the table of this name in a document."""
    return f"<!-- {name}:start -->", f"<!-- {name}:end -->"


def _place(text: str, name: str) -> tuple[int, int] | None:
    start, end = marks(name)
    begin, close = text.find(start) + len(start), text.find(end)
    return (begin, close) if start in text and close >= begin else None
