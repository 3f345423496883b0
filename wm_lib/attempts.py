"""One try of the curriculum: a child that is watched, heard, held and ended, and what came of it for the journal."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.std import tqdm

from wm_lib import checkpoints
from wm_lib.child import Child, what_went_wrong
from wm_lib.errors import StageError, UsageError
from wm_lib.report import interval
from wm_lib.settings import CurriculumConfig

POLL_SECONDS = 0.2
_MAX_TICK = 10.0  # seconds; more between two looks means that the machine, or we, were asleep
LOCK = "child.lock"  # held as long as something of a child is alive


@dataclass(frozen=True)
class Try:
    """One training of one task.

    Attributes:
        task: Its name.
        mode: One of MODES.
        round: The last round that is made.
        result: Where the child writes its manifest, the JSON of `wm train --json`.
    """

    task: str
    mode: str
    round: int
    result: Path

    @property
    def log(self) -> Path:
        """What the child prints."""
        return self.result.with_suffix(".log")


def control(directory: Path, word: str) -> None:
    """Tell a running curriculum to `pause`, to `run` on, or to `stop`."""
    if word not in ("pause", "run", "stop"):
        raise UsageError(f"a curriculum can pause, run or stop, found '{word}'")
    checkpoints.write_json(Path(directory) / "control.json", {"control": word})


def carry_out(
    attempt: Try,
    command: list[str],
    settings: CurriculumConfig,
    append: Callable[..., dict[str, Any]],
    say: Callable[[str], None],
    bar: tqdm,
) -> dict[str, Any] | None:
    """One try from the start of its child to the record of what came of it.

    Args:
        attempt: What is tried.
        command: What does it: writes the manifest to `attempt.result` and exits with 0.
        settings: Its times.
        append: Writes into the journal: event, values -> record. "try" when the child has begun, "result" in the end.
        say: Takes lines for people.
        bar: Shows the child's last line, on a terminal.

    Returns:
        The record, with `score` or what went wrong; None if `control` said stop.
    """
    directory, start = attempt.result.parent, time.monotonic()
    made = {"task": attempt.task, "mode": attempt.mode, "round": attempt.round}
    what = f"{attempt.task}, mode {attempt.mode}, round {attempt.round}"
    attempt.result.unlink(missing_ok=True)
    child = None
    try:
        child = Child(command, attempt.log, directory / LOCK, _environment())
        append("try", **made, pid=child.pid, command=shlex.join(command))
        say(f"{what}: begun, see {attempt.log}")
        failure = _watch(child, directory, settings, append, bar)
        if failure == ("stopped", ""):
            return None
        score, failure = (None, failure) if failure else _read_score(attempt)
        tail = child.tail()
    except OSError as error:  # no process can be started, or the disk is full
        score, failure, tail = None, what_went_wrong(1, str(error)), ""
    finally:
        if child is not None and child.poll() is None:
            child.end(gently=True)
    minutes = (time.monotonic() - start) / 60
    if score is not None:
        said = f"score {interval({'mean': score['score'], 'ci95': score['ci95']})}"
        result = append("result", **made, **score)
    else:
        kind, said = failure
        result = append("result", **made, score=None, kind=kind, reason=said, tail=tail, minutes=minutes)
    say(f"{what}: {said}")
    return result


def _watch(
    child: Child, directory: Path, settings: CurriculumConfig, append: Callable[..., dict[str, Any]], bar: tqdm
) -> tuple[str, str] | None:
    """Wait for the child's end, heed what `control` says, and end it when its time is up; what went wrong, or None."""
    spent, heard, size, last = 0.0, 0.0, -1, time.monotonic()
    while (code := child.wait(POLL_SECONDS)) is None:
        now = time.monotonic()
        passed, last = min(now - last, _MAX_TICK), now
        word = _control(directory)
        if word == "stop":
            child.end(gently=True)
            return "stopped", ""
        if child.hold(word == "pause"):
            append("paused" if child.held else "resumed")
        if child.held:
            continue
        spent += passed
        if child.written() != size:
            heard, size = spent, child.written()
        for limit, since, kind, text in (
            (settings.timeout_seconds, spent, "timeout", "took longer than"),
            (settings.silence_seconds, spent - heard, "silence", "said nothing for"),
        ):
            if since > limit:
                child.end()
                return kind, f"{text} {limit:g} seconds"
        if not bar.disable:
            bar.set_postfix_str(child.tail().rpartition("\n")[2][-80:])
    child.sweep()
    return what_went_wrong(code, child.tail()) if code else None


def _control(directory: Path) -> str:
    try:
        return str(checkpoints.read_json(directory / "control.json")["control"])
    except (StageError, LookupError, TypeError):  # nothing was said
        return "run"


def _read_score(attempt: Try) -> tuple[dict[str, Any] | None, tuple[str, str] | None]:
    """What the child has measured, or why that is no score."""
    try:
        manifest = checkpoints.read_json(attempt.result)
        score = manifest["score"]
        if manifest["mode"] != attempt.mode:
            raise ValueError(f"it is of mode {manifest['mode']}")
        if not math.isfinite(score["mean"]):
            raise ValueError(f"it is {score['mean']}")
        found = {
            "score": score["mean"],
            "ci95": score["ci95"],
            "episodes": score["episodes"],
            "real_steps": manifest["real_steps"]["total"],
            "minutes": sum(manifest["minutes"].values()),
        }
    except (StageError, LookupError, TypeError, ValueError, AttributeError) as error:
        return None, ("exit", f"ended without a score: {error}")
    return found, None


def _environment() -> dict[str, str]:
    """What a child needs to import this very library, to be heard at once and to say where it crashed."""
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
