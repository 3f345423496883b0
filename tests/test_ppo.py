"""PPO on a planted world model: Stable-Baselines3's rules, memory, learning, export, and kills that leave no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from wm_lib import checkpoints
from wm_lib.control import ppo
from wm_lib.control.agent import Agent
from wm_lib.control.controller import Controller
from wm_lib.control.ppo import FeatureVecEnv, train_ppo
from wm_lib.events import read_scalars
from wm_lib.models.world_model import WorldModel
from wm_lib.seeding import derive_seed
from wm_lib.settings import ControllerConfig
from wm_lib.tasks import get_task
from wm_lib.worlds.envs import make_env

TASK = get_task("pong")  # three actions


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# C's view of an environment

LENGTHS = (2, 3, 5, 4)  # decisions in an episode of each slot
ENDS = ("terminated", "truncated", "both", "truncated")


class CountingModel:
    """z is the frame's first pixel, h = 10 h + z + action: a diary of what entered the memory."""

    z_dim, feature_dim, state_dim = 1, 2, 1

    def initial_state(self, batch: int) -> np.ndarray:
        return np.zeros((batch, 1), np.float32)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return frames[:, 0, 0, :1].astype(np.float32)

    def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        return np.concatenate([z, h], axis=1)

    def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        return 10 * h + z + action[:, None].astype(np.float32)


def pixel(slot: int, episode: int, t: int) -> int:
    return 50 * slot + 8 * (episode % 6) + t


class DiaryEnv:
    """Slot, episode and time are written into the first pixel; insists on the explicit resets of `make_env`."""

    single_action_space = spaces.Discrete(3)

    def __init__(self, num_envs: int = 4) -> None:
        self.num_envs = num_envs
        self.episode, self.t = np.full(num_envs, -1), np.zeros(num_envs, int)
        self.done = np.ones(num_envs, bool)
        self.open = True

    def reset(self, *, options: dict[str, np.ndarray] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        mask = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
        assert options is None or mask.tolist() == self.done.tolist()
        self.episode += mask
        self.t[mask], self.done[:] = 0, False
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, ...]:
        assert action.shape == (self.num_envs,) and not self.done.any()
        self.t += 1
        self.done = self.t == np.array(LENGTHS)[: self.num_envs]
        terminated = self.done & [end in ("terminated", "both") for end in ENDS]
        truncated = self.done & [end in ("truncated", "both") for end in ENDS]
        reward = (np.arange(self.num_envs) - 1.5) * (1 + action)
        return self._obs(), reward, terminated, truncated, {}

    def _obs(self) -> np.ndarray:
        if not hasattr(self, "buffer"):  # one buffer for ever: whoever keeps a frame has to copy it
            self.buffer = np.zeros((self.num_envs, 64, 64, 3), np.uint8)
        for i in range(self.num_envs):
            self.buffer[i, 0, 0] = pixel(i, self.episode[i], self.t[i])
        return self.buffer

    def close(self) -> None:
        self.open = False


MEAN, STD = np.array([30.0, 500.0]), np.array([20.0, 1e5])


def normal(z: float, h: float) -> list[float]:
    """Features in standard deviations, cut at 10 of them: an h of a million is reached."""
    return [min(10.0, max(-10.0, (x - m) / s)) for x, m, s in zip((z, h), MEAN, STD, strict=True)]


def diary(slot: int, actions: np.ndarray, scale: float, clip: bool) -> Iterator[tuple[Any, ...]]:
    """What C is told in one slot, decision by decision, told again with plain loops."""
    episode, t, h, total = 0, 0, 0.0, 0.0
    for action in actions:
        h = 10 * h + pixel(slot, episode, t) + action
        t += 1
        reward = (slot - 1.5) * (1 + action)
        total += reward
        seen, info = normal(pixel(slot, episode, t), h), {}
        done = t == LENGTHS[slot]
        if done:
            info = {
                "terminal_observation": seen,
                "TimeLimit.truncated": ENDS[slot] == "truncated",
                "episode": {"r": total, "l": t},
            }
            episode, t, h, total = episode + 1, 0, 0.0, 0.0
            seen = normal(pixel(slot, episode, 0), 0.0)
        given = reward * scale
        yield seen, min(1.0, max(-1.0, given)) if clip else given, done, info


@pytest.mark.parametrize("scale, clip", [(1.0, False), (0.25, False), (1.0, True), (0.4, True)])
def test_c_sees_its_environments_as_a_loop_over_slots_tells_it(scale: float, clip: bool) -> None:
    actions = np.random.default_rng(0).integers(3, size=(24, 4))
    env = FeatureVecEnv(DiaryEnv(), CountingModel(), (MEAN, STD), reward_scale=scale, clip_reward=clip)
    assert env.observation_space.shape == (2,) and env.action_space == spaces.Discrete(3)
    expected = [diary(slot, actions[:, slot], scale, clip) for slot in range(4)]
    np.testing.assert_allclose(env.reset(), [normal(pixel(slot, 0, 0), 0) for slot in range(4)], rtol=1e-6)
    for action in actions:
        features, reward, done, infos = env.step(action)
        for i in range(4):
            seen, given, over, info = next(expected[i])
            np.testing.assert_allclose(features[i], seen, rtol=1e-5)
            assert reward[i] == pytest.approx(given) and done[i] == over
            assert infos[i].keys() == info.keys()
            if over:
                np.testing.assert_allclose(infos[i]["terminal_observation"], info["terminal_observation"], rtol=1e-5)
                assert infos[i]["TimeLimit.truncated"] is info["TimeLimit.truncated"]
                assert infos[i]["episode"] == pytest.approx(info["episode"])  # the raw return
    env.close()
    assert not env.env.open


class RoadEnv(DiaryEnv):
    """Drives past as many tiles as the number of the slot says."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"skipped": np.arange(4)}


def test_tiles_driven_past_have_a_price_and_a_goal_is_valued_beyond_its_end() -> None:
    priced = FeatureVecEnv(RoadEnv(), CountingModel(), reward_scale=0.1, tile_price=5.0, goal_goes_on=True)
    plain = FeatureVecEnv(RoadEnv(), CountingModel(), reward_scale=0.1)
    priced.reset(), plain.reset()
    ended = set()
    for _ in range(12):
        action = np.ones(4, int)
        (_, reward, done, infos), (_, raw, _, plainly) = priced.step(action), plain.step(action)
        np.testing.assert_allclose(reward, raw - 0.1 * 5 * np.arange(4))
        for i in np.flatnonzero(done):
            assert infos[i]["episode"] == plainly[i]["episode"]  # the return is the raw one
            assert infos[i]["TimeLimit.truncated"] is bool(ENDS[i] == "truncated" or raw[i] > 0)
            ended.add((ENDS[i], bool(raw[i] > 0), infos[i]["TimeLimit.truncated"]))
    assert {("both", True, True), ("terminated", False, False)} <= ended


class MemorylessModel(CountingModel):
    """C sees z alone, and no copy of it."""

    feature_dim, state_dim = 1, 0

    def initial_state(self, batch: int) -> np.ndarray:
        return np.zeros((batch, 0), np.float32)

    def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        return z

    def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        return h


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_a_lost_life_ends_an_episode_for_the_policy_alone(backend: str) -> None:
    """Five ends a game of Breakout, of which only the last resets anything; without the option one."""
    rng = np.random.default_rng(0)
    actions = rng.integers(get_task("breakout").num_actions, size=(260, 2))
    told = {}
    for end_at_lost_life in (False, True):
        env = make_env(get_task("breakout"), 2, 7, backend)
        seen = FeatureVecEnv(env, MemorylessModel(), end_at_lost_life=end_at_lost_life)
        seen.reset()
        told[end_at_lost_life] = [seen.step(action) for action in actions]
        seen.close()
    for (features, reward, over, infos), (same_features, same_reward, done, same_infos) in zip(
        told[False], told[True], strict=True
    ):
        np.testing.assert_array_equal(features, same_features)
        np.testing.assert_array_equal(reward, same_reward)
        assert [info.keys() for info in infos] == [info.keys() for info in same_infos]
        assert over.tolist() == ["episode" in info for info in infos]
        assert (done >= over).all()
    games = np.sum([over for _, _, over, _ in told[False]], axis=0)
    ends = np.sum([done for _, _, done, _ in told[True]], axis=0)
    assert (games >= 1).all() and (5 * games <= ends).all() and (ends < 5 * games + 5).all()


def test_features_once_given_do_not_change() -> None:
    """SB3 reads terminal_observation and the last observation after the reset has overwritten z."""
    env = FeatureVecEnv(DiaryEnv(), MemorylessModel(), statistics=(np.zeros(1, np.float32), np.full(1, 64.0)))
    given = [env.reset()]
    for _ in range(3):
        features, _, done, infos = env.step(np.zeros(4, int))
        given.append(features)
        for i in np.flatnonzero(done):
            assert infos[i]["terminal_observation"] == [pixel(i, 0, LENGTHS[i]) / 64]
    expected = [[[pixel(i, t // LENGTHS[i], t % LENGTHS[i]) / 64] for i in range(4)] for t in range(4)]
    np.testing.assert_array_equal(given, expected)


# Learning


class LevelEnv:
    """A frame is dark, grey or bright; 1 for the action that names the level `lag` frames ago, else 0.

    Episodes have 12 decisions; the level before an episode is dark.
    """

    single_action_space = spaces.Discrete(3)

    def __init__(self, num_envs: int, seed: int, lag: int = 0, fail_after: int | None = None) -> None:
        self.num_envs, self.lag, self.fail_after = num_envs, lag, fail_after
        self.rng = np.random.default_rng(seed)
        self.steps_made, self.open = 0, True

    def reset(self, *, options: dict[str, np.ndarray] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.levels, self.t = np.zeros((2, self.num_envs), int), 0
        self._look()
        return self.obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.steps_made == self.fail_after:
            raise KeyboardInterrupt
        self.steps_made += 1
        reward = (action == self.levels[self.lag]).astype(np.float32)
        self.t += 1
        self._look()
        done = np.full(self.num_envs, self.t == 12)
        return self.obs, reward, done, np.zeros(self.num_envs, bool), {}

    def _look(self) -> None:
        self.levels = np.stack([self.rng.integers(3, size=self.num_envs), self.levels[0]])
        self.obs = np.zeros((self.num_envs, 64, 64, 3), np.uint8)
        self.obs[:, 0, 0, 0] = self.levels[0]

    def close(self) -> None:
        self.open = False


class LevelModel(CountingModel):
    """z says which of the three levels it is; h is the z that entered last (and whether the action did)."""

    z_dim, feature_dim, state_dim = 3, 7, 4

    def initial_state(self, batch: int) -> np.ndarray:
        return np.zeros((batch, 4), np.float32)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[frames[:, 0, 0, 0]]

    def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        return np.concatenate([z, action[:, None]], axis=1, dtype=np.float32)


CONFIG = ControllerConfig(
    num_steps=6144, num_envs=16, rollout_length=24, num_epochs=4, batch_size=96, learning_rate=0.01, hidden=[16],
    block_steps=3072, gamma=0.9,
)  # fmt: skip


def train(
    directory: Path, config: ControllerConfig = CONFIG, seed: int = 1, make_env: Callable[..., Any] = LevelEnv,
    world_model: WorldModel | None = None,
) -> Controller:  # fmt: skip
    return train_ppo(world_model or LevelModel(), TASK, config, seed=seed, directory=directory, make_env=make_env)


def share_of_right_actions(controller: Controller, lag: int) -> float:
    """Of a greedy agent in 64 unseen episodes; 1/3 is chance."""
    env, agent = LevelEnv(64, 999, lag), Agent(LevelModel(), controller, 64)
    obs, first, right = env.reset()[0], np.ones(64, bool), 0.0
    for _ in range(12):
        obs, reward, *_ = env.step(agent(obs, first))
        first, right = np.zeros(64, bool), right + reward.mean()
    return right / 12


@pytest.mark.parametrize("lag", [0, 1])
def test_ppo_learns_to_name_what_it_sees_and_what_it_remembers(lag: int, tmp_path: Path) -> None:
    controller = train(tmp_path, make_env=lambda num_envs, seed: LevelEnv(num_envs, seed, lag))
    assert share_of_right_actions(controller, lag) > 0.95
    steps, returns = read_scalars(tmp_path)["return"]
    assert steps.tolist() == list(range(384, 6145, 384))
    assert returns[0] == pytest.approx(4, abs=1)  # of 12
    assert returns[-1] > 8
    assert controller.meta["real_steps"] == 6144


def test_the_rate_falls_in_a_straight_line_over_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.model_copy(update={"num_steps": 7 * 384, "block_steps": 2 * 384, "num_epochs": 2})
    update, rates, models = PPO.train, [], []

    def spy(model: PPO) -> None:
        update(model)
        rates.append(model.policy.optimizer.param_groups[0]["lr"])
        models.append(model)

    monkeypatch.setattr(PPO, "train", spy)
    train(tmp_path, config)
    np.testing.assert_allclose(rates, 0.01 * (1 - np.arange(7) / 7), atol=1e-12)
    assert [model.num_timesteps for model in models] == [768, 768, 1536, 1536, 2304, 2304, 2688]
    model = models[-1]
    assert (model.n_epochs, model.batch_size, model.n_steps) == (2, 96, 24)
    assert (model.gamma, model.gae_lambda, model.ent_coef) == (0.9, 0.95, 0.01)


@pytest.mark.parametrize("num_steps, decisions", [(1, 384), (500, 384), (600, 768), (768, 768)])
def test_decisions_are_whole_rollouts(num_steps: int, decisions: int, tmp_path: Path) -> None:
    made = []

    def make_env(num_envs: int, seed: int) -> LevelEnv:
        made.append(LevelEnv(num_envs, seed))
        return made[-1]

    controller = train(tmp_path, CONFIG.model_copy(update={"num_steps": num_steps, "num_epochs": 1}), make_env=make_env)
    assert controller.meta["real_steps"] == decisions == 16 * sum(env.steps_made for env in made)
    assert not any(env.open for env in made)


# Export


@pytest.mark.parametrize("hidden", [[], [5], [16, 8]])
def test_the_exported_controller_is_the_policy(hidden: list[int], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"hidden": hidden})
    model = ppo._make_ppo(FeatureVecEnv(LevelEnv(16, 0), LevelModel()), config, 384, 384, 0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.copy_(torch.randn(parameter.shape))  # SB3's last layer starts near zero
    controller = ppo.export(model, {"real_steps": 3})
    features = 2 * np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    with torch.no_grad():
        policy = model.policy.get_distribution(torch.from_numpy(features)).distribution.logits.numpy()
    logits = controller.logits(features)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(log_softmax, policy, atol=1e-4)
    greedy, _ = model.predict(features, deterministic=True)
    np.testing.assert_array_equal(controller.act(features), greedy)
    assert [weight.shape[1] for weight in controller.weights] == [*hidden, 3]

    controller.save(tmp_path / "c.safetensors")
    loaded = Controller.load(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(loaded.logits(features), logits)
    assert loaded.meta["real_steps"] == 3
    # What is exported does not change when the model learns on.
    with torch.no_grad():
        model.policy.action_net.weight.zero_()
    np.testing.assert_array_equal(controller.logits(features), logits)


class LoudModel(LevelModel):
    """One of its features lies 20 standard deviations out, which C cuts to 10."""

    def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        return super().features(z, h) * np.array([1, 20, 5, 1, 1, 3, 1], np.float32)


@pytest.mark.parametrize("normalised", [False, True])
def test_c_plays_on_the_features_it_was_trained_on(
    normalised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy saw what FeatureVecEnv makes of the features, the agent hands the controller the features."""
    update, models = PPO.train, []

    def spy(model: PPO) -> None:
        models.append(model)
        update(model)

    monkeypatch.setattr(PPO, "train", spy)
    rng = np.random.default_rng(0)
    statistics = (rng.normal(size=7).astype(np.float32), rng.uniform(0.5, 2, 7).astype(np.float32))
    controller = train_ppo(
        LoudModel(), TASK, CONFIG.model_copy(update={"num_steps": 768}), seed=1, directory=tmp_path, make_env=LevelEnv,
        statistics=statistics if normalised else None,
    )  # fmt: skip
    env = models[-1].env
    seen = [env.reset(), *(env.step(rng.integers(3, size=16))[0] for _ in range(13))]
    raw = env.world_model.features(env.z, env.h)
    assert seen[-1].dtype == np.float32 and np.abs(raw).max() > np.abs(seen[-1]).max() == 10
    with torch.no_grad():
        policy = models[-1].policy.get_distribution(torch.from_numpy(seen[-1])).distribution.logits.numpy()
    logits = controller.logits(raw)
    np.testing.assert_allclose(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), policy, atol=1e-5)
    controller.save(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(Controller.load(tmp_path / "c.safetensors").logits(raw), logits)


# Looking on


def test_whoever_looks_on_sees_every_controller_and_disturbs_nothing(tmp_path: Path) -> None:
    seen: list[tuple[int, Controller]] = []

    def look(controller: Controller, decisions: int) -> None:
        torch.rand(5), np.random.rand(3), random.random()  # noqa: NPY002 (the generator SB3 draws from)
        assert controller.meta["real_steps"] == decisions
        seen.append((decisions, controller))

    for name, on_update in (("alone", None), ("watched", look)):
        train_ppo(LevelModel(), TASK, SHORT, seed=1, directory=tmp_path / name, make_env=LevelEnv, on_update=on_update)
    assert_same_run(tmp_path / "alone", tmp_path / "watched")
    assert [decisions for decisions, _ in seen] == [384, 768, 1152, 1536, 1920]
    networks, _ = checkpoints.load(tmp_path / "alone" / ppo.NETWORKS)
    np.testing.assert_array_equal(seen[-1][1].weights[-1], networks["action_net.weight"].T)
    for (_, before), (_, after) in zip(seen[:3], seen[1:4], strict=True):  # the last update has a rate of zero
        assert not np.array_equal(before.weights[-1], after.weights[-1])
    # What was killed while somebody looked goes on from the last checkpoint, and they see the same again.
    again: list[int] = []

    def killed(controller: Controller, decisions: int) -> None:
        again.append(decisions)
        if decisions == 1152 and len(again) == 3:
            raise KeyboardInterrupt

    for interrupted in (True, False):
        with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
            train_ppo(
                LevelModel(), TASK, SHORT, seed=1, directory=tmp_path / "killed", make_env=LevelEnv, on_update=killed
            )
    assert again == [384, 768, 1152, 768, 1152, 1536, 1920]
    assert_same_run(tmp_path / "alone", tmp_path / "killed")


# Being interrupted

SHORT = CONFIG.model_copy(update={"num_steps": 5 * 384, "block_steps": 800, "num_epochs": 1})  # blocks of 2, 2, 1


class Machine:
    """Makes environments, keeps them, and is switched off in environment `kill_env` after `kill_step` steps."""

    def __init__(self, kill_env: int = -1, kill_step: int = 0) -> None:
        self.kill_env, self.kill_step = kill_env, kill_step
        self.made: list[LevelEnv] = []
        self.seeds: list[int] = []

    def __call__(self, num_envs: int, seed: int) -> LevelEnv:
        self.seeds.append(seed)
        dies = len(self.made) == self.kill_env
        self.made.append(LevelEnv(num_envs, seed, fail_after=self.kill_step if dies else None))
        return self.made[-1]


def assert_same_run(a: Path, b: Path) -> None:
    """Policy, Adam's moments and log."""
    (ours, meta), (theirs, other) = (checkpoints.load(path / "checkpoint.safetensors") for path in (a, b))
    assert ours.keys() == theirs.keys() and meta["step"] == other["step"]
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert (a / "scalars.jsonl").read_text() == (b / "scalars.jsonl").read_text()


def assert_same_controller(a: Controller, b: Controller) -> None:
    for x, y in zip(a.weights + a.biases, b.weights + b.biases, strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.meta == b.meta


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Controller, Path, Machine]:
    directory, machine = tmp_path_factory.mktemp("whole"), Machine()
    return train(directory, SHORT, make_env=machine), directory, machine


@pytest.mark.parametrize(
    "kill_env, kill_step, left",
    [
        (0, 30, 5),  # before the first checkpoint
        (1, 0, 3),  # at a border, just after a checkpoint
        (1, 31, 3),  # inside a block, after an update
        (2, 5, 1),  # inside the last, shorter block
    ],
)
def test_a_killed_run_ends_like_an_undisturbed_one(
    kill_env: int, kill_step: int, left: int, whole: tuple[Controller, Path, Machine], tmp_path: Path
) -> None:
    controller, directory, machine = whole
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, SHORT, make_env=Machine(kill_env, kill_step))
    again = Machine()
    resumed = train(tmp_path, SHORT, make_env=again)
    assert sum(env.steps_made for env in again.made) == left * 24
    assert again.seeds == machine.seeds[kill_env:]
    assert_same_controller(controller, resumed)
    assert_same_run(directory, tmp_path)


@pytest.mark.parametrize("nth", [1, 3])
def test_a_run_killed_while_it_writes_a_checkpoint_ends_like_an_undisturbed_one(
    nth: int, whole: tuple[Controller, Path, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json, written = checkpoints.write_json, 0

    def killed(path: Path, content: dict[str, Any]) -> None:
        nonlocal written
        written += 1
        if written == nth:
            raise KeyboardInterrupt
        write_json(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, SHORT)
    assert_same_controller(whole[0], train(tmp_path, SHORT))


def test_a_finished_run_is_not_played_again(whole: tuple[Controller, Path, Machine], tmp_path: Path) -> None:
    controller, directory, machine = whole
    again = Machine()
    assert_same_controller(controller, train(directory, SHORT, make_env=again))
    assert sum(env.steps_made for env in again.made) == 0
    assert not any(env.open for env in (*machine.made, *again.made))


def test_every_block_has_environments_of_its_own(whole: tuple[Controller, Path, Machine], tmp_path: Path) -> None:
    _, _, machine = whole
    assert machine.seeds == [derive_seed(1, "ppo", step) for step in (0, 768, 1536)]
    assert [env.steps_made for env in machine.made] == [48, 48, 24]
    other = train(tmp_path, SHORT, seed=2)
    assert not np.array_equal(other.weights[0], whole[0].weights[0])


def test_a_block_goes_on_with_the_policy_and_the_moments_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended, learn = [], [], PPO.learn

    def state(model: PPO) -> list[np.ndarray]:
        tensors = list(model.policy.state_dict().values())
        for moments in model.policy.optimizer.state_dict()["state"].values():
            tensors += [moments[key] for key in sorted(moments)]
        return [tensor.numpy().copy() for tensor in tensors]

    def spy(model: PPO, *args: Any, **kwargs: Any) -> PPO:
        begun.append(state(model))
        learn(model, *args, **kwargs)
        ended.append(state(model))
        return model

    monkeypatch.setattr(PPO, "learn", spy)
    train(tmp_path, SHORT)
    assert len(begun) == 3
    for before, after in zip(ended, begun[1:], strict=False):
        assert len(before) == len(after) > len(begun[0])
        for x, y in zip(before, after, strict=True):
            np.testing.assert_array_equal(x, y)
