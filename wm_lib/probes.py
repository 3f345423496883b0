"""Does z know where the ball is? Readings of z and h against the truth that the environments let out.

After Alain & Bengio (2016): a small model, the *probe*, learns to tell a known quantity from the latents alone and
is tested on episodes it has never seen. What a linear probe reads is easy to use, also for a small C; what only the
MLP reads is there, but hidden; and what neither reads better than the mean of the data is lost.

Both learn to make the absolute error small, of which the median is told: squares would bend them to the few frames
where an object is lost, and so tell an error for all the others which is the probe's own.

    truth = play(task, world_model, StickyRandom(task.num_actions, 8, seed=1))
    probe(truth["z"], truth["values"], truth["visible"], truth["episode"])
    -> {"ball_x": {"median_error": 0.8, "mean_baseline_error": 14.0, "r2": 0.98, ...}, ...}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from wm_lib.errors import UsageError
from wm_lib.models.world_model import WorldModel
from wm_lib.rollouts import Policy
from wm_lib.seeding import derive_seed
from wm_lib.tasks import Task
from wm_lib.worlds.truth import car_truth, ground_truth

Reader = Callable[[np.ndarray], np.ndarray]
"""What a probe has learnt: features (m, F) -> values (m, K)."""

_TEST_SHARE = 0.25
NUM_ENVS = 8  # in which a run is probed
_MIN_ROWS = 20  # to learn from and to be tested on; fewer say nothing
_RIDGE = 1e-3
_PASSES, _EXACT = 30, 0.01  # of the linear probe: weighted fits, and the error, in spreads of a value, that is none
_MIN_STD = 0.01  # what hardly moves is not blown up
_HIDDEN, _UPDATES, _BATCH, _LEARNING_RATE, _WEIGHT_DECAY = 128, 3000, 256, 3e-3, 1e-2  # of the MLP


def play(
    task: Task,
    world_model: WorldModel,
    policy: Policy,
    num_envs: int = NUM_ENVS,
    num_decisions: int = 512,
    seed: int = 0,
    backend: str = "auto",
) -> dict[str, np.ndarray]:
    """Play and write down what the world model sees beside the truth.

    Args:
        task: What to play. CarRacing needs num_envs=1 and is played on the Gymnasium path.
        world_model: V and M. To probe V alone, give it an M that was not trained and use `z` only.
        policy: Plays `num_envs` environments at once.
        num_envs: Environments side by side.
        num_decisions: Decisions of each environment. Testing wants four episodes at least.
        seed: Seed of the environments.
        backend: See `make_env`.

    Returns:
        Arrays (num_envs, num_decisions, ...): `z`; `features` (what C sees at z: z, the z before, and h, which has
        not read z yet); `action`, chosen there; `values` and `visible`, K columns as in `truth.names`; `episode`,
        int64, its number; and `lost`, bool, whether the action lost a life.

    Raises:
        UsageError: More than one environment of CarRacing, or one whose `info` has no truth.
    """
    from wm_lib.worlds.envs import make_env

    driving = task.name == "car-racing"
    if driving and num_envs != 1:
        raise UsageError(f"the truth about {task.name} can be had from one environment at a time; give num_envs=1")
    env = make_env(task, num_envs, derive_seed(seed, "probes"), "gymnasium" if driving else backend)

    def truth(info: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        found = car_truth(env.envs[0]) if driving else ground_truth(task, info)
        if found is None:
            raise UsageError(f"this environment of {task.name} says nothing about its state; use another backend")
        return found

    rows: dict[str, list[np.ndarray]] = {
        name: [] for name in ("z", "features", "action", "values", "visible", "episode", "lost")
    }
    try:
        obs, info = env.reset()
        values, visible = truth(info)
        first, episode = np.ones(num_envs, bool), np.full(num_envs, -1)
        h, lives = world_model.initial_state(num_envs), np.zeros(num_envs, int)
        for _ in range(num_decisions):
            episode[first] = episode.max() + 1 + np.arange(first.sum())
            h = np.where(first[:, None], np.float32(0), h)
            z = world_model.encode(obs)
            action = policy(obs, first)
            now = (z, world_model.features(z, h), action, values, visible, episode.copy())
            h = world_model.step(z, action, h)
            obs, _, terminated, truncated, info = env.step(action)
            before, lives = lives, info.get("lives", lives)
            for row, array in zip(rows.values(), (*now, lives < before), strict=True):
                row.append(array)
            values, visible = truth(info)
            first = terminated | truncated
            if first.any():
                obs, info = env.reset(options={"reset_mask": first})
                # Of the other environments this info says nothing.
                new_values, new_visible = truth(info)
                values = np.where(first[:, None], new_values, values)
                visible = np.where(first[:, None], new_visible, visible)
    finally:
        env.close()
    return {name: np.stack(row, axis=1) for name, row in rows.items()}


def changes(values: np.ndarray, visible: np.ndarray, episode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Velocities: how much each value changed since the decision before, for probing h.

    Args: arrays (num_envs, num_decisions, ...) of `play`.

    Returns:
        The changes, shaped like `values`, and where they are known: visible in both frames of the same episode.
    """
    change, known = np.zeros_like(values), np.zeros_like(visible)
    change[:, 1:] = np.diff(values, axis=1)
    known[:, 1:] = visible[:, 1:] & visible[:, :-1] & (episode[:, 1:] == episode[:, :-1])[..., None]
    return change, known


def split_episodes(episode: np.ndarray, seed: int = 0) -> np.ndarray:
    """True for the rows of the quarter of episodes (at least one) to test with; the shape of `episode`.

    Raises:
        UsageError: There are fewer than two episodes.
    """
    numbers = np.unique(episode)
    if len(numbers) < 2:
        raise UsageError("a probe needs two episodes at least, to learn from and to be tested on; play more decisions")
    shuffled = np.random.default_rng(seed).permutation(numbers)
    return np.isin(episode, shuffled[: max(1, round(_TEST_SHARE * len(numbers)))])


def learn(
    features: np.ndarray,
    values: np.ndarray,
    known: np.ndarray,
    *,
    kind: Literal["linear", "mlp"] = "linear",
    seed: int = 0,
) -> Reader:
    """A probe: a function from features (m, F) to values (m, K).

    Args:
        features: (n, F), for example z, or what C sees.
        values: (n, K).
        known: bool (n, K), the values to learn from; of a column without any, what is read means nothing.
        kind: "linear" (least absolute deviations) or "mlp" (two hidden layers of 128; needs torch).
        seed: Seed of the MLP.

    Raises:
        UsageError: Another kind.
    """
    if kind not in ("linear", "mlp"):
        raise UsageError(f"unknown probe '{kind}'; choose linear or mlp")
    centre, width = features.mean(0), np.maximum(features.std(0), _MIN_STD)
    mean, std = np.zeros(values.shape[1]), np.ones(values.shape[1])
    for k in np.flatnonzero(known.any(0)):
        mean[k], std[k] = values[known[:, k], k].mean(), values[known[:, k], k].std() or 1.0

    def standard(new: np.ndarray) -> np.ndarray:
        return np.clip((new - centre) / width, -10, 10)

    x, y = standard(features), (values - mean) / std
    read = _fit_linear(x, y, known) if kind == "linear" else _fit_mlp(x, y, known, seed)
    return lambda new: read(standard(new)) * std + mean


def probe(
    features: np.ndarray,
    values: np.ndarray,
    visible: np.ndarray,
    episode: np.ndarray,
    columns: tuple[str, ...] | None = None,
    *,
    kind: Literal["linear", "mlp"] = "linear",
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Learn to read `values` from `features` on three quarters of the episodes; tell how well it goes on the others.

    Args:
        features: (..., F), for example z, or what C sees.
        values: (..., K).
        visible: bool (..., K); the other rows are left out.
        episode: Integers (...).
        columns: Names of the K columns; "0", "1", ... if None.
        kind: "linear" (least absolute deviations) or "mlp" (two hidden layers of 128; needs torch).
        seed: Seed of the split and of the MLP.

    Returns:
        For each column `median_error` and `mean_baseline_error`, medians of the absolute error of the probe and of
        always answering the mean, in the units of the values; `p90_error`, which nine errors of ten stay below: what
        is lost now and then, such as a ball beside the paddle, no median tells; `r2`, the share of the variance
        explained (0 for the mean, negative when worse); and `num_test`. All but the last are None where fewer than 20
        rows to learn from or to be tested on are visible.

    Raises:
        UsageError: Another kind, or fewer than two episodes.
    """
    test = split_episodes(episode, seed).ravel()
    x = features.reshape(test.size, -1).astype(np.float64)
    y = values.reshape(test.size, -1).astype(np.float64)
    seen = visible.reshape(y.shape)
    columns = tuple(str(k) for k in range(y.shape[1])) if columns is None else columns
    enough = (seen[~test].sum(0) >= _MIN_ROWS) & (seen[test].sum(0) >= _MIN_ROWS)
    read = learn(x[~test], y[~test], seen[~test] & enough, kind=kind, seed=seed)
    predicted = read(x)
    mean = np.array([y[~test & seen[:, k], k].mean() if enough[k] else 0.0 for k in range(y.shape[1])])

    results: dict[str, dict[str, float | None]] = {}
    for k, name in enumerate(columns):
        rows = test & seen[:, k]
        results[name] = dict.fromkeys(("median_error", "p90_error", "mean_baseline_error", "r2"))
        results[name]["num_test"] = int(rows.sum())
        if enough[k]:
            truth = y[rows, k]
            error, baseline = predicted[rows, k] - truth, mean[k] - truth
            variance = np.square(truth - truth.mean()).sum()
            results[name] |= {
                "median_error": float(np.median(np.abs(error))),
                "p90_error": float(np.quantile(np.abs(error), 0.9)),
                "mean_baseline_error": float(np.median(np.abs(baseline))),
                "r2": float(1 - np.square(error).sum() / variance) if variance > 0 else None,
            }
    return results


def _fit_linear(x: np.ndarray, y: np.ndarray, known: np.ndarray) -> Reader:
    """A line to every column of y from the rows where it is known: the mean of |y - x w - b| + `_RIDGE` |w|^2 is least.

    By weighted least squares, again and again: a row's weight is one over its error before (Weiszfeld, 1937).
    """
    lines, penalty = np.zeros((x.shape[1] + 1, y.shape[1])), 2 * _RIDGE * np.eye(x.shape[1] + 1)
    penalty[-1, -1] = 0  # b is free
    for k in np.flatnonzero(known.any(0)):
        rows, target = np.column_stack([x, np.ones(len(x))])[known[:, k]], y[known[:, k], k]
        error = np.ones(len(rows))
        for _ in range(_PASSES):
            weighted = rows / np.maximum(np.abs(error), _EXACT)[:, None]
            lines[:, k] = np.linalg.solve(weighted.T @ rows + len(rows) * penalty, weighted.T @ target)
            error = target - rows @ lines[:, k]
    return lambda new: new @ lines[:-1] + lines[-1]


def _fit_mlp(x: np.ndarray, y: np.ndarray, known: np.ndarray, seed: int) -> Reader:
    """The same with one small network for all columns."""
    import torch
    from torch import nn

    rows = np.flatnonzero(known.any(1))
    rng = np.random.default_rng(derive_seed(seed, "probe"))
    inputs, targets, counts = (torch.from_numpy(a.astype(np.float32)) for a in (x, np.where(known, y, 0), known))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "probe"))
        net = nn.Sequential(
            nn.Linear(x.shape[1], _HIDDEN), nn.ReLU(),
            nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(),
            nn.Linear(_HIDDEN, y.shape[1]),
        )  # fmt: skip
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=_WEIGHT_DECAY)
    for step in range(_UPDATES if len(rows) else 0):
        optimiser.param_groups[0]["lr"] = _LEARNING_RATE * (1 - step / _UPDATES)
        batch = torch.from_numpy(rng.choice(rows, _BATCH))
        error = (net(inputs[batch]) - targets[batch]) * counts[batch]
        loss = error.abs().sum() / counts[batch].sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    @torch.no_grad()
    def read(new: np.ndarray) -> np.ndarray:
        return net(torch.from_numpy(new.astype(np.float32))).numpy().astype(np.float64)

    return read
