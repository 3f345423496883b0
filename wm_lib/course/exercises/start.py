"""Notebook 00: what a training costs, and the order of things in one decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wm_lib.course.exercises import check, compare, tried, wrong


def real_decisions(ledger: list[dict]) -> int:
    """Decisions in the real world of all games together."""
    return sum(entry["games"] * entry["decisions"] for entry in ledger if entry["world"] == "real")


@check
def check_real_decisions(attempt: Callable) -> None:
    """On a ledger with dreams in it, where every decision is four frames."""
    rows = (("real", 8, 100, 4), ("dream", 64, 1000, 4), ("real", 3, 50, 4))
    ledger = [dict(zip(("world", "games", "decisions", "frames_per_decision"), row, strict=True)) for row in rows]
    mistakes = {
        "dreams are counted too; in a dream nobody asks the real world": 800 + 64_000 + 150,
        "the games are forgotten: each of them takes that many decisions": 150,
        "dreams are counted too, and the games are forgotten": 1150,
        "these are frames; several are played for one decision": 4 * 950,
        "only the first entry is counted": 800,
        "these are the decisions of the dreams": 64_000,
        "these are games": 11,
    }
    compare(tried(attempt, ledger), 950, mistakes, "8 games of 100 decisions, a dream, and 3 games of 50")
    compare(tried(attempt, []), 0, {}, "an empty ledger")


def play(see, remember, choose, world, frame, memory, num_decisions: int) -> list:
    """The actions that an agent takes, beginning with this frame and this memory.

    Args:
        see: V, `z = see(frame)`.
        remember: M, `memory = remember(z, action, memory)`.
        choose: C, `action = choose(z, memory)`.
        world: `frame = world(action)`.
        frame: What is seen first.
        memory: What is remembered at first.
        num_decisions: How often it decides.
    """
    actions = []
    for _ in range(num_decisions):
        z = see(frame)
        action = choose(z, memory)
        memory = remember(z, action, memory)
        frame = world(action)
        actions.append(action)
    return actions


@check
def check_play(attempt: Callable) -> None:
    """With parts that write down what they are asked: five decisions, and what each part was given."""
    for num_decisions in (1, 5):
        log: list[tuple] = []

        def see(frame: Any, log: list = log) -> tuple:
            log.append(("see", frame))
            return ("z", frame)

        def remember(z: Any, action: Any, memory: Any, log: list = log) -> tuple:
            log.append(("remember", z, action, memory))
            return ("h", sum(entry[0] == "remember" for entry in log))

        def choose(z: Any, memory: Any, log: list = log) -> str:
            log.append(("choose", z, memory))
            return f"a{sum(entry[0] == 'choose' for entry in log) - 1}"

        def world(action: Any, log: list = log) -> str:
            log.append(("world", action))
            return f"frame {sum(entry[0] == 'world' for entry in log)}"

        found = tried(attempt, see, remember, choose, world, "frame 0", ("h", 0), num_decisions)
        _in_order(log, num_decisions)
        if not isinstance(found, list) or found != [f"a{t}" for t in range(num_decisions)]:
            raise wrong("everything happens in its order, but the list of the actions is not what is returned")


def _in_order(log: list[tuple], num_decisions: int) -> None:
    """What the parts were given, beside what they should have been."""
    asked = {part: [entry[1:] for entry in log if entry[0] == part] for part in ("see", "choose", "remember", "world")}
    for part, name in {"choose": "C", "world": "the world"}.items():
        if len(asked[part]) != num_decisions:
            raise wrong(f"for {num_decisions} decisions {name} is asked {len(asked[part])} times")
    if not asked["remember"]:
        raise wrong("M is never asked: the memory stays as it was at first")
    names = [entry[0] for entry in log]
    if names.index("remember") < names.index("choose"):
        raise wrong("the memory is updated before C chooses: M wants the action, which is not chosen yet")
    for t, (z, memory) in enumerate(asked["choose"]):
        if z == ("z", "frame 0") and t:
            raise wrong("the first frame is looked at all the time: what the world returns is the next frame")
        if z == f"frame {t}":
            raise wrong("C is given the frame; it only knows z, which V makes of it")
        if z != ("z", f"frame {t}"):
            raise wrong(f"C chooses action {t} from {z!r}, and V's view of frame {t} is right")
        if memory == ("h", 0) and t:
            raise wrong("the memory is not kept: what M returns is the memory of the next decision")
        if memory != ("h", t):
            raise wrong(f"C chooses action {t} from the memory {memory!r}, and {('h', t)!r} is right")
    for t, (action,) in enumerate(asked["world"]):
        if action != f"a{t}":
            raise wrong(f"the world is given {action!r} where C chose 'a{t}'")
    for t, (z, action, memory) in enumerate(asked["remember"]):
        if z == ("z", f"frame {t + 1}"):
            raise wrong("M is given the next z; it remembers the z at which the action was chosen")
        if (z, action) != (("z", f"frame {t}"), f"a{t}"):
            raise wrong(f"M remembers {z!r} and {action!r} in decision {t}; z and action belong together")
        if memory != ("h", t):
            raise wrong(
                f"M is given the memory {memory!r} in decision {t}; it goes on from the one that it returned last"
            )
