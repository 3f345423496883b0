"""What the environments know and the agent does not: where the ball, the ship and the car really are.

From the RAM of the Atari games and the states of Box2D; for probes and gates only, never for training.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wm_lib.tasks import FRAME_SIZE, Task

# Name -> axis (0: x, columns; 1: y, rows), RAM cell, and what to add for the centre of the object in native pixels
# (160 x 210), measured on the emulator's own picture. A paddle of Pong moves half a native pixel around it.
_RAM: dict[str, dict[str, tuple[int, int, float]]] = {
    "pong": {
        "ball_x": (0, 49, -48.0),
        "ball_y": (1, 54, -12.0),
        "player_y": (1, 51, -5.5),
        "enemy_y": (1, 50, -7.0),
    },
    "breakout": {"ball_x": (0, 99, -48.0), "ball_y": (1, 101, 11.0), "paddle_x": (0, 72, -39.0)},
}
_NATIVE_PIXELS = 2.5  # in one of ours, both ways
_LANDER = ("ship_x", "ship_y", "ship_angle_sin", "ship_angle_cos", "ship_vx", "ship_vy")
_CAR = ("car_speed", "track_offset")
_NEAR_TRACK = 20.0  # units of the track; further away the road is out of the picture, which shows 62 x 49 of them


def names(task: Task) -> tuple[str, ...]:
    """What `ground_truth` and `play` know of a task, in the order of their columns.

    Positions are in pixels of the 64 x 64 frame, (0, 0) being the centre of the pixel in the upper left corner;
    ship_vx and ship_vy in pixels per decision, y downwards; car_speed in units of the track per second;
    track_offset in half widths of the road: 1 at the edge to the right of the car, -1 at the left.
    """
    if task.atari:
        return tuple(_RAM[task.name])
    return _LANDER if task.name == "lunar-lander" else _CAR


def frame_names(task: Task) -> tuple[str, ...]:
    """Those of `names` that one frame shows (the car's speed on a gauge): z must have them; the others need h."""
    return tuple(name for name in names(task) if not name.startswith("ship_v"))


def unit(name: str) -> str:
    """What one of `names` is counted in, for tables."""
    if name.endswith(("_sin", "_cos")):
        return "-"
    if name.startswith("ship_v"):
        return "pixels/decision"
    return {"car_speed": "units/s", "track_offset": "half widths"}.get(name, "pixels")


def ground_truth(task: Task, info: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """The truth about the frames that came with `info`, from a vector environment of `make_env`.

    An Atari frame is the maximum of two native ones and the truth is that of the second, so what moves is half a native
    step ahead of the centre of its smeared picture: a ball mostly 0.2 to 0.4 pixels, our paddle of Pong up to 1.

    Returns:
        values float32 (num_envs, K) and visible bool (num_envs, K), K columns as in `names`. Where an object is not in
        play or its centre is outside the frame its value means nothing and visible is false. None where `info` has
        no truth, which is always so for CarRacing: only Gymnasium's own environment knows it, see `car_truth`.
    """
    if task.atari and "ram" in info:
        ram = np.asarray(info["ram"]).astype(np.float64)
        crop = (task.crop[2], task.crop[0])
        values = {
            name: (ram[:, cell] + shift) / _NATIVE_PIXELS - crop[axis] - 0.5
            for name, (axis, cell, shift) in _RAM[task.name].items()
        }
        # A ball that is not in play is parked outside of the frame.
        ball = _in_frame(values["ball_x"]) & _in_frame(values["ball_y"])
        visible = {name: ball if name.startswith("ball") else _in_frame(values[name]) for name in values}
    elif task.name == "lunar-lander" and "state" in info:
        values = dict(zip(_LANDER, _lander(np.asarray(info["state"], np.float64), task), strict=True))
        ship = _in_frame(values["ship_x"]) & _in_frame(values["ship_y"])
        visible = dict.fromkeys(values, ship)
    else:
        return None
    return np.stack(list(values.values()), 1).astype(np.float32), np.stack(list(visible.values()), 1)


def car_truth(car_racing: Any) -> tuple[np.ndarray, np.ndarray]:
    """The truth about Gymnasium's CarRacing: values float32 (1, 2) and visible bool (1, 2), see `names`.

    Args:
        car_racing: The environment or a wrapper of it: `make_env(task, 1, seed, "gymnasium").envs[0]`.
    """
    native = car_racing.unwrapped
    speed = math.hypot(*native.car.hull.linearVelocity)
    _, direction, x, y = np.array(native.track).T
    away_x, away_y = native.car.hull.position[0] - x, native.car.hull.position[1] - y
    nearest = int(np.argmin(np.hypot(away_x, away_y)))
    # (cos, sin) of a tile's direction points to the right, 40 / 6 units from the middle to either edge: to the left of
    # a car that has turned round, and a frame, drawn as the car looks, does not show which way the race goes.
    right = np.array([np.cos(direction[nearest]), np.sin(direction[nearest])])
    right *= np.sign(np.cos(native.car.hull.angle - direction[nearest])) or 1.0
    across = right @ (away_x[nearest], away_y[nearest])
    near = math.hypot(away_x[nearest], away_y[nearest]) < _NEAR_TRACK
    return np.array([[speed, across / (40 / 6)]], np.float32), np.array([[True, near]])


def _in_frame(position: np.ndarray) -> np.ndarray:
    return (position >= 0) & (position <= FRAME_SIZE - 1)


def _lander(state: np.ndarray, task: Task) -> tuple[np.ndarray, ...]:
    """Columns of `_LANDER` from LunarLander's state (N, 8): the origin of the hull, a little below its middle.

    The world is 20 x 13.33 units, drawn 300 x 200; x is counted in half widths from the middle, y in half heights from
    where the origin is when the ship stands on the pad (3.33 + 0.6 units high); 1/50 second passes in a native step.
    """
    x, y, vx, vy, angle = state[:, :5].T
    top, bottom, left, right = task.crop
    per_column, per_row = FRAME_SIZE / (right - left), FRAME_SIZE / (bottom - top)
    height = (y * 20 / 3 + 10 / 3 + 0.6) * 15
    return (
        ((x + 1) * 150 - left) * per_column - 0.5,
        (200 - height - top) * per_row - 0.5,
        np.sin(angle),
        np.cos(angle),
        vx / 10 * 15 * per_column * task.action_repeat,
        -vy * 3 / 20 * 15 * per_row * task.action_repeat,
    )
