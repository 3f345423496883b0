"""Dreams by name, and reality beside them, on a run that was trained for seconds."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from wm_lib.dreams import default_horizon, dream_against_reality, make_dreams, spearman
from wm_lib.errors import StageError, UsageError
from wm_lib.pipeline import Pipeline
from wm_lib.worlds.dream import DreamEnv

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
