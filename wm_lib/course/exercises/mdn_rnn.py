"""Notebook 04: what M is asked and what it answers, the temperature of a mixture, and its likelihood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from wm_lib.course.exercises import check, compare, tried, wrong

OF_THE_LIBRARY = ("mdn_nll",)


def __getattr__(name: str) -> Any:
    """Solutions that are the library's own, imported when asked for: they need torch."""
    if name not in OF_THE_LIBRARY:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from wm_lib.models import mdn_rnn

    return getattr(mdn_rnn, name)


def line_up(
    z: np.ndarray, action: np.ndarray, done: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What M reads and what it should answer, from `time` rows of play that may hold several episodes.

    Row t of `z` (time, z_dim) was seen, then `action[t]` was taken, and `done[t]` says whether it ended the episode.

    Returns:
        z and action that M reads, z that it should predict, and bool `known`: whether that z follows at all. Each has
        time - 1 rows.
    """
    return z[:-1], action[:-1], z[1:], ~done[:-1]


@check
def check_line_up(attempt: Callable) -> None:
    """On two episodes and the beginning of a third."""
    rng = np.random.default_rng(0)
    z, action = rng.normal(size=(9, 2)), rng.permutation(9)
    done = np.isin(np.arange(9), (3, 7))
    found = tried(attempt, z, action, done)
    if not isinstance(found, tuple | list) or len(found) != 4:
        raise wrong("four arrays are asked for: z, action, z_next, known")
    if any(np.shape(part)[:1] == (9,) for part in found):
        raise wrong("there are as many rows as were given, but the last one has no next z: leave it out")
    early = "that is the action of the next row: a_t, chosen at z_t, leads to z_{t+1}"
    late = "the action is one row late, it is that of the row before: a_t, chosen at z_t, leads to z_{t+1}"
    read, taken, target, known = found
    compare(read, z[:-1], {"M reads the z that it should predict": z[1:]}, "the z that M reads")
    compare(taken, action[:-1], {early: action[1:], late: np.roll(action, 1)[:-1]}, "the actions")
    compare(target, z[1:], {"M is asked for the z that it has just read": z[:-1]}, "the z to predict")
    mistakes = {
        "`known` is turned round: it is true where the next z follows": done[:-1],
        "the end of an episode is forgotten: the row after it is the start of another one": np.ones(8, bool),
        "`known` is one row too late: done[t] says that nothing follows row t": ~done[1:],
        "`known` is one row too late and turned round": done[1:],
        "one row too many is left out: the first row of an episode has a next one": ~(done[:-1] | done[1:]),
    }
    compare(np.asarray(known).astype(bool), ~done[:-1], mistakes, "`known`")


def at_temperature(log_pi: np.ndarray, log_sigma: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and widths of a mixture (..., num_mixtures) at a temperature above 0."""
    scaled = log_pi / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True), np.exp(log_sigma) * np.sqrt(temperature)


@check
def check_at_temperature(attempt: Callable) -> None:
    """At temperatures on both sides of 1, and at one so small that a careless exponential becomes 0."""
    rng = np.random.default_rng(1)
    log_sigma = rng.normal(size=(3, 4))
    pi = rng.dirichlet(np.ones(4), 3)
    log_pi, sigma = np.log(pi), np.exp(log_sigma)

    def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
        weights = np.exp(logits - logits.max(axis, keepdims=True))
        return weights / weights.sum(axis, keepdims=True)

    for tau in (0.5, 2.0):
        found = tried(attempt, log_pi, log_sigma, tau)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise wrong("two arrays are asked for: the weights and the widths")
        about_pi = {
            "the weights do not change: divide log_pi by the temperature before you normalise": pi,
            "a high temperature makes the likeliest likelier: divide log_pi by it, do not multiply": softmax(
                log_pi * tau
            ),
            "the temperature divides the weights; it should divide their logarithms": pi / tau,
            "that is a softmax of the weights; it should be one of their logarithms": softmax(pi / tau),
            "the weights do not sum to 1": np.exp(log_pi / tau),
            "the weights are normalised over the wrong axis; the mixture is the last one": softmax(log_pi / tau, 0),
            "the weights are still logarithms": np.log(softmax(log_pi / tau)),
            "log_pi is divided by the root of the temperature; the root is for the widths": softmax(
                log_pi / np.sqrt(tau)
            ),
        }
        compare(found[0], softmax(log_pi / tau), about_pi, f"the weights at temperature {tau}")
        about_sigma = {
            "the widths do not change; each is multiplied by the root of the temperature": sigma,
            "the widths are multiplied by the temperature; that is for the variance, σ gets its root": sigma * tau,
            "the temperature is applied to log σ; take the exponential first": np.exp(log_sigma * np.sqrt(tau)),
            "the temperature is applied to log σ; take the exponential first, then multiply by the root": np.exp(
                log_sigma / tau
            ),
            "log_sigma is taken for σ; take its exponential first": log_sigma * np.sqrt(tau),
            "a high temperature makes the widths smaller; multiply, do not divide": sigma / np.sqrt(tau),
            "the widths are still logarithms": log_sigma + 0.5 * np.log(tau),
        }
        compare(found[1], sigma * np.sqrt(tau), about_sigma, f"the widths at temperature {tau}")
    with np.errstate(all="ignore"):
        cold = np.asarray(tried(attempt, log_pi, log_sigma, 1e-5)[0])
    if not np.isfinite(cold).all():
        raise wrong("at temperature 0.00001 every exponential is 0, and 0 / 0 is no weight: subtract the maximum first")
    compare(cold, softmax(log_pi / 1e-5), {}, "the weights at temperature 0.00001")


@check
def check_mdn_nll(attempt: Callable) -> None:
    """Against the library's, whose own test asks another library; and far away from every mean."""
    import torch

    from wm_lib.models.mdn_rnn import HALF_LOG_2PI, mdn_nll

    rng = np.random.default_rng(2)
    raw, mu, s = rng.normal(size=(3, 2, 3, 4, 5))
    z = rng.normal(size=(2, 3, 4))
    lp = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    wanted = mdn_nll(*map(torch.from_numpy, (lp, mu, s, z))).numpy()
    square = ((z[..., None] - mu) / np.exp(s)) ** 2
    density = -0.5 * square - s - HALF_LOG_2PI

    def lse(x: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.log(np.exp(x).sum(axis))

    each = -lse(lp + density)
    off = (z[..., None] - mu) / s
    mistakes = {
        "the sign is turned: a likely z should cost little": -wanted,
        "it is the mean over z; sum over its dimensions": each.mean(-1),
        "the sum over the dimensions of z is missing": each,
        "it is one number for everything; give one for each step, (batch, time)": each.sum(-1).mean(),
        "½ log 2π is missing": wanted - 4 * HALF_LOG_2PI,
        "− log σ is missing: a wide Gaussian is a low one": -lse(lp + density + s).sum(-1),
        "log σ has the wrong sign: a wide Gaussian is a low one": -lse(lp + density + 2 * s).sum(-1),
        "the ½ before the square is missing": -lse(lp + density - 0.5 * square).sum(-1),
        "the distance is not squared": -lse(lp - 0.5 * np.sqrt(square) - s - HALF_LOG_2PI).sum(-1),
        "the distance is not divided by σ": -lse(lp - 0.5 * (z[..., None] - mu) ** 2 - s - HALF_LOG_2PI).sum(-1),
        "log_sigma is taken for σ where the distance is divided; take its exponential first": -lse(
            lp - 0.5 * off**2 - s - HALF_LOG_2PI
        ).sum(-1),
        "log_sigma is taken for the logarithm of the variance; it is that of σ": -lse(
            lp - 0.5 * (z[..., None] - mu) ** 2 / np.exp(s) - 0.5 * s - HALF_LOG_2PI
        ).sum(-1),
        "log_pi is missing: all components weigh alike": -lse(density).sum(-1),
        "log_pi is taken for the weights themselves: add it to the log densities": -lse(np.exp(lp) + density).sum(-1),
        "that is the mean of the logarithms; the mixture asks for the logarithm of the mean (logsumexp)": -(
            np.exp(lp) * density
        ).sum((-1, -2)),
        "the log densities are summed over the mixture; add up the densities (logsumexp)": -(lp + density).sum(
            (-1, -2)
        ),
        "only the nearest component counts; all of them do (logsumexp)": -(lp + density).max(-1).sum(-1),
        "the logarithm is missing: that is minus the density": -np.exp(lp + density).sum(-1).sum(-1),
        "logsumexp goes over z, and the sum over the mixture; swap the two axes": -lse(lp + density, -2).sum(-1),
        "z is summed within the logarithm: there is one mixture for every dimension of z": -lse((lp + density).sum(-2)),
    }
    compare(tried(attempt, *map(torch.from_numpy, (lp, mu, s, z))), wanted, mistakes)
    far = torch.from_numpy(z + 1000)
    found = tried(attempt, *map(torch.from_numpy, (lp, mu, np.zeros_like(s))), far)
    if not np.isfinite(np.asarray(found)).all():
        raise wrong("far from every mean all densities are 0, and log 0 is no loss: use logsumexp of their logarithms")
    compare(found, mdn_nll(*map(torch.from_numpy, (lp, mu, np.zeros_like(s))), far), {}, "a z far from every mean")
