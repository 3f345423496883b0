from dataclasses import replace

import numpy as np
import pytest

from wm_lib import checkpoints
from wm_lib.control import evolution
from wm_lib.control.agent import Agent, FeatureAgent
from wm_lib.control.controller import Controller
from wm_lib.control.evolution import CMAES, SimpleES, play_once, train_evolution
from wm_lib.errors import StageError, UsageError
from wm_lib.events import read_scalars
from wm_lib.settings import ControllerConfig
from wm_lib.tasks import get_task

TASK = replace(get_task("pong"), sampled=False)  # three actions
SAMPLED = get_task("pong")
RULE = np.random.default_rng(7).normal(size=(3, 3))  # the right action is argmax(obs @ RULE)
CONFIG = ControllerConfig(
    type="original", recent_z=1, population_size=12, rollouts_per_candidate=2, num_generations=25, sigma=0.3
)


class ToyModel:
    """Sees the observation as it is; remembers the last action, which nobody needs."""

    z_dim, feature_dim, state_dim = 3, 4, 1

    def initial_state(self, batch):
        return np.zeros((batch, 1), np.float32)

    def encode(self, frames):
        return frames

    def features(self, z, h):
        return np.concatenate([z, h], axis=1)

    def step(self, z, action, h):
        return action[:, None].astype(np.float32)


class ToyEnv:
    """Random numbers to look at; 1 for the right action; a slot with seed s ends after 8 + s % 5 decisions.

    A finished slot stands still, but pays nonsense, which nobody may count. The log gets every set of seeds.
    """

    def __init__(self, num_envs, seeds, log=None, fail_after=None, extra_columns=0):
        self.num_envs = num_envs
        self.seeds = list(seeds)
        assert len(self.seeds) == num_envs
        self.fail_after, self.extra_columns = fail_after, extra_columns
        self.steps_made = 0
        if log is not None:
            log.append(self.seeds)

    def reset(self, *, seed=None, options=None):
        self.rngs = [np.random.default_rng(seed) for seed in self.seeds]
        self.left = np.array([8 + seed % 5 for seed in self.seeds])
        self._look()
        return self.obs.copy(), {}

    def step(self, action):
        if self.fail_after is not None and self.steps_made == self.fail_after:
            raise KeyboardInterrupt
        self.steps_made += 1
        right = action == (self.obs[:, :3] @ RULE).argmax(axis=1)
        reward = np.where(self.left > 0, right, 1e6)
        self.left = np.maximum(self.left - 1, 0)
        self._look()
        return self.obs.copy(), reward, self.left == 0, np.zeros(self.num_envs, bool), {}

    def close(self):
        pass

    def _look(self):
        rows = [np.append(rng.normal(size=3), np.zeros(self.extra_columns)) for rng in self.rngs]
        self.obs = np.array(rows, np.float32)


def train(directory, config=CONFIG, task=TASK, seed=1, make_env=ToyEnv, **kwargs):
    return train_evolution(ToyModel(), task, config, seed=seed, directory=directory, make_env=make_env, **kwargs)


def share_of_right_actions(controller, agent_class=Agent, extra_columns=0):
    """Of a greedy agent, over 64 unseen episodes; 1/3 is chance."""
    env = ToyEnv(64, range(64), extra_columns=extra_columns)
    returns, decisions = play_once(env, agent_class(ToyModel(), controller, 64), 0)
    return returns.sum() / decisions


class LivesEnv:
    """Pays 1 a decision; game i has two lives, loses the first with decision 2 + i and the last with decision 9."""

    num_envs = 3

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros((3, 1), np.float32), {"lives": np.full(3, 2)}

    def step(self, action):
        self.t += 1
        over = np.full(3, self.t >= 9)
        lives = np.where(over, 0, np.where(self.t >= 2 + np.arange(3), 1, 2))
        return np.zeros((3, 1), np.float32), np.ones(3), over, np.zeros(3, bool), {"lives": lives}


@pytest.mark.parametrize(("one_life", "expected"), [(False, [9, 9, 9]), (True, [2, 3, 4])])
def test_an_episode_may_be_played_for_one_life_only(one_life, expected):
    returns, decisions = play_once(LivesEnv(), lambda obs, first: np.zeros(3, int), 0, one_life=one_life)
    assert returns.tolist() == expected and decisions == sum(expected)


@pytest.mark.parametrize("kind", ["original", "cpu"])
@pytest.mark.parametrize("task", [TASK, SAMPLED], ids=["greedy", "sampled"])
def test_evolution_finds_the_rule(tmp_path, kind, task):
    controller = train(tmp_path, CONFIG.model_copy(update={"type": kind}), task)
    assert share_of_right_actions(controller) > 0.8
    weights = np.random.default_rng(0).normal(size=(20, 15))
    assert np.mean([share_of_right_actions(Controller.linear(row, 4, 3)) for row in weights]) < 0.45


@pytest.mark.parametrize("strategy", [CMAES, SimpleES])
@pytest.mark.parametrize("population_size", [2, 3, 16])
def test_strategies_climb_a_known_hill(strategy, population_size):
    top = np.array([1.0, -0.5, 0.25, 0.0, 2.0])
    search = strategy(np.zeros(5), population_size, 0.1, seed=3)
    assert (search.mean == 0).all()
    for _ in range(200):
        candidates = search.ask()
        assert candidates.shape == (population_size, 5)
        search.tell(-((candidates - top) ** 2).sum(axis=1))
    assert np.linalg.norm(search.mean - top) < 0.75 < np.linalg.norm(top)


def test_cma_es_learns_the_scales_of_an_ill_conditioned_hill_and_the_simple_strategy_does_not():
    scales = 10.0 ** np.arange(5)
    heights = {}
    for strategy in (CMAES, SimpleES):
        search = strategy(np.zeros(5), 10, 0.3, seed=0)
        for _ in range(250):
            search.tell(-(scales * (search.ask() - 1) ** 2).sum(axis=1))
        heights[strategy] = (scales * (search.mean - 1) ** 2).sum()
    assert heights[CMAES] < 1e-6 < heights[SimpleES]


def test_many_parameters_get_a_diagonal_covariance(monkeypatch):
    """It learns the scale of every axis and, unlike the full one, nothing about a rotated hill."""
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    scales = 10.0 ** np.arange(5)

    def height_left(axes):
        search = CMAES(np.zeros(5), 10, 0.3, seed=0)
        for _ in range(250):
            search.tell(-(((search.ask() - 1) @ axes) ** 2) @ scales)
        return ((search.mean - 1) @ axes) ** 2 @ scales

    assert height_left(np.eye(5)) < 1e-6 and height_left(rotation) < 1e-6
    monkeypatch.setattr(evolution, "MAX_FULL_COVARIANCE", 4)
    assert height_left(np.eye(5)) < 1e-6 < height_left(rotation)


@pytest.mark.parametrize("population_size", [6, 7])
def test_the_simple_strategy_stays_where_all_are_equal(population_size):
    search = SimpleES(np.zeros(4), population_size, 0.5, seed=0)
    for _ in range(5):
        search.ask()
        search.tell(np.full(population_size, -21.0))
    np.testing.assert_allclose(search.mean, 0, atol=1e-12)


def test_the_simple_strategy_against_its_definition():
    search = SimpleES(np.zeros(3), 6, 0.5, seed=0)
    candidates = search.ask()
    np.testing.assert_allclose(candidates[:3], -candidates[3:])  # mirrored around the mean, 0
    fitness = np.array([3.0, 9.0, 1.0, 9.0, 0.0, 5.0])
    search.tell(fitness)
    first, second, third = np.log(3.5) - np.log([1, 2, 3])
    total = first + second + third
    tied = (first + second) / 2
    expected = (tied * candidates[1] + tied * candidates[3] + third * candidates[5]) / total
    np.testing.assert_allclose(search.mean, expected)


@pytest.mark.parametrize("strategy", [CMAES, SimpleES])
def test_the_global_generator_is_neither_used_nor_moved(strategy):
    def run(disturb):
        search = strategy(np.zeros(4), 6, 0.3, seed=11)
        for _ in range(10):
            if disturb:
                np.random.rand()  # noqa: NPY002
            candidates = search.ask()
            search.tell(candidates.sum(axis=1))
        return search.mean

    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    mean = run(disturb=False)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert (run(disturb=True) == mean).all()


def test_candidates_share_their_seeds_and_every_generation_has_new_ones(tmp_path):
    log = []
    config = CONFIG.model_copy(update={"num_generations": 3, "rollouts_per_candidate": 4})
    train(tmp_path, config, make_env=lambda n, seeds: ToyEnv(n, seeds, log))
    *played, final = log
    heats, finals = played[::2], played[1::2]
    assert len(heats) == len(finals) == 3
    for heat, last in zip(heats, finals, strict=True):
        assert np.array_equal(np.reshape(heat, (12, 2)), np.tile(heat[:2], (12, 1)))
        assert np.array_equal(np.reshape(last, (6, 4)), np.tile(last[:4], (6, 1)))
    distinct = {seed for seeds in log for seed in seeds}
    assert len(distinct) == 3 * 6 + len(final)


def test_the_better_half_plays_on_and_is_not_judged_by_how_hard_that_is():
    """Fitness by hand: four candidates worth 0 to 3, whose first game pays 10 more and the next ones 10 less."""
    worth, asked = np.arange(4.0)[:, None], []

    def run(jobs):
        for params, seeds in jobs:
            asked.append((params[:, 0].tolist(), len(seeds)))
            yield params + np.where(len(asked) == 1, 10.0, -10.0) + np.zeros((1, len(seeds))), len(params) * len(seeds)

    fitness, decisions = evolution._race(run, worth, 2, seed=3)
    assert asked == [([0.0, 1.0, 2.0, 3.0], 1), ([3.0, 2.0], 2)] and decisions == 4 * 2
    np.testing.assert_allclose(fitness, [10, 11, 12, 13])
    asked.clear()
    assert evolution._race(run, worth, 1, seed=3)[1] == 4 and len(asked) == 1  # one game each is no race


def test_more_games_put_the_promising_in_order():
    """The first game says that 2 is better than 3; the two that follow know better."""
    first = iter([np.array([[0.0], [1.0], [3.0], [2.0]]), np.array([[1.0, 1.0], [4.0, 4.0]])])
    fitness, _ = evolution._race(lambda jobs: ((next(first), 1) for _ in jobs), np.arange(4.0)[:, None], 2, seed=0)
    np.testing.assert_allclose(fitness, [0, 1, (3 + 2) / 3, (2 + 2 * 4) / 3])


def test_equal_candidates_have_equal_fitness(tmp_path):
    """The seeds fix the sampled actions too: candidates that hardly differ play the same episodes."""
    config = CONFIG.model_copy(update={"num_generations": 1, "sigma": 1e-9})
    train(tmp_path, config, SAMPLED)
    tensors, _ = checkpoints.load(tmp_path / "generations" / "odd.safetensors")
    assert len(set(tensors["fitness"][0])) == 1


def test_every_decision_is_counted_once_and_finished_slots_are_not(tmp_path):
    log = []
    config = CONFIG.model_copy(update={"num_generations": 3})
    controller = train(tmp_path, config, make_env=lambda n, seeds: ToyEnv(n, seeds, log))
    expected = sum(8 + seed % 5 for seeds in log for seed in seeds)
    assert controller.meta["decisions"] == controller.meta["real_steps"] == expected
    assert 0 <= controller.meta["mean_return"] <= 12
    tensors, _ = checkpoints.load(tmp_path / "generations" / "odd.safetensors")
    assert tensors["fitness"].max() <= 12  # nor does their reward count


def test_episodes_are_cut_off_while_training(tmp_path):
    config = CONFIG.model_copy(update={"num_generations": 2, "max_decisions": 5})
    controller = train(tmp_path, config)
    assert controller.meta["decisions"] == (2 * 12 * 2 + 16) * 5
    assert controller.meta["mean_return"] <= 5


@pytest.mark.parametrize(("budget", "generations"), [(0, 5), (1, 1), (120, 1), (121, 2), (10_000, 5)])
def test_no_generation_begins_once_the_budget_is_spent(tmp_path, budget, generations):
    settings = {"num_generations": 5, "max_decisions": 5, "decision_budget": budget}
    for _ in range(2):  # the second time resumed from what is there
        controller = train(tmp_path, CONFIG.model_copy(update=settings))
        assert controller.meta["generations"] == generations
        assert controller.meta["decisions"] == (generations * 12 * 2 + 16) * 5


def test_the_mean_is_returned_and_the_log_tells_best_and_mean(tmp_path):
    controller = train(tmp_path / "run", log_dir=tmp_path / "log")
    tensors, meta = checkpoints.load(tmp_path / "run" / "generations" / "odd.safetensors")
    params = np.concatenate([controller.weights[0].ravel(), controller.biases[0]])
    assert (params == tensors["mean"].astype(np.float32)).all()
    scalars = read_scalars(tmp_path / "log")
    np.testing.assert_allclose(scalars["best_return"][1], tensors["fitness"].max(axis=1))
    np.testing.assert_allclose(scalars["mean_return"][1], tensors["fitness"].mean(axis=1))
    assert scalars["mean_return"][0].tolist() == list(range(1, 26))
    assert scalars["decisions"][1][-1] == meta["decisions"] < controller.meta["decisions"]


def assert_same_run(controller, other, log_dir, other_log_dir):
    assert (controller.weights[0] == other.weights[0]).all()
    assert (controller.biases[0] == other.biases[0]).all()
    assert controller.meta == other.meta
    assert (log_dir / "scalars.jsonl").read_bytes() == (other_log_dir / "scalars.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["original", "cpu"])
@pytest.mark.parametrize("fail_after", [0, 5], ids=["at a boundary", "in the middle of a generation"])
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, kind, fail_after):
    config = CONFIG.model_copy(update={"type": kind, "num_generations": 8})
    whole = train(tmp_path / "whole", config, SAMPLED, log_dir=tmp_path / "whole")
    for killed_at in (0, 6, 7, 8, 16):  # a generation plays twice; 16: in the final evaluation
        made = []

        def make_env(num_envs, seeds, made=made, killed_at=killed_at):
            made.append(ToyEnv(num_envs, seeds, fail_after=fail_after if len(made) == killed_at else None))
            return made[-1]

        folder = tmp_path / str(killed_at)
        with pytest.raises(KeyboardInterrupt):
            train(folder, config, SAMPLED, log_dir=folder, make_env=make_env)
        log = []
        resumed = train(
            folder, config, SAMPLED, log_dir=folder, make_env=lambda n, seeds, log=log: ToyEnv(n, seeds, log)
        )
        assert len(log) == 17 - killed_at // 2 * 2  # no finished generation is played twice
        assert_same_run(resumed, whole, folder, tmp_path / "whole")


@pytest.mark.parametrize("killed_at", [1, 5])
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(tmp_path, monkeypatch, killed_at):
    config = CONFIG.model_copy(update={"num_generations": 7})
    whole = train(tmp_path / "whole", config, log_dir=tmp_path / "whole")
    write_json = checkpoints.write_json

    def killed(path, content):
        if content.get("generation") == killed_at:
            raise KeyboardInterrupt
        write_json(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", config, log_dir=tmp_path / "killed")
    resumed = train(tmp_path / "killed", config, log_dir=tmp_path / "killed")
    assert_same_run(resumed, whole, tmp_path / "killed", tmp_path / "whole")


def test_more_generations_later_are_the_same_as_at_once(tmp_path):
    train(tmp_path / "run", CONFIG.model_copy(update={"num_generations": 4}))
    longer = CONFIG.model_copy(update={"num_generations": 6})
    resumed, whole = train(tmp_path / "run", longer), train(tmp_path / "whole", longer)
    assert (resumed.weights[0] == whole.weights[0]).all()
    assert resumed.meta == whole.meta


@pytest.mark.parametrize(
    "change",
    [{"sigma": 0.4}, {"population_size": 14}, {"num_generations": 3}, {"type": "cpu"}],
    ids=lambda change: next(iter(change)),
)
def test_checkpoints_of_other_settings_are_refused(tmp_path, change):
    config = CONFIG.model_copy(update={"num_generations": 4})
    train(tmp_path, config)
    with pytest.raises(StageError, match="other settings"):
        train(tmp_path, config.model_copy(update=change))


def test_runs_with_another_seed_differ(tmp_path):
    config = CONFIG.model_copy(update={"num_generations": 2})
    one, two = train(tmp_path / "1", config, seed=1), train(tmp_path / "2", config, seed=2)
    assert (one.weights[0] != two.weights[0]).all()


def test_in_a_dream_the_observation_is_the_features_and_no_step_is_real(tmp_path):
    class Blind(ToyModel):
        def encode(self, frames):
            raise AssertionError("the dream has no frames")

    controller = train_evolution(
        Blind(),
        TASK,
        CONFIG,
        seed=1,
        directory=tmp_path,
        make_env=lambda n, seeds: ToyEnv(n, seeds, extra_columns=1),
        observes_features=True,
    )
    assert controller.meta["real_steps"] == 0 < controller.meta["decisions"]
    assert share_of_right_actions(controller, FeatureAgent, extra_columns=1) > 0.8


def test_ppo_is_not_evolution(tmp_path):
    with pytest.raises(UsageError, match="original or cpu"):
        train(tmp_path, ControllerConfig(type="ppo"))
