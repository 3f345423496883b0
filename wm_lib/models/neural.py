"""V and M of the paper, the two networks, as one world model that speaks NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wm_lib.errors import UsageError
from wm_lib.models import training
from wm_lib.models.mdn_rnn import MDNRNN, load_mdn_rnn, sample_mdn
from wm_lib.models.places import REACH
from wm_lib.models.vae import VAE, load_vae

# C sees places in units of four pixels (the frame goes from -REACH to REACH), and of the rest a fraction of its spread:
# PPO's optimiser moves all weights alike, and hundreds of inputs that say little would drown the few that say all.
PLACE_UNIT, REST = REACH / 8, 1 / 32


class NeuralWorldModel:
    """A `WorldModel` of a VAE and an MDN-RNN.

    A row of the memory h is [LSTM h, LSTM c, previous z, the one before, ...], with one previous z at least, which M
    reads changes from; C sees [z, previous z, the one before, ..., LSTM h], the paper's [z, h] when `recent_z` is 1.

    Where V measures places, C sees of the earlier z the places only, and besides what it would spend most of its
    training on, learning to subtract: [z, earlier places, changes of the places, what is between one and the next,
    LSTM h], see `seen_of_places`. And what says a place counts far more than the rest (`units`).

    Args:
        vae: V.
        mdn_rnn: M, trained on the latents of this V.
        recent_z: How many of the latest z C sees, at least 1.
        bf16: Encode in bfloat16 where the processor is fast at it; for collecting experience, not for scores.

    Raises:
        UsageError: V and M differ in z_dim, or `recent_z` is below 1.
    """

    def __init__(self, vae: VAE, mdn_rnn: MDNRNN, recent_z: int = 1, bf16: bool = False) -> None:
        if vae.z_dim != mdn_rnn.z_dim:
            raise UsageError(f"V has z_dim {vae.z_dim}, M has {mdn_rnn.z_dim}; train M again on this V")
        if recent_z < 1:
            raise UsageError(f"controller.recent_z must be at least 1, found {recent_z}")
        self.vae, self.mdn_rnn, self.bf16 = vae.eval(), mdn_rnn.eval(), bf16
        self.z_dim = mdn_rnn.z_dim
        self.state_dim = 2 * mdn_rnn.rnn_size + max(1, recent_z - 1) * self.z_dim
        earlier = self.num_earlier = (recent_z - 1) * self.z_dim  # how many numbers of earlier z C sees
        named = 2 * vae.measured_places  # of z's numbers, those that say places
        if named:
            earlier = 2 * (recent_z - 1) * named + named - 2
        self.feature_dim = self.z_dim + earlier + mdn_rnn.rnn_size
        self.says_place = np.zeros(self.feature_dim, bool)
        if named:
            self.says_place[:named] = self.says_place[self.z_dim : self.z_dim + earlier] = True

    @classmethod
    def load(cls, vae_path: Path, mdn_rnn_path: Path, recent_z: int = 1, bf16: bool = False) -> NeuralWorldModel:
        """Read both networks; raises StageError where a file is missing or damaged."""
        return cls(load_vae(vae_path), load_mdn_rnn(mdn_rnn_path), recent_z, bf16)

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        """z float32 (batch, z_dim), the posterior's mean, of frames uint8 (batch, 64, 64, 3)."""
        if not self.bf16:
            return self.vae.encode(frames)[0].numpy()
        with training.fast_autocast():
            return self.vae.encode(frames)[0].float().numpy()

    @torch.inference_mode()
    def decode(self, z: np.ndarray) -> np.ndarray:
        """Frames uint8 (batch, 64, 64, 3) of z (batch, z_dim)."""
        pixels = self.vae.decode(torch.as_tensor(z, dtype=torch.float32))
        return pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    def initial_state(self, batch: int) -> np.ndarray:
        """Zeros, float32 (batch, state_dim)."""
        return np.zeros((batch, self.state_dim), np.float32)

    def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        """What C sees, float32 (batch, feature_dim)."""
        size, named = self.mdn_rnn.rnn_size, 2 * self.vae.measured_places
        earlier = h[:, 2 * size : 2 * size + self.num_earlier]
        if named:
            earlier = seen_of_places(z[:, :named], earlier.reshape(len(h), -1, self.z_dim)[:, :, :named])
        return np.concatenate([z, earlier, h[:, :size]], axis=1, dtype=np.float32)

    def units(self, spread: np.ndarray) -> np.ndarray:
        """What C's features are divided by, (feature_dim,), given their standard deviations on data."""
        if not self.vae.measured_places:
            return spread
        return np.where(self.says_place, np.float32(PLACE_UNIT), spread / REST)

    @torch.inference_mode()
    def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        """The memory (batch, state_dim) after z and the action chosen at z entered it."""
        return self._remember(z, h, self._lstm(z, action, h))

    @torch.inference_mode()
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

        Unless there is a threshold, the end of the episode is drawn from its logit / temperature, as the mixture's
        component is from its log weights: at 0 the dream ends when ending is the likelier.
        """
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        lstm_h, lstm_c = self._lstm(z, action, h)
        output, reward, logit = self.mdn_rnn.heads(lstm_h, torch.as_tensor(z, dtype=torch.float32))
        next_z = sample_mdn(*output, temperature, generator)
        logistic = torch.logit(torch.rand(logit.shape, generator=generator), eps=1e-7)
        if done_threshold is None:
            terminated = logistic * temperature < logit
        else:
            terminated = logit.sigmoid() > done_threshold
        return next_z.numpy(), reward.numpy(), terminated.numpy(), self._remember(z, h, (lstm_h, lstm_c))

    @torch.inference_mode()
    def predict(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, ...]:
        """What M expects after z and the action, from which `imagine` draws.

        Returns:
            `log_pi`, `mu` and `log_sigma` of the next z, each (batch, z_dim, num_mixtures); the reward (batch,) and
            the probability of the end (batch,).
        """
        lstm_h = self._lstm(z, action, h)[0]
        output, reward, logit = self.mdn_rnn.heads(lstm_h, torch.as_tensor(z, dtype=torch.float32))
        return tuple(tensor.numpy() for tensor in (*output, reward, logit.sigmoid()))

    def _lstm(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> tuple[Tensor, Tensor]:
        """The LSTM's next h and c, each (batch, rnn_size)."""
        size = self.mdn_rnn.rnn_size
        memory = torch.as_tensor(h, dtype=torch.float32)
        parts = memory[:, : 2 * size + self.z_dim].split([size, size, self.z_dim], dim=1)
        state = tuple(part.contiguous() for part in parts)
        z_t = torch.as_tensor(z, dtype=torch.float32)[:, None]
        action_t = torch.as_tensor(action, dtype=torch.int64)[:, None]
        return self.mdn_rnn.remember(z_t, action_t, state)[1][:2]

    def _remember(self, z: np.ndarray, h: np.ndarray, lstm: tuple[Tensor, Tensor]) -> np.ndarray:
        """Put the new row of h together: the LSTM's state, then z in front of the z before it."""
        size, depth = self.mdn_rnn.rnn_size, self.state_dim - 2 * self.mdn_rnn.rnn_size
        recent = np.concatenate([z, h[:, 2 * size :]], axis=1)[:, :depth]
        return np.concatenate([lstm[0].numpy(), lstm[1].numpy(), recent], axis=1, dtype=np.float32)


def seen_of_places(now: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """What C sees of places beside where they are now.

    Args:
        now: float32 (batch, 2 * num_places), x and y of each.
        earlier: (batch, n, 2 * num_places), one decision ago, two, ...; zeros before the episode began.

    Returns:
        (batch, 4 * n * num_places + 2 * (num_places - 1)): `earlier`; how far each place moved from one decision to the
        next, the latest first, 0 where one of the two is missing; and from each place to the next one.
    """
    known = earlier.any(2, keepdims=True)
    changes = (np.concatenate([now[:, None], earlier[:, :-1]], axis=1) - earlier) * known
    between = now[:, 2:] - now[:, :-2]
    return np.concatenate([earlier.reshape(len(now), -1), changes.reshape(len(now), -1), between], axis=1)
