import json
from dataclasses import replace

import numpy as np
import pytest

from wm_lib.control.agent import RandomAgent
from wm_lib.control.controller import Controller
from wm_lib.errors import UsageError
from wm_lib.evaluation import agent_maker, evaluate, random_maker, summarise, t_quantile
from wm_lib.seeding import derive_seed
from wm_lib.tasks import TASKS, get_task

TASK = get_task("lunar-lander")


class CountingEnv:
    """An episode with seed s lasts 1 + s % 7 decisions and pays s / 10 at each, plus the action if asked to.

    It refuses what the rules forbid: a reset of a running episode.
    """

    def __init__(self, num_envs, seeds, pays_action=False):
        self.num_envs = num_envs
        self.pays_action = pays_action
        self.seeds_at_start = list(seeds)
        self.resets = []
        self.closed = False

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask")
        if mask is None:
            assert seed == self.seeds_at_start
            mask = np.ones(self.num_envs, bool)
            self.seed, self.left = np.zeros(self.num_envs, int), np.zeros(self.num_envs, int)
        assert (self.left[mask] == 0).all()
        for i in np.flatnonzero(mask):
            self.resets.append(seed[i])
            self.seed[i], self.left[i] = seed[i], 1 + seed[i] % 7
        return self._obs(), {}

    def step(self, action):
        assert action.shape == (self.num_envs,)
        running = self.left > 0
        reward = np.where(running, self.seed / 10 + self.pays_action * action, 0.0)
        self.left = np.maximum(self.left - 1, 0)
        ended = self.left == 0
        terminated = ended & (self.seed % 2 == 0)  # the others are cut off
        return self._obs(), reward, terminated, ended & ~terminated, {}

    def close(self):
        self.closed = True

    def _obs(self):
        obs = np.zeros((self.num_envs, 64, 64, 3), np.uint8)
        obs[:, 0, 0, 0] = self.seed
        obs[:, 0, 0, 1] = self.left
        return obs


def run(task=TASK, make_agent=None, episodes=20, seed=100, num_envs=8, pays_action=False):
    made = []

    def make_env(num_envs, seeds):
        made.append(CountingEnv(num_envs, seeds, pays_action))
        return made[-1]

    make_agent = make_agent or random_maker(task)
    return evaluate(task, make_agent, episodes, seed, num_envs=num_envs, make_env=make_env), made[0]


@pytest.mark.parametrize("num_envs", [1, 3, 8, 20, 50])
def test_every_seed_is_played_once_to_its_end_however_many_slots(num_envs):
    result, env = run(num_envs=num_envs)
    seeds = list(range(100, 120))
    lengths = [1 + seed % 7 for seed in seeds]
    assert sorted(env.resets) == seeds == result["seeds"]
    np.testing.assert_allclose(
        result["returns"], [length * seed / 10 for length, seed in zip(lengths, seeds, strict=True)]
    )
    assert result["real_steps"] == sum(lengths)
    assert env.num_envs == min(num_envs, 20)
    assert env.closed


@pytest.mark.parametrize("sampled", [False, True])
def test_returns_do_not_depend_on_the_number_of_slots(sampled):
    task = replace(TASK, sampled=sampled)

    class Model:
        feature_dim = 2

        def initial_state(self, batch):
            return np.zeros((batch, 1), np.float32)

        def encode(self, frames):
            return frames[:, 0, 0, 1:2] / np.float32(4)

        def features(self, z, h):
            return np.concatenate([z, h], axis=1)

        def step(self, z, action, h):
            return h / 2 + action[:, None].astype(np.float32)

    rng = np.random.default_rng(0)
    maker = agent_maker(task, Model(), Controller.linear(rng.normal(size=12), 2, 4))
    results = [run(task, maker, num_envs=num_envs, pays_action=True)[0] for num_envs in (1, 3, 8, 50)]
    assert all(result == results[0] for result in results)
    few, _ = run(task, maker, episodes=5, num_envs=8, pays_action=True)
    assert few["returns"] == results[0]["returns"][:5]


def test_sampled_tasks_sample_and_the_others_are_greedy():
    class Model:
        feature_dim = 1

        def initial_state(self, batch):
            return np.zeros((batch, 1), np.float32)

    controller = Controller.linear(np.zeros(8), 1, 4)
    greedy = replace(get_task("car-racing"), sampled=False)
    assert agent_maker(greedy, Model(), controller)(3).rngs is None
    for name in TASKS:
        assert len(agent_maker(get_task(name), Model(), controller)(3).rngs) == 3


def test_the_batch_keeps_its_shape_and_first_marks_the_first_frames():
    seen = []

    class Spy(RandomAgent):
        def __call__(self, obs, first):
            seen.append((obs.shape, first.copy(), obs[:, 0, 0, :2].copy()))
            return super().__call__(obs, first)

    run(make_agent=lambda num_envs: Spy(4, num_envs), episodes=5, num_envs=3, seed=102)
    assert {shape for shape, _, _ in seen} == {(3, 64, 64, 3)}
    begun = []
    for _, first, pixels in seen:
        for slot in np.flatnonzero(first):
            episode_seed, left = pixels[slot]
            assert left == 1 + episode_seed % 7  # nothing of it has been played
            begun.append(int(episode_seed))
    assert sorted(begun) == [102, 103, 104, 105, 106]


@pytest.mark.parametrize(("episodes", "num_envs"), [(0, 8), (-3, 8), (5, 0)])
def test_nothing_to_play_is_refused(episodes, num_envs):
    with pytest.raises(UsageError, match="must be at least 1"):
        run(episodes=episodes, num_envs=num_envs)


def test_the_environment_is_closed_when_the_agent_fails():
    made = []

    def make_env(num_envs, seeds):
        made.append(CountingEnv(num_envs, seeds))
        return made[-1]

    class Broken(RandomAgent):
        def __call__(self, obs, first):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        evaluate(TASK, lambda n: Broken(4, n), 2, 0, make_env=make_env)
    assert made[0].closed


def test_summarise_against_a_worked_example():
    # Student's sleep data (1908), second drug, and the interval that R's t.test prints.
    hours = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    result = summarise(hours, range(10))
    assert result["mean"] == pytest.approx(2.33)
    assert result["std"] == pytest.approx(2.002249)
    assert result["ci95"] == pytest.approx([0.8976775, 3.7623225])
    assert result["returns"] == hours
    assert result["seeds"] == list(range(10))
    assert (result["episodes"], result["distinct_returns"]) == (10, 10)


def test_summarise_counts_distinct_returns_and_survives_json():
    result = summarise(np.array([21.0, 20.0, 21.0, 21.0], np.float32), np.arange(4))
    assert result["distinct_returns"] == 2
    assert json.loads(json.dumps(result)) == result


def test_one_episode_has_no_interval():
    result = summarise([3.0], [10_000])
    assert (result["mean"], result["std"], result["ci95"]) == (3.0, 0.0, [None, None])
    json.dumps(result, allow_nan=False)


# From printed tables of Student's t.
@pytest.mark.parametrize(
    ("p", "df", "value"),
    [
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776), (0.975, 5, 2.571),
        (0.975, 9, 2.262), (0.975, 10, 2.228), (0.975, 29, 2.045), (0.975, 30, 2.042), (0.975, 99, 1.984),
        (0.975, 120, 1.980), (0.975, 99_999, 1.960), (0.995, 1, 63.657), (0.995, 7, 3.499), (0.95, 20, 1.725),
    ],
)  # fmt: skip
def test_t_quantiles_against_tables(p, df, value):
    assert t_quantile(p, df) == pytest.approx(value, abs=5.1e-4)


def test_the_interval_covers_the_true_mean_95_times_in_100():
    rng = np.random.default_rng(0)
    intervals = [summarise(rng.normal(7, 3, size=4), range(4))["ci95"] for _ in range(2000)]
    covered = np.mean([low < 7 < high for low, high in intervals])
    assert abs(covered - 0.95) < 0.017  # 3.5 standard errors


def test_the_real_lunar_lander_gives_the_returns_of_a_plain_loop():
    pytest.importorskip("Box2D")
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make(TASK.env_id)
    expected, decisions = [], 0
    for seed in (10_000, 10_001):
        rng = np.random.default_rng(derive_seed(seed, "random actions"))
        env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            action = TASK.actions[rng.integers(4)]
            decisions += 1
            for _ in range(TASK.action_repeat):
                _, reward, terminated, truncated, _ = env.step(action)
                total += reward
                done = terminated or truncated
                if done:
                    break
        expected.append(total)
    env.close()
    result = evaluate(TASK, random_maker(TASK), 2, 10_000, num_envs=1)
    assert result["returns"] == pytest.approx(expected)
    assert result["real_steps"] == decisions
