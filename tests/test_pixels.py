"""PPO from pixels on planted worlds: what it sees, how its settings run, and kills that leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from wm_lib import checkpoints
from wm_lib.control import pixels
from wm_lib.control.pixels import ZOO, FrameStack, PixelAgent, PixelVecEnv, Settings, train_pixels
from wm_lib.control.ppo import Enough
from wm_lib.tasks import TASKS, get_task

TASK = get_task("pong")  # three actions


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What it sees

LENGTHS = (2, 5, 3)  # decisions in an episode of each slot: shorter and longer than a stack
TRUNCATED = (False, True, False)


def picture(slot: int, episode: int, t: int) -> np.ndarray:
    """A frame that no other moment has, different in all rows, columns and channels."""
    rows, columns, channels = np.ogrid[:64, :64, :3]
    return ((89 * slot + 31 * episode + 7 * t + rows + 2 * columns + 50 * channels + 1) % 256).astype(np.uint8)


class CountingEnv:
    """Counts slots, episodes and time in its frames; one buffer for ever, so whoever keeps a frame has to copy it."""

    single_action_space = spaces.Discrete(3)

    def __init__(self) -> None:
        self.num_envs, self.buffer = 3, np.zeros((3, 64, 64, 3), np.uint8)
        self.episode, self.t, self.done = np.full(3, -1), np.zeros(3, int), np.ones(3, bool)

    def reset(self, *, options: dict[str, np.ndarray] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        mask = np.ones(3, bool) if options is None else options["reset_mask"]
        assert options is None or mask.tolist() == self.done.tolist()
        self.episode += mask
        self.t[mask], self.done[:] = 0, False
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, ...]:
        self.t += 1
        self.done = self.t == LENGTHS
        cut = self.done & TRUNCATED
        return self._obs(), 3.0 * action - 2, self.done & ~cut, cut, {}

    def _obs(self) -> np.ndarray:
        self.buffer[:] = [picture(i, self.episode[i], self.t[i]) for i in range(3)]
        return self.buffer

    def close(self) -> None:
        pass


def stacked(slot: int, episode: int, t: int) -> np.ndarray:
    """The last four pictures, black before the episode, each channels first, told again with plain loops."""
    result = np.zeros((12, 64, 64), np.uint8)
    for age in range(min(4, t + 1)):
        for channel in range(3):
            result[9 - 3 * age + channel] = picture(slot, episode, t - age)[:, :, channel]
    return result


def test_stacks_are_right_across_the_ends_of_episodes() -> None:
    env = PixelVecEnv(CountingEnv(), reward_scale=0.5, clip_reward=True)
    assert env.observation_space == spaces.Box(0, 255, (12, 64, 64), np.uint8)
    given, expected = [env.reset()], [[stacked(i, 0, 0) for i in range(3)]]
    for k in range(1, 13):
        obs, reward, done, infos = env.step(np.array([k % 3, 2, 0]))
        np.testing.assert_array_equal(reward, np.clip(0.5 * (3.0 * np.array([k % 3, 2, 0]) - 2), -1, 1))
        given.append(obs)
        expected.append([stacked(i, k // LENGTHS[i], k % LENGTHS[i]) for i in range(3)])
        for i in range(3):
            assert done[i] == (k % LENGTHS[i] == 0)
            if done[i]:
                np.testing.assert_array_equal(
                    infos[i]["terminal_observation"], stacked(i, k // LENGTHS[i] - 1, LENGTHS[i])
                )
                assert infos[i]["TimeLimit.truncated"] is TRUNCATED[i]
                assert infos[i]["episode"]["l"] == LENGTHS[i]
    np.testing.assert_array_equal(given, expected)  # at the end: what was given has not changed since


class Diary:
    """A policy that keeps what it is shown and likes action 1 best."""

    def __init__(self) -> None:
        self.shown: list[np.ndarray] = []

    def set_training_mode(self, mode: bool) -> None:
        assert mode is False

    def get_distribution(self, obs: torch.Tensor) -> SimpleNamespace:
        self.shown.append(obs.numpy())
        logits = torch.tensor([[0.0, 1.0, -1.0]]).repeat(len(obs), 1)
        return SimpleNamespace(distribution=torch.distributions.Categorical(logits=logits))


def test_the_agent_that_is_measured_sees_what_the_one_that_learns_sees() -> None:
    policy = Diary()
    env, agent = CountingEnv(), PixelAgent(policy, 3, sampled=False)
    (obs, _), first = env.reset(), np.ones(3, bool)
    for _ in range(12):
        assert agent(obs, first).tolist() == [1, 1, 1]
        obs, _, terminated, truncated, _ = env.step(np.ones(3, int))
        first = terminated | truncated
        if first.any():
            obs, _ = env.reset(options={"reset_mask": first})
    expected = [[stacked(i, k // LENGTHS[i], k % LENGTHS[i]) for i in range(3)] for k in range(12)]
    np.testing.assert_array_equal(policy.shown, expected)


def test_sampled_actions_belong_to_the_seed_of_the_episode() -> None:
    policy = Diary()
    frames, never = np.zeros((2, 64, 64, 3), np.uint8), np.zeros(2, bool)

    def actions(slot: int, seed: int, num: int = 200) -> np.ndarray:
        agent = PixelAgent(policy, 2, sampled=True)
        agent.reset_slot(slot, seed)
        return np.array([agent(frames, never)[slot] for _ in range(num)])

    np.testing.assert_array_equal(actions(0, 7), actions(1, 7))
    assert (actions(0, 7) != actions(0, 8)).any()
    chances = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    np.testing.assert_allclose(np.bincount(actions(0, 7)) / 200, chances, atol=0.1)


# How it learns


class LevelEnv:
    """A frame is black or white all over; 1 for the action that names it (0, 1; 2 is never right), else 0.

    Episodes have 12 decisions.
    """

    single_action_space = spaces.Discrete(3)

    def __init__(self, num_envs: int, seed: int, fail_after: int | None = None) -> None:
        self.num_envs, self.fail_after, self.steps_made, self.open = num_envs, fail_after, 0, True
        self.rng = np.random.default_rng(seed)

    def reset(self, *, options: dict[str, np.ndarray] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.t = 0
        return self._look(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.steps_made == self.fail_after:
            raise KeyboardInterrupt
        self.steps_made += 1
        reward = (action == self.level).astype(float)
        self.t += 1
        done = np.full(self.num_envs, self.t == 12)
        return self._look(), reward, done, np.zeros(self.num_envs, bool), {}

    def _look(self) -> np.ndarray:
        self.level = self.rng.integers(2, size=self.num_envs)
        frames = np.zeros((self.num_envs, 64, 64, 3), np.uint8)
        frames[self.level == 1] = 255
        return frames

    def close(self) -> None:
        self.open = False


QUICK = Settings(8, 12, 4, 32, 0.0, 0.95, 1e-3, 0.2, 0.01, policy={"features_extractor_kwargs": {"features_dim": 64}})
SMALL = Settings(
    4, 8, 2, 16, 0.9, 0.95, 2.5e-4, 0.1, 0.01, falling_over=1000, falling_clip=True,
    policy={"net_arch": [8], "features_extractor_kwargs": {"features_dim": 16}},
)  # fmt: skip


def train(directory: Path, settings: Settings = SMALL, num_steps: int = 150, **changes: Any) -> PPO:
    options = {"block_steps": 70, "seed": 1, "make_env": LevelEnv} | changes
    return train_pixels(TASK, settings, num_steps=num_steps, directory=directory, **options)


def test_it_learns_to_name_what_it_sees(tmp_path: Path) -> None:
    model = train(tmp_path, QUICK, 1536, block_steps=768)
    assert model.num_timesteps == 1536
    env, agent = LevelEnv(16, 999), PixelAgent(model.policy, 16, sampled=False)
    (obs, _), first, right = env.reset(), np.ones(16, bool), 0.0
    for _ in range(12):
        obs, reward, *_ = env.step(agent(obs, first))
        first, right = np.zeros(16, bool), right + reward.mean() / 12
    assert right > 0.9  # chance is a third, always the same a half


def same_weights(a: PPO, b: PPO) -> None:
    for (name, x), y in zip(a.policy.state_dict().items(), b.policy.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[PPO, Path]:
    directory = tmp_path_factory.mktemp("whole")
    return train(directory), directory


@pytest.mark.parametrize("kill_env, kill_step, left", [(0, 11, 160), (1, 0, 96), (2, 5, 32)])
def test_a_killed_training_ends_like_an_undisturbed_one(
    kill_env: int, kill_step: int, left: int, whole: tuple[PPO, Path], tmp_path: Path
) -> None:
    made: list[LevelEnv] = []

    def machine(num_envs: int, seed: int) -> LevelEnv:
        made.append(LevelEnv(num_envs, seed, kill_step if len(made) == kill_env else None))
        return made[-1]

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, make_env=machine)
    kill_env, before = -1, len(made)
    resumed = train(tmp_path, make_env=machine)
    assert 4 * sum(env.steps_made for env in made[before:]) == left
    assert not any(env.open for env in made)
    same_weights(resumed, whole[0])
    for path in (tmp_path, whole[1]):
        checkpoints.verify(path / "checkpoint.safetensors")
    ours, theirs = (checkpoints.load(path / "checkpoint.safetensors")[0] for path in (tmp_path, whole[1]))
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_whoever_looks_on_does_not_disturb(whole: tuple[PPO, Path], tmp_path: Path) -> None:
    seen = []

    def look(model: PPO, decisions: int) -> None:
        torch.rand(5), np.random.rand(3)  # noqa: NPY002 (the generator SB3 draws from)
        seen.append((decisions, model.num_timesteps))

    same_weights(train(tmp_path, on_update=look), whole[0])
    assert seen == [(n, n) for n in (32, 64, 96, 128, 160)]


def test_enough_ends_it_where_it_is_and_again_after_a_restart(whole: tuple[PPO, Path], tmp_path: Path) -> None:
    def stop(model: PPO, decisions: int) -> None:
        if decisions == 96:
            raise Enough

    first = train(tmp_path, on_update=stop)
    assert first.num_timesteps == 96
    again = train(tmp_path, on_update=stop)
    assert again.num_timesteps == 96
    same_weights(first, again)
    same_weights(train(tmp_path), whole[0])


def test_what_falls_falls_in_a_straight_line_over_the_zoos_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, found = PPO.train, []

    def spy(model: PPO) -> None:
        update(model)
        remaining = model._current_progress_remaining
        found.append((model.policy.optimizer.param_groups[0]["lr"], model.clip_range(remaining)))

    monkeypatch.setattr(PPO, "train", spy)
    train(tmp_path)
    left = 1 - np.arange(32, 161, 32) / 1000
    np.testing.assert_allclose(found, np.stack([2.5e-4 * left, 0.1 * left], axis=1), rtol=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_the_zoos_settings_make_a_model(task: str) -> None:
    """Buffers of full size are allocated, nothing is learned."""
    settings = ZOO[task]
    env = PixelVecEnv(LevelEnv(settings.num_envs, 0))
    model = pixels._make_ppo(env, settings, 10, 10, 0)
    assert model.n_steps * model.n_envs % model.batch_size == 0
    assert model.policy.features_extractor.__class__.__name__ == "NatureCNN"
    assert FrameStack(settings.num_envs).frames.shape == (settings.num_envs, *model.observation_space.shape)
