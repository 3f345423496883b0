"""Notebook 05: how many weights, an action drawn by chance, luck that is shared, and who deserves the reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from wm_lib.course.exercises import Verdict, check, compare, tried, wrong


def __getattr__(name: str) -> Any:
    """`num_params` is the library's own."""
    if name != "num_params":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from wm_lib.control.controller import num_params

    return num_params


def draw_action(logits: np.ndarray, uniform: float) -> int:
    """An action of the softmax of logits (num_actions,), from a uniform number in [0, 1)."""
    weights = np.exp(logits - logits.max())
    bounds = np.cumsum(weights / weights.sum())
    return int((uniform >= bounds[:-1]).sum())


def error_of_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Standard error of mean(a) - mean(b), returns (episodes,) of two candidates in the same episodes."""
    return float((a - b).std(ddof=1) / np.sqrt(len(a)))


def advantages(
    reward: np.ndarray, value: np.ndarray, done: np.ndarray, last_value: float, gamma: float, lam: float
) -> np.ndarray:
    """Advantages (time,) by GAE; `done` is true where an episode ended, `last_value` belongs to what follows."""
    found, following = np.zeros(len(reward)), 0.0
    for t in reversed(range(len(reward))):
        next_value = value[t + 1] if t + 1 < len(value) else last_value
        delta = reward[t] + gamma * next_value * (1 - done[t]) - value[t]
        following = delta + gamma * lam * (1 - done[t]) * following
        found[t] = following
    return found


@check
def check_num_params(attempt: Callable) -> None:
    """The paper's case first, then others."""
    for features, actions in ((288, 3), (80, 4), (5, 1)):
        mistakes = {
            "the biases are missing, one for each action": features * actions,
            "a bias belongs to an action, not to a feature": features * actions + features,
            "there is one bias for each action, not one for all": features * actions + 1,
        }
        case = f"{features} features and {actions} actions"
        compare(tried(attempt, features, actions), (features + 1) * actions, mistakes, case)


@check
def check_draw_action(attempt: Callable) -> None:
    """Close to every bound between two actions, also with logits whose exponential is no float."""
    rows = (np.log([0.2, 0.5, 0.3]), np.log([2.0, 3.0, 5.0]), np.array([0.0, 1.0, -1.0, 0.5]))
    for logits in rows:
        share = np.exp(logits) / np.exp(logits).sum()
        bounds = np.cumsum(share)
        draws = [0.0, *(b + side for b in bounds[:-1] for side in (-1e-3, 1e-3)), 0.999]
        wanted = [int(np.searchsorted(bounds, u, side="right")) for u in draws]
        found = [tried(attempt, logits, u) for u in draws]
        linear = np.cumsum(logits / logits.sum())
        raw = np.cumsum(np.exp(logits))
        mistakes = {
            "that is always the favourite; it is to be drawn by chance": [int(logits.argmax())] * len(draws),
            "one too many: action 0 lies below the first bound": [w + 1 for w in wanted],
            "draws and bounds are compared the wrong way round": [len(logits) - 1 - w for w in wanted],
            "the exponentials are not divided by their sum": [min(int((u >= raw).sum()), len(raw) - 1) for u in draws],
            "logits are no probabilities, take their exponentials first": [
                int((u >= linear[:-1]).sum()) for u in draws
            ],
            "a draw is compared with the shares; add them up to bounds first": [
                int((u >= share[:-1]).sum()) for u in draws
            ],
        }
        compare(found, wanted, mistakes, f"the logits {logits.round(2).tolist()}")
    for shift in (1000.0, -1000.0):
        try:
            with np.errstate(all="ignore"):
                found = tried(attempt, np.array([0.0, 1.0, 0.0]) + shift, 0.5)
        except Verdict:
            found = None
        if not np.array_equal(found, 1):
            raise wrong(f"right for small logits, not for logits near {shift:g}: subtract the maximum before exp")
    try:
        with np.errstate(all="ignore"):
            found = tried(attempt, np.array([0.0, 0.0, 0.0, 5000.0, 5000.0]), 0.75)
    except Verdict:
        found = None
    if not np.array_equal(found, 4):
        raise wrong("right for small logits, not where some are far above others: subtract the maximum, nothing else")


@check
def check_error_of_difference(attempt: Callable) -> None:
    """For returns that hang on the episode more than on the candidate."""
    rng = np.random.default_rng(0)
    episode = rng.normal(0, 20, 12)
    a, b = episode + rng.normal(3, 2, 12), episode + rng.normal(0, 2, 12)
    apart = a - b
    n = len(a)
    mistakes = {
        "the episodes are treated as if each candidate had its own; take the difference episode by episode": np.sqrt(
            (a.var(ddof=1) + b.var(ddof=1)) / n
        ),
        "that is the spread of one difference; the mean of n is surer by the root of n": apart.std(ddof=1),
        "divide by the root of n, not by n": apart.std(ddof=1) / n,
        "that is a variance; take its root": apart.var(ddof=1) / n,
        "std divides by n; for a sample it has to be n - 1, ddof=1": apart.std() / np.sqrt(n),
        "that is the difference itself; how sure is it?": apart.mean(),
    }
    compare(tried(attempt, a, b), apart.std(ddof=1) / np.sqrt(n), mistakes)


@check
def check_advantages(attempt: Callable) -> None:
    """Against the sum over the episode's own future, for a rollout of two episodes and the start of a third."""
    rng = np.random.default_rng(2)
    reward, value = rng.normal(size=(2, 9))
    done = np.zeros(9, bool)
    done[[3, 6]] = True
    last, gamma, lam = 0.7, 0.9, 0.8

    def gae(in_delta: np.ndarray, in_sum: np.ndarray, gamma: float = gamma, lam: float = lam) -> np.ndarray:
        after = np.append(value[1:], last)
        delta = reward + gamma * after * ~in_delta - value
        found = np.zeros(9)
        for t in range(9):
            for k in range(t, 9):
                if in_sum[t:k].any():
                    break
                found[t] += (gamma * lam) ** (k - t) * delta[k]
        return found

    never, late = np.zeros(9, bool), np.append(False, done[:-1])
    wanted = gae(done, done)
    mistakes = {
        "done is forgotten: what happens after an episode is no merit of its actions": gae(never, never),
        "after done the next value still counts: mask it in delta, too": gae(never, done),
        "after done the sum goes on into the next episode: mask it there, too": gae(done, never),
        "done[t] says that the episode ended with reward[t]; the mask is one row too late": gae(late, late),
        "lam is missing in the sum": gae(done, done, lam=1.0),
        "that is delta alone; the later ones are missing": gae(done, done, lam=0.0),
        "that is the return to come; take the value off": wanted + value,
        "the last row goes on, too: what follows it is worth last_value": gae(np.append(done[:-1], True), done),
    }
    compare(tried(attempt, reward, value, done, last, gamma, lam), wanted, mistakes)
