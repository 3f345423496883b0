"""Notebook 03: a draw to learn from, the price of a message, numbers in use, pixels that matter, and where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from wm_lib.course.exercises import check, compare, tried, wrong

if TYPE_CHECKING:
    from torch import Tensor

OF_THE_LIBRARY = ("kl_divergence", "active_units", "foreground_weights", "soft_argmax")


def __getattr__(name: str) -> Any:
    """Solutions that are the library's own, imported when asked for: they need torch."""
    if name not in OF_THE_LIBRARY:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from wm_lib.models import places, vae

    return getattr(places if name == "soft_argmax" else vae, name)


def reparameterise(mu: Tensor, log_sigma: Tensor, noise: Tensor) -> Tensor:
    """z of V's posterior, (batch, z_dim), from noise of the standard Gaussian of the same shape."""
    return mu + log_sigma.exp() * noise


@check
def check_reparameterise(attempt: Callable) -> None:
    """Against the closed form, and whether a gradient comes back to both numbers."""
    import torch

    mu, log_sigma, noise = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    sigma = np.exp(log_sigma)
    mistakes = {
        "log_sigma is the logarithm of σ, take its exponential first": mu + log_sigma * noise,
        "exp(log_sigma / 2) would be right for the logarithm of the variance; ours is that of σ": mu
        + np.sqrt(sigma) * noise,
        "that is the variance; noise is multiplied by σ": mu + sigma**2 * noise,
        "mu is missing": sigma * noise,
        "σ is missing: the noise always has width 1": mu + noise,
        "there is no noise, so it is no draw": mu,
        "σ is added, and it should multiply the noise": mu + sigma + noise,
        "mu moves the cloud and σ widens it, not the other way round": sigma + mu * noise,
    }
    found = tried(attempt, *map(torch.from_numpy, (mu, log_sigma, noise)))
    again = tried(attempt, *map(torch.from_numpy, (mu, log_sigma, noise)))
    if isinstance(found, torch.Tensor) and isinstance(again, torch.Tensor) and not torch.equal(found, again):
        raise wrong("two calls with the same noise differ; use the noise that is given")
    compare(found, mu + sigma * noise, mistakes)
    for which in (0, 1):
        parameters = [torch.from_numpy(part) for part in (mu, log_sigma)]
        parameters[which].requires_grad_()
        if not getattr(tried(attempt, *parameters, torch.from_numpy(noise)), "requires_grad", False):
            name = ("mu", "log_sigma")[which]
            raise wrong(f"the numbers are right, but no gradient comes back to {name}: stay in torch, without detach")


@check
def check_kl_divergence(attempt: Callable) -> None:
    """Against the library's, whose own test integrates numerically."""
    import torch

    from wm_lib.models.vae import kl_divergence

    mu, s = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    wanted = kl_divergence(torch.from_numpy(mu), torch.from_numpy(s)).numpy()
    with np.errstate(invalid="ignore"):
        log_of_log = np.log(s)
    bracket = mu**2 + np.exp(2 * s) - 1
    mistakes = {
        "the ½ is missing": 2 * wanted,
        "the ½ is missing before mu² + σ² − 1": bracket - s,
        "the ½ does not belong to log σ, only to mu² + σ² − 1": 0.5 * (bracket - s),
        "the sign is turned; a KL divergence is never below 0": -wanted,
        "log_sigma is taken for the logarithm of the variance; it is that of σ": 0.5 * (mu**2 + np.exp(s) - 1 - s),
        "log_sigma is taken for σ; take its exponential first": 0.5 * (mu**2 + s**2 - 1) - log_of_log,
        "σ is not squared: the variance is exp(2 · log_sigma)": 0.5 * (mu**2 + np.exp(s) - 1) - s,
        "mu is not squared": 0.5 * (mu + np.exp(2 * s) - 1) - s,
        "the −1 is missing: for mu = 0 and σ = 1 nothing has to be paid": wanted + 0.5,
        "− log σ is missing": 0.5 * bracket,
        "that is the KL divergence the other way round, from N(0, 1) to the posterior": s
        + (1 + mu**2) / (2 * np.exp(2 * s))
        - 0.5,
        "it is summed over z already; give one number for each dimension": wanted.sum(1),
        "it is summed over the batch; give one number for each frame and dimension": wanted.sum(0),
        "it is summed over everything; give one number for each frame and dimension": wanted.sum(),
        "it is averaged over z; give one number for each dimension": wanted.mean(1),
        "it is averaged over everything; give one number for each frame and dimension": wanted.mean(),
    }
    compare(tried(attempt, torch.from_numpy(mu), torch.from_numpy(s)), wanted, mistakes)


@check
def check_active_units(attempt: Callable) -> None:
    """On latents of which a known number of units vary: (frames, z_dim), and (sequences, time, z_dim)."""
    scale = np.array([1.0, 0.5, 0.2, 0.05, 0.001, 0.0])  # the variance of the fourth is below the threshold
    rng = np.random.default_rng(2)
    mu = rng.normal(size=(40, 50, 6)) * scale + np.arange(6)  # and no mean is 0
    flat = mu.reshape(-1, 6)
    mistakes = {
        "that counts frames: the variance is taken over z, and should be taken over the data": (
            flat.var(axis=1) > 0.01
        ).sum(),
        "that compares σ with the threshold; take the variance": (flat.std(axis=0) > 0.01).sum(),
        "that counts numbers that are far from 0; a unit is active when it varies": (
            np.abs(flat.mean(axis=0)) > 0.01
        ).sum(),
        "that counts every unit that varies at all; the threshold is a variance of 0.01": (flat.var(axis=0) > 0).sum(),
        "it returned the variances; count those above the threshold": flat.var(axis=0),
        "it returned a yes or no for each unit; count them": flat.var(axis=0) > 0.01,
        "that counts the units that are not active": 3,
    }
    mistakes["that is the squared mean, not the variance: subtract the mean first"] = (
        np.square(flat).mean(axis=0) > 0.01
    ).sum()
    compare(tried(attempt, flat), 3, mistakes, "latents (frames, z_dim)")
    shaped = {
        "with (sequences, time, z_dim) the variance is taken over sequences only; flatten all but the last axis": (
            mu.var(axis=0) > 0.01
        ).sum()
    }
    compare(tried(attempt, mu), 3, shaped, "latents (sequences, time, z_dim)")


@check
def check_foreground_weights(attempt: Callable) -> None:
    """On frames with a bright thing, a dark one, a faint blue one, and noise below the threshold."""
    import torch

    from wm_lib.models.foreground import foreground_weights

    rng = np.random.default_rng(3)
    scenery = rng.integers(100, 120, (2, 64, 64, 3)).astype(np.uint8)
    frames = (scenery + rng.integers(-9, 10, scenery.shape)).astype(np.uint8)
    frames[0, 10:14, 20:24] = 255
    frames[0, 40, 40] = 0
    frames[1, 30:50, 30:50, 2] = scenery[1, 30:50, 30:50, 2] + 40
    case = torch.from_numpy(frames), torch.from_numpy(scenery), 5.0
    variants: dict[str, dict[str, Any]] = {
        "uint8 has no numbers below 0: 100 − 101 is 255 there; convert before you subtract": {"wrap": True},
        "only what is brighter than the scenery counts; what is darker differs too": {"brighter": True},
        "the differences of the colours are averaged; one colour that differs is enough": {"average": True},
        "that is everything that differs at all; the threshold is FOREGROUND_THRESHOLD": {"threshold": 0},
        "the margin is missing: pixels around what differs count too": {"margin": 0},
        "the margin reaches half as far as it should: a window of 2 · margin + 1 pixels has the pixel in its middle": {
            "margin": 1
        },
        "the weights of a frame should average 1": {"norm": ""},
        "the margin is missing, and the weights of a frame should average 1": {"margin": 0, "norm": ""},
        "the weights of the whole batch average 1; those of each frame should": {"norm": "batch"},
        "the weights of a frame sum to 1; they should average 1": {"norm": "sum"},
        "the foreground weighs 1 + weight; it should weigh `weight` times as much as the rest": {"extra": 1.0},
        "the rest weighs 0; it should weigh 1 before the weights are averaged": {"rest": 0.0},
    }
    mistakes = {why: _weights(frames, scenery, 5.0, **options) for why, options in variants.items()}
    wanted = foreground_weights(*case)
    mistakes["the last axis is missing: (batch, 64, 64, 1) is asked for, to multiply all colours"] = wanted[..., 0]
    compare(tried(attempt, *case), wanted, mistakes)


def _weights(
    frames: np.ndarray,
    scenery: np.ndarray,
    weight: float,
    *,
    wrap: bool = False,
    brighter: bool = False,
    average: bool = False,
    threshold: int = 25,
    margin: int = 3,
    norm: str = "frame",
    extra: float = 0.0,
    rest: float = 1.0,
) -> np.ndarray:
    """`foreground_weights` in NumPy, with what may go wrong in it."""
    difference = frames - scenery if wrap else frames.astype(int) - scenery
    if not brighter:
        difference = np.abs(difference)
    different = (difference.mean(3) if average else difference.max(3)) > threshold
    padded = np.pad(different, ((0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * margin + 1,) * 2, axis=(1, 2))
    weights = np.where(windows.any((3, 4)), weight + extra, rest)[..., None]
    if norm == "frame":
        return weights / weights.mean((1, 2, 3), keepdims=True)
    if norm == "sum":
        return weights / weights.sum((1, 2, 3), keepdims=True)
    return weights / weights.mean() if norm == "batch" else weights


@check
def check_soft_argmax(attempt: Callable) -> None:
    """On scores with one peak, with two, and with none; and whether a gradient comes back."""
    import torch

    rng = np.random.default_rng(4)
    score = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    score[0, 10, 40, 0] = score[1, 50, 5, 0] = 12.0
    score[:, 20, 30, 1], score[:, 60, 8, 1] = 11.0, 10.0
    middle = (np.arange(64) + 0.5) / 32 - 1

    def place(weight: np.ndarray, along: np.ndarray = middle) -> np.ndarray:
        return np.stack([np.einsum("byxk,x->bk", weight, along), np.einsum("byxk,y->bk", weight, along)], 2)

    def softmax(axes: tuple[int, ...]) -> np.ndarray:
        return np.exp(score) / np.exp(score).sum(axes, keepdims=True)

    weight = softmax((1, 2))
    wanted = place(weight)
    best = (score == score.max((1, 2), keepdims=True)).astype(np.float32)
    mistakes = {
        "x and y are swapped: rows come first in a picture, x first in a place": wanted[..., ::-1],
        "that is the brightest pixel alone, of which nothing can be learnt; take the mean over all": place(best),
        "that is in pixels; the picture runs from −1 to 1": place(weight, np.arange(64.0)),
        "the softmax is over the maps; it should be over the pixels of each": place(softmax((3,))),
        "the softmax is over each row alone; it should be over rows and columns": place(softmax((2,))),
        "the softmax is over each column alone; it should be over rows and columns": place(softmax((1,))),
        "the softmax is over the whole batch; it should be over the pixels of each map": place(softmax((0, 1, 2, 3))),
        "the scores themselves are the weights; take their softmax first": place(score),
        "the order is (batch, 2, K); (batch, K, 2) is asked for": wanted.transpose(0, 2, 1),
    }
    compare(tried(attempt, torch.from_numpy(score)), wanted, mistakes)
    if not getattr(tried(attempt, torch.from_numpy(score).requires_grad_()), "requires_grad", False):
        raise wrong("the numbers are right, but no gradient comes back to the scores: stay in torch, without detach")
