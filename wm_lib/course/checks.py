"""Checks of the notebooks' exercises: each says "not attempted yet", that it is right, or what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from wm_lib.curriculum import next_try

_TARGET = 10.0


def check_next_try(attempt: Callable[[list[dict], float, int], str | None]) -> str:
    """Notebook 07: what follows from the results of a task.

    Tried on all courses that a task can take in mode full while no two tries in a row fail, against the rule that the
    library follows.
    """
    for max_retries in range(3):
        for length in range(1, 2 * max_retries + 3):
            for scores in product((None, 9.0, _TARGET), repeat=length):
                wanted = _wanted(scores, max_retries)
                if wanted is None:
                    continue
                results = [{"score": score} for score in scores]
                try:
                    found = attempt(results, _TARGET, max_retries)
                except Exception as error:  # a student's code may raise anything
                    return f"It raised {type(error).__name__}: {error}, for {_case(scores, max_retries)}."
                if found is None:
                    return "Not attempted yet."
                if found != wanted:
                    return f"Not yet: for {_case(scores, max_retries)} it says {found!r}, and {wanted!r} is right."
    return "✓ Right, for every course that a task can take."


def _wanted(scores: Sequence[float | None], max_retries: int) -> str | None:
    """What the library says after these scores; None where it would never have come so far."""
    results: list[dict[str, Any]] = []
    for score in scores:
        found = next_try(results, "full", 1, _TARGET, max_retries)
        if isinstance(found, str) or (score is None and results and results[-1]["score"] is None):
            return None
        results.append({"mode": found[0], "round": found[1], "score": score, "kind": "exit"})
    found = next_try(results, "full", 1, _TARGET, max_retries)
    return found if isinstance(found, str) else "again"


def _case(scores: Sequence[float | None], max_retries: int) -> str:
    return f"the scores {list(scores)} with target {_TARGET:g} and max_retries {max_retries}"
