"""Dreams by name, and reality beside them, on a run that was trained for seconds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from test_pipeline import write_config

import wm_lib
from wm_lib import worlds
from wm_lib.config import load_config
from wm_lib.control.controller import Controller
from wm_lib.control.ppo import FeatureVecEnv
from wm_lib.dreams import default_horizon, dream_against_reality, dreams_of, make_dreams, spearman
from wm_lib.errors import StageError, UsageError
from wm_lib.pipeline import DREAMS, Pipeline
from wm_lib.tasks import TASKS
from wm_lib.worlds import envs
from wm_lib.worlds.dream import DreamEnv, Dreamt

PRESETS = Path(wm_lib.__file__).parent / "presets"

NAME = "wm_lib.dreams:WorldModelsDream-v0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("dreams")
    made = Pipeline.open("lunar-lander", "smoke", folder / "run")
    made.build("controller")
    return made


@pytest.fixture(scope="module")
def which(run: Pipeline) -> dict[str, object]:
    return {"task": "LunarLander-v3", "budget": "smoke", "run_dir": run.directory.parent}


@pytest.mark.filterwarnings("ignore:.*Box observation space:UserWarning")
@pytest.mark.filterwarnings("ignore:.*alternative render modes:UserWarning")
def test_a_dream_has_a_name_and_passes_both_checkers(which: dict[str, object]) -> None:
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

    env = gymnasium.make(NAME, render_mode="rgb_array", **which)
    assert isinstance(env.unwrapped, DreamEnv)
    check_env(env.unwrapped)
    check_env_of_sb3(env)
    env.reset(seed=3)
    assert env.render().shape == (64, 64, 3)


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "DQN"])
def test_stable_baselines_trains_in_it_unmodified(algorithm: str, which: dict[str, object]) -> None:
    import stable_baselines3

    env = gymnasium.make(NAME, horizon=20, **which)
    settings = {"learning_starts": 10, "train_freq": 8} if algorithm == "DQN" else {"n_steps": 16}
    if algorithm == "PPO":
        settings["batch_size"] = 16
    model = getattr(stable_baselines3, algorithm)("MlpPolicy", env, seed=0, device="cpu", **settings)
    before = [weight.detach().clone() for weight in model.policy.parameters()]
    model.learn(64)
    assert any(not np.array_equal(x, y.detach()) for x, y in zip(before, model.policy.parameters(), strict=True))


def test_many_dreams_have_the_same_name(run: Pipeline, which: dict[str, object]) -> None:
    env = gymnasium.make_vec(NAME, num_envs=300, horizon=5, seed=1, **which)
    obs, _ = env.reset()
    assert obs.shape == (300, run.world_model().feature_dim)
    for _ in range(5):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
    assert (terminated ^ truncated).all()


def test_dreams_start_where_the_options_say(run: Pipeline, which: dict[str, object]) -> None:
    latents = run.latents()
    assert make_dreams(**which).horizon == default_horizon(run) == 64
    starts = make_dreams(**which, num_envs=2).start_z
    np.testing.assert_array_equal(starts, latents["mu"][latents["first"]])
    anywhere = make_dreams(**which, starts="anywhere", temperature=0.3, horizon=7)
    assert len(anywhere.start_z) == latents["mu"].shape[0] * latents["mu"].shape[1] > len(starts)
    assert (anywhere.temperature, anywhere.horizon) == (0.3, 7)


def test_a_threshold_decides_the_end_instead_of_a_draw(run: Pipeline, which: dict[str, object]) -> None:
    never, at_once = (make_dreams(**which, num_envs=50, horizon=9, done_threshold=p) for p in (1.0, 0.0))
    for dreams in (never, at_once):
        dreams.reset()
        _, _, terminated, _, _ = dreams.step(np.zeros(50, int))
        assert terminated.all() == (dreams is at_once) and terminated.any() == (dreams is at_once)
    # In between: exactly where M's own probability of the end is above it.
    world_model = run.world_model()
    z, action, h = (
        never.start_z[:20],
        np.arange(20) % run.task.num_actions,
        world_model.initial_state(len(never.start_z[:20])),
    )
    action = action[: len(z)]
    with torch.no_grad():
        _, _, logit, _ = world_model.mdn_rnn(torch.from_numpy(z)[:, None], torch.from_numpy(action)[:, None])
    probability = 1 / (1 + np.exp(-logit[:, 0].numpy().astype(float)))
    threshold = float(np.sort(probability)[len(z) // 2 - 1 : len(z) // 2 + 1].mean())  # between two of them
    ended = world_model.imagine(z, action, h, 1.0, np.random.default_rng(0), threshold)[2]
    np.testing.assert_array_equal(ended, probability > threshold)
    assert len(z) < 3 or ended.any() and not ended.all()
    with pytest.raises(UsageError, match="done_threshold must be from 0 to 1, found 1.5"):
        make_dreams(**which, done_threshold=1.5)


def test_what_is_missing_or_wrong_is_said(which: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="starts must be episodes or anywhere, found somewhere"):
        make_dreams(**which, starts="somewhere")
    with pytest.raises(StageError, match="not made yet"):
        make_dreams("pong", run_dir=tmp_path)


def test_reality_stands_beside_the_dream(run: Pipeline) -> None:
    found = dream_against_reality(run, (0.5, 1.0), num_episodes=4, num_candidates=3)
    assert found["horizon"] == 64 and found["num_episodes"] == 4
    for world in ("real", "real_random"):
        assert np.isfinite(found[world]["mean"]) and found[world]["standard_error"] > 0
    for world in ("dream", "dream_random", "rank_correlation"):
        assert list(found[world]) == ["0.5", "1"]
    assert all(value is None or -1 <= value <= 1 for value in found["rank_correlation"].values())
    # Random play of LunarLander loses in reality, by hand: RandomAgent in make_env, cut off at the same horizon.
    assert -500 < found["real_random"]["mean"] < 0
    assert found == dream_against_reality(run, (0.5, 1.0), num_episodes=4, num_candidates=3)


def test_the_ceiling_is_reality_beside_itself_in_other_games(run: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[float], list[float]]] = []
    monkeypatch.setattr("wm_lib.dreams.spearman", lambda a, b: asked.append((a.tolist(), b.tolist())) or len(asked))
    made: list[int] = []
    make_env = worlds.make_env
    monkeypatch.setattr(worlds, "make_env", lambda task, count, seed, backend: made.append(seed) or
                        make_env(task, count, seed, backend))  # fmt: skip
    found = dream_against_reality(run, (1.0,), num_episodes=4, num_candidates=3)
    assert (found["rank_ceiling"], found["rank_correlation"]) == (1, {"1": 2})
    (again, real), (asleep, same) = asked
    assert real == same and len({tuple(returns) for returns in (real, again, asleep)}) == 3
    assert len(made) == 4 and len(set(made)) == 2  # the crowd twice, the agent and random play in the first games


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 25, 1000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8207826816681233),  # scipy.stats.spearmanr's documented example
        ([1, 1, 1], [1, 2, 3], None),
    ],
)
def test_spearman(a: list[float], b: list[float], expected: float | None) -> None:
    found = spearman(np.array(a, float), np.array(b, float))
    assert found == (None if expected is None else pytest.approx(expected))


# C's training in dreams


def open_dreaming(folder: Path, where: str, rounds: int = 1) -> Pipeline:
    tiny = {"num_steps": 64, "num_envs": 4, "rollout_length": 8, "batch_size": 16, "block_steps": 32}
    sections = {"controller": tiny | {"where": where, "dream_steps": 96}, "rounds": {"controller_steps": 32}}
    config = write_config(folder.parent / f"{where}.yaml", **sections)
    return Pipeline.open("lunar-lander", "smoke", folder, 0, config, rounds=rounds)


@pytest.fixture
def asleep(run: Pipeline, tmp_path: Path) -> Path:
    """A copy of the run up to its M."""
    for stage in ("collect", "vae", "latents", "mdn_rnn"):
        shutil.copytree(run.directory / stage, tmp_path / "run" / "lunar-lander" / stage)
    return tmp_path / "run"


def test_c_learns_in_the_dream_without_a_real_decision(asleep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def awake(*args: object) -> None:
        raise AssertionError("a dream needs no real environment")

    seen: list[tuple[int, int]] = []
    made = open_dreaming(asleep, "dream")
    with monkeypatch.context() as patch:
        patch.setattr(envs, "make_env", awake)
        watched = replace(made, watch=lambda run, controller, steps: seen.append((run.round, steps)))
        watched.run_stage("controller")
    assert made.facts("controller")["facts"] == {"real_steps": 0, "dream_steps": 96}
    assert seen == [(1, 0)]
    controller = made.controller()
    assert controller.meta["real_steps"] == 0 and controller.feature_dim == made.world_model().feature_dim
    later = open_dreaming(asleep, "dream", rounds=2)
    later.build("controller")
    before, after = made.controller(), later.controller()
    np.testing.assert_array_equal(before.feature_mean, after.feature_mean)  # it went on from there
    assert not np.array_equal(before.weights[0], after.weights[0])
    assert later.facts("collect")["facts"]["real_steps"] == 512


def test_after_the_dream_c_goes_on_in_reality(asleep: Path) -> None:
    dreamt = open_dreaming(asleep, "dream")
    dreamt.run_stage("controller")
    night = dreamt.controller()
    made = open_dreaming(asleep, "dream_then_real")
    seen: list[tuple[int, Controller]] = []
    replace(made, watch=lambda run, controller, steps: seen.append((steps, controller))).run_stage("controller")
    assert made.facts("controller")["facts"] == {"real_steps": 64, "dream_steps": 96}
    assert [steps for steps, _ in seen] == [0, 32, 64]
    for a, b in zip(night.weights, seen[0][1].weights, strict=True):
        np.testing.assert_array_equal(a, b)  # the dream is the same, wherever C goes afterwards
    assert not np.array_equal(made.controller().weights[0], night.weights[0])


def test_in_a_dream_c_is_shown_the_features_of_the_dream(run: Pipeline) -> None:
    dreams, twin = (dreams_of(run, 5, 3, 1.0, "anywhere", seed=4) for _ in range(2))
    env = FeatureVecEnv(dreams, Dreamt(dreams.world_model.feature_dim), reward_scale=0.5)
    np.testing.assert_allclose(env.reset(), np.clip(twin.reset()[0], -10, 10))
    for t in range(1, 7):
        action = np.arange(5) % 4
        obs, reward, done, infos = env.step(action)
        expected, paid, terminated, truncated, _ = twin.step(action)
        np.testing.assert_allclose(reward, paid * 0.5)
        np.testing.assert_array_equal(done, terminated | truncated)
        for i in np.flatnonzero(done):
            np.testing.assert_allclose(infos[i]["terminal_observation"], np.clip(expected[i], -10, 10))
        if done.any():
            expected, _ = twin.reset(options={"reset_mask": done})
        np.testing.assert_allclose(obs, np.clip(expected, -10, 10))
        assert t % 3 or done.any()


def test_a_run_without_dreams_has_the_settings_it_had_before_there_were_any(run: Pipeline, asleep: Path) -> None:
    record = run.facts("controller")
    assert not DREAMS & record["config"].keys()
    assert open_dreaming(asleep, "dream")._settings("controller").keys() == record["config"].keys() | DREAMS


def test_only_ppo_dreams(tmp_path: Path) -> None:
    file = write_config(tmp_path / "mine.yaml", controller={"type": "cpu", "where": "dream"})
    with pytest.raises(UsageError, match="controller.where: dream needs controller.type ppo, found cpu"):
        load_config("smoke", "pong", file)


@pytest.mark.parametrize("task", TASKS)
def test_the_frugal_settings_are_valid_and_spend_little(task: str) -> None:
    config = load_config("laptop", task, PRESETS / "frugal.yaml")
    rounds, awake = config.rounds, config.controller.num_steps if config.controller.where != "dream" else 0
    assert awake == 0 or rounds.num_rounds == 1
    assert rounds.num_rounds * config.collect.num_steps + awake <= 102_400
    shard = config.collect.num_envs * config.collect.shard_length
    assert config.collect.num_steps % shard == 0
