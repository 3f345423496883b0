"""The dream: M in place of the world, behind the same vector interface as the real environments.

Section 4 of Ha & Schmidhuber (2018). An episode starts at a z that V saw in the real world, with an empty
memory; from there every z, reward and ending is drawn from M. What the agent observes is `features(z, h)`, so
that a controller trained here fits the real world as it is.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wm_lib.errors import UsageError
from wm_lib.models.world_model import WorldModel


class DreamVectorEnv(VectorEnv):
    """Many dreams in one batch: observations float32 (num_envs, feature_dim), actions integers (num_envs,).

    Resets are explicit, as in `wm_lib.worlds.envs.make_env`: `reset(options={"reset_mask": done})` starts new
    dreams where the mask is true, and a finished dream that is not reset stands still, pays 0 and repeats its
    flags. An episode terminates when M says so and is truncated after `horizon` steps.

    Args:
        world_model: Any `WorldModel`.
        start_z: float32 (M, z_dim), latents of real frames; each episode starts at one of them.
        num_envs: Number of dreams, at least 1.
        horizon: Steps after which a dream is cut off, at least 1.
        temperature: Uncertainty of the dream, at least 0; above 1 is the paper's remedy against an agent that
            exploits the flaws of M.
        num_actions: Number of discrete actions.
        seed: Seed of everything drawn, until `reset(seed=...)` gives another.
        done_threshold: Probability of the end, as M sees it, above which a dream terminates, in [0, 1]; None: it is
            drawn. Ends are rare, and a draw at every step ends long dreams by chance.

    Attributes:
        z: What the dreams look like now, float32 (num_envs, z_dim).
        h: The model's memory now, float32 (num_envs, state_dim).

    Raises:
        UsageError: An argument is out of range or `start_z` has the wrong shape.
    """

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.DISABLED}
    render_mode = "rgb_array"

    def __init__(
        self,
        world_model: WorldModel,
        start_z: np.ndarray,
        num_envs: int,
        horizon: int,
        temperature: float,
        num_actions: int,
        seed: int,
        done_threshold: float | None = None,
    ) -> None:
        start_z = np.asarray(start_z, np.float32)
        if start_z.ndim != 2 or not len(start_z) or start_z.shape[1] != world_model.z_dim:
            raise UsageError(f"start_z must be (at least 1, {world_model.z_dim}), found {start_z.shape}")
        if not np.isfinite(start_z).all():
            raise UsageError("start_z holds NaN or infinity; encode the frames again")
        for name, value in (("num_envs", num_envs), ("horizon", horizon), ("num_actions", num_actions)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, found {value}")
        if not (np.isfinite(temperature) and temperature >= 0):
            raise UsageError(f"temperature must be a finite number >= 0, found {temperature}")
        if done_threshold is not None and not 0 <= done_threshold <= 1:
            raise UsageError(f"done_threshold must be from 0 to 1, found {done_threshold}")
        self.world_model, self.start_z, self.done_threshold = world_model, start_z, done_threshold
        self.num_envs, self.horizon, self.temperature = num_envs, horizon, float(temperature)
        self.single_observation_space = Box(-np.inf, np.inf, (world_model.feature_dim,), np.float32)
        self.single_action_space = Discrete(num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._np_random, self._np_random_seed = seeding.np_random(seed)
        self.z = np.zeros((num_envs, world_model.z_dim), np.float32)
        self.h = world_model.initial_state(num_envs)
        self._steps = np.zeros(num_envs, np.int64)
        self._terminated = np.zeros(num_envs, bool)
        self._truncated = np.zeros(num_envs, bool)
        self._started = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new dreams, everywhere or where `options["reset_mask"]` (bool (num_envs,)) is true.

        Returns:
            The observations of all dreams, those not in the mask unchanged, and an empty dict.

        Raises:
            UsageError: The mask has the wrong shape or type.
        """
        super().reset(seed=seed)
        mask = (options or {}).get("reset_mask")
        if mask is None:
            mask = np.ones(self.num_envs, bool)
        elif not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise UsageError(f"reset_mask must be a bool array of shape ({self.num_envs},)")
        count = int(mask.sum())
        self.z[mask] = self.start_z[self.np_random.integers(len(self.start_z), size=count)]
        self.h[mask] = self.world_model.initial_state(count)
        self._steps[mask] = 0
        self._terminated[mask] = self._truncated[mask] = False
        self._started |= bool(mask.all())
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One dreamt step in every dream that is not finished; rewards are float64 (num_envs,).

        Raises:
            UsageError: `actions` is not (num_envs,) or holds an unknown action.
            ResetNeeded: `reset` was never called.
        """
        if not self._started:
            raise ResetNeeded("call reset() before the first step() of a dream")
        actions = np.asarray(actions)
        num_actions = int(self.single_action_space.n)
        if actions.shape != (self.num_envs,) or not ((actions >= 0) & (actions < num_actions)).all():
            raise UsageError(f"actions must be ({self.num_envs},) integers from 0 to {num_actions - 1}")
        reward = np.zeros(self.num_envs)
        live = np.flatnonzero(~(self._terminated | self._truncated))
        if len(live):
            self.z[live], reward[live], self._terminated[live], self.h[live] = self.world_model.imagine(
                self.z[live], actions[live], self.h[live], self.temperature, self.np_random, self.done_threshold
            )
            self._steps[live] += 1
            self._truncated[live] = ~self._terminated[live] & (self._steps[live] >= self.horizon)
        return self._observe(), reward, self._terminated.copy(), self._truncated.copy(), {}

    def render(self) -> tuple[np.ndarray, ...]:
        """What V draws for each dream, uint8 (64, 64, 3)."""
        return tuple(self.world_model.decode(self.z))

    def _observe(self) -> np.ndarray:
        return self.world_model.features(self.z, self.h)


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
