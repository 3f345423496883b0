"""C by policy gradient: Stable-Baselines3's PPO (Schulman et al., 2017) on the features of a frozen world model.

What is learned is exported to the same NumPy `Controller` that evolution makes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from wm_lib.control.controller import Controller, normalise
from wm_lib.events import Progress
from wm_lib.models import training
from wm_lib.models.world_model import WorldModel
from wm_lib.seeding import derive_seed
from wm_lib.settings import ControllerConfig
from wm_lib.tasks import Task

NETWORKS = "ppo.safetensors"


class PolicyVecEnv(VecEnv):
    """A vector environment by Stable-Baselines3's rules; a child says what the policy sees of the frames.

    An environment that ended is reset in the same step, and what was seen of its final frame goes into
    `terminal_observation`.

    Args:
        env: Vector environment with autoreset disabled.
        space: What the policy sees of one environment.
        reward_scale: Factor on the reward.
        clip_reward: Whether the scaled reward is clipped to [-1, 1].
        end_at_lost_life: Whether the policy is told that its episode ended when a life is lost; the game goes on. Where
            the next ball is served at once, a lost life costs hardly any reward, and there is little to learn it from.
        tile_price: CarRacing: what is taken from the reward for each tile that was driven past, before it is scaled.
        goal_goes_on: Whether an episode whose last reward is positive is valued beyond its end, as at a time limit. Of
            a finished lap C sees nothing coming: to lose all that the critic expects would make it the worst of moves.
    """

    def __init__(
        self,
        env: VectorEnv,
        space: spaces.Box,
        reward_scale: float = 1.0,
        clip_reward: bool = False,
        end_at_lost_life: bool = False,
        tile_price: float = 0.0,
        goal_goes_on: bool = False,
    ) -> None:
        self.env, self.reward_scale, self.clip_reward = env, reward_scale, clip_reward
        self.tile_price, self.goal_goes_on = tile_price, goal_goes_on
        self.end_at_lost_life, self.lives = end_at_lost_life, np.zeros(env.num_envs, int)
        super().__init__(env.num_envs, space, env.single_action_space)

    def _begin(self, obs: np.ndarray, where: np.ndarray) -> None:
        """Episodes begin where the mask is true, with these frames."""
        raise NotImplementedError

    def _go_on(self, obs: np.ndarray) -> None:
        """The frames that followed `self.actions`."""
        raise NotImplementedError

    def _see(self) -> np.ndarray:
        """What the policy sees now, a new array."""
        raise NotImplementedError

    def reset(self) -> np.ndarray:
        self._begin(self.env.reset()[0], np.ones(self.num_envs, bool))
        self.returns, self.lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, int)
        return self._see()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        obs, reward, terminated, truncated, info = self.env.step(self.actions)
        self._go_on(obs)
        seen = self._see()
        self.returns += reward
        self.lengths += 1
        done = terminated | truncated
        valued = ~terminated | (self.goal_goes_on & (reward > 0))
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            for i in np.flatnonzero(done):
                infos[i] = {
                    "terminal_observation": seen[i],
                    "TimeLimit.truncated": bool(valued[i]),
                    "episode": {"r": float(self.returns[i]), "l": int(self.lengths[i])},
                }
            self._begin(self.env.reset(options={"reset_mask": done})[0], done)
            self.returns[done], self.lengths[done] = 0, 0
            seen = self._see()
        if self.end_at_lost_life:
            lives, before = info["lives"], self.lives
            done, self.lives = done | (lives < before), lives
        if self.tile_price:
            reward = reward - self.tile_price * info["skipped"]
        reward = reward * self.reward_scale
        return seen, np.clip(reward, -1, 1) if self.clip_reward else reward, done, infos

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name, None) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError(f"the environments of a {type(self).__name__} are set when it is made")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError(f"call methods on {type(self).__name__}.env")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


class FeatureVecEnv(PolicyVecEnv):
    """A vector environment as C meets it: frames go through V and M, and [z, h] comes out.

    Args:
        env: Vector environment with autoreset disabled.
        world_model: V and M.
        statistics: Mean and standard deviation of the features, each (feature_dim,), by which they are normalised.
        rewards: What else a `PolicyVecEnv` takes.
    """

    def __init__(
        self,
        env: VectorEnv,
        world_model: WorldModel,
        statistics: tuple[np.ndarray, np.ndarray] | None = None,
        **rewards: Any,
    ) -> None:
        size = world_model.feature_dim
        self.world_model = world_model
        self.mean, self.std = statistics or (np.zeros(size, np.float32), np.ones(size, np.float32))
        self.z = np.zeros((env.num_envs, world_model.z_dim), np.float32)
        self.h = world_model.initial_state(env.num_envs)
        space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        super().__init__(env, space, **rewards)

    def _begin(self, obs: np.ndarray, where: np.ndarray) -> None:
        self.z[where] = self.world_model.encode(obs[where])
        self.h[where] = 0

    def _go_on(self, obs: np.ndarray) -> None:
        self.h = self.world_model.step(self.z, self.actions, self.h)
        self.z = self.world_model.encode(obs)

    def _see(self) -> np.ndarray:
        return normalise(self.world_model.features(self.z, self.h), self.mean, self.std)


class Enough(Exception):
    """Raised by `on_update` to end a training here."""


class _Report(BaseCallback):
    """Tells `progress` after every rollout how many decisions were made and what the last episodes returned.

    Before every rollout but a training's first, `on_update` gets the model and the decisions it has learnt from.
    """

    def __init__(self, progress: Progress, on_update: Callable[[PPO, int], None] | None) -> None:
        super().__init__()
        self.progress, self.on_update = progress, on_update

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.on_update and self.model.num_timesteps:
            with _same_randomness():
                self.on_update(self.model, self.model.num_timesteps)

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
    on_update: Callable[[Controller, int], None] | None = None,
) -> Controller:
    """Train C on `world_model`'s features in the environments that `make_env(num_envs, seed)` makes.

    The environments are made anew at every checkpoint (`config.block_steps` decisions), since an emulator's state
    cannot be saved: a killed run, resumed from `directory`, then ends bit for bit like an undisturbed one. `statistics`
    normalise the features, see `FeatureVecEnv`.

    Actor and critic end in `directory`/ppo.safetensors too; `start` is the folder of a training to go on from, which
    also gives the statistics. `on_update` gets C and the decisions made after every update, see `train_in_blocks`.

    Returns:
        The final policy; its meta holds `real_steps`, the decisions made.
    """
    if start is not None:
        before = Controller.load(start / "controller.safetensors")
        statistics = before.feature_mean, before.feature_std
    rollout = config.num_envs * config.rollout_length
    total = max(1, round(config.num_steps / rollout)) * rollout

    def make_vec_env(step: int) -> FeatureVecEnv:
        env = make_env(config.num_envs, derive_seed(seed, "ppo", step))
        return FeatureVecEnv(
            env,
            world_model,
            statistics,
            reward_scale=config.reward_scale,
            clip_reward=config.clip_reward,
            end_at_lost_life=config.end_at_lost_life,
            tile_price=config.tile_price,
            goal_goes_on=task.unseen_goal,
        )

    def make_model(env: VecEnv, step: int, end: int) -> PPO:
        model = _make_ppo(env, config, total, end, derive_seed(seed, "ppo", "torch", step))
        if start is not None:
            training.fill(model.policy, checkpoints.load(start / NETWORKS)[0], start / NETWORKS)
        return model

    def exported(model: PPO, steps: int) -> Controller:
        return export(model, {"real_steps": steps}, statistics)

    watch = None if on_update is None else lambda model, steps: on_update(exported(model, steps), steps)
    block = max(1, config.block_steps // rollout) * rollout
    model = train_in_blocks(f"ppo {task.name}", make_vec_env, make_model, total, block, directory, watch)
    networks = {name: value.detach().numpy() for name, value in model.policy.state_dict().items()}
    checkpoints.save(directory / NETWORKS, networks, {"kind": "ppo"})
    return exported(model, total)


def train_in_blocks(
    name: str,
    make_env: Callable[[int], VecEnv],
    make_model: Callable[[VecEnv, int, int], PPO],
    total: int,
    block: int,
    directory: Path,
    on_update: Callable[[PPO, int], None] | None = None,
) -> PPO:
    """Let a PPO learn for `total` decisions, with a checkpoint every `block` from which a killed training goes on.

    Args:
        name: What the progress bar says.
        make_env: Decisions made so far -> environments for the block that begins there.
        make_model: (environments, decisions made so far, decisions at the block's end) -> an untrained model.
        total, block: Whole rollouts.
        directory: Where checkpoint and log are kept.
        on_update: Gets the model and the decisions made after every update; the training goes on as if it had not been
            called, whatever random numbers it draws. It may end the training by raising `Enough`.

    Returns:
        The trained model; its `num_timesteps` are the decisions it has learnt from.
    """
    path = directory / "checkpoint.safetensors"
    model, step = None, training.saved_step(path)
    with Progress(name, total, "decision", directory, start=step) as progress:
        try:
            while model is None or step < total:
                end = min(total, step + block)
                env = make_env(step)
                try:
                    model = make_model(env, step, end)
                    training.restore(path, model.policy, model.policy.optimizer)
                    model.num_timesteps = step
                    if step < end:
                        model.learn(end - step, callback=_Report(progress, on_update), reset_num_timesteps=False)
                finally:
                    env.close()
                step = max(step, end)
                training.save(path, model.policy, model.policy.optimizer, step)
            if on_update:
                on_update(model, step)
        except Enough:
            pass
    return model


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Afterwards the generators that Stable-Baselines3 draws from are as they were before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (SB3 shuffles with NumPy's old generator)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def linear(value: float, end: int, total: int, rollout: int = 0) -> Callable[[float], float]:
    """SB3's schedule that falls from `value` to zero over `total` decisions, for a block that ends at `end`.

    SB3 counts a rollout before it learns from it: without its length the last one would be learnt from at rate 0.
    """
    # SB3 counts down from 1 to 0 within a block; turned back into the share of the whole training.
    return lambda remaining: value * min(1.0, 1 - ((1 - remaining) * end - rollout) / total)


def _make_ppo(env: VecEnv, config: ControllerConfig, total: int, end: int, seed: int) -> PPO:
    """PPO for a block of decisions that ends at `end` of `total`; the learning rate falls to zero over all of them."""
    rollout = env.num_envs * config.rollout_length
    model = PPO(
        "MlpPolicy",
        env,
        learning_rate=linear(config.learning_rate, end, total, rollout),
        n_steps=config.rollout_length,
        batch_size=min(config.batch_size, rollout),
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
