"""What V made of the data, as M reads it: windows of latents that know where the episodes begin.

Latents are a dict of arrays (sequences, time): `mu` and `log_sigma` (with a z_dim axis) of V's posterior at
each step, the `action` chosen there, and the `reward`, `terminated` and `truncated` that followed, where a lost
life counts as `terminated` too; `first` marks the first step of an episode.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wm_lib.errors import StageError
from wm_lib.events import Progress
from wm_lib.models import training
from wm_lib.models.vae import VAE
from wm_lib.rollouts import Rollouts

Latents = dict[str, np.ndarray]


@torch.inference_mode()
def encode_frames(
    vae: VAE, rollouts: Rollouts, batch_size: int = 512, old: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`mu` and `log_sigma` of every frame, float32 (num_sequences, length, z_dim); `old`: those of the first ones."""
    known = old or (np.empty((0, vae.z_dim), np.float32),) * 2
    mu, log_sigma = ([torch.from_numpy(part.reshape(-1, vae.z_dim))] for part in known)
    with Progress("encode", rollouts.num_frames, "frame", start=len(mu[0])) as progress:
        for start in range(len(mu[0]), rollouts.num_frames, batch_size):
            index = np.arange(start, min(start + batch_size, rollouts.num_frames))
            with training.fast_autocast():
                posterior = vae.encode(rollouts.gather(index))
            mu.append(posterior[0])
            log_sigma.append(posterior[1])
            progress.update(len(index))
    shape = (rollouts.num_sequences, rollouts.length, vae.z_dim)
    return torch.cat(mu).numpy().reshape(shape), torch.cat(log_sigma).numpy().reshape(shape)


def check_latents(latents: Latents) -> None:
    """Refuse numbers that would silently turn all of M into NaN.

    Raises:
        StageError: A latent or a reward is not finite; names the sequence, its row and the episode within it.
    """
    for name in ("mu", "log_sigma", "reward"):
        for sequence, values in enumerate(latents[name]):
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if bad.any():
                row = int(bad.argmax())
                episode = int(latents["first"][sequence, 1 : row + 1].sum())
                raise StageError(
                    f"the latents hold NaN or infinity: {name} of sequence {sequence}, row {row} "
                    f"(its episode {episode}); delete the latents and the VAE and run the same command again"
                )


def follows(latents: Latents, sequences: np.ndarray) -> np.ndarray:
    """Whether the row after each is the next step of the same life, bool (sequences, time - 1): what M is asked for."""
    return ~(latents["first"][sequences][:, 1:] | latents["terminated"][sequences][:, :-1].astype(bool))


class Batch(NamedTuple):
    """Windows of B sequences and L steps, ready for M.

    Attributes:
        z: Sampled from V's posterior, float32 (B, L, z_dim); 0 at borders.
        action: int64 (B, L).
        reward: float32 (B, L).
        terminated: float32 (B, L).
        border: bool (B, L); such a row is no step of any episode.
        z_next: z of the following row, (B, L, z_dim).
        has_next: bool (B, L); whether `z_next` is the next step of the same episode.
    """

    z: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    border: Tensor
    z_next: Tensor
    has_next: Tensor


class Stream:
    """The steps of some sequences laid end to end, with a border, an empty row, around every episode.

    Args:
        latents: What `train_mdn_rnn` takes.
        sequences: Indices of the sequences to read.
    """

    def __init__(self, latents: Latents, sequences: np.ndarray) -> None:
        num_sequences, length, z_dim = latents["mu"].shape
        self.mu = latents["mu"].reshape(-1, z_dim)
        self.log_sigma = latents["log_sigma"].reshape(-1, z_dim)
        self.action = latents["action"].reshape(-1)
        self.reward = latents["reward"].reshape(-1)
        self.terminated = latents["terminated"].reshape(-1).astype(bool)
        self.done = self.terminated | latents["truncated"].reshape(-1).astype(bool)
        first = np.array(latents["first"][sequences])
        first[:, 0] = True
        rows = (np.asarray(sequences)[:, None] * length + np.arange(length)).ravel()
        self.rows = np.append(np.insert(rows, np.flatnonzero(first), -1), -1)  # -1: a border

    def windows(self, num_windows: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """Random stretches of `length` steps and the row after them, (num_windows, at most length + 1)."""
        length = min(length, len(self.rows) - 1)
        start = rng.integers(len(self.rows) - length, size=num_windows)
        return self.rows[start[:, None] + np.arange(length + 1)]

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """Read rows (B, L + 1); z = mu + sigma * noise is drawn anew each time, so M learns V's doubts."""
        border = rows < 0
        noise = rng.standard_normal((*rows.shape, self.mu.shape[1]), dtype=np.float32)
        z = self.mu[rows] + np.exp(self.log_sigma[rows], dtype=np.float32) * noise
        z[border] = 0
        now = rows[:, :-1]
        return Batch(
            z=torch.from_numpy(z[:, :-1]),
            action=torch.from_numpy(self.action[now].astype(np.int64)),
            reward=torch.from_numpy(self.reward[now].astype(np.float32)),
            terminated=torch.from_numpy(self.terminated[now].astype(np.float32)),
            border=torch.from_numpy(border[:, :-1]),
            z_next=torch.from_numpy(z[:, 1:]),
            has_next=torch.from_numpy(~(border[:, :-1] | border[:, 1:] | self.done[now])),
        )
