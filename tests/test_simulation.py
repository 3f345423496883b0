"""The simulated worlds: their physics against another way of computing it, their frames against their state."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from wm_lib.control.agent import RandomAgent
from wm_lib.control.evolution import play_once
from wm_lib.errors import UsageError
from wm_lib.evaluation import evaluate, random_maker, summarise
from wm_lib.tasks import TASKS
from wm_lib.worlds import bodies, canvas, courts, make_env
from wm_lib.worlds import simulation as sim

NAMES = list(TASKS)


def random_play(name: str, num_envs: int, num_decisions: int, seed: int = 0) -> list[tuple]:
    """(obs, reward, terminated, truncated, state) of each decision of random play, resetting what has finished."""
    task = sim.stand_in(TASKS[name])
    env, rng = make_env(task, num_envs, seed), np.random.default_rng(seed)
    env.reset()
    rows = []
    for _ in range(num_decisions):
        obs, reward, terminated, truncated, info = env.step(rng.integers(task.num_actions, size=num_envs))
        rows.append((obs, reward, terminated, truncated, info["state"]))
        if (done := terminated | truncated).any():
            env.reset(options={"reset_mask": done})
    return rows


def skilled(name: str, state: canvas.State) -> np.ndarray:
    """Actions of someone who reads the state: what a good agent could do."""
    if name in ("pong", "breakout"):
        off = state["along"] - state["paddle"] - 4  # off the middle: the ball comes back steep
        forth, back = (2, 1) if name == "pong" else (1, 2)
        return np.where(off < -2, back, np.where(off > 2, forth, 0))
    if name == "lunar-lander":
        tilt = np.clip(-(state["x"] - bodies.PAD) * 0.02 - state["v_x"] * 0.6, -0.4, 0.4)
        error = tilt - state["angle"] - 6 * state["spin"]
        turn = np.where(error > 0.05, 3, np.where(error < -0.05, 1, 0))
        falls = state["v_height"] < -0.25 - 0.012 * state["height"]
        return np.where(falls & (np.abs(state["angle"]) < 0.6), 2, turn)
    x = state["x"] + 10 * np.sin(state["angle"])
    y = state["y"] + 10 * np.cos(state["angle"])
    around = (np.arctan2(y, x) * 256 / (2 * np.pi)).astype(int) % 256
    outside = np.hypot(x, y) - state["track"][np.arange(len(x)), around]
    steer = np.where(outside > 1.5, 1, np.where(outside < -1.5, 2, 5))  # the track goes round to the left
    return np.where(state["speed"] < 1.2, 5, steer)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_task_it_stands_in_for_and_shows_it(name: str) -> None:
    task = sim.stand_in(TASKS[name])
    assert (task.name, task.actions) == (name, TASKS[name].actions)
    assert task.simulated and not TASKS[name].simulated and not task.target == task.target  # no target
    assert task.max_decisions <= 400
    env = make_env(task, 3, 0)
    obs, info = env.reset()
    assert obs.shape == (3, 64, 64, 3) and obs.dtype == np.uint8 and (obs != obs[:1]).any((1, 2, 3))[1:].all()
    obs, reward, terminated, truncated, info = env.step(np.zeros(3, int))
    assert reward.dtype == np.float64 and terminated.dtype == truncated.dtype == bool
    assert all(len(values) == 3 for values in info["state"].values())


@pytest.mark.parametrize("name", NAMES)
def test_many_at_once_are_what_each_is_alone(name: str) -> None:
    """Vectorised against one at a time: frames, rewards, ends and the sums of episodes, through resets."""
    num, task = 5, sim.stand_in(TASKS[name])
    rows = random_play(name, num, 500, seed=3)
    assert sum((t | c).sum() for _, _, t, c, _ in rows) >= num
    rng = np.random.default_rng(3)
    actions = rng.integers(task.num_actions, size=(500, num))
    for i in range(num):
        env = make_env(task, 1, 3 + i)
        env.reset()
        for t, (obs, reward, terminated, truncated, _) in enumerate(rows):
            one = env.step(actions[t, i : i + 1])
            assert np.array_equal(one[0][0], obs[i])
            assert (one[1][0], one[2][0], one[3][0]) == (reward[i], terminated[i], truncated[i])
            if one[2][0] or one[3][0]:
                env.reset()


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_decides_an_episode_wherever_it_is_played(name: str) -> None:
    task = sim.stand_in(TASKS[name])
    fresh, used = make_env(task, 2, [7, 8]), make_env(task, 3, 100)
    first, _ = fresh.reset()
    used.reset()
    for _ in range(30):
        used.step(np.full(3, 1))
    mask = np.array([False, True, True])
    before = used.step(np.zeros(3, int))[0][0]
    obs, _ = used.reset(seed=[1, 7, 8], options={"reset_mask": mask})
    assert np.array_equal(obs[1:], first) and np.array_equal(obs[0], before)
    for t in range(40):
        action = np.array([t % task.num_actions, (t // 3) % task.num_actions])
        ours, theirs = fresh.step(action), used.step(np.append(0, action))
        assert all(np.array_equal(a, b[1:]) for a, b in zip(ours[:4], theirs[:4], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_has_finished_stands_still_and_pays_nothing(name: str) -> None:
    task = replace(sim.stand_in(TASKS[name]), max_decisions=5)
    env = make_env(task, 4, 0)
    env.reset()
    for _ in range(5):
        obs, _, terminated, truncated, info = env.step(np.ones(4, int))
    assert (terminated | truncated).all() and truncated.any()
    again, reward, *flags, later = env.step(np.zeros(4, int))
    assert np.array_equal(again, obs) and not reward.any()
    assert np.array_equal(flags, (terminated, truncated))
    assert all(np.array_equal(later["state"][key], values) for key, values in info["state"].items())


@pytest.mark.parametrize(("name", "across_axis"), [("pong", 1), ("breakout", 0)])
def test_the_frame_shows_the_ball_and_the_paddle_where_the_state_says(name: str, across_axis: int) -> None:
    checked = 0
    for obs, _, terminated, truncated, state in random_play(name, 8, 60):
        for i in np.flatnonzero(~(terminated | truncated)):
            across, along = state["across"][i], state["along"][i]
            if not (22 < across < 54 and 9 < along):  # wall, paddles and scores are elsewhere
                continue
            row, column = (along, across) if across_axis else (across, along)
            court = obs[i].copy()
            white = np.argwhere((court == 236).all(-1))
            white = white[(white > 5).all(1)] + 0.5
            assert len(white) == 16
            assert np.abs(white.mean(0) - (row, column)).max() <= 0.5
            paddle = np.argwhere((court == canvas.GREEN).all(-1))[:, 1 - across_axis] + 0.5
            assert abs(paddle.mean() - state["paddle"][i]) <= 0.5
            checked += 1
    assert checked > 50


@pytest.mark.parametrize("name", ["pong", "breakout"])
def test_the_ball_goes_straight_and_turns_back_only_at_sides_paddles_and_bricks(name: str) -> None:
    """Each step of the ball beside the same step taken in small pieces, for steps with nothing to bounce off."""
    before, done = None, np.zeros(16, bool)
    sides = straight = 0
    for _, reward, terminated, truncated, state in random_play(name, 16, 200):
        if before is not None:
            for i in np.flatnonzero(~(terminated | truncated | done)):
                low, high = (22, 54) if name == "breakout" else (12, 54)
                if not (low < before["across"][i] < high and reward[i] == 0):
                    continue
                along, v_along = before["along"][i], before["v_along"][i]
                for _ in range(1000):
                    along += v_along / 1000
                    if not courts.BALL <= along <= courts.COURT:
                        v_along, along = -v_along, np.clip(along, courts.BALL, courts.COURT)
                        sides += 1
                assert abs(state["along"][i] - along) < 0.02 and state["v_along"][i] == v_along
                assert state["across"][i] == before["across"][i] + before["v_across"][i]
                straight += 1
        before, done = state, terminated | truncated
    assert straight > 500 and sides > 20


def test_the_paddle_sends_the_ball_back_the_way_it_was_met() -> None:
    state = courts.begin_pong(np.full((4, canvas.LUCK), 0.5))
    state |= {"across": np.full(4, 57.0), "v_along": np.zeros(4), "along": np.array([32.0, 36.5, 22.9, 23.1])}
    reward, _ = courts.advance_pong(state, np.zeros(4, int))
    assert state["v_across"].tolist() == [-3, -3, 3, -3]  # the third passed the paddle's end
    assert state["across"].tolist() == [56, 56, 60, 56]
    np.testing.assert_allclose(state["v_along"], [0, 1.5, 0, -3 * 8.9 / 9])
    reward, _ = courts.advance_pong(state, np.zeros(4, int))
    assert reward.tolist() == [0, 0, -1, 0] and state["theirs"].tolist() == [0, 0, 1, 0]


def test_points_and_bricks_are_what_was_paid() -> None:
    """The score of each episode, brute force: its rewards added up, against the state at its end."""
    ends = 0
    total = np.zeros(16)
    for _, reward, terminated, truncated, state in random_play("pong", 16, 300):
        total += reward
        assert np.array_equal(total, state["ours"] - state["theirs"])
        assert np.array_equal(terminated, np.maximum(state["ours"], state["theirs"]) == courts.POINTS)
        ends += terminated.sum()
        total[terminated | truncated] = 0
    assert ends > 16
    total[:] = 0
    for _, reward, terminated, truncated, state in random_play("breakout", 16, 300):
        total += reward
        missing = courts.BRICK_ROWS * courts.BRICK_COLUMNS - state["bricks"].sum((1, 2))
        assert np.array_equal(total, missing)
        assert np.array_equal(terminated, (state["lives"] == 0) | (missing == 24))
        total[terminated | truncated] = 0


def test_the_lander_falls_as_a_stone_does_and_thrust_acts_along_its_nose() -> None:
    state = bodies.begin_lander(np.full((3, canvas.LUCK), 0.5))
    start = {name: values.copy() for name, values in state.items()}
    state["angle"] = np.array([0.0, np.pi / 6, 0.0])
    for _ in range(10):
        bodies.advance_lander(state, np.array([0, 2, 2]))
    fall = 10 * start["v_height"][0] - bodies.GRAVITY * 10 * 11 / 2
    np.testing.assert_allclose(state["height"][0] - start["height"][0], fall)
    lift = (state["height"] - start["height"])[1:] - fall
    np.testing.assert_allclose(lift / (bodies.MAIN_THRUST * 55), [np.cos(np.pi / 6), 1])
    np.testing.assert_allclose((state["x"] - start["x"])[1:] / (bodies.MAIN_THRUST * 55), [0.5, 0], atol=1e-12)


def test_the_landers_pay_is_the_gain_in_standing_less_fuel_and_the_landing() -> None:
    rng = np.random.default_rng(0)
    state = bodies.begin_lander(rng.random((64, canvas.LUCK)))
    merit, fuel, paid = bodies._merit(state), np.zeros(64), np.zeros(64)
    alive = np.ones(64, bool)
    for _ in range(200):
        action = np.where(skilled("lunar-lander", state) > 0, skilled("lunar-lander", state), rng.integers(4, size=64))
        before = {name: values.copy() for name, values in state.items()}
        reward, ended = bodies.advance_lander(state, action)
        paid[alive] += reward[alive]
        fuel[alive] += np.array([0, 0.03, 0.3, 0.03])[action][alive]
        for name, values in state.items():
            values[~alive] = before[name][~alive]
        alive &= ~ended
    assert not alive.any()
    bonus = paid + fuel - (bodies._merit(state) - merit)
    assert set(np.round(bonus, 6)) == {-100, 100}
    landed = bonus > 0
    assert (state["height"] <= 0)[landed].all() and (np.abs(state["x"] - bodies.PAD) <= bodies.HALF_PAD)[landed].all()


def test_the_car_starts_on_the_road_heading_along_it_and_a_lap_pays_all_of_it() -> None:
    state = bodies.begin_car(np.random.default_rng(0).random((32, canvas.LUCK)))
    assert (bodies._off_road(state["track"], state["x"], state["y"]) < 0.5).all()
    ahead = bodies._off_road(
        state["track"], state["x"] + 4 * np.sin(state["angle"]), state["y"] + 4 * np.cos(state["angle"])
    )
    assert (ahead < 1.5).all()
    total, decisions = np.zeros(32), np.zeros(32)
    ended = np.zeros(32, bool)
    for _ in range(250):
        reward, ends = bodies.advance_car(state, skilled("car-racing", state))
        total[~ended] += reward[~ended]
        decisions[~ended] += 1
        ended |= ends
    assert ended.all()
    np.testing.assert_allclose(total, bodies.LAP - bodies.PER_DECISION * decisions)


def test_the_cars_frame_is_the_world_turned_to_its_heading() -> None:
    """Grey where the road is, checked point by point with complex numbers."""
    state = bodies.begin_car(np.random.default_rng(1).random((4, canvas.LUCK)))
    frames = bodies.draw_car(state)
    rng = np.random.default_rng(2)
    agree = total = 0
    for i in range(4):
        for row, column in rng.integers(0, 44, size=(200, 2)):  # above the car
            # The pixel as a step from the car, to the right and ahead, turned by the car's heading.
            right, ahead = (column // 2 + 0.5) - 16, 24 - (row // 2 + 0.5)
            point = complex(state["x"][i], state["y"][i]) + complex(right, ahead) * np.exp(-1j * state["angle"][i])
            middle = np.interp(np.angle(point) % (2 * np.pi), 2 * np.pi * np.arange(256) / 256, state["track"][i])
            agree += (tuple(frames[i, row, column]) == canvas.GREY) == (abs(abs(point) - middle) <= bodies.HALF_ROAD)
            total += 1
    assert agree / total > 0.97  # the table of the track's radius has steps


@pytest.mark.parametrize("name", NAMES)
def test_skill_pays(name: str) -> None:
    """Someone who reads the state beats random play with the intervals far apart, and nobody earns without bounds."""
    task, num = sim.stand_in(TASKS[name]), 48
    env = make_env(task, num, 0)
    good, _ = play_once(env, lambda obs, first: skilled(name, env._state), 0)
    chance, _ = play_once(make_env(task, num, 0), RandomAgent(task.num_actions, num), 0)
    low, high = summarise(good, range(num))["ci95"][0], summarise(chance, range(num))["ci95"][1]
    assert low > high
    bounds = {"pong": 5, "breakout": 24, "lunar-lander": 400, "car-racing": 100}[name]
    assert (np.abs(np.append(good, chance)) <= bounds).all()


def test_scores_are_measured_as_everywhere_else() -> None:
    task = sim.stand_in(TASKS["pong"])
    few, many = (evaluate(task, random_maker(task), n, 10_000, num_envs=4) for n in (3, 9))
    assert few["returns"] == many["returns"][:3] and few["seeds"] == [10_000, 10_001, 10_002]


def test_bad_arguments_are_refused() -> None:
    task = sim.stand_in(TASKS["pong"])
    with pytest.raises(UsageError, match="num_envs"):
        make_env(task, 0, 0)
    with pytest.raises(UsageError, match="3 seeds wanted, got 2"):
        make_env(task, 3, [1, 2])


def test_it_needs_nothing_but_numpy() -> None:
    program = (
        "import sys, wm_lib.worlds.simulation; print([m for m in ('gymnasium', 'torch', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
