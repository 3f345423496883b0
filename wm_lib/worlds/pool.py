"""The fast path: EnvPool's environments (C++) behind Gymnasium's vector interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import envpool
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wm_lib.tasks import FRAME_SIZE, Task
from wm_lib.worlds.envs import ATARI, ATARI_ROWS, FIRE, LANDER_PICTURE, Step, native_actions, shrink, spaces_of


class EnvPoolVectorEnv(VectorEnv):
    """Environments under the rules of `wm_lib.worlds.envs.make_env`, resets explicit."""

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(self, task: Task, seeds: Sequence[int], sticky: float = 0.0) -> None:
        """Start one environment for each seed."""
        self.task = task
        self.num_envs = num_envs = len(seeds)
        self.single_observation_space, self.single_action_space = spaces_of(task)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        options: dict[str, Any] = {"max_episode_steps": task.max_decisions * task.action_repeat}
        if task.atari:
            options |= ATARI | {
                "stack_num": 1, "gray_scale": False, "img_height": ATARI_ROWS, "img_width": FRAME_SIZE,
                "use_inter_area_resize": True, "episodic_life": False, "reward_clip": False,
                "use_fire_reset": False, "repeat_action_probability": sticky,
            }  # fmt: skip
        if task.rendered:
            # Drawn finer than shown, then averaged down: edges are as soft as on Gymnasium's path.
            height, width = LANDER_PICTURE
            options |= {"render_mode": "rgb_array", "render_width": width, "render_height": height}
        self._pool = envpool.make_gymnasium(task.envpool_id, num_envs=num_envs, seed=list(seeds), **options)

        self._native_actions = native_actions(task)
        native_space = self._pool.observation_space
        self._native_obs = np.zeros((num_envs, *native_space.shape), native_space.dtype)
        self._obs = np.zeros((num_envs, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        self._terminated = np.zeros(num_envs, bool)
        self._truncated = np.zeros(num_envs, bool)
        self._presses = 2 if sticky else 1
        self._fire_due = np.zeros(num_envs, np.int64)
        self._lives = np.zeros(num_envs, np.int64)
        self._ram = np.zeros((num_envs, 128), np.uint8)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes, everywhere or where `options["reset_mask"]` (bool (num_envs,)) is true.

        EnvPool takes its seeds when it is made, so `seed` is ignored.
        """
        mask = (options or {}).get("reset_mask")
        ids = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
        if len(ids):
            ids = ids.astype(np.int32)
            native_obs, info = self._pool.reset(ids)
            self._terminated[ids] = self._truncated[ids] = False
            self._remember(ids, native_obs, info)
            self._fire_due[ids] = self._presses * self.task.fire
            self._draw(ids)
        return self._obs.copy(), self._info()

    def step(self, actions: np.ndarray) -> Step:
        """One decision in every environment that is not finished."""
        native = self._native_actions[np.asarray(actions)]
        native[self._fire_due > 0] = FIRE
        reward = np.zeros(self.num_envs)
        playing = active = np.flatnonzero(~(self._terminated | self._truncated)).astype(np.int32)
        lives = self._lives.copy()
        for _ in range(self.task.action_repeat):
            if not len(active):
                break
            native_obs, rewards, terminated, truncated, info = self._pool.step(native[active], active)
            reward[active] += rewards
            self._terminated[active] = terminated
            self._truncated[active] = truncated
            self._remember(active, native_obs, info)
            active = active[~(terminated | truncated)]
        lost = (self._lives < lives) & self.task.fire
        self._fire_due = np.where(lost, self._presses, np.maximum(self._fire_due - 1, 0))
        if len(playing):
            self._draw(playing)
        return self._obs.copy(), reward, self._terminated.copy(), self._truncated.copy(), self._info()

    def close_extras(self, **kwargs: Any) -> None:
        """Stop EnvPool's threads."""
        self._pool.close()

    def _remember(self, ids: np.ndarray, native_obs: np.ndarray, info: dict[str, Any]) -> None:
        self._native_obs[ids] = native_obs
        if self.task.atari:
            self._lives[ids] = info["lives"]
            self._ram[ids] = info["ram"]

    def _draw(self, ids: np.ndarray) -> None:
        """Bring the frames of `ids` up to date."""
        if self.task.atari:
            top, bottom, left, right = self.task.crop
            self._obs[ids] = self._native_obs[ids, :, top:bottom, left:right].transpose(0, 2, 3, 1)
        else:
            pictures = self._pool.render(ids) if self.task.rendered else self._native_obs[ids]
            for i, picture in zip(ids, pictures, strict=True):
                self._obs[i] = shrink(picture, self.task)

    def _info(self) -> dict[str, Any]:
        if self.task.atari:
            return {"lives": self._lives.copy(), "ram": self._ram.copy()}
        return {"state": self._native_obs.copy()} if self.task.rendered else {}
