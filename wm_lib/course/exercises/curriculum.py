"""Notebook 07: what is tried next, a journal that was cut short, and when to give up on a process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from wm_lib import curriculum as library
from wm_lib.course.exercises import Verdict, check, tried, wrong

_TARGETS = (10.0, -5.0)  # misses: 0, which is a score and no failure, and one below 0


def next_try(results: list[dict], target: float, max_retries: int) -> str:
    """What follows from the results of one task, at least one of them."""
    last = results[-1]["score"]
    if last is None:
        return "again"
    if last >= target:
        return "reached"
    measured = sum(result["score"] is not None for result in results)
    return "again" if measured <= max_retries else "not_reached"


def read_events(data: bytes) -> list[dict]:
    """The records of a journal of JSON lines that may have been cut short while it was written."""
    records = []
    for line in data.split(b"\n")[:-1]:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def watch(looks: list[tuple[float, int, bool]], timeout: float, silence: float) -> str:
    """What a watchdog says after looks at a process: (seconds since the last look, bytes written so far, held)."""
    spent = heard = 0.0
    size = 0
    for passed, written, held in looks:
        if held:
            continue
        spent += passed
        if written != size:
            heard, size = spent, written
        if spent > timeout:
            return "timeout"
        if spent - heard > silence:
            return "silence"
    return "fine"


@check
def check_next_try(attempt: Callable) -> None:
    """On all courses that a task can take in mode full while no two tries in a row fail, against the library's rule."""
    for target, max_retries in product(_TARGETS, range(3)):
        for length in range(1, 2 * max_retries + 3):
            for scores in product((None, target - 10, target), repeat=length):
                wanted = _wanted(scores, target, max_retries)
                if wanted is None:
                    continue
                found = tried(attempt, [{"score": score} for score in scores], target, max_retries)
                if isinstance(found, str) and found == wanted:
                    continue
                case = f"for the scores {list(scores)} with target {target:g} and max_retries {max_retries}"
                failed = sum(score is None for score in scores)
                if scores[-1] == target:
                    why = "a score as high as the target has reached it"
                elif scores[-1] is None:
                    why = "a try that failed is worth another go"
                elif failed and wanted == "again":
                    why = "a try that failed was no further round"
                else:
                    why = "there are max_retries further rounds after the first"
                raise wrong(f"{why}; {case} it says {_shown(found)}, and {wanted!r} is right")


def _shown(found: Any) -> str:
    return repr(found) if isinstance(found, str) else f"something of type {type(found).__name__}"


def _wanted(scores: Sequence[float | None], target: float, max_retries: int) -> str | None:
    """What the library says after these scores; None where it would never have come so far."""
    results: list[dict[str, Any]] = []
    for score in scores:
        found = library.next_try(results, "full", 1, target, max_retries)
        if isinstance(found, str) or (score is None and results and results[-1]["score"] is None):
            return None
        results.append({"mode": found[0], "round": found[1], "score": score, "kind": "exit"})
    found = library.next_try(results, "full", 1, target, max_retries)
    return found if isinstance(found, str) else "again"


@check
def check_read_events(attempt: Callable) -> None:
    """A whole file, files cut at every byte, and one with a line that was cut before others were written."""
    records = [{"event": "begin", "modes": {"pong": "full"}}, {"event": "result", "score": None, "task": "zwölf"}]
    lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records]
    _expect(attempt, b"".join(lines), records, "a whole journal")
    _expect(attempt, b"", [], "an empty file")
    for cut in range(1, len(lines[1]) - 1):
        _expect(attempt, lines[0] + lines[1][:cut], records[:1], "a last line that is cut short")
    _expect(attempt, lines[0] + lines[1][:-1], records[:1], "a last line without its newline, which is not finished")
    for line in lines:
        for cut in range(1, len(line) - 1):
            _expect(attempt, line[:cut] + b"\n" + lines[1], records[1:], "a damaged line with a good one behind it")


def _expect(attempt: Callable, data: bytes, wanted: list[dict], case: str) -> None:
    try:
        found = tried(attempt, data)
    except Verdict as verdict:
        if isinstance(verdict.__cause__, ValueError):
            raise wrong(f"{case} must not end the reading: leave out what is no whole line of JSON") from verdict
        raise
    if not isinstance(found, list):
        raise wrong(f"it returned {type(found).__name__}, and a list of records is asked for")
    if found != wanted:
        raise wrong(f"for {case} it finds {len(found)} records, and these {len(wanted)} are right: {wanted}")


@check
def check_watch(attempt: Callable) -> None:
    """Against the same rule, and mistakes that each belong to a course of events."""
    busy = [(1.0, 10 * i, False) for i in range(1, 10)]
    quiet = [(1.0, 10, False)] * 5
    held = [(100.0, 10, True)]
    cases = [
        (busy[:4], 5, 3, "fine", "a process that writes, and is in time, is fine"),
        (busy, 5, 3, "timeout", "who writes may still take too long"),
        (quiet, 50, 3, "silence", "the same number of bytes as before is silence"),
        (quiet[:4], 50, 3, "fine", "a limit is exceeded only above it"),
        (busy[:5], 5, 3, "fine", "a limit is exceeded only above it"),
        ([*busy[:2], *held, (1.0, 30, False)], 50, 3, "fine", "while it is held it cannot write: that is no silence"),
        ([*busy[:2], *held, (1.0, 30, False)], 5, 200, "fine", "time that it is held is no time spent"),
        ([*quiet[:3], (1.0, 20, False), *[(1.0, 20, False)] * 3], 50, 3, "fine", "silence begins anew at a word"),
        ([(1.0, 0, False)] * 4, 50, 3, "silence", "who has never written is silent since its start"),
        ([*quiet, (1.0, 20, False)], 50, 3, "silence", "what is ended does not come back: the first limit decides"),
        ([(1.0, 0, False)] * 9, 8, 3, "silence", "what happens first is told"),
        ([*busy[:6], *[(1.0, 60, False)] * 5], 5, 3, "timeout", "what happens first is told"),
        ([(2.0, 10 * i, False) for i in range(1, 4)], 5, 3, "timeout", "seconds count, not looks"),
        ([(2.0, 10, False)] * 3, 50, 3, "silence", "seconds count, not looks"),
        ([*quiet[:3], *held, *quiet[:2]], 50, 3, "silence", "to be held stops the clock and does not set it back"),
    ]
    for looks, timeout, silence, wanted, why in cases:
        found = tried(attempt, looks, timeout, silence)
        if not isinstance(found, str) or found != wanted:
            raise wrong(
                f"{why}; timeout {timeout}, silence {silence}, looks {looks}: not {_shown(found)} but {wanted!r}"
            )
