"""The real environments: one function, two backends, one vector interface.

EnvPool (C++) is the fast path, Gymnasium the reference in which scores are measured. Both show the agent
64 x 64 RGB frames and take an index into `task.actions`. What one *decision* is:

- Atari: 4 emulator frames with the native action held, rewards summed, the pixel-wise maximum of the last two
  frames shown. An episode starts with 1 to 30 no-ops and is a whole game: losing a life does not end it.
- LunarLander, CarRacing: `task.action_repeat` native steps, rewards summed, fewer when the episode ends.

Seeds make each path repeat itself exactly. They do not carry over: the two paths draw no-ops, terrains and
tracks from different generators.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # its greeting would land in our output

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from wm_lib.errors import UsageError
from wm_lib.tasks import FRAME_SIZE, Task

BACKENDS = ("auto", "envpool", "gymnasium")

Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]

FIRE = 1  # native action of Pong and Breakout
ATARI_ROWS = 84  # 210 x 160 shrinks by 2.5 both ways to 84 rows x 64 columns; task.crop keeps 64 rows
LANDER_PICTURE = (200, 300)  # rows and columns; task.crop keeps some of them
LOOK_AHEAD = 50  # tiles of CarRacing: whoever turns round at the start has not driven past the whole road
ATARI = {"frame_skip": 4, "noop_max": 30}
_BOX2D = "gymnasium[box2d]"
_PIP_NAMES = {"cv2": "opencv-python", "ale_py": "ale-py", "Box2D": _BOX2D, "pygame": _BOX2D}


def make_env(
    task: Task, num_envs: int, seed: int | Sequence[int], backend: str = "auto", sticky: float = 0.0
) -> VectorEnv:
    """Make `num_envs` environments of one task behind one vector interface.

    Observations are uint8 (num_envs, 64, 64, 3), RGB in [0, 255]; an action array is int64 (num_envs,) with
    indices into `task.actions`; rewards are float64 (num_envs,), raw. Nothing resets by itself
    (`AutoresetMode.DISABLED`):

        obs, info = env.reset()
        obs, reward, terminated, truncated, info = env.step(action)  # obs of a finished one: its final frame
        done = terminated | truncated
        if done.any():
            obs, info = env.reset(options={"reset_mask": done})  # the others keep their observation

    A finished environment that is not reset stands still: further steps cost nothing, show the same frame,
    pay 0 and repeat its flags. On Atari with `task.fire` the environment presses FIRE, instead of the agent's
    action, at the first decision and at the first after each lost life (sticky actions can swallow a press,
    so then at the first two).

    `info` has the ground truth that comes for free: Atari "ram" uint8 (num_envs, 128) and "lives";
    LunarLander "state" float32 (num_envs, 8); CarRacing, on Gymnasium's path, "skipped" int (num_envs,), how many tiles
    of the road were driven past in this decision. After a masked reset only the rows in the mask are meaningful.

    Args:
        task: What to play.
        num_envs: How many, at least 1. On the Gymnasium path more than one means one process each.
        seed: Seed of environment 0 (environment i gets seed + i), or one seed for each. The first `reset()`
            uses them. Later `reset(seed=[...])` is obeyed on the Gymnasium path and ignored by EnvPool.
        backend: "envpool", "gymnasium", or "auto": EnvPool when it can be imported, else Gymnasium.
        sticky: Atari: probability in [0, 1) that the emulator repeats its previous action for a frame.

    Raises:
        UsageError: Unknown backend, a package that is not installed, or an argument out of range.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend '{backend}'; choose one of {', '.join(BACKENDS)}")
    if num_envs < 1:
        raise UsageError(f"num_envs must be at least 1, got {num_envs}")
    if not 0.0 <= sticky < 1.0:
        raise UsageError(f"sticky must be in [0, 1), got {sticky}")
    if sticky and not task.atari:
        raise UsageError(f"sticky actions exist on Atari only, not on {task.name}; use sticky=0")
    seeds = [seed + i for i in range(num_envs)] if isinstance(seed, int | np.integer) else list(seed)
    if len(seeds) != num_envs:
        raise UsageError(f"one seed or {num_envs} seeds wanted, got {len(seeds)}")
    seeds = [int(s) % 2**31 for s in seeds]

    if backend == "auto":
        backend = "envpool" if _can_import("envpool") else "gymnasium"
    if backend == "envpool":
        needed = ("envpool", "cv2")
    else:
        needed = ("ale_py", "cv2") if task.atari else ("Box2D", "pygame", "cv2")
    for module in needed:
        if not _can_import(module):
            raise UsageError(
                f"{task.name} with backend '{backend}' needs the package '{module}', which is not installed; "
                f'type: pip install "{_PIP_NAMES.get(module, module)}"'
            )

    if backend == "envpool":
        from wm_lib.worlds.pool import EnvPoolVectorEnv

        return EnvPoolVectorEnv(task, seeds, sticky)
    env_fns = [partial(_make_task_env, task, s, sticky) for s in seeds]
    if num_envs == 1:
        return _Alone(env_fns, autoreset_mode=AutoresetMode.DISABLED)
    # Forking a process that has torch or OpenCV threads can deadlock. A fork server is clean, imports the
    # libraries once, and forks every worker from there; Windows only knows spawn.
    context = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    if context == "forkserver":
        modules = ["wm_lib.worlds.envs", "gymnasium.wrappers", *needed]
        multiprocessing.get_context(context).set_forkserver_preload(modules)
    with _main_module_hidden():
        return _Workers(env_fns, context=context, autoreset_mode=AutoresetMode.DISABLED)


class _Workers(AsyncVectorEnv):
    """Closes at once: waiting for an answer would hang when Ctrl-C came in the middle of a step."""

    def close_extras(self, timeout: float | None = None, terminate: bool = True) -> None:
        super().close_extras(timeout, terminate)


class _Alone(SyncVectorEnv):
    """Steps a finished environment too, instead of an assertion that it is not: a `TaskEnv` stands still by itself."""

    def step(self, actions: np.ndarray) -> Step:
        self._autoreset_envs[:] = False
        return super().step(actions)


class TaskEnv(gymnasium.Wrapper):
    """One Gymnasium environment as `make_env` describes it."""

    def __init__(self, env: gymnasium.Env, task: Task, seed: int, sticky: float = 0.0) -> None:
        """Wrap `env`: LunarLander with `rgb_array`, CarRacing, or Atari after `AtariPreprocessing`."""
        super().__init__(env)
        self.task = task
        self.observation_space, self.action_space = spaces_of(task)
        self._native_actions = native_actions(task)
        self._seed: int | None = seed
        self._last: tuple[np.ndarray, bool, bool, dict[str, Any]] | None = None
        self._decisions = 0
        self._lives = 0
        self._presses = 2 if sticky else 1
        self._fire_due = 0
        self._furthest = 0  # tile of CarRacing's road
        if hasattr(self.unwrapped, "_draw_colored_polygon"):
            _skip_far_shapes(self.unwrapped)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; the first one takes the seed given at construction unless told otherwise."""
        native_obs, _ = self.env.reset(seed=self._seed if seed is None else seed, options=options)
        self._seed = None
        self._last = None
        self._decisions = self._furthest = 0
        self._fire_due = self._presses * self.task.fire
        info = self._info(native_obs)
        self._lives = info.get("lives", 0)
        return self._frame(native_obs), info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One decision; once finished, the last frame again."""
        if self._last is not None:
            obs, terminated, truncated, info = self._last
            return obs, 0.0, terminated, truncated, info
        native = FIRE if self._fire_due else self._native_actions[action]
        reward, terminated, truncated = 0.0, False, False
        for left in reversed(range(self.task.action_repeat)):
            with _undrawn(self.unwrapped) if left else nullcontext():
                native_obs, native_reward, terminated, truncated, _ = self.env.step(native)
            reward += float(native_reward)
            if terminated or truncated:
                break
        if native_obs is None:  # the episode ended before the frame that would have been drawn
            native_obs = self.unwrapped._render("state_pixels")
        self._decisions += 1
        truncated = truncated or self._decisions >= self.task.max_decisions
        info = self._info(native_obs)
        lives = info.get("lives", 0)
        lost = self.task.fire and lives < self._lives
        self._fire_due = self._presses if lost else max(self._fire_due - 1, 0)
        self._lives = lives
        obs = self._frame(native_obs)
        if terminated or truncated:
            self._last = (obs, terminated, truncated, info)
        return obs, reward, terminated, truncated, info

    def _frame(self, native_obs: np.ndarray) -> np.ndarray:
        if self.task.atari:
            top, bottom, left, right = self.task.crop
            return native_obs[top:bottom, left:right]
        if self.task.rendered:
            # Both paths must show the same, or V tells the two apart and C does not know such z. EnvPool draws no
            # exhaust, which touches nothing but the ground: without it every state and reward is what it was. And
            # its sky ends a row higher, which is a fifth of a row of the frame.
            self.unwrapped._clean_particles(True)
            return shrink(self.env.render(), self.task, lower=1)
        return shrink(native_obs, self.task)

    def _info(self, native_obs: np.ndarray) -> dict[str, Any]:
        if self.task.atari:
            ale = self.unwrapped.ale
            return {"lives": ale.lives(), "ram": ale.getRAM()}
        return {"state": native_obs} if self.task.rendered else {"skipped": self._skipped()}

    def _skipped(self) -> int:
        """Tiles between the furthest one visited before and the furthest now that no wheel has touched."""
        visited = [tile.road_visited for tile in self.unwrapped.road]
        ahead = visited[self._furthest + 1 : self._furthest + 1 + LOOK_AHEAD]
        if not any(ahead):
            return 0
        new = max(i for i, seen in enumerate(ahead) if seen)
        self._furthest += new + 1
        return new - sum(ahead[:new])


@contextmanager
def _undrawn(native: gymnasium.Env) -> Iterator[None]:
    """CarRacing draws at every step, and takes most of its time for it; only a decision's last picture is looked at."""
    if not hasattr(native, "_render"):
        yield
        return
    native._render = lambda mode: None
    try:
        yield
    finally:
        del native._render  # the class has the real one


def _skip_far_shapes(native: gymnasium.Env) -> None:
    """CarRacing turns every corner of some 800 shapes before it asks which of them are near the picture. Ask one first.

    It draws a shape if a corner is within MAX_SHAPE_DIM of the picture. No shape is longer than that, so the first
    corner is within twice as much then, and the pictures are the same.
    """
    from gymnasium.envs.box2d.car_racing import MAX_SHAPE_DIM, WINDOW_H, WINDOW_W

    draw, margin = native._draw_colored_polygon, 2 * MAX_SHAPE_DIM

    def draw_near(
        surface: Any, poly: Any, color: Any, zoom: float, translation: Any, angle: float, clip: bool = True
    ) -> None:
        (x, y), sine, cosine = poly[0], math.sin(angle), math.cos(angle)
        across = (x * cosine - y * sine) * zoom + translation[0]
        up = (x * sine + y * cosine) * zoom + translation[1]
        near = -margin <= across <= WINDOW_W + margin and -margin <= up <= WINDOW_H + margin
        if near or not clip:
            draw(surface, poly, color, zoom, translation, angle, clip)

    native._draw_colored_polygon = draw_near


def _make_task_env(task: Task, seed: int, sticky: float) -> TaskEnv:
    """Make one environment of the Gymnasium path; runs in the worker processes."""
    if multiprocessing.current_process().name.startswith("Worker<"):
        # Interrupting a notebook or Ctrl-C signals the workers too; ending them is the parent's business.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not task.atari:
        mode = "rgb_array" if task.rendered else None
        env = gymnasium.make(task.env_id, render_mode=mode, disable_env_checker=True)
        return TaskEnv(env, task, seed, sticky)
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    # The emulator's own limit would count the no-ops; TaskEnv counts decisions, like EnvPool.
    options = {"repeat_action_probability": sticky, "max_num_frames_per_episode": 0}
    env = gymnasium.make(task.env_id, disable_env_checker=True, **options)
    env = gymnasium.wrappers.AtariPreprocessing(
        env, screen_size=(FRAME_SIZE, ATARI_ROWS), terminal_on_life_loss=False, grayscale_obs=False, **ATARI
    )
    return TaskEnv(env, task, seed, sticky)


def spaces_of(task: Task) -> tuple[Box, Discrete]:
    """What the agent sees and does in one environment."""
    return Box(0, 255, (FRAME_SIZE, FRAME_SIZE, 3), np.uint8), Discrete(task.num_actions)


def native_actions(task: Task) -> np.ndarray:
    """`task.actions` as an array: int32 (num_actions,), or float32 (num_actions, 3) for CarRacing."""
    return np.array(task.actions, np.float32 if isinstance(task.actions[0], tuple) else np.int32)


def shrink(picture: np.ndarray, task: Task, lower: int = 0) -> np.ndarray:
    """Average what the task shows of an RGB picture down to a frame; cropped `lower` rows further down."""
    import cv2

    if task.crop:
        # Gymnasium draws LunarLander at 400 x 600, twice as fine as EnvPool is told to.
        top, bottom, left, right = (edge * len(picture) // LANDER_PICTURE[0] for edge in task.crop)
        picture = picture[top + lower : bottom + lower, left:right]
    frame = cv2.resize(picture, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_AREA)
    if task.blank:
        # The two paths draw the digits each in its way: V would learn to tell the paths apart by them.
        top, bottom, left, right = task.blank
        frame[top:bottom, left:right] = 0
    return frame


def _can_import(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception:  # whatever a broken installation throws
        return False
    return True


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep worker processes from importing the program that starts them.

    They need nothing from it, it may import torch, and a script without `if __name__ == "__main__"` would run
    again in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
