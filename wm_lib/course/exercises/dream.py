"""Notebook 06: who cheats, a dream step by step, how long a dream lasts, and two rankings compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from wm_lib.course.exercises import NOT_YET, Verdict, check, compare, tried, wrong


def __getattr__(name: str) -> Any:
    """`spearman` is the library's own."""
    if name != "spearman":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from wm_lib.dreams import spearman

    return spearman


def cheats(asleep: np.ndarray, awake: np.ndarray, random_asleep: float, random_awake: float) -> np.ndarray:
    """Which controllers, bool (num,), are better than random play in the dream and not in reality."""
    return (asleep > random_asleep) & (awake <= random_awake)


def dream_return(z: Any, h: Any, act: Callable, imagine: Callable, horizon: int) -> float:
    """What a dream pays from z and h on, until it ends or has had `horizon` decisions."""
    total = 0.0
    for _ in range(horizon):
        z, reward, done, h = imagine(z, act(z, h), h)
        total += reward
        if done:
            break
    return total


def expected_length(end_probability: np.ndarray) -> float:
    """Decisions that a dream lasts on average; it ends after decision t with probability end_probability[t]."""
    still_there = np.cumprod(1 - end_probability)
    return float(1 + still_there[:-1].sum())


@check
def check_cheats(attempt: Callable) -> None:
    """With a dream that pays more than reality, so that returns of the two cannot be compared."""
    asleep, awake = np.array([90.0, 70, 90, 40, 120, 50]), np.array([0.0, -30, -25, -40, -20, 55])
    random_asleep, random_awake = 60.0, -20.0
    gains = asleep > random_asleep
    mistakes = {
        "a dream pays by its own rules: compare with random play in the same world": asleep > awake,
        "reality is not asked": gains,
        "the dream is not asked: who is bad in both worlds does not cheat": awake <= random_awake,
        "that is who is better in both worlds": gains & (awake > random_awake),
        "no better than random play is no gain, also when it is equal": gains & (awake < random_awake),
        "each random play belongs to its own world, they are exchanged": (asleep > random_awake)
        & (awake <= random_asleep),
        "a smaller gain awake is no cheating yet: is there any?": asleep - random_asleep > awake - random_awake,
    }
    compare(tried(attempt, asleep, awake, random_asleep, random_awake), gains & (awake <= random_awake), mistakes)


@check
def check_dream_return(attempt: Callable) -> None:
    """In a dream of whole numbers, where every slip changes the sum."""

    def act(z: int, h: int) -> int:
        return (z + 2 * h) % 3

    def ending(end: int) -> Callable:
        """A world model whose dreams end at this z."""

        def imagine(z: int, action: int, h: int) -> tuple[int, float, bool, int]:
            after = (3 * z + 5 * action + h + 1) % 17
            return after, float(after + 10 * action + h / 8), after == end, (h + z + action) % 7

        return imagine

    def played(change: str, horizon: int, imagine: Callable) -> float:
        z, h, total = 2, 1, 0.0
        first = act(z, h)
        for _ in range(horizon):
            action = first if change == "action" else act(z, 0 if change == "blind" else h)
            next_z, reward, done, next_h = imagine(z, action, h)
            if done and change == "last":
                break
            total = reward if change == "sum" else total + reward
            z, h = z if change == "z" else next_z, h if change == "h" else next_h
            if done and change != "done":
                break
        return total

    endless = ending(-1)
    z, h = 2, 1
    for _ in range(3):
        z, _, _, h = endless(z, act(z, h), h)
    for imagine, horizon in ((endless, 6), (ending(z), 6), (endless, 1)):
        mistakes = {
            "the dream goes on after its end": played("done", horizon, imagine),
            "the last reward belongs to the dream, too": played("last", horizon, imagine),
            "the memory h stays as it was: take the one that imagine returns": played("h", horizon, imagine),
            "z stays as it was: take the one that imagine returns": played("z", horizon, imagine),
            "the action is chosen once; it has to be chosen anew from each z and h": played("action", horizon, imagine),
            "the action does not see h": played("blind", horizon, imagine),
            "that is the last reward; add them up": played("sum", horizon, imagine),
            "it is one decision too few": played("", horizon - 1, imagine),
            "it is one decision too many": played("", horizon + 1, imagine),
        }
        compare(tried(attempt, 2, 1, act, imagine, horizon), played("", horizon, imagine), mistakes)


@check
def check_expected_length(attempt: Callable) -> None:
    """Against the sum over all lengths, each with its probability."""
    for chances in ([0.4, 0.4, 0.4, 0.4], [0.1, 0.6, 0.2, 0.05, 0.3], [0.0, 0.0, 0.0], [1.0, 0.5]):
        p = np.array(chances)
        n = len(p)
        alive = np.concatenate([[1.0], np.cumprod(1 - p)])  # before each decision, and after the last
        lasts = alive[:-1] * p
        lasts[-1] = alive[-2]  # the horizon cuts off what is left
        above = np.flatnonzero(p > 0.5)
        mistakes = {
            "a decision that ends the dream is one of it: the first is always made": alive[1:].sum(),
            "dreams that reach the horizon are forgotten": ((1 + np.arange(n)) * alive[:-1] * p).sum(),
            "the end is drawn; with a threshold of 0.5 this dream outlives what M believes": float(
                above[0] + 1 if len(above) else n
            ),
            "1/p would be right without a horizon and with the same p always": 1 / p.mean() if p.any() else np.inf,
            "the chance to be still there is a product of all the chances before, not of one": (1 - p).sum(),
            "the horizon itself is no decision: one too many": alive.sum(),
            "that is the chance to reach the horizon": alive[-1],
        }
        compare(tried(attempt, p), ((1 + np.arange(n)) * lasts).sum(), mistakes, f"the probabilities {chances}")


@check
def check_spearman(attempt: Callable) -> None:
    """Against ranks counted by comparing all pairs; with outliers, and with equal values."""
    rng = np.random.default_rng(4)
    a = rng.normal(size=12)
    pairs = [(a, np.exp(3 * a + rng.normal(size=12))), (np.round(a), np.round(2 * rng.normal(size=12) + a))]
    for x, y in pairs:
        ranks = [(v[:, None] > v).sum(1) + ((v[:, None] == v).sum(1) + 1) / 2 for v in (x, y)]
        wanted = np.corrcoef(*ranks)[0, 1]
        orders = np.argsort(x, kind="stable"), np.argsort(y, kind="stable")
        places = [np.argsort(order) for order in orders]
        mistakes = {
            "that is Pearson's correlation of the values; take it of their ranks": np.corrcoef(x, y)[0, 1],
            "argsort says which value comes first, not which rank a value has": np.corrcoef(*orders)[0, 1],
            "equal values have to share a rank": np.corrcoef(*places)[0, 1],
            "the sign is turned: the ranks of one run the other way": -wanted,
        }
        compare(tried(attempt, x, y), wanted, mistakes)
    try:
        with np.errstate(all="ignore"):
            tried(attempt, np.ones(4), np.arange(4.0))
    except Verdict as verdict:
        if str(verdict) == NOT_YET:  # None, as it should be
            return
    raise wrong("where all values of one are equal there is no ranking: return None")
