"""Where a run keeps its files, and how the folder of a stage is opened, resumed, moved aside and brought back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wm_lib import checkpoints
from wm_lib.config import resolve_budget
from wm_lib.errors import StageError, UsageError


def resolve_run_dir(run_dir: str | Path = "auto", budget: str = "auto") -> Path:
    """The folder of a run; "auto" is `runs/<budget>` in the repository, or in the current folder outside of one."""
    if str(run_dir) != "auto":
        return Path(run_dir)
    return project_root() / "runs" / resolve_budget(budget)


def project_root() -> Path:
    """The folder above that holds `pyproject.toml` (nbmake runs in notebooks/, papermill in the caller's folder)."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").exists()), here)


def in_project(file: str | Path) -> str:
    """A file as anyone would name it: from the top of the repository, or by its name alone if it is not in there."""
    path, root = Path(file).resolve(), project_root().resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def shipped_weights(root: Path, task: str) -> dict[str, Path]:
    """The files of V, M and C that come with the repository `root` for a task; empty where none do."""
    folder = root / "assets" / "weights" / task
    paths = {name: folder / f"{name}.safetensors" for name in ("vae", "mdn_rnn", "controller")}
    return paths if paths["controller"].exists() else {}


def keep_settings(path: Path, made: dict[str, Any], same: Iterable[str], what: str) -> None:
    """Write down what measurements are made with; machine, versions and commit stay those they were begun with.

    Args:
        path: The file; what is measured lies beside it.
        made: What is to be written.
        same: Keys of `made` that must not change as long as the file is there.
        what: What it is, for the message.

    Raises:
        UsageError: One of them has changed.
    """
    if path.exists():
        before = checkpoints.read_json(path)
        changed = [name for name in same if before.get(name) != made[name]]
        if changed:
            raise UsageError(
                f"{path.parent} holds {what} with another {changed[0]}; give another --run-dir, or delete that folder"
            )
        made = made | {name: before[name] for name in ("machine", "versions", "commit")}
    checkpoints.write_json(path, made)


def first_damaged(directory: Path, files: dict[str, str]) -> Path | None:
    for name, digest in files.items():
        path = directory / name
        if not path.exists() or checkpoints.sha256_file(path) != digest:
            return path
    return None


def _started(directory: Path) -> tuple[str | None, float]:
    """Key of the stage that was begun in a folder and the minutes spent on it; None where that cannot be told."""
    try:
        record = checkpoints.read_json(directory / "started.json")
        return record["key"], float(record["minutes"])
    except (StageError, LookupError, TypeError, ValueError):
        return None, 0.0


def _previous(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.previous")


def bring_back(directory: Path, key: str) -> bool:
    """Exchange a stage's folder with the one that was moved aside, if that is of this key and the folder is not."""
    previous = _previous(directory)
    if _started(directory)[0] == key or _started(previous)[0] != key:
        return False
    print(f"{directory} was made with other settings; exchanged with {previous.name}")
    other = directory.with_name(f"{directory.name}.exchanged")
    shutil.rmtree(other, ignore_errors=True)
    if directory.exists():
        os.replace(directory, other)
    os.replace(previous, directory)
    if other.exists():
        os.replace(other, previous)
    return True


def open_stage(directory: Path, key: str) -> float:
    """Make the folder ready: to go on if it was begun with the same key, else empty; minutes spent so far."""
    started, minutes = _started(directory)
    if started == key:
        return minutes
    if directory.exists():
        print(f"{directory} was made with other settings; moved to {_previous(directory).name}")
        shutil.rmtree(_previous(directory), ignore_errors=True)
        os.replace(directory, _previous(directory))
    checkpoints.write_json(directory / "started.json", {"key": key, "minutes": 0.0})
    return 0.0
