"""The notebooks' exercises, a module each: solutions, and checks that say what is wrong with an attempt.

An exercise is a function `name` that the notebook asks for. The module has the solution under that name (where the
exercise is to rebuild a function of the library, it is the library's own) and `check_name(attempt)`, which returns
one line: not attempted yet, right, or what is wrong, with the usual mistakes by their names. No check raises.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

NOT_YET = "Not attempted yet: it returned None."
RIGHT = "✓ Right"


class Verdict(Exception):
    """What is said of an attempt, raised from anywhere within a check."""


def check(function: Callable[[Callable], None]) -> Callable[[Callable], str]:
    """Make a check of a function that raises a `Verdict` where something is wrong, and otherwise just ends."""

    @functools.wraps(function)
    def checked(attempt: Callable) -> str:
        try:
            function(attempt)
        except Verdict as verdict:
            return str(verdict)
        return f"{RIGHT}."

    return checked


def tried(attempt: Callable, *args: Any) -> Any:
    """What an attempt returns for copies of these arguments.

    Raises:
        Verdict: It returned None, or raised.
    """
    try:
        found = attempt(*copy.deepcopy(args))
    except Exception as error:  # a student's code may raise anything
        line = (str(error).splitlines() or [""])[0]
        raise Verdict(f"Not yet: it raised {type(error).__name__}: {line}") from error
    if found is None:
        raise Verdict(NOT_YET)
    return found


def wrong(why: str) -> Verdict:
    """To be raised: `why` begins with a small letter and has no full stop."""
    return Verdict(f"Not yet: {' '.join(why.split())}.")  # an array has lines, a verdict is one


def compare(found: Any, wanted: Any, mistakes: Mapping[str, Any], case: str = "one of the cases") -> None:
    """Accept what is asked for, and name the mistake that explains anything else.

    Args:
        found: What the attempt returned; numbers, arrays or tensors.
        wanted: What is right, of the same kind.
        mistakes: What is wrong, in words as for `wrong`, and what it leads to. The first that fits is named.
        case: What was tried, for an answer that fits none of them.

    Raises:
        Verdict: `found` is not `wanted`.
    """
    found, wanted = _array(found), _array(wanted)
    if _same(found, wanted):
        return
    for why, value in mistakes.items():
        if _same(found, _array(value)):
            raise wrong(why)
    if found.shape != wanted.shape:
        raise wrong(f"the shape is {found.shape}, and {wanted.shape} is asked for")
    if wanted.size == 1:
        raise wrong(f"for {case} it says {found.item()!r}, and {wanted.item()!r} is right")
    raise wrong(f"the shape is right and the numbers are not, for {case}")


def _array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value.detach() if hasattr(value, "detach") else value)
    except Exception as error:  # lists of different lengths
        raise wrong(f"it returned {type(value).__name__}, which is no array") from error


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    try:
        return np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    except TypeError:  # words, or other things that are no numbers
        return bool(np.all(a == b))
