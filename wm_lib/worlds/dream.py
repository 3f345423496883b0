"""The dream for libraries that speak Gymnasium; what it is stands in `wm_lib.worlds.dreaming`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wm_lib.errors import UsageError
from wm_lib.worlds.dreaming import Dreams


class DreamVectorEnv(Dreams, VectorEnv):
    """`Dreams` as a `gymnasium.vector.VectorEnv`; the arguments are the same."""

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.DISABLED}
    render_mode = "rgb_array"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.single_observation_space = Box(-np.inf, np.inf, (self.world_model.feature_dim,), np.float32)
        self.single_action_space = Discrete(self.num_actions)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """See `Dreams.step`; raises Gymnasium's ResetNeeded where `reset` was never called."""
        if not self._started:
            raise ResetNeeded("call reset() before the first step() of a dream")
        return super().step(actions)


class Dreamt:
    """What is left of V and M for an agent in a dream, where observations are features already: nothing.

    For `wm_lib.control.ppo.train_ppo`, which puts a world model between environment and controller.
    """

    def __init__(self, feature_dim: int) -> None:
        self.z_dim, self.feature_dim, self.state_dim = feature_dim, feature_dim, 0

    def initial_state(self, batch: int) -> np.ndarray:
        """float32 (batch, 0)."""
        return np.zeros((batch, 0), np.float32)

    def encode(self, obs: np.ndarray) -> np.ndarray:
        """The features (batch, feature_dim) themselves."""
        return obs

    def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        """The same again."""
        return z

    def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        """h as it was: the dream keeps the memory."""
        return h


class DreamEnv(gymnasium.Env):
    """One dream as a `gymnasium.Env`, for libraries that want single environments.

    Args:
        dreams: A vector of one dream.
        render_mode: "rgb_array" or None.

    Raises:
        UsageError: `dreams` holds more than one.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, dreams: DreamVectorEnv, render_mode: str | None = None) -> None:
        if dreams.num_envs != 1:
            raise UsageError(f"DreamEnv is one dream, found {dreams.num_envs}; use the DreamVectorEnv itself")
        self.dreams = dreams
        self.observation_space = dreams.single_observation_space
        self.action_space = dreams.single_action_space
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new dream; `seed` starts the randomness anew."""
        super().reset(seed=seed)
        obs, info = self.dreams.reset(seed=seed)
        return obs[0], info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One dreamt step."""
        obs, reward, terminated, truncated, info = self.dreams.step(np.array([action]))
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        """What V draws for the dream, uint8 (64, 64, 3); None without a render mode."""
        return self.dreams.render()[0] if self.render_mode == "rgb_array" else None
