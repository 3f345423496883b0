"""C by policy gradient: Stable-Baselines3's PPO (Schulman et al., 2017) on the features of a frozen world model.

What is learned is exported to the same NumPy `Controller` that evolution makes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from wm_lib import checkpoints
from wm_lib.config import ControllerConfig
from wm_lib.control.controller import Controller, normalise
from wm_lib.events import Progress
from wm_lib.models import training
from wm_lib.models.world_model import WorldModel
from wm_lib.seeding import derive_seed
from wm_lib.tasks import Task

NETWORKS = "ppo.safetensors"


class FeatureVecEnv(VecEnv):
    """A vector environment as C meets it: frames go through V and M, and [z, h] comes out.

    Follows Stable-Baselines3's rules: an environment that ended is reset in the same step, and the features of its
    final frame go into `terminal_observation`.

    Args:
        env: Vector environment of frames with autoreset disabled.
        world_model: V and M.
        reward_scale: Factor on the reward.
        clip_reward: Whether the scaled reward is clipped to [-1, 1].
        statistics: Mean and standard deviation of the features, each (feature_dim,), by which they are normalised.
    """

    def __init__(
        self,
        env: VectorEnv,
        world_model: WorldModel,
        reward_scale: float = 1.0,
        clip_reward: bool = False,
        statistics: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.env, self.world_model = env, world_model
        size = world_model.feature_dim
        self.mean, self.std = statistics or (np.zeros(size, np.float32), np.ones(size, np.float32))
        self.reward_scale, self.clip_reward = reward_scale, clip_reward
        box = spaces.Box(-np.inf, np.inf, (world_model.feature_dim,), np.float32)
        super().__init__(env.num_envs, box, env.single_action_space)

    def reset(self) -> np.ndarray:
        obs, _ = self.env.reset()
        self.z, self.h = self.world_model.encode(obs), self.world_model.initial_state(self.num_envs)
        self.returns, self.lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, int)
        return self._features()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        obs, reward, terminated, truncated, _ = self.env.step(self.actions)
        self.h = self.world_model.step(self.z, self.actions, self.h)
        self.z = self.world_model.encode(obs)
        features = self._features()
        self.returns += reward
        self.lengths += 1
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            for i in np.flatnonzero(done):
                infos[i] = {
                    "terminal_observation": features[i],
                    "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                    "episode": {"r": float(self.returns[i]), "l": int(self.lengths[i])},
                }
            obs, _ = self.env.reset(options={"reset_mask": done})
            self.z[done] = self.world_model.encode(obs[done])
            self.h[done] = 0
            self.returns[done], self.lengths[done] = 0, 0
            features = self._features()
        reward = reward * self.reward_scale
        return features, np.clip(reward, -1, 1) if self.clip_reward else reward, done, infos

    def _features(self) -> np.ndarray:
        return normalise(self.world_model.features(self.z, self.h), self.mean, self.std)

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name, None) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the environments of a FeatureVecEnv are set when it is made")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("call methods on FeatureVecEnv.env")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


class _Report(BaseCallback):
    """Tells `progress` after every rollout how many decisions were made and what the last episodes returned."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        episodes = self.model.ep_info_buffer
        scalars = {"return": float(np.mean([e["r"] for e in episodes]))} if episodes else {}
        self.progress.update(self.model.n_steps * self.model.n_envs, **scalars)


def train_ppo(
    world_model: WorldModel,
    task: Task,
    config: ControllerConfig,
    *,
    seed: int,
    directory: Path,
    make_env: Callable[[int, int], VectorEnv],
    statistics: tuple[np.ndarray, np.ndarray] | None = None,
    start: Path | None = None,
) -> Controller:
    """Train C on `world_model`'s features in the environments that `make_env(num_envs, seed)` makes.

    The environments are made anew at every checkpoint (`config.block_steps` decisions), since an emulator's state
    cannot be saved: a killed run, resumed from `directory`, then ends bit for bit like an undisturbed one. `statistics`
    normalise the features, see `FeatureVecEnv`.

    Actor and critic end in `directory`/ppo.safetensors too; `start` is the folder of a training to go on from, which
    also gives the statistics.

    Returns:
        The final policy; its meta holds `real_steps`, the decisions made.
    """
    if start is not None:
        before = Controller.load(start / "controller.safetensors")
        statistics = before.feature_mean, before.feature_std
    rollout = config.num_envs * config.rollout_length
    total = max(1, round(config.num_steps / rollout)) * rollout
    block = max(1, config.block_steps // rollout) * rollout
    path = directory / "checkpoint.safetensors"
    model, step = None, training.saved_step(path)
    with Progress(f"ppo {task.name}", total, "decision", directory, start=step) as progress:
        while model is None or step < total:
            end = min(total, step + block)
            env = FeatureVecEnv(
                make_env(config.num_envs, derive_seed(seed, "ppo", step)),
                world_model,
                config.reward_scale,
                config.clip_reward,
                statistics,
            )
            try:
                model = _make_ppo(env, config, total, end, derive_seed(seed, "ppo", "torch", step))
                if start is not None:
                    training.fill(model.policy, checkpoints.load(start / NETWORKS)[0], start / NETWORKS)
                training.restore(path, model.policy, model.policy.optimizer)
                model.num_timesteps = step
                if step < end:
                    model.learn(end - step, callback=_Report(progress), reset_num_timesteps=False)
            finally:
                env.close()
            step = end
            training.save(path, model.policy, model.policy.optimizer, step)
    networks = {name: value.detach().numpy() for name, value in model.policy.state_dict().items()}
    checkpoints.save(directory / NETWORKS, networks, {"kind": "ppo"})
    return export(model, {"real_steps": total}, (env.mean, env.std))


def _make_ppo(env: VecEnv, config: ControllerConfig, total: int, end: int, seed: int) -> PPO:
    """PPO for a block of decisions that ends at `end` of `total`; the learning rate falls to zero over all of them."""
    model = PPO(
        "MlpPolicy",
        env,
        # SB3 counts down from 1 to 0 within a block; turned back into the share of the whole training.
        learning_rate=lambda remaining: config.learning_rate * (1 - (1 - remaining) * end / total),
        n_steps=config.rollout_length,
        batch_size=min(config.batch_size, env.num_envs * config.rollout_length),
        n_epochs=config.num_epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        ent_coef=config.entropy,
        policy_kwargs={"net_arch": list(config.hidden), "activation_fn": torch.nn.Tanh},
        seed=seed,
        device="cpu",
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def export(model: PPO, meta: dict, statistics: tuple[np.ndarray, np.ndarray] | None = None) -> Controller:
    """The policy network of an SB3 model as a NumPy `Controller` that normalises by `statistics`."""
    mean, std = statistics or (None, None)
    layers = [layer for layer in model.policy.mlp_extractor.policy_net if isinstance(layer, torch.nn.Linear)]
    layers.append(model.policy.action_net)
    return Controller(
        weights=[layer.weight.detach().numpy().T.copy() for layer in layers],
        biases=[layer.bias.detach().numpy().copy() for layer in layers],
        feature_mean=mean,
        feature_std=std,
        meta=meta,
    )
