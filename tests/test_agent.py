import numpy as np
import pytest

from wm_lib.control.agent import Agent, FeatureAgent, RandomAgent, feature_statistics
from wm_lib.control.controller import Controller
from wm_lib.errors import StageError


class RecordingModel:
    """z is the first pixel, h = 10 h + z + action, and every call is written down."""

    z_dim, feature_dim, state_dim = 1, 2, 1

    def __init__(self):
        self.calls = []

    def initial_state(self, batch):
        return np.zeros((batch, 1), np.float32)

    def encode(self, frames):
        self.calls.append("encode")
        return frames[:, 0, 0, :1].astype(np.float32)

    def features(self, z, h):
        self.calls.append(("features", z[:, 0].tolist(), h[:, 0].tolist()))
        return np.concatenate([z, h], axis=1)

    def step(self, z, action, h):
        self.calls.append(("step", z[:, 0].tolist(), action.tolist(), h[:, 0].tolist()))
        return 10 * h + z + action[:, None].astype(np.float32)


class PlantedController:
    """Chooses action 1 wherever h is 0."""

    feature_dim = 2

    def __init__(self, calls):
        self.calls = calls

    def act(self, features, rngs=None):
        self.calls.append("act")
        return (features[:, 1] == 0).astype(np.int64)


def frames(*values):
    out = np.zeros((len(values), 64, 64, 3), np.uint8)
    out[:, 0, 0, 0] = values
    return out


def test_the_action_is_chosen_before_it_enters_the_memory_and_the_first_frame_finds_it_empty():
    model = RecordingModel()
    agent = Agent(model, PlantedController(model.calls), 2)
    first = np.array([True, True])
    assert agent(frames(3, 4), first).tolist() == [1, 1]
    assert agent(frames(5, 6), ~first).tolist() == [0, 0]
    assert agent(frames(7, 8), np.array([False, True])).tolist() == [0, 1]
    assert model.calls == [
        "encode", ("features", [3, 4], [0, 0]), "act", ("step", [3, 4], [1, 1], [0, 0]),
        "encode", ("features", [5, 6], [4, 5]), "act", ("step", [5, 6], [0, 0], [4, 5]),
        "encode", ("features", [7, 8], [45, 0]), "act", ("step", [7, 8], [0, 1], [45, 0]),
    ]  # fmt: skip


def test_a_controller_for_other_features_is_refused():
    with pytest.raises(StageError, match="reads 7 features and the world model has 2"):
        Agent(RecordingModel(), Controller.linear(np.zeros(16), 7, 2), 3)


def uniform_agent(num_envs):
    rngs = [np.random.default_rng(99) for _ in range(num_envs)]
    return Agent(RecordingModel(), Controller.linear(np.zeros(9), 2, 3), num_envs, rngs)


@pytest.mark.parametrize("make", [uniform_agent, lambda n: RandomAgent(3, n)])
def test_the_seed_of_an_episode_fixes_its_actions_in_whatever_slot(make):
    def play(agent, slot, seed, num_envs):
        agent.reset_slot(slot, seed)
        obs, first = frames(*[1] * num_envs), np.ones(num_envs, bool)
        return [int(agent(obs, first)[slot]) for _ in range(30)]

    agent = make(4)
    actions = play(agent, 2, 77, 4)
    assert set(actions) == {0, 1, 2}
    assert play(agent, 0, 77, 4) == actions  # another slot, later
    assert play(make(1), 0, 77, 1) == actions  # another batch
    assert play(agent, 2, 78, 4) != actions


def test_reset_slot_leaves_a_greedy_agent_greedy():
    agent = Agent(RecordingModel(), Controller.linear(np.array([1, 2, 0, 0, 0, 0]), 2, 2), 1)
    agent.reset_slot(0, 5)
    assert agent(frames(9), np.array([True])).tolist() == [1]


def test_the_random_agent_is_uniform():
    agent = RandomAgent(3, 100)
    actions = np.concatenate([agent(None, None) for _ in range(100)])
    counts = np.bincount(actions, minlength=3)
    assert ((counts - 10_000 / 3) ** 2 / (10_000 / 3)).sum() < 13.82  # chi square, 99.9 %, 2 degrees of freedom


def test_the_feature_agent_passes_the_observation_straight_to_the_controller():
    controller = Controller.linear(np.array([1, 0, 0, 1, 0, 0]), 2, 2)
    agent = FeatureAgent(None, controller, 2)
    assert agent(np.array([[3, 1], [1, 3]], np.float32), None).tolist() == [0, 1]


def test_feature_statistics_equal_those_of_the_features_seen_one_by_one() -> None:
    class Sums:
        """h counts the steps since the episode began; the features are [z, h]."""

        feature_dim = 3

        def initial_state(self, batch: int) -> np.ndarray:
            return np.zeros((batch, 1), np.float32)

        def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
            return np.concatenate([z, h], axis=1)

        def units(self, spread: np.ndarray) -> np.ndarray:
            return spread / np.array([4, 1, 0.5])

        def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
            return h + 1

    rng = np.random.default_rng(0)
    mu = rng.normal(3, 2, (2, 5, 2)).astype(np.float32)
    mu[..., 1] = 7
    first = np.array([[1, 0, 0, 1, 0], [1, 0, 0, 0, 0]], bool)
    mean, std = feature_statistics(Sums(), {"mu": mu, "action": np.zeros((2, 5), np.int64), "first": first})
    steps = np.array([0, 1, 2, 0, 1, 0, 1, 2, 3, 4])
    np.testing.assert_allclose(mean, [mu[..., 0].mean(), 7, steps.mean()], rtol=1e-5)
    np.testing.assert_allclose(std, [mu[..., 0].std() / 4, 0.1, 2 * steps.std()], rtol=1e-5)
