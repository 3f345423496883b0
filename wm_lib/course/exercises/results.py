"""Notebook 08: how many starts, how sure a mean is, what a score cost, and an honest choice."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

from wm_lib.course.exercises import check, compare, tried
from wm_lib.evaluation import t_quantile


def distinct_starts(num_starts: int, num_seeds: int) -> float:
    """How many different starts so many seeds meet on average, if all starts are equally likely."""
    return num_starts * (1 - (1 - 1 / num_starts) ** num_seeds)


def interval(returns: np.ndarray) -> tuple[float, float]:
    """The 95 % interval (low, high) of the mean of returns (episodes,), by Student's t."""
    half = t_quantile(0.975, len(returns) - 1) * np.std(returns, ddof=1) / np.sqrt(len(returns))
    return float(np.mean(returns) - half), float(np.mean(returns) + half)


def real_decisions(parts: list[dict[str, Any]], action_repeat: int) -> int:
    """Decisions in the real environment; a part has `stage`, `world`, `unit` (decisions or frames) and `count`."""
    real = [part for part in parts if part["world"] == "real" and part["stage"] != "evaluate"]
    return sum(part["count"] // (action_repeat if part["unit"] == "frames" else 1) for part in real)


def honest_score(choosing: np.ndarray, measuring: np.ndarray) -> float:
    """What to report: returns (agents, episodes) for choosing the best agent, and others for measuring it."""
    best = choosing.mean(axis=1).argmax()
    return float(measuring[best].mean())


@check
def check_distinct_starts(attempt: Callable) -> None:
    """Against a chain that counts, seed by seed, how likely the next one is new."""
    for starts, seeds in ((31, 100), (31, 31), (10, 3), (1, 5)):
        wanted = 0.0
        for _ in range(seeds):
            wanted += (starts - wanted) / starts
        missed = (1 - 1 / starts) ** seeds
        mistakes = {
            "some starts come twice before others come once": min(starts, seeds),
            "that is how many are missed": starts * missed,
            "that is the share of the starts that is met; how many are they?": 1 - missed,
            "two seeds may meet the same start": seeds,
            "starts and seeds are exchanged": seeds * (1 - (1 - 1 / seeds) ** starts),
            "the chance to miss one start is a power of seeds, not a product": starts * (1 - seeds * (1 - 1 / starts)),
        }
        compare(tried(attempt, starts, seeds), wanted, mistakes, f"{starts} starts and {seeds} seeds")


@check
def check_interval(attempt: Callable) -> None:
    """With the t quantiles of tables, for few episodes."""
    for returns, t, one_sided in (
        ([3.0, 8.0, 1.0, 12.0, 6.0], 2.776445, 2.131847),
        ([10.0, 40.0], 12.706205, 6.313752),
    ):
        values, n = np.array(returns), len(returns)
        std, mean = values.std(ddof=1), values.mean()

        def around(half: float, mean: float = mean) -> list[float]:
            return [mean - half, mean + half]

        mistakes = {
            "std divides by n; for a sample it has to be n - 1, ddof=1": around(t * values.std() / math.sqrt(n)),
            "1.96 belongs to a Gaussian of known width; so few episodes need t_quantile": around(1.96 * std / n**0.5),
            "the Gaussian's quantile is for a known width; so few episodes need t_quantile": around(
                NormalDist().inv_cdf(0.975) * std / n**0.5
            ),
            "0.95 leaves 5 % on each side; two sides of 2.5 % want 0.975": around(one_sided * std / n**0.5),
            "that is about one episode; the mean of n is surer by the root of n": around(t * std),
            "divide by the root of n, not by n": around(t * std / n),
            "the degrees of freedom are n - 1": around(t_quantile(0.975, n) * std / n**0.5),
            "that is the mean plus and minus its standard error, without a quantile": around(std / n**0.5),
            "that is high before low": around(t * std / n**0.5)[::-1],
        }
        compare(tried(attempt, values), around(t * std / math.sqrt(n)), mistakes, f"the returns {returns}")


@check
def check_real_decisions(attempt: Callable) -> None:
    """Two rounds, with a dream and a measurement among them."""
    parts = [
        {"stage": "collect", "world": "real", "unit": "decisions", "count": 1000},
        {"stage": "controller", "world": "dream", "unit": "decisions", "count": 50_000},
        {"stage": "controller", "world": "real", "unit": "frames", "count": 8000},
        {"stage": "collect", "world": "real", "unit": "frames", "count": 1200},
        {"stage": "evaluate", "world": "real", "unit": "decisions", "count": 7},
    ]
    repeat = 4

    def total(without: str = "evaluate", dreams: bool = False, divisor: float = repeat) -> int:
        kept = [p for p in parts if p["stage"] not in without.split() and (dreams or p["world"] == "real")]
        return round(sum(p["count"] / (divisor if p["unit"] == "frames" else 1) for p in kept))

    mistakes = {
        "what is dreamt costs no real decision": total(dreams=True),
        "a frame is no decision: one decision is held for action_repeat of them": total(divisor=1),
        "a decision is several frames, so there are fewer decisions than frames, not more": total(divisor=1 / repeat),
        "what V and M learned from was decided in the real world, too": total("evaluate collect"),
        "measuring teaches nothing: it is no cost of learning": total(""),
        "only the frames are divided by action_repeat": sum(
            p["count"] // repeat for p in parts if p["world"] == "real" and p["stage"] != "evaluate"
        ),
        "that is what V and M learned from; C learned in the real world, too": total("evaluate controller"),
    }
    compare(tried(attempt, parts, repeat), total(), mistakes)


@check
def check_honest_score(attempt: Callable) -> None:
    """With another agent at the top of each set, and of the single episodes."""
    rng = np.random.default_rng(6)
    choosing, measuring = rng.normal(size=(8, 5)), rng.normal(size=(8, 6))
    choosing[2] += 3  # the best mean
    choosing[4, 0] += 6  # the best episode
    measuring[5] += 3  # the best in the other set
    chosen, measured = choosing.mean(1), measuring.mean(1)
    mistakes = {
        "that is the return that won: it was chosen because it is high, and will not come again": chosen.max(),
        "the agent is chosen by the very episodes that measure it": measured.max(),
        "the best single episode is luck; choose by the mean": choosing.max(),
        "the agent of the best single episode is chosen; choose by the mean": measured[choosing.max(1).argmax()],
        "that is the mean of all agents; report the chosen one": measured.mean(),
        "the episodes for choosing do not count again: they won": np.append(
            choosing[chosen.argmax()], measuring[chosen.argmax()]
        ).mean(),
        "that is the worst agent": measured[chosen.argmin()],
        "that is one episode of the chosen agent; take the mean": measuring[chosen.argmax()].max(),
    }
    compare(tried(attempt, choosing, measuring), measured[chosen.argmax()], mistakes)
