"""The truth against the pixels of real frames, and probes against relations that are planted."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from wm_lib import probes
from wm_lib.errors import UsageError
from wm_lib.probes import changes, play, probe, split_episodes
from wm_lib.rollouts import StickyRandom
from wm_lib.tasks import TASKS, Task
from wm_lib.worlds import envs
from wm_lib.worlds.truth import car_truth, frame_names, ground_truth, names

PONG, BREAKOUT, LANDER, RACING = (TASKS[name] for name in ("pong", "breakout", "lunar-lander", "car-racing"))


# Pixels


def watch(
    task: Task, decisions: int, backend: str = "envpool", num_envs: int = 4
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random play without resets: frames (time * num_envs, 64, 64, 3), and values and visible by name."""
    policy = StickyRandom(task.num_actions, num_envs, seed=3)
    frames, values, visible = [], [], []
    with closing(envs.make_env(task, num_envs, 5, backend)) as env:
        obs, info = env.reset()
        for _ in range(decisions):
            truth = ground_truth(task, info)
            assert truth is not None
            frames.append(obs)
            values.append(truth[0])
            visible.append(truth[1])
            obs, _, _, _, info = env.step(policy(obs, np.zeros(num_envs, bool)))
    table, seen = np.concatenate(values), np.concatenate(visible)
    assert table.dtype == np.float32 and seen.dtype == np.bool_ and table.shape == seen.shape
    columns = names(task)
    by_name = [{name: array[:, k] for k, name in enumerate(columns)} for array in (table, seen)]
    return np.concatenate(frames).astype(int), *by_name


def centre(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre (x, y) of the weights (n, 64, 64) of each frame, and whether there are any."""
    total = weights.sum((1, 2))
    with np.errstate(invalid="ignore"):
        return (weights.sum(1) @ np.arange(64) / total, weights.sum(2) @ np.arange(64) / total, total > 0)


def only(weights: np.ndarray, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    inside = np.zeros((64, 64))
    inside[slice(*rows), slice(*columns)] = 1
    return np.maximum(weights, 0) * inside


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return (values > low) & (values < high)


def test_pong_agrees_with_the_pixels() -> None:
    frames, values, visible = watch(PONG, 90)
    red, green, blue = np.moveaxis(frames, 3, 0)
    # Only the ball is bright in blue between the paddles; only our paddle is greener than red.
    x, y, there = centre(only(np.where(blue > 40, blue - 17, 0), (0, 62), (9, 55)))
    in_play = visible["ball_x"]
    inside = in_play & between(values["ball_x"], 10, 53) & between(values["ball_y"], 1, 60)
    assert inside.sum() > 40 and there[inside].all()
    assert not there[~in_play & ~between(values["ball_y"], -1.5, 0)].any()  # half of it may be in the frame
    np.testing.assert_array_equal(in_play, visible["ball_y"])
    assert np.median(np.hypot(x - values["ball_x"], y - values["ball_y"])[inside]) < 0.7

    _, y, there = centre(only(green - red, (0, 64), (55, 59)))
    inside = visible["player_y"] & between(values["player_y"], 4, 59)
    assert inside.sum() > 40 and there[inside].all()
    assert np.median(np.abs(y - values["player_y"])[inside]) < 0.7
    assert np.ptp(values["player_y"][inside]) > 10  # it moved

    _, y, there = centre(only(np.where(red > 160, red - 144, 0), (0, 63), (6, 8)))
    inside = visible["enemy_y"] & between(values["enemy_y"], 4, 59) & ~(in_play & (values["ball_x"] < 10))
    assert inside.sum() > 40 and there[inside].all()
    assert np.median(np.abs(y - values["enemy_y"])[inside]) < 0.7


def test_breakout_agrees_with_the_pixels() -> None:
    frames, values, visible = watch(BREAKOUT, 60)
    red = frames[..., 0]
    x, y, there = centre(only(red, (26, 61), (4, 60)))  # below the bricks, above the paddle, between the walls
    in_play = visible["ball_x"]
    inside = in_play & between(values["ball_x"], 5, 58) & between(values["ball_y"], 27, 59)
    assert inside.sum() > 40 and there[inside].all()
    assert not there[~in_play].any()
    assert np.median(np.hypot(x - values["ball_x"], y - values["ball_y"])[inside]) < 0.7

    x, _, there = centre(only(np.where(red > 100, red, 0), (63, 64), (4, 60)))
    inside = visible["paddle_x"] & between(values["paddle_x"], 8, 56)
    assert inside.sum() > 40 and there[inside].all()
    assert np.median(np.abs(x - values["paddle_x"])[inside]) < 0.7


@pytest.mark.parametrize(("backend", "num_envs"), [("envpool", 4), ("gymnasium", 1)])
def test_lunar_lander_agrees_with_the_pixels(backend: str, num_envs: int) -> None:
    frames, values, visible = watch(LANDER, 40, backend, num_envs)
    red, green, blue = np.moveaxis(frames, 3, 0)
    x, y, there = centre(np.where((blue - green > 60) & (blue - red > 60), blue - green, 0).astype(float))
    seen = visible["ship_x"]
    assert seen.sum() > 12 and there[seen].all()
    assert np.median(np.hypot(x - values["ship_x"], y - values["ship_y"])[seen]) < 0.8
    high = values["ship_y"] < -3
    assert not there[high].any() and not seen[high].any()
    # Velocities are what the positions do.
    fastest = []
    for axis in "xy":
        position, velocity = (values[f"ship_{name}{axis}"].reshape(-1, num_envs) for name in ("", "v"))
        flying = seen.reshape(-1, num_envs)[1:] & (position[1:] < 30)
        steps = np.diff(position, axis=0)[flying]
        fastest.append(np.abs(steps).max())
        assert np.median(np.abs(steps - velocity[1:][flying])) < 0.1
    assert max(fastest) > 0.5


def test_the_ship_by_hand() -> None:
    # In the middle, half the height above where it stands; tilted by 90 degrees; 1 and -1 in the state's units.
    state = np.array([[0.0, 1.0, 1.0, -1.0, np.pi / 2, 0, 0, 0]], np.float32)
    values, visible = ground_truth(LANDER, {"state": state})
    # 600 x 400 native pixels; the pad at 100, the origin 18 above it; 200 per unit; 1 / 50 s per step, two steps.
    # The frame shows 360 x 320 of them, from the top.
    expected = [31.5, (400 - 100 - 18 - 200) * 64 / 320 - 0.5, 1, 0, 2 * (50 / 10 * 30) / 50 * 64 / 360,
                2 * (50 / (20 / 3) * 30) / 50 * 64 / 320]  # fmt: skip
    np.testing.assert_allclose(values[0], expected, atol=1e-4)
    assert visible.all()
    state[0, 1] = 1.5
    assert not ground_truth(LANDER, {"state": state})[1].any()


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_names_are_the_columns(task: Task) -> None:
    info = {"ram": np.zeros((2, 128), np.uint8)} if task.atari else {"state": np.zeros((2, 8), np.float32)}
    truth = ground_truth(task, info)
    assert set(frame_names(task)) <= set(names(task))
    assert ground_truth(task, {}) is None
    if task is RACING:
        assert truth is None
    else:
        assert truth[0].shape == truth[1].shape == (2, len(names(task)))


def test_car_racing_on_its_own_road() -> None:
    with closing(envs.make_env(RACING, 1, 0, "gymnasium")) as env:
        env.reset()
        car = env.envs[0].unwrapped.car.hull
        values, visible = car_truth(env.envs[0])
        assert values.shape == (1, 2) and values.dtype == np.float32 and visible.all()
        np.testing.assert_allclose(values, 0, atol=0.05)
        # The road's own polygons have its two edges.
        left, right = env.envs[0].unwrapped.road_poly[40][0][:2]
        for (x, y), offset in ((left, -1), (right, 1), (np.add(left, right) / 2, 0)):
            car.position = (float(x), float(y))
            car.angle = env.envs[0].unwrapped.track[40][1]
            assert car_truth(env.envs[0])[0][0, 1] == pytest.approx(offset, abs=0.05)
            car.angle += np.pi  # looking back, right is left
            assert car_truth(env.envs[0])[0][0, 1] == pytest.approx(-offset, abs=0.05)
        car.position = (1000.0, 1000.0)
        assert car_truth(env.envs[0])[1].tolist() == [[True, False]]
        car.linearVelocity = (3.0, -4.0)
        assert car_truth(env.envs[0])[0][0, 0] == pytest.approx(5)


# Play


class CountingEnv:
    """Breakout whose ball is at a place the frame tells; slot i plays episodes of i + 3 decisions."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.t, self.total = np.zeros(num_envs, int), 0
        self.open = True

    def reset(self, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        mask = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
        self.t[mask] = 0
        obs, info = self._see()
        info["ram"][~mask] = 0  # of these it says nothing, like Gymnasium's
        return obs, info

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        np.testing.assert_array_equal(action, self.t)  # what `policy` answers
        self.t += 1
        self.total += 1
        obs, info = self._see()
        done = self.t >= np.arange(self.num_envs) + 3
        return obs, np.zeros(self.num_envs), done & (self.t % 2 == 0), done & (self.t % 2 == 1), info

    def _see(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        cell = (60 + 20 * self.t + 3 * np.arange(self.num_envs) + self.total % 7).astype(np.uint8)
        frames = np.zeros((self.num_envs, 64, 64, 3), np.uint8)
        frames[:, 0, 0, 0], frames[:, 0, 0, 1] = cell, self.t
        ram = np.zeros((self.num_envs, 128), np.uint8)
        ram[:, 99], ram[:, 101] = cell, 100
        return frames, {"ram": ram}

    def close(self) -> None:
        self.open = False


class CountingModel:
    """z is two pixels; h is the sum of what was read so far, the action too."""

    z_dim, feature_dim, state_dim = 2, 3, 1

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return frames[:, 0, 0, :2].astype(np.float32)

    def initial_state(self, batch: int) -> np.ndarray:
        return np.zeros((batch, 1), np.float32)

    def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        return np.concatenate([z, h], 1)

    def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        return h + z[:, :1] + 1000 * action[:, None].astype(np.float32)


def test_play_puts_each_truth_beside_its_own_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[CountingEnv] = []

    def make_env(task: Task, num_envs: int, seed: int, backend: str) -> CountingEnv:
        made.append(CountingEnv(num_envs))
        return made[-1]

    monkeypatch.setattr(envs, "make_env", make_env)
    started: list[np.ndarray] = []

    def policy(obs: np.ndarray, first: np.ndarray) -> np.ndarray:
        started.append(first.copy())
        return obs[:, 0, 0, 1].astype(np.int64)

    found = play(BREAKOUT, CountingModel(), policy, num_envs=3, num_decisions=16)
    assert not made[0].open
    z, values, episode = found["z"], found["values"], found["episode"]
    assert z.shape == (3, 16, 2) and values.shape == found["visible"].shape == (3, 16, 3)
    np.testing.assert_allclose(values[..., 0], (z[..., 0] - 48) / 2.5 - 0.5, atol=1e-5)
    assert found["visible"][..., 0].all() and not found["visible"][..., 2].any()
    time = z[..., 1].astype(int)
    np.testing.assert_array_equal(time, np.arange(16) % (np.arange(3)[:, None] + 3))
    np.testing.assert_array_equal(np.array(started).T, time == 0)
    # A number for each episode, and no two share one.
    assert episode.dtype == np.int64
    starts = int((time == 0).sum())
    assert sorted(np.unique(episode)) == list(range(starts))
    np.testing.assert_array_equal(np.diff(episode, axis=1) != 0, time[:, 1:] == 0)
    # h knows what was read before in the episode, and not this frame.
    for slot, t in np.ndindex(3, 16):
        begin = t - time[slot, t]
        expected = z[slot, begin:t, 0].sum() + 1000 * time[slot, begin:t].sum()
        np.testing.assert_allclose(found["features"][slot, t], [*z[slot, t], expected])

    change, known = changes(values, found["visible"], episode)
    np.testing.assert_array_equal(known[..., 0], time > 0)
    assert not known[..., 2].any()
    np.testing.assert_allclose(change[:, 1:], values[:, 1:] - values[:, :-1])


def test_play_drives_one_car_at_a_time() -> None:
    policy = StickyRandom(RACING.num_actions, 1, seed=0)
    found = play(RACING, CountingModel(), policy, num_envs=1, num_decisions=6)
    assert found["values"].shape == (1, 6, 2) and np.isfinite(found["values"]).all()
    with pytest.raises(UsageError, match="num_envs=1"):
        play(RACING, CountingModel(), policy, num_envs=2, num_decisions=6)


# Probes


def planted(num_episodes: int = 16, length: int = 150, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Features, and values: a weighted sum of them, a product of two, and noise; all visible."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num_episodes, length, 6))
    values = np.stack(
        [
            20 + 5 * (z @ np.array([1, -2, 0.5, 0, 0, 1])) + 0.1 * rng.normal(size=z.shape[:2]),
            30 * z[..., 0] * z[..., 1],
            7 * rng.normal(size=z.shape[:2]),
        ],
        axis=-1,
    )
    episode = np.repeat(np.arange(num_episodes)[:, None], length, axis=1)
    return z.astype(np.float32), values.astype(np.float32), np.ones(values.shape, bool), episode


def test_the_linear_probe_reads_what_is_linear_and_nothing_else() -> None:
    z, values, visible, episode = planted()
    result = probe(z, values, visible, episode, ("sum", "product", "noise"))
    assert list(result) == ["sum", "product", "noise"]
    assert result["sum"]["r2"] > 0.999 and result["sum"]["median_error"] < 0.15
    for name in ("product", "noise"):
        assert abs(result[name]["r2"]) < 0.1
        assert result[name]["median_error"] == pytest.approx(result[name]["mean_baseline_error"], rel=0.15)
    # The mean's error by hand.
    test = split_episodes(episode)
    for k, name in enumerate(result):
        expected = np.median(np.abs(values[test, k] - values[~test, k].mean()))
        assert result[name]["mean_baseline_error"] == pytest.approx(expected, rel=1e-4)
        assert result[name]["num_test"] == test.sum()
    assert probe(z, values, visible, episode)["0"] == result["sum"]


def test_the_mlp_reads_a_product_too_and_leaves_the_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(probes, "_UPDATES", 800)
    z, values, visible, episode = planted()
    before = torch.get_rng_state()
    result = probe(z, values, visible, episode, ("sum", "product", "noise"), kind="mlp")
    assert torch.equal(before, torch.get_rng_state())
    assert result["sum"]["r2"] > 0.97
    assert result["product"]["r2"] > 0.9
    assert result["product"]["median_error"] < 0.4 * result["product"]["mean_baseline_error"]
    assert result["noise"]["r2"] < 0.05
    assert result["noise"]["median_error"] > 0.9 * result["noise"]["mean_baseline_error"]


def test_episodes_to_learn_from_and_to_be_tested_on_are_not_the_same() -> None:
    episode = np.repeat(np.arange(20), 30).reshape(5, 120)
    test = split_episodes(episode, seed=1)
    assert test.shape == episode.shape
    assert not set(episode[test]) & set(episode[~test])
    assert len(set(episode[test])) == 5
    np.testing.assert_array_equal(test, split_episodes(episode, seed=1))
    assert (test != split_episodes(episode, seed=2)).any()
    assert split_episodes(np.array([4, 4, 9])).sum() in (1, 2)
    with pytest.raises(UsageError, match="two episodes"):
        split_episodes(np.full(50, 3))


def test_what_only_marks_the_episode_does_not_help() -> None:
    # Rows shuffled into both parts would be read perfectly from this.
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(24), 50)
    features, values = np.eye(24)[episode], rng.normal(size=24)[episode, None]
    result = probe(features, values, np.ones_like(values, bool), episode)["0"]
    assert result["r2"] < 0.1


def test_rows_without_the_object_are_left_out() -> None:
    z, values, visible, episode = planted()
    visible[:, ::3, 0] = False
    visible[:, 1:, 1] = False
    values[~visible] = 1e6
    result = probe(z, values, visible, episode)
    assert result["0"]["r2"] > 0.999
    assert result["0"]["num_test"] == visible[split_episodes(episode), 0].sum()
    # One row of each episode is too few to say anything.
    assert result["1"].pop("num_test") == 4
    assert result["1"] == dict.fromkeys(("median_error", "p90_error", "mean_baseline_error", "r2"))


def test_what_is_lost_in_one_frame_of_six_shows_in_the_ninth_tenth_and_not_in_the_median() -> None:
    z, values, visible, episode = planted()
    rows = np.arange(values[..., 0].size).reshape(values.shape[:2])
    values[rows % 6 == 0, 0] += 100 * np.random.default_rng(0).choice([-1.0, 1.0], (rows % 6 == 0).sum())
    result = probe(z, values, visible, episode)["0"]
    assert result["median_error"] < 10 < 80 < result["p90_error"]


def test_frames_that_lost_the_object_do_not_bend_the_probes() -> None:
    """A sixth shows it anywhere: by squares the line would be too flat by a sixth, everywhere."""
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    z, episode = rng.normal(size=(16, 300, 4)), np.repeat(np.arange(16)[:, None], 300, axis=1)
    values = 10 * z[..., :1]
    lost = rng.random(z.shape[:2]) < 1 / 6
    z[lost, 0] = rng.normal(size=lost.sum())
    clipped = np.abs(z[..., 0]) < 2  # what is beyond is rare, and a network has hardly seen it
    for kind, most in (("linear", 0.1), ("mlp", 0.5)):
        result = probe(z, values, clipped[..., None], episode, kind=kind)["0"]
        assert result["median_error"] < most and result["p90_error"] > 1, kind
    flat, test = z.reshape(-1, 4), split_episodes(episode).ravel()
    least_squares = np.linalg.lstsq(flat[~test], values.ravel()[~test], rcond=None)[0]
    assert np.median(np.abs(flat[test] @ least_squares - values.ravel()[test])) > 0.5


def test_the_line_is_the_one_with_the_least_absolute_error() -> None:
    """With one feature it goes through two of the points: all pairs are tried."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=30)
    y = 3 * x + rng.standard_cauchy(30)
    least = min(
        np.abs(y - y[i] - (y[j] - y[i]) / (x[j] - x[i]) * (x - x[i])).mean() for i in range(30) for j in range(i)
    )
    read = probes.learn(x[:, None], y[:, None], np.ones((30, 1), bool))
    assert np.abs(y - read(x[:, None])[:, 0]).mean() == pytest.approx(least, rel=0.01)


def test_values_that_never_change_are_no_trouble() -> None:
    z, values, visible, episode = planted()
    values[..., 0] = 5.0
    result = probe(z, values, visible, episode)["0"]
    assert result["median_error"] == result["mean_baseline_error"] == 0 and result["r2"] is None


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="choose linear or mlp"):
        probe(*planted(), kind="deep")  # type: ignore[arg-type]


def test_probes_and_gates_load_no_heavy_package() -> None:
    code = "import sys, wm_lib.probes, wm_lib.gates; print(*{'torch', 'gymnasium', 'envpool'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""
