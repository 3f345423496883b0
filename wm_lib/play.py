"""An agent at play, in a window or on film: the game, what V sees of it, and what M dreams meanwhile.

The dream runs on alone, told only which actions were really taken, and returns to reality every `RESEED` decisions;
else a ball that bounced the other way once would be all there is to see.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from wm_lib.control.agent import FeatureAgent, load_agent
from wm_lib.control.controller import Controller
from wm_lib.course import films
from wm_lib.errors import StageError
from wm_lib.evaluation import agent_maker, evaluate
from wm_lib.folders import project_root, shipped_weights
from wm_lib.models.world_model import WorldModel
from wm_lib.tasks import FRAME_SIZE, TASKS, Task
from wm_lib.worlds import make_env
from wm_lib.worlds.dream import DreamVectorEnv

RESEED = 30  # decisions
SECONDS = 20  # of a GIF, and of a dream
GIF_BYTES = 1_000_000
GIF_COLOURS = 64
GIF_RATE = 13  # pictures a second, at most
GIF_ZOOM, ZOOM = 3, 4  # screen pixels for each of a frame's
STRIP = 22  # pixels, the height of a line of text
GAME = ("the game", "what V sees", "what M dreams")
DREAM = ("where it began", "the dream")

Show = Callable[[np.ndarray, Sequence[str], str], None]  # panes uint8 (n, 64, 64, 3), their titles, a caption


class Closed(Exception):
    """Nobody looks any more: the window was closed, or the film is full."""


class Watched(VectorWrapper):
    """A vector environment of which somebody is told the frame, action and reward of row 0 at every decision."""

    def __init__(self, env: VectorEnv, tell: Callable[[np.ndarray, int, float], None]) -> None:
        super().__init__(env)
        self.tell = tell

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.obs, info = self.env.reset(**kwargs)
        return self.obs, info

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        frame = self.obs[0]
        self.obs, reward, terminated, truncated, info = self.env.step(actions)
        self.tell(frame, int(actions[0]), float(reward[0]))
        return self.obs, reward, terminated, truncated, info


class Beside:
    """What V sees and M dreams of one game, decision by decision."""

    def __init__(self, world_model: WorldModel) -> None:
        self.world_model, self.h = world_model, world_model.initial_state(1)
        self.alone = 0  # decisions since the dream was shown the game
        self._rng = np.random.default_rng(0)

    def __call__(self, frame: np.ndarray, action: int) -> np.ndarray:
        """Frame (64, 64, 3), V's picture of it and the dream's, uint8 (3, 64, 64, 3); the action leads to the next."""
        model, taken = self.world_model, np.array([action])
        z = model.encode(frame[None])
        if self.alone == 0:
            self._z, self._h = z, self.h
        panes = np.concatenate([frame[None], model.decode(np.concatenate([z, self._z]))])
        with np.errstate(all="ignore"):  # a dream may explode; that is worth seeing
            self._z, _, _, self._h = model.imagine(self._z, taken, self._h, 0.0, self._rng)
        self.h = model.step(z, taken, self.h)
        self.alone = (self.alone + 1) % RESEED
        return panes


def shipped_agent(first: str) -> tuple[Task, WorldModel, Controller] | None:
    """The shipped agent of a task, or of another where it has none; None where none is shipped."""
    for name in (first, *TASKS):
        if paths := shipped_weights(project_root(), name):
            return TASKS[name], *load_agent(paths)
    return None


def play(
    task: Task,
    world_model: WorldModel,
    controller: Controller,
    seeds: Sequence[int],
    path: Path | None = None,
    dream: bool = False,
) -> list[float]:
    """Show a game, or a dream, for each seed, on the `screen` that `path` names; returns of what was finished."""
    returns: list[float] = []
    title = f"{task.name}: {'the agent in its own dream' if dream else ', '.join(GAME)}"
    with screen(path, task, title) as show:
        try:
            for seed in seeds:
                if dream:
                    returns.append(play_dream(task, world_model, controller, seed, show))
                else:
                    returns.append(play_game(task, world_model, controller, seed, show)["mean"])
        except Closed:
            pass
    return returns


def play_game(task: Task, world_model: WorldModel, controller: Controller, seed: int, show: Show) -> dict[str, Any]:
    """Play one whole game as `evaluate` does, so that a seed of a manifest is the game of the manifest; its score."""
    beside, score = Beside(world_model), 0.0

    def tell(frame: np.ndarray, action: int, reward: float) -> None:
        nonlocal score
        score += reward
        alone = beside.alone
        show(beside(frame, action), GAME, f"score {score:.4g} | M alone for {alone} of {RESEED} decisions")

    def make_watched(num_envs: int, seeds: Sequence[int]) -> VectorEnv:
        return Watched(make_env(task, num_envs, seeds, "gymnasium"), tell)

    return evaluate(task, agent_maker(task, world_model, controller), 1, seed, make_env=make_watched)


def play_dream(
    task: Task, world_model: WorldModel, controller: Controller, seed: int, show: Show, seconds: float | None = None
) -> float:
    """Play in M alone for so many seconds of the game, `SECONDS` if None; returns the dreamt score.

    It begins with the first frame of the real game of this seed, and again where M draws its end.
    """
    env = make_env(task, 1, seed, "gymnasium")
    try:
        start, _ = env.reset()
    finally:
        env.close()
    num = round((seconds or SECONDS) * decisions_per_second(task))
    z = world_model.encode(start)
    dreams = DreamVectorEnv(world_model, z, 1, num, 1.0, task.num_actions, seed)
    agent = FeatureAgent(world_model, controller, 1, [np.random.default_rng(seed)] if task.sampled else None)
    seen = films.record(dreams, agent, num, look=lambda _: world_model.decode(dreams.z))
    for t, score in enumerate(seen.reward[:, 0].cumsum()):
        show(np.stack([start[0], seen.frames[t, 0]]), DREAM, f"dreamt score {score:.4g} | decision {t}")
    return float(seen.reward.sum())


def decisions_per_second(task: Task) -> float:
    """How many decisions a second of the game takes at the speed people play it."""
    return (60 if task.atari else 50) / task.frames_per_decision


def draw(panes: np.ndarray, titles: Sequence[str], caption: str, zoom: int) -> np.ndarray:
    """Panes (n, 64, 64, 3) side by side, enlarged, titles above and a caption below: uint8 (height, width, 3)."""
    import cv2

    size, gap = zoom * FRAME_SIZE, 2 * zoom
    picture = np.full((size + 2 * STRIP, len(panes) * (size + gap) - gap, 3), 255, np.uint8)

    def write(text: str, x: int, y: int) -> None:
        cv2.putText(picture, text, (x + 2, y + STRIP - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1)

    for n, (pane, title) in enumerate(zip(panes, titles, strict=True)):
        x = n * (size + gap)
        picture[STRIP : STRIP + size, x : x + size] = pane.repeat(zoom, axis=0).repeat(zoom, axis=1)
        write(title, x, 0)
    write(caption, 0, STRIP + size)
    return picture


@contextmanager
def screen(path: Path | None, task: Task, description: str) -> Iterator[Show]:
    """Where an agent is shown: a window if `path` is None, else a film, .gif or .mp4, written at the end.

    A GIF holds the first `SECONDS` and is made to be small; an MP4 holds everything.

    Raises:
        StageError: This OpenCV cannot write films of that name.
    """
    rate = decisions_per_second(task)
    if path is None:
        with _window(description, rate) as show:
            yield show
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        with (_gif if path.suffix == ".gif" else _mp4)(temporary, rate, description) as show:
            yield show
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _window(title: str, rate: float) -> Iterator[Show]:
    import cv2

    def show(panes: np.ndarray, titles: Sequence[str], caption: str) -> None:
        cv2.imshow(title, draw(panes, titles, caption, ZOOM)[..., ::-1])
        key = cv2.waitKey(round(1000 / rate)) & 0xFF
        if key in (27, ord("q")) or cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1:
            raise Closed

    try:
        yield show
    finally:
        cv2.destroyAllWindows()


@contextmanager
def _mp4(path: Path, rate: float, description: str) -> Iterator[Show]:
    import cv2

    writer = None

    def show(panes: np.ndarray, titles: Sequence[str], caption: str) -> None:
        nonlocal writer
        picture = draw(panes, titles, caption, ZOOM)
        if writer is None:
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, picture.shape[1::-1])
            if not writer.isOpened():
                raise StageError(f"OpenCV cannot write {path.name} here; give --output a name that ends in .gif")
        writer.write(picture[..., ::-1])

    try:
        yield show
    finally:
        if writer is not None:
            writer.release()


@contextmanager
def _gif(path: Path, rate: float, description: str) -> Iterator[Show]:
    pictures: list[np.ndarray] = []
    length = round(SECONDS * rate)

    def show(panes: np.ndarray, titles: Sequence[str], caption: str) -> None:
        if len(pictures) == length:
            raise Closed
        pictures.append(draw(panes, titles, caption, GIF_ZOOM))

    yield show
    whole, every = few_colours(pictures, GIF_COLOURS), math.ceil(rate / GIF_RATE)
    while True:  # fewer pictures until it is small enough
        shown = whole[::every]
        gif = films.film(shown, description, fps=rate / every, max_frames=len(shown)).gif
        if len(gif) <= GIF_BYTES or len(shown) == 1:
            break
        every = max(every + 1, math.ceil(every * len(gif) / GIF_BYTES))
    path.write_bytes(gif)


def few_colours(pictures: Sequence[np.ndarray], num: int) -> np.ndarray:
    """Pictures, each uint8 (height, width, 3), in at most `num` colours chosen for them, which makes small GIFs.

    By k-means, in which a colour counts with the root of its number of pixels: the ball is a few of thousands.
    """
    import cv2

    # Five bits of each part of a colour are enough to tell them apart, and allow for a table of all of them.
    codes = [(picture.astype(np.uint16) >> 3) @ np.array([1024, 32, 1], np.uint16) for picture in pictures]
    counts = sum(np.bincount(code.ravel(), minlength=2**15) for code in codes)
    used = np.flatnonzero(counts)
    colours = np.stack([used >> 10, (used >> 5) & 31, used & 31], axis=1).astype(np.float32) * np.float32(255 / 31)
    if len(used) > num:
        cv2.setRNGSeed(0)
        criteria, times = (cv2.TERM_CRITERIA_MAX_ITER, 20, 0.0), np.sqrt(counts[used]).astype(int)
        some = np.repeat(colours, times, axis=0)
        _, label, centres = cv2.kmeans(some, num, None, criteria, 1, cv2.KMEANS_PP_CENTERS)
        colours = centres[label[np.cumsum(times) - 1, 0]]
    table = np.zeros((2**15, 3), np.uint8)
    table[used] = colours.round()
    return np.stack([table[code] for code in codes])


def has_window() -> bool:
    """Whether OpenCV can open one here. Asked of another process: Qt ends its own where it finds no screen."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    program = "import cv2; cv2.namedWindow('wm'); cv2.waitKey(1); cv2.destroyAllWindows()"
    try:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
