"""V, M and C put together into something that plays: frames in, actions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wm_lib.control.controller import Controller, Population
from wm_lib.errors import StageError
from wm_lib.models.world_model import WorldModel
from wm_lib.seeding import derive_seed

MIN_FEATURE_STD = 0.1


class Agent:
    """Plays `num_envs` environments side by side, with a memory for each.

    Args:
        world_model: What it sees and remembers with.
        controller: What chooses the action.
        num_envs: Rows of every batch.
        rngs: None for greedy actions; otherwise a generator for each row, from which its actions are sampled.

    Raises:
        StageError: The controller was made for a world model with other features.
    """

    def __init__(
        self,
        world_model: WorldModel,
        controller: Controller | Population,
        num_envs: int,
        rngs: Sequence[np.random.Generator] | None = None,
    ) -> None:
        if controller.feature_dim != world_model.feature_dim:
            raise StageError(
                f"the controller reads {controller.feature_dim} features and the world model has "
                f"{world_model.feature_dim}; train the controller on this world model, with the same recent_z"
            )
        self.world_model = world_model
        self.controller = controller
        self.rngs = None if rngs is None else list(rngs)
        self.h = world_model.initial_state(num_envs)

    def __call__(self, obs: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Choose the actions, then remember them.

        Args:
            obs: Frames uint8 (num_envs, 64, 64, 3).
            first: bool (num_envs,), whether the frame is the first of an episode.

        Returns:
            Actions int64 (num_envs,).
        """
        self.h = np.where(first[:, None], np.float32(0), self.h)
        z = self.world_model.encode(obs)
        features = self.world_model.features(z, self.h)
        action = self.controller.act(features, self.rngs)
        # Only now: the action at time t is chosen from the memory before (z_t, a_t) entered it (figure 8).
        self.h = self.world_model.step(z, action, self.h)
        return action

    def reset_slot(self, slot: int, seed: int) -> None:
        """Tie the sampled actions of one row to the seed of the episode that begins there."""
        if self.rngs is not None:
            self.rngs[slot] = np.random.default_rng(derive_seed(seed, "actions"))


def load_agent(paths: Mapping[str, Path]) -> tuple[WorldModel, Controller]:
    """World model and controller from their files: `vae` and `mdn_rnn`, or `reservoir`; and `controller`.

    Raises:
        StageError: A file is missing or damaged.
    """
    controller = Controller.load(paths["controller"])
    if "reservoir" in paths:
        from wm_lib.models.reservoir import Reservoir

        return Reservoir.load(paths["reservoir"]), controller
    from wm_lib.models.neural import NeuralWorldModel

    recent_z = controller.meta.get("recent_z", 1)
    return NeuralWorldModel.load(paths["vae"], paths["mdn_rnn"], recent_z), controller


def feature_statistics(world_model: WorldModel, latents: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means of what C would see on collected data and what to divide it by, each float32 (feature_dim,).

    Features are divided by their standard deviations, or by what the model's `units` makes of these.

    Args:
        world_model: V and M.
        latents: `mu` (sequences, time, z_dim), `action` and `first` (sequences, time), see `wm_lib.models.latents`.
    """
    h = world_model.initial_state(len(latents["mu"]))
    total = squares = np.zeros(world_model.feature_dim)
    for t in range(latents["mu"].shape[1]):
        h[latents["first"][:, t]] = 0
        z = latents["mu"][:, t]
        features = world_model.features(z, h).astype(np.float64)
        total, squares = total + features.sum(0), squares + np.square(features).sum(0)
        h = world_model.step(z, latents["action"][:, t], h)
    mean = total / latents["first"].size
    std = np.sqrt(np.maximum(squares / latents["first"].size - np.square(mean), 0))
    # What hardly ever moves in the data must not be blown up when it does.
    return mean.astype(np.float32), world_model.units(np.maximum(std, MIN_FEATURE_STD).astype(np.float32))


class FeatureAgent:
    """An agent for a dream, where the observation already is the features and the dream keeps the memory.

    Args: as for `Agent`; the world model and the number of environments are not needed.
    """

    def __init__(
        self,
        world_model: WorldModel,
        controller: Controller | Population,
        num_envs: int,
        rngs: Sequence[np.random.Generator] | None = None,
    ) -> None:
        self.controller = controller
        self.rngs = rngs

    def __call__(self, obs: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Actions int64 (num_envs,) for features float32 (num_envs, feature_dim)."""
        return self.controller.act(obs, self.rngs)


class RandomAgent:
    """The baseline: every action equally likely, at every decision anew."""

    def __init__(self, num_actions: int, num_envs: int) -> None:
        self.num_actions = num_actions
        self.rngs = [np.random.default_rng(slot) for slot in range(num_envs)]

    def __call__(self, obs: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Actions int64 (num_envs,); neither argument is looked at."""
        return np.array([rng.integers(self.num_actions) for rng in self.rngs])

    def reset_slot(self, slot: int, seed: int) -> None:
        """Tie the actions of one row to the seed of the episode that begins there."""
        self.rngs[slot] = np.random.default_rng(derive_seed(seed, "random actions"))
