"""The notebooks' pictures show the numbers they were given."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from matplotlib.colors import to_hex

from wm_lib.course import films, plots

RNG = np.random.default_rng(0)


def some_frames(*shape):
    return RNG.integers(0, 256, (*shape, 64, 64, 3), dtype=np.uint8)


def pictures(figure):
    return [np.asarray(image.get_array()) for axis in figure.axes for image in axis.images]


class Counter(VectorEnv):
    """Frames are filled with the time since the reset; environment i ends after i + 2 decisions; the action is paid."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.single_action_space = Discrete(3)
        self.single_observation_space = Box(0, 255, (64, 64, 3), np.uint8)
        self.was_closed = False

    def _frames(self):
        return np.broadcast_to(self.time[:, None, None, None], (self.num_envs, 64, 64, 3)).astype(np.uint8)

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self.time = np.where(mask, 0, getattr(self, "time", 0))
        return self._frames(), {}

    def step(self, action):
        self.time = self.time + 1
        terminated = self.time >= np.arange(self.num_envs) + 2
        return self._frames(), action.astype(float), terminated, np.zeros(self.num_envs, bool), {}

    def close(self, **kwargs):
        self.was_closed = True


def test_a_recording_holds_what_was_seen_and_done():
    env, firsts = Counter(2), []

    def act(obs, first):
        firsts.append(first.copy())
        return obs[:, 0, 0, 0].astype(np.int64) + 1

    recording = films.record(env, act, 6)
    assert recording.frames.shape == (6, 2, 64, 64, 3)
    assert recording.frames[:, :, 5, 7, 1].T.tolist() == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert recording.done.T.tolist() == [[False, True] * 3, [False, False, True] * 2]
    np.testing.assert_array_equal(recording.action, recording.frames[..., 0, 0, 0] + 1)
    np.testing.assert_array_equal(recording.reward, recording.action)
    np.testing.assert_array_equal(firsts, recording.frames[..., 0, 0, 0] == 0)
    assert env.was_closed


def test_a_recording_of_features_is_looked_at_and_the_environment_is_closed_after_an_error():
    env = Counter(1)
    looked = films.record(env, lambda obs, first: np.zeros(1, np.int64), 2, look=lambda obs: 255 - obs)
    assert looked.frames[:, 0, 0, 0, 0].tolist() == [255, 254]
    env = Counter(1)
    with pytest.raises(ZeroDivisionError):
        films.record(env, lambda obs, first: 1 // 0, 2)
    assert env.was_closed


def decoded(gif):
    """The pictures of a GIF as another library reads them, RGB."""
    whole, frames = cv2.imdecodemulti(np.frombuffer(gif, np.uint8), cv2.IMREAD_COLOR)
    assert whole
    return [frame[..., ::-1] for frame in frames]


def test_a_film_shows_the_frames_side_by_side():
    colours = np.array([[(200, 0, 0), (0, 0, 250)], [(0, 90, 0), (10, 20, 30)]], np.uint8)  # 2 times, 2 places
    frames = np.broadcast_to(colours[:, :, None, None], (2, 2, 64, 64, 3))
    film = films.film(frames, "two <colours>")
    shown = decoded(film.gif)
    assert [picture.shape for picture in shown] == [(64, 130, 3)] * 2
    for time, picture in enumerate(shown):
        assert (picture[:, :64] == colours[time, 0]).all() and (picture[:, 66:] == colours[time, 1]).all()
        assert (picture[:, 64:66] == 255).all()
    assert 'alt="two &lt;colours&gt;"' in film._repr_html_() and film.width == 3 * 130
    assert repr(film) == "Film: two <colours>"


def test_a_long_film_is_thinned_out():
    frames = np.zeros((25, 64, 64, 3), np.uint8)
    frames[:, :, :, 0] = 10 * np.arange(25)[:, None, None]
    shown = decoded(films.film(frames, "red", max_frames=10).gif)
    assert [int(picture[0, 0, 0]) for picture in shown] == list(range(0, 250, 30))


def test_frame_rows_show_every_frame_under_its_heading():
    rows = {"frame": some_frames(3), "V draws": some_frames(3)}
    figure = plots.frame_rows(rows, ["a", "b", "c"], "title")
    np.testing.assert_array_equal(pictures(figure), np.concatenate(list(rows.values())))
    assert [axis.get_title() for axis in figure.axes[:3]] == ["a", "b", "c"]
    assert [figure.axes[0].get_ylabel(), figure.axes[3].get_ylabel()] == list(rows)


@pytest.mark.parametrize("num", [1, 8, 11])
def test_frame_grid_shows_every_frame_once(num):
    frames = some_frames(num)
    figure = plots.frame_grid(frames, columns=4)
    np.testing.assert_array_equal(pictures(figure), frames)
    assert len(figure.axes) == num


def test_maps_have_a_scale_where_they_show_numbers():
    numbers, picture = RNG.random((64, 64)), some_frames(1)[0]
    figure = plots.maps({"numbers": numbers, "picture": picture})
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), numbers)
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), picture)
    assert len(figure.axes) == 3  # one scale


def test_over_time_runs_to_the_right():
    values = RNG.random((20, 5))
    (picture,) = plots.over_time(values, "decision", "feature", "title").axes[0].images
    np.testing.assert_array_equal(picture.get_array(), values.T)


def test_bars_are_as_high_as_the_values_and_say_so():
    figure = plots.bars({"a": 2.0, "b": -1.5}, "nats")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [2.0, -1.5]
    assert {text.get_text() for text in figure.axes[0].texts} == {"2", "-1.5"}
    assert figure.axes[0].get_ylabel() == "nats"


def test_action_histogram_counts_actions_that_never_happened_too():
    figure = plots.action_histogram(np.array([[0, 0], [2, 0]]), ["left", "right", "gas"])
    assert [bar.get_height() for bar in figure.axes[0].patches] == [75, 0, 25]


def test_lines_are_the_curves_and_differ_in_more_than_colour():
    curves = {"a": (np.arange(4), RNG.random(4)), "b": (np.arange(3), RNG.random(3))}
    drawn = plots.lines(curves, "x", "y", log=True).axes[0].get_lines()
    for line, (x, y) in zip(drawn, curves.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), x)
        np.testing.assert_array_equal(line.get_ydata(), y)
    assert len({line.get_marker() for line in drawn}) == 2
    assert len({to_hex(line.get_color()) for line in drawn}) == 2


def test_learning_curves_leave_out_what_was_not_logged():
    scalars = {"error": (np.array([25, 50]), np.array([3.0, np.nan])), "kl": (np.array([25]), np.array([1.0]))}
    figure = plots.learning_curves(scalars, {"one": ["error", "held_out_error"], "none": ["return"]}, "update")
    (line,) = figure.axes[0].get_lines()
    np.testing.assert_array_equal(line.get_ydata(), [3.0, np.nan])
    assert not figure.axes[1].get_lines()
    assert figure.axes[1].texts[0].get_text() == "nothing to draw yet"


def test_intervals_lie_where_they_should_from_the_top():
    (axis,) = plots.intervals({"a": (2.0, 1.5, 3.0), "b": (-1.0, -4.0, 0.5)}, "score", -2.0).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert axis.yaxis_inverted()
    for y, (container, (mean, low, high)) in enumerate(zip(axis.containers, [(2, 1.5, 3), (-1, -4, 0.5)], strict=True)):
        point, _, (bar,) = container
        assert point.get_xydata().tolist() == [[mean, y]]
        np.testing.assert_allclose(bar.get_segments()[0], [[low, y], [high, y]])
    assert axis.lines[-1].get_xdata() == [-2, -2]


def test_scores_show_mean_interval_and_target():
    sure = {"task": "pong", "target": 18.0, "score": {"mean": 4.0, "ci95": [1.0, 7.0]},
            "random_score": {"mean": -20.0, "ci95": [-20.5, -19.5]}}  # fmt: skip
    single = {**sure, "task": "breakout", "score": {"mean": 2.0, "ci95": [None, None]}}
    figure = plots.scores([sure, single])
    assert [axis.get_title() for axis in figure.axes] == ["pong", "breakout"]
    assert [bar.get_height() for bar in figure.axes[0].patches] == [-20.0, 4.0]
    intervals = [segment for lines in figure.axes[0].collections for segment in lines.get_segments()]
    np.testing.assert_allclose([segment[:, 1] for segment in intervals], [[-20.5, -19.5], [1.0, 7.0]])
    assert len(figure.axes[1].collections) == 1
    assert any(line.get_ydata()[0] == 18.0 for line in figure.axes[0].get_lines())


def test_no_scores_is_a_figure_too():
    assert plots.scores([]).axes[0].texts[0].get_text() == "nothing to draw yet"


def test_figures_are_closed_so_that_a_notebook_draws_them_once():
    plots.bars({"a": 1.0}, "y")
    assert plots.plt.get_fignums() == []


def test_importing_it_brings_no_torch():
    program = "import sys, wm_lib.course.plots; sys.exit('torch' in sys.modules or 'gymnasium' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_band_of_curves_is_their_mean_and_its_interval_where_all_of_them_are():
    curves = [(np.array([0.0, 10, 20]), np.array([0.0, 10, 20])), (np.array([0.0, 5, 15]), np.array([2.0, 7, 17]))]
    x, mean, half = plots.band(curves)
    np.testing.assert_array_equal(x, [0, 5, 10, 15])
    np.testing.assert_allclose(mean, x + 1)
    np.testing.assert_allclose(half, 12.706204736174698 * np.sqrt(2) / np.sqrt(2))  # t quantile, 1 degree of freedom
    x, mean, half = plots.band(curves[:1])
    np.testing.assert_array_equal(mean, [0, 10, 20])
    np.testing.assert_array_equal(half, 0)


def test_bands_draw_every_curve_and_their_mean():
    x = np.arange(4.0)
    groups = {"ours": [(x, x), (x, x + 2)], "theirs": [(x, -x)], "none yet": []}
    figure = plots.bands({"decisions": groups, "hours": groups}, "score", {"target": 3.0}, "Pong")
    assert [axis.get_xlabel() for axis in figure.axes] == ["decisions", "hours"]
    for axis in figure.axes:
        drawn = {line.get_label(): line for line in axis.get_lines()}
        np.testing.assert_array_equal(drawn["ours"].get_ydata(), x + 1)
        np.testing.assert_array_equal(drawn["theirs"].get_ydata(), -x)
        assert "none yet" not in drawn
        assert set(drawn["target"].get_ydata()) == {3.0}
        assert sum(line.get_linewidth() == 0.8 for line in axis.get_lines()) == 3
        assert drawn["ours"].get_marker() != drawn["theirs"].get_marker()
    assert figure.get_suptitle() == "Pong"
