"""What C asks of a world model. Whoever implements these methods can be played, dreamt in and evaluated."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class WorldModel(Protocol):
    """V and M behind NumPy arrays; rows are independent worlds.

    The memory h is opaque: one float32 row per world, whose layout only the model knows. The order within a
    decision is the paper's (figure 8): C sees `features(z, h)`, chooses the action, and only then do z and
    the action enter the memory through `step`. In a dream `imagine` does the same and returns the next z too.

    Attributes:
        z_dim: Size of the latent vector z.
        feature_dim: Number of values C sees.
        state_dim: Length of a row of h.
    """

    z_dim: int
    feature_dim: int
    state_dim: int

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """z float32 (batch, z_dim), the mean of V's posterior, of frames uint8 (batch, 64, 64, 3)."""
        ...

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Frames uint8 (batch, 64, 64, 3) that V draws for z (batch, z_dim)."""
        ...

    def initial_state(self, batch: int) -> np.ndarray:
        """The memory at the start of an episode: zeros, float32 (batch, state_dim)."""
        ...

    def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        """What C sees, float32 (batch, feature_dim), of z (batch, z_dim) and the h before z enters it."""
        ...

    def units(self, spread: np.ndarray) -> np.ndarray:
        """What features are divided by for C, float32 (feature_dim,), above 0, given their `spread` on data."""
        ...

    def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        """The new h (batch, state_dim) once z (batch, z_dim) and the action (batch,) entered it."""
        ...

    def imagine(
        self,
        z: np.ndarray,
        action: np.ndarray,
        h: np.ndarray,
        temperature: float,
        rng: np.random.Generator,
        done_threshold: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One dreamt step.

        Args:
            z: (batch, z_dim).
            action: Integers (batch,).
            h: (batch, state_dim).
            temperature: Uncertainty of the dream, at least 0; 1 the model's own, 0 only the likeliest future.
            rng: Source of the dream's randomness.
            done_threshold: Probability of the end above which the dream ends; None: it is drawn.

        Returns:
            The next z (batch, z_dim), reward float32 (batch,), terminated bool (batch,) and the new h.
        """
        ...
