"""The dream's rules, on a toy world model whose future is known."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from wm_lib.errors import UsageError
from wm_lib.models.world_model import WorldModel
from wm_lib.worlds.dream import DreamEnv, DreamVectorEnv


class Walk:
    """z moves by the action (plus noise times the temperature), h counts, and beyond 10 it ends."""

    z_dim, feature_dim, state_dim = 1, 2, 1

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return frames[:, 0, 0, :1].astype(np.float32)

    def decode(self, z: np.ndarray) -> np.ndarray:
        return np.broadcast_to(z.astype(np.uint8)[:, None, None], (len(z), 64, 64, 3))

    def initial_state(self, batch: int) -> np.ndarray:
        return np.zeros((batch, 1), np.float32)

    def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        return np.concatenate([z, h], axis=1)

    def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        return h + 1

    def imagine(
        self, z: np.ndarray, action: np.ndarray, h: np.ndarray, temperature: float, rng: np.random.Generator,
        done_threshold: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        noise = rng.normal(size=z.shape).astype(np.float32)
        z = z + action[:, None].astype(np.float32) + temperature * noise
        return z, 0.5 * action.astype(np.float32), z[:, 0] > 10, self.step(z, action, h)


WALK: WorldModel = Walk()


def make(num_envs: int = 3, horizon: int = 100, temperature: float = 0.0, seed: int = 0, **changes) -> DreamVectorEnv:
    start_z = changes.pop("start_z", np.zeros((1, 1)))
    return DreamVectorEnv(WALK, start_z, num_envs, horizon, temperature, 4, seed)


def test_steps_follow_the_model() -> None:
    env = make()
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    obs, info = env.reset()
    assert obs.dtype == np.float32 and obs in env.observation_space and info == {}
    np.testing.assert_array_equal(obs, np.zeros((3, 2)))
    total = np.zeros(3)
    for t in range(1, 4):
        obs, reward, terminated, truncated, info = env.step(np.array([0, 1, 3]))
        total += reward
        np.testing.assert_array_equal(obs, [[0, t], [t, t], [3 * t, t]])
        assert obs in env.observation_space and not terminated.any() and not truncated.any() and info == {}
    np.testing.assert_array_equal(total, [0, 1.5, 4.5])
    assert reward.shape == (3,) and terminated.dtype == truncated.dtype == bool


def test_ends_stand_still_until_the_mask_resets_them() -> None:
    env = make(horizon=5, start_z=np.full((1, 1), 2.0))
    env.reset()
    for _ in range(3):
        obs, _, terminated, truncated, _ = env.step(np.array([0, 1, 3]))
    assert terminated.tolist() == [False, False, True] and not truncated.any()
    final = obs[2].copy()
    obs, reward, terminated, truncated, _ = env.step(np.array([0, 1, 3]))
    np.testing.assert_array_equal(obs[2], final)
    assert reward.tolist() == [0, 0.5, 0] and terminated[2]

    before = obs.copy()
    obs, _ = env.reset(options={"reset_mask": terminated | truncated})
    np.testing.assert_array_equal(obs[:2], before[:2])
    np.testing.assert_array_equal(obs[2], [2, 0])

    # The others come to the horizon; the one that began again has four steps left.
    obs, _, terminated, truncated, _ = env.step(np.array([0, 1, 0]))
    assert truncated.tolist() == [True, True, False] and not terminated.any()
    np.testing.assert_array_equal(obs, [[2, 5], [7, 5], [2, 1]])
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs, [[2, 0]] * 3)
    assert not any(flags.any() for flags in env.step(np.zeros(3, int))[2:4])


def test_ending_at_the_horizon_counts_as_the_model_says() -> None:
    env = make(num_envs=2, horizon=4)
    env.reset()
    for _ in range(4):
        _, _, terminated, truncated, _ = env.step(np.array([3, 0]))
    assert terminated.tolist() == [True, False] and truncated.tolist() == [False, True]


def test_returned_arrays_are_not_touched_later() -> None:
    env = make()
    obs, _ = env.reset()
    first = env.step(np.array([3, 3, 3]))
    copies = [x.copy() for x in first[:4]]
    for _ in range(4):
        env.step(np.array([3, 3, 3]))
    for old, new in zip(copies, first[:4], strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(obs, np.zeros((3, 2)))


def test_starts_are_real_latents_each_as_often() -> None:
    starts = np.arange(5.0)[:, None]
    obs, _ = make(num_envs=10_000, start_z=starts).reset()
    values, counts = np.unique(obs[:, 0], return_counts=True)
    np.testing.assert_array_equal(values, starts[:, 0])
    np.testing.assert_allclose(counts, 2000, atol=200)  # five standard deviations
    assert not obs[:, 1].any()


def test_seed_decides_everything() -> None:
    starts = np.random.default_rng(0).normal(size=(50, 1))

    def run(env: DreamVectorEnv, seed: int | None) -> np.ndarray:
        observations = [env.reset(seed=seed)[0]]
        observations += [env.step(np.ones(3, int))[0] for _ in range(4)]
        return np.array(observations)

    options = {"temperature": 1.0, "start_z": starts}
    a, b = make(seed=3, **options), make(seed=3, **options)
    first = run(a, None)
    np.testing.assert_array_equal(first, run(b, None))
    assert (run(a, None) != first).any()  # goes on, does not repeat
    np.testing.assert_array_equal(run(a, 11), run(b, 11))
    np.testing.assert_array_equal(run(make(seed=4, **options), 11), run(b, 11))


def test_rendering_draws_the_present_z() -> None:
    env = make()
    env.reset()
    env.step(np.array([0, 1, 3]))
    frames = env.render()
    assert [frame.shape for frame in frames] == [(64, 64, 3)] * 3
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 1, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"horizon": 0}, "horizon"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": np.nan}, "temperature"),
        ({"start_z": np.zeros((4, 2))}, "start_z"),
        ({"start_z": np.zeros((0, 1))}, "start_z"),
        ({"start_z": np.full((1, 1), np.nan)}, "start_z"),
    ],
)
def test_bad_arguments_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**changes)


def test_bad_calls_are_refused() -> None:
    env = make()
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(3, int))
    env.reset()
    for actions in (np.zeros(2, int), np.array([0, 1, 4]), np.array([0, -1, 0])):
        with pytest.raises(UsageError, match="actions"):
            env.step(actions)
    for mask in ([True] * 3, np.ones(2, bool), np.ones(3, int)):
        with pytest.raises(UsageError, match="reset_mask"):
            env.reset(options={"reset_mask": mask})


@pytest.mark.filterwarnings("ignore:.*Box observation space:UserWarning")
@pytest.mark.filterwarnings("ignore:.*alternative render modes:UserWarning")
def test_single_dream_passes_both_checkers() -> None:
    env = DreamEnv(make(1, 20, 1.0, start_z=np.arange(5.0)[:, None]), "rgb_array")
    check_env(env)
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

    check_env_of_sb3(env)
    assert env.render().shape == (64, 64, 3)
    assert DreamEnv(make(1, 20, 1.0)).render() is None


def test_single_dream_is_the_vector_of_one() -> None:
    starts = np.random.default_rng(0).normal(size=(50, 1))
    single, vector = DreamEnv(make(1, 6, 1.0, start_z=starts)), make(1, 6, 1.0, start_z=starts)
    np.testing.assert_array_equal(single.reset(seed=5)[0], vector.reset(seed=5)[0][0])
    for _ in range(6):
        obs, reward, terminated, truncated, _ = single.step(1)
        expected = vector.step(np.array([1]))
        np.testing.assert_array_equal(obs, expected[0][0])
        assert (reward, terminated, truncated) == tuple(x[0] for x in expected[1:4])
        assert isinstance(reward, float) and isinstance(terminated, bool) and isinstance(truncated, bool)
    assert truncated


def test_dreaming_needs_no_torch() -> None:
    code = "import sys, wm_lib.worlds.dream; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_thousands_of_neural_dreams_in_one_batch() -> None:
    torch = pytest.importorskip("torch")
    from wm_lib.models.mdn_rnn import MDNRNN
    from wm_lib.models.neural import NeuralWorldModel
    from wm_lib.models.vae import VAE

    torch.manual_seed(0)
    world_model = NeuralWorldModel(VAE(8), MDNRNN(8, 3, rnn_size=16), recent_z=2)
    env = DreamVectorEnv(world_model, np.random.default_rng(0).normal(size=(20, 8)), 2000, 10, 1.0, 3, 0)
    obs, _ = env.reset()
    for _ in range(10):
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
    assert obs.shape == (2000, 32) and obs.dtype == np.float32 and np.isfinite(obs).all()
    assert (terminated ^ truncated).all()
