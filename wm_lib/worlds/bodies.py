"""A body that thrusts and steers: a lander under gravity, and a car on a closed track, seen from its own seat.

Angles are in radians from straight up, clockwise. Lengths are pixels of the frame (the car's: half of those), times
are decisions. `begin_…`, `advance_…` and `draw_…` are the three functions of a `wm_lib.worlds.simulation.World`.
"""

from __future__ import annotations

import numpy as np

from wm_lib.tasks import TASKS
from wm_lib.worlds.canvas import BLACK, BLUE, GREEN, GREY, RED, WHITE, State, canvas, paint

GRAVITY, MAIN_THRUST, SIDE_THRUST, SPIN_DECAY = 0.02, 0.06, 0.012, 0.95
PAD, HALF_PAD, GROUND = 32.0, 10.0, 58.0  # middle and half width of the pad; the ground's row
SOFT_SPEED, SOFT_TILT = 0.7, 0.35  # of a landing that is no crash
LANDED = 100.0  # paid for a landing on the pad, taken for a crash

RADIUS, HALF_ROAD = 40.0, 5.0
BENDS = (2, 3, 4)  # waves of the track around a circle
GAS, BRAKE, STEERING, TOP_SPEED, GRASS_SPEED = 0.15, 0.4, 0.12, 2.0, 0.7
LOST = 4.0  # half roads off the middle at which the car is lost
LAP, PER_DECISION = 100.0, 0.1  # paid for a whole lap, taken for each decision
_VIEW = 32  # the car's frame is drawn this fine and doubled
_TURNS = 256  # angles at which the track's radius is tabled, a power of two


def begin_lander(luck: np.ndarray) -> State:
    spread = 2 * luck - 1
    state = {
        "x": PAD + 16 * spread[:, 0],
        "height": 46 + 4 * spread[:, 1],
        "v_x": 0.5 * spread[:, 2],
        "v_height": -0.3 + 0.2 * spread[:, 3],
        "angle": 0.3 * spread[:, 4],
        "spin": 0.02 * spread[:, 5],
        "firing": np.zeros(len(luck), bool),
    }
    return state


def _merit(state: State) -> np.ndarray:
    """How well the lander stands, at most 0, after LunarLander's shaping: near the pad, slow and upright."""
    away = np.hypot((state["x"] - PAD) / 32, state["height"] / 48)
    speed = np.hypot(state["v_x"], state["v_height"]) / 1.5
    return -100.0 * (away + speed + 0.5 * np.abs(state["angle"]))


def advance_lander(state: State, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    before = _merit(state)
    main, turn = action == 2, np.array([0.0, -1.0, 0.0, 1.0])[action]
    state["firing"] = main
    state["spin"] = state["spin"] * SPIN_DECAY + SIDE_THRUST * turn
    state["angle"] = state["angle"] + state["spin"]
    thrust = MAIN_THRUST * main
    state["v_x"] = state["v_x"] + thrust * np.sin(state["angle"])
    state["v_height"] = state["v_height"] + thrust * np.cos(state["angle"]) - GRAVITY
    state["x"] = state["x"] + state["v_x"]
    state["height"] = state["height"] + state["v_height"]
    reward = _merit(state) - before - 0.3 * main - 0.03 * (turn != 0)
    down = state["height"] <= 0
    soft = (np.hypot(state["v_x"], state["v_height"]) <= SOFT_SPEED) & (np.abs(state["angle"]) <= SOFT_TILT)
    landed = down & soft & (np.abs(state["x"] - PAD) <= HALF_PAD)
    away = (np.abs(state["x"] - PAD) > 34) | (state["height"] > 60) | (np.abs(state["angle"]) > 2)
    ends = down | away
    return reward + LANDED * landed - LANDED * (ends & ~landed), ends


def draw_lander(state: State) -> np.ndarray:
    frames = canvas(len(state["x"]), BLACK)
    frames[:, int(GROUND) :] = GREY
    frames[:, int(GROUND) :, int(PAD - HALF_PAD) : int(PAD + HALF_PAD)] = GREEN
    row, sin, cos = GROUND - 3 - state["height"], np.sin(state["angle"]), np.cos(state["angle"])
    paint(frames, np.where(state["firing"], row + 5 * cos, -9), state["x"] - 5 * sin, 1.5, 1.5, RED)
    paint(frames, row, state["x"], 3.0, 3.0, WHITE)
    paint(frames, row - 5 * cos, state["x"] + 5 * sin, 2.0, 2.0, BLUE)
    return frames


def begin_car(luck: np.ndarray) -> State:
    k = np.array(BENDS)
    phase = 2 * np.pi * np.arange(_TURNS) / _TURNS
    waves = np.cos(k[:, None] * phase + 2 * np.pi * luck[:, : len(k), None])  # (num, bends, turns)
    track = RADIUS * (1 + (0.25 * luck[:, len(k) : 2 * len(k), None] / k[:, None] * waves).sum(1))
    place = (luck[:, -1] * _TURNS).astype(int)
    rows = np.arange(len(luck))
    theta = phase[place]
    slope = (track[rows, (place + 1) % _TURNS] - track[rows, place - 1]) * _TURNS / (4 * np.pi)  # dr / dtheta
    return {
        "track": track,  # radius of the middle of the road at each angle around the centre
        "x": track[rows, place] * np.cos(theta),
        "y": track[rows, place] * np.sin(theta),
        # Along the road: the derivative of r (cos, sin), as an angle from the y axis, clockwise.
        "angle": np.arctan2(slope * np.cos(theta) - track[rows, place] * np.sin(theta),
                            slope * np.sin(theta) + track[rows, place] * np.cos(theta)),
        "speed": np.zeros(len(luck)),
        "theta": theta,
        "swept": np.zeros(len(luck)),  # angle driven around the centre, and the largest so far
        "best": np.zeros(len(luck)),
    }  # fmt: skip


def _off_road(track: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance from the middle of the road along the ray from the centre; x and y are (num,) or (num, points)."""
    turn = (np.arctan2(y, x) * np.float32(_TURNS / (2 * np.pi))).astype(np.int32) & (_TURNS - 1)
    index = turn + (np.arange(len(track), dtype=np.int32) * _TURNS).reshape(-1, *[1] * (x.ndim - 1))
    return np.abs(np.sqrt(x * x + y * y) - track.ravel()[index])


def advance_car(state: State, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steer, gas, brake = np.array(TASKS["car-racing"].actions)[action].T
    grass = _off_road(state["track"], state["x"], state["y"]) > HALF_ROAD
    speed = np.maximum(state["speed"] * 0.99 + GAS * gas - BRAKE * brake, 0)
    state["speed"] = np.minimum(speed, np.where(grass, GRASS_SPEED, TOP_SPEED))
    state["angle"] = state["angle"] + STEERING * steer * np.minimum(state["speed"], 1)
    state["x"] = state["x"] + state["speed"] * np.sin(state["angle"])
    state["y"] = state["y"] + state["speed"] * np.cos(state["angle"])
    theta = np.arctan2(state["y"], state["x"])
    step = (theta - state["theta"] + np.pi) % (2 * np.pi) - np.pi
    state["theta"], state["swept"] = theta, state["swept"] + step
    best = np.clip(state["swept"], state["best"], 2 * np.pi)
    reward = LAP * (best - state["best"]) / (2 * np.pi) - PER_DECISION
    state["best"] = best
    lost = _off_road(state["track"], state["x"], state["y"]) > LOST * HALF_ROAD
    return reward, lost | (best >= 2 * np.pi)


def draw_car(state: State) -> np.ndarray:
    """From above, the car near the bottom and facing up."""
    right, ahead = np.meshgrid(np.arange(_VIEW) + 0.5 - _VIEW / 2, 24.0 - np.arange(_VIEW) - 0.5)
    right, ahead = (values.ravel().astype(np.float32) for values in (right, ahead))
    sin, cos = (f(state["angle"]).astype(np.float32)[:, None] for f in (np.sin, np.cos))
    x = state["x"].astype(np.float32)[:, None] + right * cos + ahead * sin
    y = state["y"].astype(np.float32)[:, None] - right * sin + ahead * cos
    road = _off_road(state["track"].astype(np.float32), x, y) <= HALF_ROAD
    small = np.array([GREEN, GREY], np.uint8).take(road.view(np.uint8), axis=0).reshape(-1, _VIEW, _VIEW, 3)
    frames = small.repeat(2, axis=1).repeat(2, axis=2)
    paint(frames, 48.0, 32.0, 3.0, 2.0, RED)
    paint(frames, 62.0, 4 + 20 * state["speed"] / TOP_SPEED, 2.0, 4.0, WHITE)  # a speedometer
    return frames
