"""What is shown is what was played, seen and dreamt; films are whole, small and readable by others."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from wm_lib import play
from wm_lib.control.controller import Controller
from wm_lib.errors import StageError
from wm_lib.evaluation import agent_maker, evaluate
from wm_lib.folders import project_root
from wm_lib.models.mdn_rnn import MDNRNN
from wm_lib.models.neural import NeuralWorldModel
from wm_lib.models.vae import VAE
from wm_lib.tasks import get_task
from wm_lib.worlds.envs import make_env

LANDER, PONG = get_task("lunar-lander"), get_task("pong")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def agent() -> tuple[NeuralWorldModel, Controller]:
    """V, M and C of LunarLander, untrained."""
    torch.manual_seed(0)
    model = NeuralWorldModel(VAE(4), MDNRNN(4, LANDER.num_actions, 8), recent_z=2)
    params = np.random.default_rng(0).standard_normal((model.feature_dim + 1) * LANDER.num_actions)
    return model, Controller.linear(params.astype(np.float32), model.feature_dim, LANDER.num_actions)


class Arithmetic:
    """z is the frame's brightness, h counts decisions; the dream adds action and h."""

    def initial_state(self, batch):
        return np.zeros((batch, 1), np.float32)

    def encode(self, frames):
        return frames[:, 0, 0, :1].astype(np.float32)

    def decode(self, z):
        return np.broadcast_to(z[:, :, None, None], (len(z), 64, 64, 3)).astype(np.uint8)

    def step(self, z, action, h):
        return h + 1

    def imagine(self, z, action, h, temperature, rng, done_threshold=None):
        assert temperature == 0
        return z + action[:, None] + h / 32, np.zeros(1), np.zeros(1, bool), h + 1


def test_the_dream_goes_on_alone_and_comes_back_to_reality():
    beside, frames = play.Beside(Arithmetic()), RNG.integers(0, 60, 70).astype(np.uint8)
    actions, dreamt = RNG.integers(0, 2, 70), 0.0
    for t, (brightness, action) in enumerate(zip(frames, actions, strict=True)):
        if t % play.RESEED == 0:
            dreamt = float(brightness)
        assert beside.alone == t % play.RESEED
        panes = beside(np.full((64, 64, 3), brightness, np.uint8), int(action))
        assert panes.shape == (3, 64, 64, 3) and panes.dtype == np.uint8
        assert panes[:, 5, 6, 1].tolist() == [brightness, brightness, int(dreamt)]
        dreamt += action + t / 32  # h is t, whether it was real or dreamt


def test_a_game_is_the_one_that_evaluate_measures(agent):
    shown: list[tuple[np.ndarray, str]] = []
    result = play.play_game(LANDER, *agent, 10_001, lambda panes, titles, caption: shown.append((panes, caption)))
    measured = evaluate(LANDER, agent_maker(LANDER, *agent), 2, 10_000)
    assert result["returns"] == measured["returns"][1:] and result["seeds"] == [10_001]
    assert len(shown) == result["real_steps"] > play.RESEED
    assert shown[-1][1].startswith(f"score {result['mean']:.4g} ")
    env = make_env(LANDER, 1, 10_001, "gymnasium")
    np.testing.assert_array_equal(shown[0][0][0], env.reset()[0][0])
    env.close()
    for t, (panes, caption) in enumerate(shown):
        assert f"alone for {t % play.RESEED} of {play.RESEED}" in caption
        np.testing.assert_array_equal(panes[1], agent[0].decode(agent[0].encode(panes[:1]))[0])
        if t % play.RESEED == 0:
            np.testing.assert_array_equal(panes[2], panes[1])


def test_a_dream_begins_at_a_real_frame_and_lasts(agent, monkeypatch):
    monkeypatch.setattr(play, "SECONDS", 1)
    shown: list[tuple[np.ndarray, str]] = []
    score = play.play_dream(LANDER, *agent, 3, lambda panes, titles, caption: shown.append((panes, caption)))
    assert len(shown) == 25  # decisions of LunarLander in a second
    assert shown[-1][1] == f"dreamt score {score:.4g} | decision 24"
    env = make_env(LANDER, 1, 3, "gymnasium")
    start = env.reset()[0]
    env.close()
    for panes, _ in shown:
        np.testing.assert_array_equal(panes[0], start[0])
    np.testing.assert_array_equal(shown[0][0][1], agent[0].decode(agent[0].encode(start))[0])


def test_a_picture_holds_every_pane_enlarged_below_its_title():
    panes = RNG.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    picture = play.draw(panes, ("one", "two"), "caption", 4)
    assert picture.shape == (256 + 2 * play.STRIP, 2 * 256 + 8, 3)
    for n, pane in enumerate(panes):
        np.testing.assert_array_equal(picture[play.STRIP : play.STRIP + 256 : 4, n * 264 : n * 264 + 256 : 4], pane)
    title, caption = picture[: play.STRIP], picture[-play.STRIP :]
    for x in (0, 264):
        assert (title[:, x : x + 60] < 128).any() and not (title[:, x + 120 : x + 250] < 255).any()
    assert (caption[:, :80] < 128).any() and not (caption[:, 300:] < 255).any()


def show_some(show: play.Show, num: int, panes: np.ndarray | None = None) -> None:
    for t in range(num):
        frames = np.full((3, 64, 64, 3), 4 * t, np.uint8) if panes is None else panes[t]
        show(frames, play.GAME, f"t = {t}")


def in_gif(path: Path) -> list[np.ndarray]:
    whole, pictures = cv2.imreadmulti(str(path))
    assert whole
    return [picture[..., ::-1] for picture in pictures]


def test_a_gif_shows_the_first_seconds_at_the_speed_of_the_game(tmp_path, monkeypatch):
    monkeypatch.setattr(play, "SECONDS", 2)
    path = tmp_path / "new" / "film.gif"
    with play.screen(path, PONG, "x") as show:
        show_some(show, 30)  # two seconds of Pong
        with pytest.raises(play.Closed):
            show_some(show, 1)
    pictures = in_gif(path)
    assert len(pictures) == 15  # every other one: 7.5 a second
    for n, picture in enumerate(pictures):
        assert picture.shape == play.draw(np.zeros((3, 64, 64, 3), np.uint8), play.GAME, "", play.GIF_ZOOM).shape
        assert abs(int(picture[50, 50, 1]) - 8 * n) <= 8
    assert [file.name for file in path.parent.iterdir()] == ["film.gif"]


def test_a_gif_that_is_too_large_has_fewer_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(play, "GIF_BYTES", 300_000)
    noise = RNG.integers(0, 256, (24, 3, 64, 64, 3), dtype=np.uint8)
    with play.screen(tmp_path / "film.gif", PONG, "x") as show:
        show_some(show, 24, noise)
    assert (tmp_path / "film.gif").stat().st_size <= 300_000
    assert 1 <= len(in_gif(tmp_path / "film.gif")) < 12


def test_an_mp4_holds_everything(tmp_path):
    path = tmp_path / "film.mp4"
    with play.screen(path, LANDER, "x") as show:
        show_some(show, 60)
    film = cv2.VideoCapture(str(path))
    assert (film.get(cv2.CAP_PROP_FPS), film.get(cv2.CAP_PROP_FRAME_COUNT)) == (25, 60)
    for t in range(60):
        there, picture = film.read()
        assert there and abs(int(picture[100, 100, 1]) - 4 * t) < 12
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize("name", ["film.gif", "film.mp4"])
def test_what_goes_wrong_leaves_the_old_film_and_nothing_else(tmp_path, name):
    (tmp_path / name).write_text("old")
    with pytest.raises(ZeroDivisionError), play.screen(tmp_path / name, PONG, "x") as show:
        show_some(show, 3)
        _ = 1 // 0
    assert [file.name for file in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "old"


def test_a_film_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(StageError, match=r"ends in \.gif"), play.screen(tmp_path / "film.xyz", PONG, "x") as show:
        show_some(show, 1)


def test_few_colours_keep_what_is_rare():
    pictures = np.full((2, 40, 40, 3), (144, 72, 16), np.uint8)
    pictures[0, 3, 3] = (236, 236, 236)  # the ball
    exact = play.few_colours(list(pictures), 4)
    assert exact.shape == pictures.shape and np.abs(exact.astype(int) - pictures).max() <= 4
    noisy = np.clip(pictures + RNG.integers(-30, 30, pictures.shape), 0, 255).astype(np.uint8)
    noisy[0, 3, 3] = (236, 236, 236)
    found = play.few_colours(list(noisy), 16)
    assert len(np.unique(found.reshape(-1, 3), axis=0)) <= 16
    assert found[0, 3, 3].min() > 180 and np.abs(found.astype(int) - noisy).mean() < 12


def test_a_window_is_drawn_at_the_games_pace_until_q(monkeypatch):
    drawn, waited, keys = [], [], iter([255, 255, ord("q")])
    monkeypatch.setattr(cv2, "imshow", lambda title, picture: drawn.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: waited.append(delay) or next(keys))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda title, which: 1.0)
    closed = []
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: closed.append(True))
    with play.screen(None, LANDER, "x") as show, pytest.raises(play.Closed):
        show_some(show, 9)
    assert len(drawn) == 3 and waited == [40] * 3 and closed == [True]
    panes = np.full((3, 64, 64, 3), 8, np.uint8)
    np.testing.assert_array_equal(drawn[2][..., ::-1], play.draw(panes, play.GAME, "t = 2", play.ZOOM))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DISPLAY is how X is found")
def test_no_screen_is_noticed(monkeypatch):
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert not play.has_window()
    monkeypatch.setenv("DISPLAY", ":987")  # nobody is there: Qt ends its process
    assert not play.has_window()


def test_play_shows_every_game_until_nobody_looks(agent, tmp_path, monkeypatch):
    returns = play.play(LANDER, *agent, [5, 6], tmp_path / "film.mp4")
    assert returns == evaluate(LANDER, agent_maker(LANDER, *agent), 2, 5)["returns"]
    monkeypatch.setattr(play, "SECONDS", 1)
    assert play.play(LANDER, *agent, [5, 6], tmp_path / "film.gif") == []  # full before the first game is over
    assert len(in_gif(tmp_path / "film.gif")) == 13
    assert len(play.play(LANDER, *agent, [5, 6], tmp_path / "dream.gif", dream=True)) == 1


def test_where_a_task_has_no_agent_that_of_another_is_shown(tmp_path, monkeypatch):
    found = play.shipped_agent("lunar-lander")
    assert found is not None and found[0] == LANDER
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    assert found[1].features(found[1].encode(frames), found[1].initial_state(2)).shape == (2, found[2].feature_dim)
    weights = tmp_path / "assets" / "weights"
    monkeypatch.setattr(play, "project_root", lambda: tmp_path)
    assert play.shipped_agent("pong") is None
    weights.mkdir(parents=True)
    (weights / "lunar-lander").symlink_to(project_root() / "assets" / "weights" / "lunar-lander")
    assert play.shipped_agent("pong")[0] == LANDER
