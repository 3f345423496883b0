"""The two paths against each other, against the bare environments, and against the contract of `make_env`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from wm_lib.errors import UsageError
from wm_lib.tasks import TASKS, Task
from wm_lib.worlds.envs import make_env, native_actions, shrink
from wm_lib.worlds.pool import EnvPoolVectorEnv

BOTH = pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
BREAKOUT, PONG, LANDER, RACING = (TASKS[name] for name in ("breakout", "pong", "lunar-lander", "car-racing"))


def play(
    env: VectorEnv, decisions: int, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]]:
    """Random actions, the same in every environment; finished ones are not reset."""
    actions = np.random.default_rng(seed).integers(env.single_action_space.n, size=decisions)
    for action in actions:
        yield env.step(np.full(env.num_envs, action))


def land(state: np.ndarray) -> np.ndarray:
    """Gymnasium's own LunarLander heuristic, for a batch: state (N, 8) to action (N,)."""
    angle = np.clip(state[:, 0] * 0.5 + state[:, 2], -0.4, 0.4)
    turn = (angle - state[:, 4]) * 0.5 - state[:, 5]
    lift = (0.55 * np.abs(state[:, 0]) - state[:, 1]) * 0.5 - state[:, 3] * 0.5
    landed = (state[:, 6] > 0) | (state[:, 7] > 0)
    turn[landed], lift[landed] = 0, -state[landed, 3] * 0.5
    action = np.where(turn < -0.05, 3, np.where(turn > 0.05, 1, 0))
    return np.where((lift > np.abs(turn)) & (lift > 0.05), 2, action)


# -- what it looks like from outside


@BOTH
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_spaces_shapes_and_types(task: Task, backend: str) -> None:
    with closing(make_env(task, 1, 0, backend)) as env:
        assert env.metadata["autoreset_mode"] == AutoresetMode.DISABLED
        assert env.single_action_space == gymnasium.spaces.Discrete(len(task.actions))
        assert env.single_observation_space == gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        obs, _ = env.reset()
        assert obs in env.observation_space and obs.shape == (1, 64, 64, 3)
        step_obs, reward, terminated, truncated, info = env.step(np.array([1]))
        assert step_obs in env.observation_space
        assert reward.dtype == np.float64 and reward.shape == (1,)
        assert terminated.dtype == truncated.dtype == np.bool_ and terminated.shape == truncated.shape == (1,)
        if task.atari:
            assert info["ram"].shape == (1, 128) and info["ram"].dtype == np.uint8
        if task is LANDER:
            assert info["state"].shape == (1, 8) and info["state"].dtype == np.float32
        before = step_obs.copy()
        env.step(np.array([2]))
        np.testing.assert_array_equal(step_obs, before)  # an observation is the caller's own copy


@pytest.mark.parametrize("task", [LANDER, RACING], ids=lambda task: task.name)
def test_both_renderers_draw_alike(task: Task) -> None:
    colours = []
    for backend in ("envpool", "gymnasium"):
        with closing(make_env(task, 1, 3, backend)) as env:
            env.reset()
            for _ in range(15):
                obs, *_ = env.step(np.array([0]))
            colours.append(obs[0].astype(float))
    ours, theirs = colours
    if task is LANDER:  # white ground under the pad, black sky above, the pad and its yellow flags in the middle
        for frame in colours:
            assert (frame[61:64, 23:42] == 255).all() and (frame[2:10, :20] < 60).all()
            yellow = (frame[..., 0] > 80) & (frame[..., 2] < 60)
            rows, columns = np.nonzero(yellow)
            assert 46 < rows.mean() < 56 and 27 < columns.mean() < 40
            ship = frame[..., 2] > frame[..., 1] + 60
            assert 17 < ship.sum() < 52
    else:  # grass, road ahead of the car, black bar below
        np.testing.assert_allclose(np.median(ours[:50], (0, 1)), np.median(theirs[:50], (0, 1)), atol=12)
        roads = [frame[40:44, 31:33].mean((0, 1)) for frame in colours]
        np.testing.assert_allclose(roads[0], roads[1], atol=12)
        assert ours[60, 40:].mean() < 30 and theirs[60, 40:].mean() < 30


def test_the_car_is_shown_its_speed_and_not_its_score() -> None:
    for backend in ("envpool", "gymnasium"):
        with closing(make_env(RACING, 1, 3, backend)) as env:
            env.reset()
            for _ in range(15):
                obs, *_ = env.step(np.array([5]))  # gas
        assert not obs[0, 56:, :8].any() and obs[0, 56:, 8:12].max() > 50, backend


def test_bad_arguments_say_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown backend 'cule'; choose one of auto, envpool, gymnasium"):
        make_env(PONG, 1, 0, "cule")
    with pytest.raises(UsageError, match="num_envs"):
        make_env(PONG, 0, 0)
    with pytest.raises(UsageError, match="3 seeds wanted, got 2"):
        make_env(PONG, 3, [1, 2])
    with pytest.raises(UsageError, match="sticky actions exist on Atari only"):
        make_env(LANDER, 1, 0, sticky=0.25)
    with pytest.raises(UsageError, match="sticky must be in"):
        make_env(PONG, 1, 0, sticky=1.5)
    monkeypatch.setitem(sys.modules, "envpool", None)  # makes the import fail
    with pytest.raises(UsageError, match='pip install "envpool"'):
        make_env(PONG, 1, 0, "envpool")
    with closing(make_env(LANDER, 1, 0, "auto")) as env:
        assert isinstance(env, SyncVectorEnv)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(UsageError, match=r"pip install \"gymnasium\[box2d\]\""):
        make_env(LANDER, 1, 0, "gymnasium")


def test_auto_prefers_envpool() -> None:
    with closing(make_env(LANDER, 2, 0)) as env:
        assert isinstance(env, EnvPoolVectorEnv)


# -- the two paths against each other


@pytest.mark.parametrize("task", [BREAKOUT, PONG], ids=lambda task: task.name)
def test_atari_paths_are_equal_once_no_ops_are_aligned(task: Task) -> None:
    with (
        closing(make_env(task, 4, 100, "envpool")) as fast,
        closing(make_env(task, 1, 5, "gymnasium")) as slow,
    ):
        fast_obs, fast_info = fast.reset()
        for _ in range(300):  # until some environment of the pool drew the same number of no-ops
            slow_obs, slow_info = slow.reset()
            same = np.flatnonzero((fast_info["ram"] == slow_info["ram"]).all(1))
            if len(same):
                break
        i = same[0]
        np.testing.assert_array_equal(fast_obs[i], slow_obs[0])
        total, lives, ended = 0.0, set(), False
        for left, right in zip(play(fast, 280, 1), play(slow, 280, 1), strict=True):
            np.testing.assert_array_equal(left[4]["ram"][i], right[4]["ram"][0])
            assert left[1][i] == right[1][0] and left[2][i] == right[2][0] and left[3][i] == right[3][0]
            assert left[4]["lives"][i] == right[4]["lives"][0]
            total += abs(right[1][0])
            lives.add(int(right[4]["lives"][0]))
            ended = bool(right[2][0])
            if ended:  # a game ends within a decision, where the two keep different frames
                break
            np.testing.assert_array_equal(left[0][i], right[0][0])
        assert total > 0
        if task is BREAKOUT:  # so FIRE was pressed five times, and what followed was equal
            assert ended and lives == {5, 4, 3, 2, 1, 0}


def test_one_landing_policy_scores_alike_on_both_paths() -> None:
    means = []
    for backend, num_envs in (("envpool", 16), ("gymnasium", 5)):
        with closing(make_env(LANDER, num_envs, 0, backend)) as env:
            _, info = env.reset()
            total, done = np.zeros(num_envs), np.zeros(num_envs, bool)
            while not done.all():
                _, reward, terminated, truncated, info = env.step(land(info["state"]))
                total, done = total + reward, terminated | truncated
            means.append(total.mean())
    assert min(means) > 150 and abs(means[0] - means[1]) < 100, means


def test_one_driving_policy_scores_alike_on_both_paths() -> None:
    means = []
    for backend in ("envpool", "gymnasium"):
        with closing(make_env(RACING, 2, 0, backend)) as env:
            env.reset()
            rewards = [env.step(np.full(2, 5))[1] for _ in range(10)]  # straight on, full throttle
            means.append(np.mean(rewards))
    assert min(means) > 0.5 and abs(means[0] - means[1]) < 1.0, means


# -- time: decisions, episodes, seeds


@BOTH
def test_action_repeat_sums_rewards_and_stops_at_the_end(backend: str) -> None:
    if backend == "envpool":
        import envpool

        native = envpool.make_gymnasium(LANDER.envpool_id, num_envs=1, seed=11)
    else:
        native = SyncVectorEnv([lambda: gymnasium.make(LANDER.env_id)], autoreset_mode=AutoresetMode.DISABLED)
        native.reset(seed=[11])
    stopped_early = 0
    with closing(make_env(LANDER, 1, 11, backend)) as env:
        for episode in range(5):
            mask = {"reset_mask": np.array([True])}
            env.reset(options=dict(mask))
            if backend == "envpool" or episode:
                native.reset(options=dict(mask))
            done, rng = False, np.random.default_rng(episode)
            while not done:
                action = rng.integers(4, size=1)
                expected = 0.0
                for repeat in range(LANDER.action_repeat):
                    state, native_reward, native_terminated, native_truncated, _ = native.step(action)
                    expected += native_reward[0]
                    if native_terminated[0] or native_truncated[0]:
                        stopped_early += repeat == 0
                        break
                _, reward, terminated, truncated, info = env.step(action)
                assert reward[0] == pytest.approx(expected)
                assert (terminated[0], truncated[0]) == (native_terminated[0], native_truncated[0])
                np.testing.assert_array_equal(info["state"], state)
                done = terminated[0] or truncated[0]
    assert stopped_early  # the case was there


def test_the_pad_of_the_lander_looks_the_same_on_both_paths() -> None:
    frames = []
    for backend in ("envpool", "gymnasium"):
        with closing(make_env(LANDER, 2, 5, backend)) as env:
            frames.append(env.reset()[0][:, 52:, 24:42].astype(int))  # below the flags, where all terrains are flat
    difference = np.abs(frames[0] - frames[1]).max((0, 2, 3))
    assert difference.max() <= 20, difference  # a row of the sky too much is 50


def test_no_exhaust_is_drawn() -> None:
    def sparks(frame: np.ndarray) -> int:
        sky = frame[:44].astype(int)
        return int((sky[..., 0] > sky[..., 2] + 15).sum())  # redder than blue; the ship is blue

    native = gymnasium.make(LANDER.env_id, render_mode="rgb_array")
    native.reset(seed=4)
    with closing(make_env(LANDER, 1, 4, "gymnasium")) as env:
        env.reset()
        drawn = seen = 0
        for _ in range(12):
            obs, *_ = env.step(np.array([2]))
            for _ in range(LANDER.action_repeat):
                native.step(2)
            drawn, seen = drawn + sparks(native.render()), seen + sparks(obs[0])
    native.close()
    assert drawn > 100 and seen == 0


@BOTH
@pytest.mark.parametrize("task", [BREAKOUT, LANDER], ids=lambda task: task.name)
def test_episodes_are_cut_off_after_max_decisions(task: Task, backend: str) -> None:
    short = replace(task, max_decisions=12, fire=False)
    with closing(make_env(short, 1, 0, backend)) as env:
        for _ in range(2):
            env.reset()
            flags = [(step[2][0], step[3][0]) for step in play(env, 12)]
            assert flags == [(False, False)] * 11 + [(False, True)]


def test_what_car_racing_does_not_draw_changes_nothing() -> None:
    # The plain environment draws every step; it has to move in the same way, and its last picture to be the same.
    plain = gymnasium.make(RACING.env_id)
    plain.reset(seed=4)
    with closing(make_env(RACING, 1, 4, "gymnasium")) as env:
        env.reset()
        for choice in [5] * 6 + [1, 3, 6, 0, 2, 5]:
            obs, reward, terminated, _, _ = env.step(np.array([choice]))
            steps = [plain.step(native_actions(RACING)[choice]) for _ in range(RACING.action_repeat)]
            np.testing.assert_array_equal(obs[0], shrink(steps[-1][0], RACING))
            assert reward[0] == pytest.approx(sum(step[1] for step in steps))
        # The lap ends within a decision, at a step that would not have been drawn.
        native = env.envs[0].unwrapped
        native.tile_visited_count, before = len(native.track), native.t
        obs, _, terminated, _, _ = env.step(np.array([5]))
        assert terminated[0] and native.t == pytest.approx(before + 1 / 50)
        np.testing.assert_array_equal(obs[0], shrink(native._render("state_pixels"), RACING))
    plain.close()


def test_tiles_that_were_driven_past_are_told() -> None:
    with closing(make_env(RACING, 1, 4, "gymnasium")) as env:
        env.reset()
        for _ in range(5):
            info = env.step(np.array([0]))[4]
        road = env.envs[0].unwrapped.road
        here = max(i for i in range(50) if road[i].road_visited)
        told = []
        for visits in ([1, 2], [5], [4], [], [6, 9, 11], [9 + 60], [len(road) - 1 - here]):
            for i in visits:
                road[here + i].road_visited = True
            told.append(int(env.step(np.array([0]))[4]["skipped"][0]))
        # 3 and 4; 7, 8 and 10; what is far away was not passed.
        assert info["skipped"].tolist() == [0] and told == [0, 2, 0, 0, 3, 0, 0]


def test_limits_are_the_native_ones() -> None:
    for task in (LANDER, RACING):
        assert gymnasium.spec(task.env_id).max_episode_steps == task.max_decisions * task.action_repeat
    for task in (PONG, BREAKOUT):
        with closing(make_env(task, 1, 0, "gymnasium")) as env:
            env.reset()
            assert env.envs[0].unwrapped.ale.getInt("max_num_frames_per_episode") == 0  # only ours counts


@BOTH
@pytest.mark.parametrize("task", [BREAKOUT, LANDER], ids=lambda task: task.name)
def test_a_seed_fixes_everything(task: Task, backend: str) -> None:
    def frames(seed: int | list[int], num_envs: int) -> tuple[np.ndarray, ...]:
        with closing(make_env(task, num_envs, seed, backend)) as env:
            first, _ = env.reset()
            steps = list(play(env, 15))
            again, _ = env.reset()  # the second episode follows from the seed as well
            obs = np.stack([first, *(step[0] for step in steps), again])
            return obs, np.stack([step[1] for step in steps]), steps[-1][4]["ram" if task.atari else "state"]

    obs, reward, truth = frames(5, 2)  # two processes on the Gymnasium path
    for seed, i in ((5, 0), ([6], 1)):
        one_obs, one_reward, _ = frames(seed, 1)  # none
        np.testing.assert_array_equal(one_obs[:, 0], obs[:, i])
        np.testing.assert_array_equal(one_reward[:, 0], reward[:, i])
    assert (truth[0] != truth[1]).any()  # not the frames: Breakout looks the same until the ball is back


def test_reset_takes_seeds_on_the_gymnasium_path() -> None:
    with (
        closing(make_env(LANDER, 2, [1, 2], "gymnasium")) as env,
        closing(make_env(LANDER, 1, 9, "gymnasium")) as one,
    ):
        assert isinstance(env, AsyncVectorEnv)
        first, _ = env.reset()
        nine, _ = one.reset()
        for _ in play(env, 3):
            pass
        mixed, _ = env.reset(seed=[9, 9], options={"reset_mask": np.array([False, True])})
        np.testing.assert_array_equal(mixed[1], nine[0])
        assert (mixed[0] != nine[0]).any()
        both, _ = env.reset(seed=[1, 2])
        np.testing.assert_array_equal(both, first)


@BOTH
@pytest.mark.parametrize("task", [BREAKOUT, LANDER], ids=lambda task: task.name)
def test_a_masked_reset_leaves_the_others_alone(task: Task, backend: str) -> None:
    with closing(make_env(task, 2, 0, backend)) as env, closing(make_env(task, 2, 0, backend)) as undisturbed:
        env.reset()
        undisturbed.reset()
        *_, (obs, *_) = play(env, 10)
        list(play(undisturbed, 10))
        reset_obs, _ = env.reset(options={"reset_mask": np.array([True, False])})
        np.testing.assert_array_equal(reset_obs[1], obs[1])
        assert (reset_obs[0] != obs[0]).any()
        for left, right in zip(play(env, 10, 1), play(undisturbed, 10, 1), strict=True):
            np.testing.assert_array_equal(left[0][1], right[0][1])
            assert left[1][1] == right[1][1]
        assert (left[0][0] != right[0][0]).any()


@BOTH
def test_a_finished_environment_stands_still(backend: str) -> None:
    with closing(make_env(LANDER, 2, 0, backend)) as env:
        env.reset()
        final = None
        for obs, reward, terminated, truncated, info in play(env, 120):
            done = terminated | truncated
            if final is not None:
                i = final[0]
                np.testing.assert_array_equal(obs[i], final[1])
                np.testing.assert_array_equal(info["state"][i], final[2])
                assert reward[i] == 0 and terminated[i] and not truncated[i]
            elif done.any() and not done.all():
                i = int(np.argmax(done))
                final = (i, obs[i], info["state"][i].copy())
            if done.all():
                break
        assert final is not None and done.all()
        env.step(np.zeros(2, np.int64))  # nothing left to step: still no error
        _, info = env.reset(options={"reset_mask": done})
        _, reward, terminated, _, after = env.step(np.zeros(2, np.int64))
        assert (reward != 0).all() and not terminated.any()
        assert (after["state"][:, 1] < info["state"][:, 1] + 0.5).all()  # one decision later, no second reset


def test_a_finished_environment_stands_still_when_it_is_alone_too() -> None:
    with closing(make_env(LANDER, 1, 0, "gymnasium")) as env:
        env.reset()
        obs, _, terminated, _, info = next(step for step in play(env, 200) if step[2].all())
        after, reward, terminated, truncated, still = env.step(np.array([2]))
        np.testing.assert_array_equal(after, obs)
        np.testing.assert_array_equal(still["state"], info["state"])
        assert reward == 0 and terminated.all() and not truncated.any()


# -- FIRE and sticky actions


@BOTH
def test_the_environment_serves_the_ball_itself(backend: str) -> None:
    with closing(make_env(BREAKOUT, 1, 0, backend)) as env:
        env.reset()
        lives = []
        for _ in range(400):
            _, _, terminated, _, info = env.step(np.array([0]))  # an agent that does nothing
            lives.append(int(info["lives"][0]))
            if terminated[0]:
                break
        assert terminated[0] and sorted(set(lives)) == [0, 1, 2, 3, 4, 5]
    with closing(make_env(replace(BREAKOUT, fire=False), 1, 0, backend)) as env:
        env.reset()
        for _ in range(200):  # longer than a life lasts above
            _, _, terminated, _, info = env.step(np.array([0]))
        assert not terminated[0] and info["lives"][0] == 5


@BOTH
def test_sticky_actions_change_the_game(backend: str) -> None:
    with (
        closing(make_env(BREAKOUT, 1, 3, backend)) as plain,
        closing(make_env(BREAKOUT, 1, 3, backend, sticky=0.25)) as sticky,
    ):
        plain.reset()
        sticky.reset()
        ram = [np.stack([step[4]["ram"][0] for step in play(env, 40, 1)]) for env in (plain, sticky)]
        assert (ram[0] != ram[1]).any(1).mean() > 0.5


@BOTH
def test_fire_is_pressed_twice_when_presses_can_be_swallowed(backend: str) -> None:
    served = []
    with closing(make_env(BREAKOUT, 1, 0, backend, sticky=0.9)) as env:
        for _ in range(100):
            env.reset()
            *_, (*_, info) = play(env, 3)
            served.append(info["ram"][0, 101] > 0)  # the ball's height, 0 before it is served
    # Four frames get one press through with 1 - 0.9^4 = 34 %, eight frames with 57 %.
    assert 0.45 < np.mean(served) < 0.7


# -- processes


def test_a_script_without_a_guard_or_display_prints_nothing_extra(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from wm_lib.tasks import TASKS\n"
        "from wm_lib.worlds.envs import make_env\n"
        "for num_envs, name in enumerate(('lunar-lander', 'pong'), 1):\n"
        "    env = make_env(TASKS[name], num_envs, 0, 'gymnasium')\n"
        "    print(name, env.reset()[0].shape)\n"
        "    env.close()\n"
        "assert 'torch' not in sys.modules\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(script)],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "lunar-lander (1, 64, 64, 3)\npong (2, 64, 64, 3)\n", done.stderr
    assert done.stderr == ""
