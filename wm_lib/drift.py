"""Open loop: M reads some real steps, then goes on alone, told only the actions that were really taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from wm_lib.models.world_model import WorldModel

HORIZONS = (1, 5, 15, 50)


def dream_along(
    world_model: WorldModel,
    z: np.ndarray,
    action: np.ndarray,
    first: np.ndarray,
    num_steps: int,
    *,
    ended: np.ndarray | None = None,
    where: np.ndarray | None = None,
    num_starts: int = 128,
    warm_up: int = 32,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dreams of `num_steps` steps along real play, at temperature 0: always the likeliest future.

    Args:
        world_model: V and M; only the memory is used.
        z: Real latents, float32 (rows, time, z_dim).
        action: int64 (rows, time).
        first: bool (rows, time), whether an episode begins there.
        num_steps: Steps that are dreamt.
        ended: bool (rows, time), whether a life was lost there; none if None. A dream ends there, and what follows is a
            serve that nobody can foresee.
        where: bool (rows, time), the moments at which a dream may begin; all if None.
        num_starts: Dreams, from random moments after which the episode, and the life, goes on for as long.
        warm_up: Most real steps read before.
        seed: Seed of the moments.

    Returns:
        Row and time at which each dream began, int64 (num_dreams,), and the z it came to, float32 (num_dreams, z_dim);
        no dreams where no episode is long enough.
    """
    begins = np.array(first, bool)
    begins[:, 0] = True
    episode = begins.cumsum(1)
    last = max(0, z.shape[1] - num_steps)
    possible = episode[:, num_steps:] == episode[:, :last]
    if ended is not None:
        lost = np.cumsum(ended, axis=1) - ended  # before each moment
        possible &= lost[:, num_steps:] == lost[:, :last]
    if where is not None:
        possible &= where[:, :last]
    moments = np.argwhere(possible)
    if not len(moments):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, z.shape[2]), np.float32)
    # A generator for each number of steps: a figure does not depend on which others are asked for.
    rng = np.random.default_rng([seed, num_steps])
    row, start = moments[rng.choice(len(moments), min(num_starts, len(moments)), replace=False)].T
    h = world_model.initial_state(len(row))
    for back in range(min(warm_up, start.max()), 0, -1):
        t = np.maximum(start - back, 0)
        read = (start >= back) & (episode[row, t] == episode[row, start])
        h = np.where(read[:, None], world_model.step(z[row, t], action[row, t], h), h)
    now, dream = z[row, start], np.random.default_rng(seed)
    with np.errstate(all="ignore"):  # a dream may explode; that is what we want to know
        for step in range(num_steps):
            now, _, _, h = world_model.imagine(now, action[row, start + step], h, 0.0, dream)
    return row, start, now


def open_loop_error(
    world_model: WorldModel,
    latents: Mapping[str, np.ndarray],
    *,
    sequences: np.ndarray | None = None,
    horizons: Sequence[int] = HORIZONS,
    num_starts: int = 128,
    warm_up: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """How far a dream has strayed after k steps that were dreamt.

    Args:
        world_model, num_starts, warm_up, seed: See `dream_along`.
        latents: `mu`, `action`, `first` and `terminated`, see `wm_lib.models.latents`.
        sequences: Indices of the sequences to look at, best those held out; all if None.
        horizons: The numbers k of dreamt steps.

    Returns:
        `error_k` of the dream and `copy_k` of staying at the last real z, for each k that an episode is long enough
        for: roots of mean squares, per dimension of z; infinite if the dream is not finite. `spread`: the same
        of answering the mean of all these sequences.
    """
    index = np.arange(len(latents["mu"])) if sequences is None else np.asarray(sequences)
    mu, action = latents["mu"][index].astype(np.float32), latents["action"][index].astype(np.int64)
    first, ended = latents["first"][index], latents["terminated"][index]
    found = {"spread": rms(mu - mu.mean((0, 1), dtype=np.float64))}
    for k in sorted(horizons):
        row, start, dreamt = dream_along(
            world_model, mu, action, first, k, ended=ended, num_starts=num_starts, warm_up=warm_up, seed=seed
        )
        if len(row):
            goal = mu[row, start + k]
            found |= {f"error_{k}": rms(dreamt - goal), f"copy_{k}": rms(mu[row, start] - goal)}
    return found


def rms(difference: np.ndarray) -> float:
    """Root of the mean square; infinite for what is not finite."""
    with np.errstate(all="ignore"):
        value = float(np.sqrt(np.square(difference.astype(np.float64)).mean()))
    return value if math.isfinite(value) else math.inf
