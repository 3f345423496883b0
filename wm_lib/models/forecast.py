"""M beside simpler guesses, on whole sequences it was not trained on: surprise, reward and end.

A memory is worth its trouble where it beats guessing that nothing changes, and a line through this z and the action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wm_lib.models.latents import Batch, Latents, Stream, follows
from wm_lib.models.mdn_rnn import MDNRNN, MDNOutput, mdn_nll

EVALUATED_AT_ONCE = 16  # sequences
Rival = Callable[[Batch], MDNOutput]
"""Another prediction of the next z."""


@torch.inference_mode()
def evaluate_mdn_rnn(
    model: MDNRNN,
    latents: Latents,
    sequences: np.ndarray,
    seed: int = 0,
    rivals: Mapping[str, Rival] | None = None,
) -> dict[str, Any]:
    """How well M predicts whole sequences it was not trained on, beside guessing that nothing changes.

    Args:
        latents: What `train_mdn_rnn` takes.
        sequences: Indices of the sequences to predict; the copying baseline is fitted to all others.
        seed: Seed of the noise in z.
        rivals: Other predictions of the next z, by name.

    Returns:
        `nll` of M, `copy_last_nll` of a Gaussian around z_t and `<name>_nll` of each rival, in nats per step;
        `reward_mse` and `reward_variance` (what guessing the mean scores) in squared units of the reward; `done_nll`
        and `done_entropy` (what guessing the share of ends scores) in nats per step; `num_steps`; `reward_calibration`
        and `done_calibration`, what M said and what came, see `calibration`.
    """
    sequences = np.asarray(sequences)
    others = np.setdiff1d(np.arange(len(latents["mu"])), sequences)
    rng = np.random.default_rng(seed)
    predictors = {"copy_last": copy_last(latents, others if len(others) else sequences), **(rivals or {})}
    parts: dict[str, list[Tensor]] = {
        key: [] for key in ("nll", *predictors, "guess", "reward", "end", "ended", "done")
    }
    for start in range(0, len(sequences), EVALUATED_AT_ONCE):
        chunk = sequences[start : start + EVALUATED_AT_ONCE, None]
        streams = [Stream(latents, sequence) for sequence in chunk]
        rows = np.full((len(chunk), max(len(stream.rows) for stream in streams)), -1)
        for row, stream in zip(rows, streams, strict=True):
            row[: len(stream.rows)] = stream.rows
        batch = streams[0].batch(rows, rng)
        output, reward, logit, _ = model(batch.z, batch.action, border=batch.border)
        entropy = F.binary_cross_entropy_with_logits(logit, batch.terminated, reduction="none")
        parts["nll"].append(mdn_nll(*output, batch.z_next)[batch.has_next])
        for name, predict in predictors.items():
            parts[name].append(mdn_nll(*predict(batch), batch.z_next)[batch.has_next])
        steps = {"guess": reward, "reward": batch.reward, "end": logit, "ended": batch.terminated, "done": entropy}
        for name, values in steps.items():
            parts[name].append(values[~batch.border])
    whole = {key: torch.cat(values) for key, values in parts.items()}
    share = whole["ended"].mean()
    guess, came = whole["guess"].numpy(), whole["reward"].numpy()
    return {
        "nll": float(whole["nll"].mean()),
        **{f"{name}_nll": float(whole[name].mean()) for name in predictors},
        "reward_mse": float(np.square(guess - came).mean()),
        "reward_variance": float(came.var()),
        "done_nll": float(whole["done"].mean()),
        "done_entropy": float(F.binary_cross_entropy(share, share)),
        "num_steps": len(came),
        "reward_calibration": calibration(guess, came),
        "done_calibration": calibration(whole["end"].sigmoid().numpy(), whole["ended"].numpy()),
    }


def calibration(said: np.ndarray, came: np.ndarray, num_groups: int = 10) -> list[list[float]]:
    """What was said beside what came: of an honest forecast, the two agree in every group.

    Args:
        said: Predictions (n,).
        came: What then happened (n,).
        num_groups: Groups of equal size, by what was said. The last one is split three times more, since ends
            and rewards are rare.

    Returns:
        For each group the mean of what was said, of what came, and its size; fewer groups where there are few steps.
    """
    order = np.argsort(said, kind="stable")
    shares = [*(np.arange(1, num_groups) / num_groups), *(1 - 1 / num_groups / 4 ** np.arange(1, 4))]
    groups = np.split(order, np.unique((np.array(shares) * len(order)).astype(int)))
    return [[float(said[g].mean()), float(came[g].mean()), len(g)] for g in groups if len(g)]


def copy_last(latents: Latents, sequences: np.ndarray) -> Rival:
    """A Gaussian around this z, as wide as z changes in these sequences."""
    change = torch.from_numpy(log_change(latents, sequences))

    def predict(batch: Batch) -> MDNOutput:
        return _gaussian(batch.z, change)

    return predict


def linear(latents: Latents, sequences: np.ndarray, num_actions: int, seed: int = 0) -> Rival:
    """A Gaussian around what `linear_prediction` says, fitted to these sequences."""
    weights, log_sigma = map(torch.from_numpy, linear_prediction(latents, sequences, num_actions, seed))

    def predict(batch: Batch) -> MDNOutput:
        action = F.one_hot(batch.action, num_actions).float()
        return _gaussian(torch.cat([batch.z, action], dim=-1) @ weights, log_sigma)

    return predict


def _gaussian(mu: Tensor, log_sigma: Tensor) -> MDNOutput:
    """A mixture of one, for mu (batch, time, z_dim) and log_sigma (z_dim,)."""
    mu = mu[..., None]
    return MDNOutput(torch.zeros_like(mu), mu, log_sigma[:, None].expand_as(mu))


def log_change(latents: Latents, sequences: np.ndarray) -> np.ndarray:
    """Log of the root mean square of z_{t+1} - z_t within lives, float32 (z_dim,), over V's posterior."""
    mu = latents["mu"][sequences].astype(np.float64)
    variance = np.exp(2 * latents["log_sigma"][sequences].astype(np.float64))
    square = np.square(np.diff(mu, axis=1)) + variance[:, 1:] + variance[:, :-1]
    within = follows(latents, sequences)
    return (0.5 * np.log(square[within].mean(axis=0))).astype(np.float32)


def linear_prediction(
    latents: Latents, sequences: np.ndarray, num_actions: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of the next z on this z and the action, no memory: what M must beat to be worth its trouble.

    Returns:
        weights float32 (z_dim + num_actions, z_dim) for [z, one-hot action], and the log of the standard deviation of
        what they leave unexplained, float32 (z_dim,).
    """
    rng = np.random.default_rng(seed)
    mu, sigma = latents["mu"][sequences], np.exp(latents["log_sigma"][sequences])
    z = mu + sigma * rng.standard_normal(mu.shape, dtype=np.float32)
    within = follows(latents, sequences)
    action = np.eye(num_actions, dtype=np.float32)[latents["action"][sequences][:, :-1].astype(int)]
    x = np.concatenate([z[:, :-1], action], axis=-1)[within].astype(np.float64)
    y = z[:, 1:][within].astype(np.float64)
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    spread = np.sqrt(np.square(y - x @ weights).mean(0))
    return weights.astype(np.float32), np.log(np.maximum(spread, 1e-6)).astype(np.float32)
