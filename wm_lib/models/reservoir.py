"""A world model without gradients, in NumPy: principal components for V, an echo-state reservoir for M.

After Chang & Futagami (2019), "Reinforcement learning with convolutional reservoir computing", who drove CarRacing on
a memory that was never trained. V is a projection: the frame less the mean frame, averaged over patches and blurred,
on its principal components. (Sharp ones fold the path of a small ball many times, blurred ones hardly.) M's memory is
a fixed random network,

    h' = (1 - leak) h + leak tanh(W_z z + W_a a + W h),

which forgets where it started (the echo-state property) and so holds a blurred picture of the recent past. Only linear
heads are learnt, by ridge regression in closed form: the change of z, the reward and the end from [1, z, a, h'], and,
for C before it acts, the change of z over the next few decisions from [1, z, h].

Everything is fitted from sums over the data, which is read in pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from wm_lib import checkpoints
from wm_lib.errors import StageError
from wm_lib.events import Progress
from wm_lib.models.regression import Moments, moments_of, principal_components
from wm_lib.rollouts import Rollouts
from wm_lib.seeding import derive_seed
from wm_lib.settings import ReservoirConfig
from wm_lib.tasks import FRAME_SIZE

PATCH = 4  # pixels
SIDE = FRAME_SIZE // PATCH
NUM_PATCHES = SIDE * SIDE * 3
FRAMES_AT_ONCE = 1024
STEPS_AT_ONCE = 64
EVENNESS = 0.5  # 0: the components of z keep their sizes; 1: all have the same; the faint ones hold the noise
MARGIN = 0.25  # of the range of z in the data; a dream may go as far beyond it
INPUTS = 0.5  # standard deviation of what z and the action bring into a unit of the reservoir


def blur() -> np.ndarray:
    """What blurs the patches of a frame, symmetric (NUM_PATCHES, NUM_PATCHES): [1 2 1] / 4 along both axes, thrice."""
    line = np.linalg.matrix_power((2 * np.eye(SIDE) + np.eye(SIDE, k=1) + np.eye(SIDE, k=-1)) / 4, 3)
    return np.kron(np.kron(line, line), np.eye(3))


def echo_state(size: int, num_inputs: int, spectral_radius: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random weights of a reservoir: W (size, size), sparse, and W_in (num_inputs, size), for rows as vectors.

    About ten connections lead into a unit. W is scaled to the spectral radius: below 1 the memory fades.
    """
    rng = np.random.default_rng(seed)
    recurrent = rng.standard_normal((size, size)) * (rng.random((size, size)) < min(1.0, 10 / size))
    radius = np.abs(np.linalg.eigvals(recurrent)).max()
    recurrent *= spectral_radius / max(radius, 1e-12)
    inputs = rng.standard_normal((num_inputs, size)) * INPUTS / np.sqrt(num_inputs)
    return recurrent.astype(np.float32), inputs.astype(np.float32)


@dataclass(eq=False)
class Reservoir:
    """A `WorldModel` of principal components and an echo-state memory; made by `fit_reservoir`.

    A row of the memory h is the reservoir's state. C sees [z, the change of z that the memory expects over the next
    decisions], each of about unit size.

    Attributes:
        mean: The mean frame, float32 (64, 64, 3) in [0, 1], taken off every frame.
        encoder: From patches to z, float32 (NUM_PATCHES, z_dim).
        decoder: From z to patches, float32 (z_dim, NUM_PATCHES).
        recurrent, inputs: W and W_in, float32 (size, size) and (z_dim + num_actions, size).
        leak: Share of h that is renewed at a step, in (0, 1].
        heads: float32 (1 + z_dim + num_actions + size, z_dim + 2): change of z, reward, end.
        noise: Standard deviation of what the heads leave unexplained of z, float32 (z_dim,).
        foresight: float32 (1 + z_dim + size, z_dim), for C.
        low, high: Bounds of a dream's z, float32 (z_dim,).
    """

    mean: np.ndarray
    encoder: np.ndarray
    decoder: np.ndarray
    recurrent: np.ndarray
    inputs: np.ndarray
    leak: np.ndarray
    heads: np.ndarray
    noise: np.ndarray
    foresight: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        self.z_dim, self.state_dim = self.encoder.shape[1], len(self.recurrent)
        self.num_actions = len(self.inputs) - self.z_dim
        self.feature_dim = 2 * self.z_dim
        # One matrix from pixels to z: averaging over patches is linear too.
        spread = self.encoder.reshape(SIDE, SIDE, 3, self.z_dim).repeat(PATCH, 0).repeat(PATCH, 1) / (255 * PATCH**2)
        self._pixels = np.ascontiguousarray(spread.reshape(-1, self.z_dim), np.float32)
        self._offset = 255 * self.mean.reshape(-1) @ self._pixels

    @property
    def num_params(self) -> int:
        """Numbers that the data decided; the reservoir's own are random."""
        return sum(array.size for array in (self.encoder, self.heads, self.foresight))

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """z float32 (batch, z_dim) of frames uint8 (batch, 64, 64, 3)."""
        return frames.reshape(len(frames), -1).astype(np.float32) @ self._pixels - self._offset

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Frames uint8 (batch, 64, 64, 3) of z (batch, z_dim), as fine as the patches."""
        patches = (z @ self.decoder).reshape(-1, SIDE, SIDE, 3)
        frames = self.mean + patches.repeat(PATCH, axis=1).repeat(PATCH, axis=2)
        return np.rint(255 * frames.clip(0, 1)).astype(np.uint8)

    def initial_state(self, batch: int) -> np.ndarray:
        """Zeros, float32 (batch, state_dim)."""
        return np.zeros((batch, self.state_dim), np.float32)

    def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        """The memory (batch, state_dim) after z and the action chosen at z entered it."""
        drive = z @ self.inputs[: self.z_dim] + self.inputs[self.z_dim :][action] + h @ self.recurrent
        return ((1 - self.leak) * h + self.leak * np.tanh(drive)).astype(np.float32)

    def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        """What C sees, float32 (batch, feature_dim)."""
        return np.concatenate([z, _expectations(z, h) @ self.foresight], axis=1, dtype=np.float32)

    def units(self, spread: np.ndarray) -> np.ndarray:
        """Every feature is seen in its own spread."""
        return spread

    def imagine(
        self,
        z: np.ndarray,
        action: np.ndarray,
        h: np.ndarray,
        temperature: float,
        rng: np.random.Generator,
        done_threshold: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One dreamt step: next z, reward, terminated and the new memory.

        The noise of z is scaled by the root of the temperature; at 0 it is the prediction itself, and the dream ends
        when that is the likelier.
        """
        h = self.step(z, action, h)
        change, reward, end = np.split(self._consequences(z, action, h) @ self.heads, [self.z_dim, self.z_dim + 1], 1)
        noise = np.sqrt(temperature) * self.noise * rng.standard_normal(z.shape, dtype=np.float32)
        next_z = np.clip(z + change + noise, self.low, self.high).astype(np.float32)
        probability = np.clip(end[:, 0], 1e-6, 1 - 1e-6)
        if done_threshold is None:
            # The end is drawn from its logit / temperature, as the neural model's is.
            terminated = temperature * rng.logistic(size=len(z)) < np.log(probability / (1 - probability))
        else:
            terminated = probability > done_threshold
        return next_z, reward[:, 0].astype(np.float32), terminated, h

    def _consequences(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        """What the heads read once z and the action are in the memory h: [1, z, action, h]."""
        one_hot = np.eye(self.num_actions, dtype=np.float32)[action]
        return np.concatenate([np.ones((len(z), 1), np.float32), z, one_hot, h], axis=1)

    def save(self, path: Path, meta: dict[str, Any]) -> str:
        """Write it; returns the file's sha256."""
        tensors = {each.name: getattr(self, each.name) for each in fields(self)}
        return checkpoints.save(path, tensors, {"kind": "reservoir", **meta})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            StageError: The file is missing, damaged, or not a reservoir.
        """
        tensors, _ = checkpoints.load(path)
        try:
            return cls(**tensors)
        except (TypeError, ValueError) as error:
            raise StageError(f"{path} is not a reservoir ({error}); delete it and fit it again") from error


def _expectations(z: np.ndarray, h: np.ndarray) -> np.ndarray:
    """What the foresight reads before C acts: [1, z, h]."""
    return np.concatenate([np.ones((len(z), 1), np.float32), z, h], axis=1)


def patches(frames: np.ndarray) -> np.ndarray:
    """Averages over patches, float32 (batch, NUM_PATCHES) in [0, 1], of frames uint8 (batch, 64, 64, 3)."""
    rows = frames.reshape(-1, SIDE, PATCH, FRAME_SIZE * 3).sum(2, dtype=np.uint16)
    sums = rows.reshape(-1, SIDE, SIDE, PATCH, 3).sum(3, dtype=np.uint16)
    return sums.reshape(len(frames), -1) / np.float32(255 * PATCH**2)


def fit_reservoir(
    data: Rollouts, config: ReservoirConfig, *, num_actions: int, seed: int
) -> tuple[Reservoir, dict[str, np.ndarray], dict[str, float]]:
    """Fit V and M to collected data; every tenth sequence is held out.

    Args:
        data: Frames, actions, rewards and ends.
        config: The settings.
        num_actions: Number of actions of the task.
        seed: Of the run.

    Returns:
        The model; latents as M reads them (see `wm_lib.models.latents`; there is no log_sigma, this V has no doubts);
        and the facts of `measure` on the held-out sequences.
    """
    train, held_out = data.split()
    with Progress("fit the reservoir", (len(train) + data.num_sequences) * data.length, "frame") as progress:
        model = _eyes(data, train, config, num_actions, seed, progress)
        mu = np.empty((data.num_frames, config.z_dim), np.float32)
        for start in range(0, data.num_frames, FRAMES_AT_ONCE):
            index = np.arange(start, min(start + FRAMES_AT_ONCE, data.num_frames))
            mu[index] = model.encode(data.gather(index))
            progress.update(len(index))
        latents = {"mu": mu.reshape(data.num_sequences, data.length, -1)}
        latents |= data.steps()
        low, high = mu.min(0), mu.max(0)
        model.low, model.high = low - MARGIN * (high - low), high + MARGIN * (high - low)
        fit_heads(model, latents, train, config)
    return model, latents, measure(model, latents, held_out)


def _eyes(
    data: Rollouts, train: np.ndarray, config: ReservoirConfig, num_actions: int, seed: int, progress: Progress
) -> Reservoir:
    """V of the training sequences, and a memory whose heads are not fitted yet."""
    rows = (train[:, None] * data.length + np.arange(data.length)).ravel()
    total = np.zeros((FRAME_SIZE, FRAME_SIZE, 3))

    def chunks() -> Iterable[np.ndarray]:
        for start in range(0, len(rows), FRAMES_AT_ONCE):
            frames = data.gather(rows[start : start + FRAMES_AT_ONCE])
            np.add(total, frames.sum(0, dtype=np.int64), out=total)
            yield patches(frames)
            progress.update(len(frames))

    _, covariance = moments_of(chunks())
    blurred = blur()
    directions, variance = principal_components(blurred @ covariance @ blurred, config.z_dim)
    std = np.sqrt(np.maximum(variance, 1e-12 * max(variance[0], 1e-12)))
    scale = (std / std[0]) ** (1 - EVENNESS) / std
    encoder = blurred @ directions.T * scale
    # The sharp patches that fit z best, by least squares: cov(patches, z) / var(z).
    decoder = (covariance @ encoder / np.maximum(scale**2 * variance, 1e-12)).T
    recurrent, inputs = echo_state(
        config.size, config.z_dim + num_actions, config.spectral_radius, derive_seed(seed, "reservoir")
    )
    dim_x, z_dim = 1 + config.z_dim + num_actions + config.size, config.z_dim
    zeros = np.zeros(z_dim, np.float32)
    return Reservoir(
        mean=(total / len(rows) / 255).astype(np.float32),
        encoder=encoder.astype(np.float32),
        decoder=decoder.astype(np.float32),
        recurrent=recurrent,
        inputs=inputs,
        leak=np.float32(config.leak),
        heads=np.zeros((dim_x, z_dim + 2), np.float32),
        noise=zeros,
        foresight=np.zeros((dim_x - num_actions, z_dim), np.float32),
        low=zeros,
        high=zeros,
    )


def remember(
    model: Reservoir, latents: dict[str, np.ndarray], sequences: np.ndarray
) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Lead the memory through sequences side by side, `STEPS_AT_ONCE` steps at a time.

    Yields:
        The times of the piece (L,), the memory before each step and after it, both float32 (L, sequences, size).
    """
    h = model.initial_state(len(sequences))
    length = latents["action"].shape[1]
    for start in range(0, length, STEPS_AT_ONCE):
        times = np.arange(start, min(start + STEPS_AT_ONCE, length))
        before, after = (np.empty((len(times), *h.shape), np.float32) for _ in range(2))
        for i, t in enumerate(times):
            before[i] = np.where(latents["first"][sequences, t, None], np.float32(0), h)
            after[i] = h = model.step(latents["mu"][sequences, t], latents["action"][sequences, t], before[i])
        yield times, before, after


def fit_heads(model: Reservoir, latents: dict[str, np.ndarray], sequences: np.ndarray, config: ReservoirConfig) -> None:
    """Set the model's heads, its noise and its foresight by ridge regression on these sequences."""
    z_dim, ahead = model.z_dim, config.foresight
    change, outcome = Moments(len(model.heads), z_dim), Moments(len(model.heads), 2)
    foresight = Moments(len(model.foresight), z_dim)
    mu, action = latents["mu"][sequences], latents["action"][sequences]
    paid = np.stack([latents["reward"][sequences], latents["terminated"][sequences]], axis=-1)
    episode = latents["first"][sequences].cumsum(1)
    for times, before, after in remember(model, latents, sequences):
        z, a = mu[:, times].swapaxes(0, 1), action[:, times].T
        x = model._consequences(z.reshape(-1, z_dim), a.ravel(), after.reshape(-1, model.state_dim))
        outcome.add(x, paid[:, times].swapaxes(0, 1).reshape(-1, 2))
        within, y = _changes(mu, episode, times, 1)
        change.add(x[within], y[within])
        within, y = _changes(mu, episode, times, ahead)
        foresight.add(_expectations(z.reshape(-1, z_dim), before.reshape(-1, model.state_dim))[within], y[within])
    weights = change.ridge(config.ridge)
    model.noise = change.residual_std(weights).astype(np.float32)
    model.heads = np.concatenate([weights, outcome.ridge(config.ridge)], axis=1).astype(np.float32)
    weights = foresight.ridge(config.ridge)
    # Divided by the size of what it foresees, so that C gets numbers of about unit size.
    size = np.sqrt(np.maximum(foresight.yy / max(foresight.count, 1), 1e-12)).mean()
    model.foresight = (weights / size).astype(np.float32)


def _changes(mu: np.ndarray, episode: np.ndarray, times: np.ndarray, ahead: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether the episode goes on for so many steps, bool (L * sequences,), and z then less z now, as many rows."""
    later = np.minimum(times + ahead, mu.shape[1] - 1)
    within = (times + ahead < mu.shape[1]) & (episode[:, times] == episode[:, later])
    return within.T.ravel(), (mu[:, later] - mu[:, times]).swapaxes(0, 1).reshape(-1, mu.shape[2])


def measure(model: Reservoir, latents: dict[str, np.ndarray], sequences: np.ndarray) -> dict[str, float]:
    """How well the model predicts sequences, best ones it was not fitted to.

    Returns:
        `z_mse` and `copy_mse`, mean squared errors of the next z as predicted and of the last z, per component;
        `reward_mse` and `reward_variance`; `num_steps`; `num_params`, as `Reservoir.num_params` counts them.
    """
    mu, action, reward = (latents[name][sequences] for name in ("mu", "action", "reward"))
    episode = latents["first"][sequences].cumsum(1)
    errors, copies, rewards, count = 0.0, 0.0, 0.0, 0
    for times, _, after in remember(model, latents, sequences):
        z, a = mu[:, times].swapaxes(0, 1).reshape(-1, model.z_dim), action[:, times].T.ravel()
        said = model._consequences(z, a, after.reshape(-1, model.state_dim)) @ model.heads
        within, y = _changes(mu, episode, times, 1)
        errors += float(np.square(said[:, : model.z_dim] - y)[within].sum())
        copies += float(np.square(y[within]).sum())
        count += int(within.sum())
        rewards += float(np.square(said[:, model.z_dim] - reward[:, times].T.ravel()).sum())
    return {
        "z_mse": errors / max(count, 1) / model.z_dim,
        "copy_mse": copies / max(count, 1) / model.z_dim,
        "reward_mse": rewards / reward.size,
        "reward_variance": float(reward.var()),
        "num_steps": count,
        "num_params": model.num_params,
    }
