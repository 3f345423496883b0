"""The rival of `wm compare`: Stable-Baselines3's PPO on the frames themselves, without a world model.

It plays in the environments that our agent plays in: the same frames, actions, action repeat, no-ops and ends of
episodes. Its settings are those of rl-baselines3-zoo; beside each stands what had to be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from wm_lib.control.controller import choose
from wm_lib.control.ppo import PolicyVecEnv, linear, train_in_blocks
from wm_lib.seeding import derive_seed
from wm_lib.tasks import FRAME_SIZE, Task

NUM_FRAMES = 4


@dataclass(frozen=True)
class Settings:
    """PPO's settings, in the words of `wm_lib.settings.ControllerConfig`; the rest is as Stable-Baselines3 has it.

    Attributes:
        falling_over: Decisions over which the learning rate falls to zero; 0 = it stays as it is. A longer training
            stretches them to its own length.
        falling_clip: Whether the clip range falls with it.
        policy: More arguments of the network.
    """

    num_envs: int
    rollout_length: int
    num_epochs: int
    batch_size: int
    gamma: float
    gae_lambda: float
    learning_rate: float
    clip_range: float
    entropy: float
    falling_over: int = 0
    falling_clip: bool = False
    policy: dict[str, Any] = field(default_factory=dict)


# https://github.com/DLR-RM/rl-baselines3-zoo/blob/208b6fdf3a9aa24de44b2e068c6e5f6a07d97fcc/hyperparams/ppo.yml
# Entry "atari": 8 environments x 128 steps, 4 epochs, batches of 256, rate 2.5e-4 and clip range 0.1 falling to zero
# over 10 M steps, entropy 0.01, CnnPolicy on 4 stacked frames. Changed: the frames are ours (64 x 64, RGB, cropped) in
# place of 84 x 84 grey ones. Rewards are clipped and a lost life ends an episode of the training, as by AtariWrapper.
_ATARI = Settings(8, 128, 4, 256, 0.99, 0.95, 2.5e-4, 0.1, 0.01, falling_over=10_000_000, falling_clip=True)
ZOO: dict[str, Settings] = {
    "pong": _ATARI,
    "breakout": _ATARI,
    # Entry "LunarLander-v2" (v3 has none): 16 environments x 1024 steps, 4 epochs, batches of 64, gamma 0.999,
    # lambda 0.98, entropy 0.01; rate and clip range are Stable-Baselines3's. Changed: CnnPolicy on 4 stacked frames in
    # place of MlpPolicy on the state; our action repeat; our factor on the reward, without which the value loss, of
    # returns in hundreds, would drown the rest in the layers that actor and critic share. (Its rollouts take 1.6 GB.)
    "lunar-lander": Settings(16, 1024, 4, 64, 0.999, 0.98, 3e-4, 0.2, 0.01),
    # Entry "CarRacing-v2" (v3 has none): 8 environments x 512 steps, 10 epochs, batches of 128, rate 1e-4 falling to
    # zero over 4 M steps, clip range 0.2, no entropy bonus, GELU, 256 units after the convolutions, no orthogonal
    # start. Changed: our 7 discrete actions, so gSDE and log_std_init fall away; our action repeat of 4 in place of 2;
    # 4 RGB frames in place of 2 grey ones; our constant factor on the reward in place of a running normalisation.
    "car-racing": Settings(
        8, 512, 10, 128, 0.99, 0.95, 1e-4, 0.2, 0.0, falling_over=4_000_000,
        policy={"net_arch": {"pi": [256], "vf": [256]}, "activation_fn": torch.nn.GELU, "ortho_init": False},
    ),
}  # fmt: skip


class FrameStack:
    """The latest four frames of every environment, channels first: uint8 (num_envs, 12, 64, 64), the newest last.

    Before an episode everything was black, as in Stable-Baselines3's VecFrameStack. The array is a new one after every
    step, so that what was handed out stays as it was.
    """

    def __init__(self, num_envs: int) -> None:
        self.frames = np.zeros((num_envs, 3 * NUM_FRAMES, FRAME_SIZE, FRAME_SIZE), np.uint8)

    def begin(self, obs: np.ndarray, where: np.ndarray) -> None:
        """Episodes begin where the mask (num_envs,) is true, with the frames (num_envs, 64, 64, 3)."""
        self.frames = self.frames.copy()
        self.frames[where] = 0
        self.frames[where, -3:] = obs[where].transpose(0, 3, 1, 2)

    def push(self, obs: np.ndarray) -> None:
        """The frames (num_envs, 64, 64, 3) that followed."""
        self.frames = np.concatenate([self.frames[:, 3:], obs.transpose(0, 3, 1, 2)], axis=1)


class PixelVecEnv(PolicyVecEnv):
    """A vector environment as PPO from pixels meets it; the arguments are those of `PolicyVecEnv`."""

    def __init__(self, env: VectorEnv, **rewards: Any) -> None:
        self.stack = FrameStack(env.num_envs)
        space = spaces.Box(0, 255, self.stack.frames.shape[1:], np.uint8)
        super().__init__(env, space, **rewards)

    def _begin(self, obs: np.ndarray, where: np.ndarray) -> None:
        self.stack.begin(obs, where)

    def _go_on(self, obs: np.ndarray) -> None:
        self.stack.push(obs)

    def _see(self) -> np.ndarray:
        return self.stack.frames


class PixelAgent:
    """A policy from pixels as `wm_lib.evaluation.evaluate` plays it.

    Args:
        policy: Of Stable-Baselines3, on stacked frames.
        num_envs: Rows of every batch.
        sampled: Whether actions are sampled, each row's by its own generator; otherwise the most likely are taken.
    """

    def __init__(self, policy: ActorCriticPolicy, num_envs: int, sampled: bool) -> None:
        self.policy, self.stack = policy, FrameStack(num_envs)
        self.rngs = [np.random.default_rng(slot) for slot in range(num_envs)] if sampled else None

    def __call__(self, obs: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Actions int64 (num_envs,) for frames (num_envs, 64, 64, 3) and whether each begins an episode."""
        self.stack.push(obs)
        if first.any():
            self.stack.begin(obs, first)
        self.policy.set_training_mode(False)
        with torch.no_grad():
            distribution = self.policy.get_distribution(torch.from_numpy(self.stack.frames)).distribution
        return choose(distribution.logits.numpy(), self.rngs)

    def reset_slot(self, slot: int, seed: int) -> None:
        """Tie the sampled actions of one row to the seed of the episode that begins there."""
        if self.rngs is not None:
            self.rngs[slot] = np.random.default_rng(derive_seed(seed, "actions"))


def pixel_agent_maker(task: Task, model: PPO) -> Callable[[int], PixelAgent]:
    """The `make_agent` that `evaluate` wants; actions are sampled or greedy as the task prescribes."""
    return lambda num_envs: PixelAgent(model.policy, num_envs, task.sampled)


def train_pixels(
    task: Task,
    settings: Settings,
    *,
    num_steps: int,
    block_steps: int,
    seed: int,
    directory: Path,
    make_env: Callable[[int, Sequence[int] | int], VectorEnv],
    on_update: Callable[[PPO, int], None] | None = None,
    **rewards: Any,
) -> PPO:
    """Train PPO on stacked frames; resumes from `directory`, see `wm_lib.control.ppo.train_in_blocks`.

    Args:
        task: What is played.
        settings: PPO's, see `ZOO`.
        num_steps: Decisions after which it ends at the latest, rounded up to whole rollouts.
        block_steps: Decisions between two checkpoints.
        seed: Of everything random.
        directory: Where checkpoint and log are kept.
        make_env: (num_envs, seed) -> environments under the rules of `wm_lib.worlds.envs.make_env`.
        on_update: Gets the model and the decisions made after every update; ends the training by raising `Enough`.
        rewards: What the training makes of rewards and ends, see `PolicyVecEnv`.

    Returns:
        The model; its `num_timesteps` are the decisions it has learnt from.
    """
    rollout = settings.num_envs * settings.rollout_length
    total = -(-num_steps // rollout) * rollout
    block = max(1, block_steps // rollout) * rollout
    falling_over = max(total, settings.falling_over)

    def make_vec_env(step: int) -> PixelVecEnv:
        env = make_env(settings.num_envs, derive_seed(seed, "pixels", step))
        return PixelVecEnv(env, goal_goes_on=task.unseen_goal, **rewards)

    def make_model(env: VecEnv, step: int, end: int) -> PPO:
        return _make_ppo(env, settings, falling_over, end, derive_seed(seed, "pixels", "torch", step))

    return train_in_blocks(f"ppo from pixels {task.name}", make_vec_env, make_model, total, block, directory, on_update)


def _make_ppo(env: VecEnv, settings: Settings, total: int, end: int, seed: int) -> PPO:
    """PPO for a block of decisions that ends at `end`; what falls reaches zero after `total`."""
    rate, clip = settings.learning_rate, settings.clip_range
    model = PPO(
        "CnnPolicy",
        env,
        learning_rate=linear(rate, end, total) if settings.falling_over else rate,
        clip_range=linear(clip, end, total) if settings.falling_clip else clip,
        n_steps=settings.rollout_length,
        batch_size=settings.batch_size,
        n_epochs=settings.num_epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        ent_coef=settings.entropy,
        policy_kwargs=dict(settings.policy),
        seed=seed,
        device="cpu",
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model
