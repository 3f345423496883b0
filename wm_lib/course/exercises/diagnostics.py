"""Notebook 01: what became of a probe, how fast a world is, and the mode that follows from what works."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from wm_lib.course.exercises import check, compare, tried, wrong


def decisions_per_second(seconds: list[float], num_envs: int, num_decisions: int) -> float:
    """Of all games together; `seconds` are several timings of `num_decisions` decisions in `num_envs` games."""
    return num_envs * num_decisions / min(seconds)


@check
def check_decisions_per_second(attempt: Callable) -> None:
    """On three timings, the first of them slow as first ones are."""
    seconds = [4.0, 0.5, 0.8]
    mistakes = {
        "the mean of the timings has the slow first one in it; take the fastest": 300 / (5.3 / 3),
        "that is the slowest timing; take the fastest": 300 / 4,
        "that is the median, or the last of the timings; what disturbs only adds, so take the fastest": 300 / 0.8,
        "the games are forgotten: each of them decides": 100 / 0.5,
        "these are seconds for a decision; turn it round": 0.5 / 300,
        "the timings are summed; each is of all the decisions": 300 / 5.3,
    }
    compare(tried(attempt, seconds, 3, 100), 600.0, mistakes, "timings of 4, 0.5 and 0.8 seconds")


def judge(code: int | None, seconds: float, timeout: float) -> str:
    """What became of a process after `seconds`: its exit code, below 0 for a signal, or None while it has not ended."""
    if code is None:
        return "hang" if seconds > timeout else "waiting"
    if code != 0:
        return "crash"
    return "slow" if seconds > timeout / 2 else "ok"


@check
def check_judge(attempt: Callable) -> None:
    """On every kind of end, early, late and after the time-out."""
    reasons = {
        (None, "ok"): "None is not 0: it has not ended",
        (None, "slow"): "None is not 0: it has not ended",
        (None, "crash"): "None is no exit code: it has not ended, so it did not crash",
        (-9, "ok"): "an exit code below 0 is a signal that killed it",
        (-9, "slow"): "an exit code below 0 is a signal that killed it",
        (0, "hang"): "it ended by itself, late: that is slow, and no hang",
        (1, "hang"): "it ended by itself, so it does not hang",
        (0, "crash"): "exit code 0 says that all went well",
    }
    for code, seconds in product((0, 1, -9, None), (1.0, 8.0, 11.0)):
        found, wanted = tried(attempt, code, seconds, 10.0), judge(code, seconds, 10.0)
        if not isinstance(found, str):
            raise wrong("it should return one of ok, slow, crash, hang and waiting")
        if found != wanted:
            why = f" ({reasons[code, found]})" if (code, found) in reasons else ""
            case = f"exit code {code} after {seconds:g} of 10 seconds"
            raise wrong(f"for {case} it says {found!r}, and {wanted!r} is right{why}")


def choose_mode(status: dict[str, str], world: tuple[str, ...], brain: tuple[str, ...]) -> str:
    """The highest mode in which a task can be played.

    Args:
        status: Of every component by name: "ok", "slow", "missing", "wrong_version", "import_error", "hang" or "crash".
        world: Components that the real environment needs.
        brain: Components that V, M and PPO need.
    """
    works = {name for name, each in status.items() if each in ("ok", "slow")}
    if not works.issuperset(world):
        return "simulation"
    return "full" if works.issuperset(brain) else "gym_only"


@check
def check_choose_mode(attempt: Callable) -> None:
    """Against the library's own choice for Pong, with one or two components in every state."""
    from wm_lib.doctor import ATARI, BRAIN, MODES, Component, Diagnosis

    states = ("ok", "slow", "missing", "wrong_version", "import_error", "hang", "crash")
    names = (*ATARI, *BRAIN)
    for a, b in product(names, names):
        for one, other in product(states, ("ok", "missing")):
            status = {**dict.fromkeys(names, "ok"), b: other, a: one}
            wanted = Diagnosis({"envpool": Component("ok"), **{n: Component(s) for n, s in status.items()}}).mode_for(
                "pong"
            )
            found = tried(attempt, status, ATARI, BRAIN)
            if isinstance(found, str) and found == wanted:
                continue
            if not isinstance(found, str) or found not in MODES:
                raise wrong(f"it says {' '.join(repr(found).split())}; the modes are {', '.join(MODES)}")
            case = ", ".join(f"{name} {each}" for name, each in status.items() if each != "ok") or "all is ok"
            why = ""
            if "slow" in status.values() and MODES.index(found) < MODES.index(wanted):
                why = " (what is slow works)"
            elif wanted == "simulation" and found == "gym_only":
                why = " (without a real environment there is nothing to play with in gym_only)"
            elif wanted == "gym_only" and found == "simulation":
                why = " (the real environment works; only the network is missing)"
            elif found == "full":
                why = " (everything must work for full, not only be installed)"
            raise wrong(f"for {case} it says {found!r}, and {wanted!r} is right{why}")
