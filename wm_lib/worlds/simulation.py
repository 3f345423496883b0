"""Simulated worlds, NumPy alone: one in place of each task, for machines without Gymnasium, and for quick trials.

Two small engines. A *ball and paddles*: Pong against an opponent that follows the ball, and the same court with a
wall of bricks in the opponent's place and turned by 90 degrees, Breakout. A *body that thrusts and steers*: a lander
under gravity, and a car on a closed track, seen from above and from its own seat. They have the actions of the real
tasks and frames of the same shape, and they are much easier: a score here says nothing about the real one.

A world is three functions of a *state*, a dict of arrays with one row for each environment: `begin` makes it of
uniform random numbers, drawn once an episode; `advance` moves it by one decision; `draw` shows it.
Lengths are pixels of the frame (the car's: half of those), times are decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from wm_lib.errors import UsageError
from wm_lib.tasks import FRAME_SIZE, TASKS, Task

State = dict[str, np.ndarray]

LUCK = 20  # uniform random numbers of an episode; a serve takes two
BALL = 2.0  # half of the ball's side
COURT = FRAME_SIZE - BALL  # where the ball's middle turns back at the far side; at the near side BALL
AGENT, OPPONENT = 58.0, 6.0  # where the paddles meet the ball, across the court
HALF_PADDLE, PADDLE_SPEED = 7.0, 3.5
BALL_SPEED = 3.0  # across
REACH = HALF_PADDLE + BALL  # a ball this far from the paddle's middle is still met
MAX_SLOPE = 1.0  # of a ball met at the paddle's end: its speed along over that across
OPPONENT_SPEED, POINTS = 1.2, 5
LIVES = 3
BRICK_ROWS, BRICK_COLUMNS = 3, 8
WALL, BRICK_DEPTH, BRICK_WIDTH = 8.0, 4.0, 8.0  # the first brick's near edge, and sizes across and along

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

_BLACK, _WHITE, _GREY = (0, 0, 0), (236, 236, 236), (110, 110, 110)
_GREEN, _RED, _BLUE, _BROWN = (92, 186, 92), (213, 80, 60), (80, 110, 210), (144, 72, 17)


class World(NamedTuple):
    """What makes a simulated task; every array has one row for each environment.

    Attributes:
        begin: Uniform random numbers in [0, 1), (num, LUCK) -> the state of as many new episodes.
        advance: (state, action int64 (num,)) -> reward float64 (num,), terminated bool (num,); changes the state.
        draw: state -> frames uint8 (num, 64, 64, 3).
        max_decisions: Decisions after which an episode is cut off.
    """

    begin: Callable[[np.ndarray], State]
    advance: Callable[[State, np.ndarray], tuple[np.ndarray, np.ndarray]]
    draw: Callable[[State], np.ndarray]
    max_decisions: int


def stand_in(task: Task) -> Task:
    """The simulated task in place of a real one: the same name and actions, no target, greedy actions."""
    return replace(
        task,
        env_id=f"wm_lib/Simulated-{task.name}",
        envpool_id="",
        target=float("nan"),
        max_decisions=WORLDS[task.name].max_decisions,
        action_repeat=1,
        frames_per_decision=1,
        atari=False,
        fire=False,
        crop=None,
        sampled=False,
        simulated=True,
    )


class SimulatedVectorEnv:
    """Many simulated environments in one batch, under the rules of `wm_lib.worlds.envs.make_env`.

    `info["state"]` is a copy of the state of all of them.

    Args:
        task: What to play.
        seeds: One for each environment; the first `reset()` uses them.
    """

    def __init__(self, task: Task, seeds: Sequence[int]) -> None:
        self.task, self.num_envs = task, len(seeds)
        self._world = WORLDS[task.name]
        self._rngs = [np.random.default_rng(seed) for seed in seeds]
        self._state = self._world.begin(np.zeros((self.num_envs, LUCK)))
        self._obs = np.zeros((self.num_envs, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        self._decisions = np.zeros(self.num_envs, np.int64)
        self._terminated, self._truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes, everywhere or where `options["reset_mask"]` (bool (num_envs,)) is true.

        `seed` (environment i gets seed + i) or seeds begin the randomness of these anew; without, it goes on.
        """
        mask = (options or {}).get("reset_mask")
        ids = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
            for i in ids:
                self._rngs[i] = np.random.default_rng(int(seeds[i]))
        if len(ids):
            self._put(ids, self._world.begin(np.stack([self._rngs[i].random(LUCK) for i in ids])))
            self._decisions[ids] = 0
            self._terminated[ids] = self._truncated[ids] = False
        return self._obs.copy(), self._info()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One decision in every environment that is not finished; the others pay 0 and stand still."""
        live = np.flatnonzero(~(self._terminated | self._truncated))
        reward = np.zeros(self.num_envs)
        if len(live):
            state = {name: values[live] for name, values in self._state.items()}
            reward[live], self._terminated[live] = self._world.advance(state, np.asarray(actions)[live])
            self._put(live, state)
            self._decisions[live] += 1
            self._truncated[live] = ~self._terminated[live] & (self._decisions[live] >= self.task.max_decisions)
        return self._obs.copy(), reward, self._terminated.copy(), self._truncated.copy(), self._info()

    def close(self) -> None:
        """Nothing is open."""

    def _put(self, ids: np.ndarray, state: State) -> None:
        for name, values in state.items():
            self._state[name][ids] = values
        self._obs[ids] = self._world.draw(state)

    def _info(self) -> dict[str, Any]:
        return {"state": {name: values.copy() for name, values in self._state.items()}}


def make_env(task: Task, num_envs: int, seed: int | Sequence[int]) -> SimulatedVectorEnv:
    """Make `num_envs` simulated environments; arguments and result as `wm_lib.worlds.envs.make_env` describes them.

    Raises:
        UsageError: num_envs is below 1, or there are not as many seeds.
    """
    if num_envs < 1:
        raise UsageError(f"num_envs must be at least 1, got {num_envs}")
    seeds = [seed + i for i in range(num_envs)] if isinstance(seed, int | np.integer) else list(seed)
    if len(seeds) != num_envs:
        raise UsageError(f"one seed or {num_envs} seeds wanted, got {len(seeds)}")
    return SimulatedVectorEnv(task, [int(s) % 2**31 for s in seeds])


# --- A ball and paddles. `across` is the way between the paddles, `along` the one they move: Pong's x and y.


def _begin_ball(luck: np.ndarray) -> State:
    middle = np.full(len(luck), FRAME_SIZE / 2)
    state = {"luck": luck, "serves": np.zeros(len(luck), np.int64)}
    state |= {name: middle.copy() for name in ("across", "along", "v_across", "v_along", "paddle")}
    _serve(state, np.ones(len(luck), bool))
    return state


def _serve(state: State, rows: np.ndarray) -> None:
    """Put the ball into the middle of the court, on its way to the agent, where `rows` (bool) is true."""
    luck, serves = state["luck"], state["serves"]
    where, slope = (luck[np.arange(len(luck)), (2 * serves + k) % LUCK] for k in (0, 1))
    state["across"][rows] = FRAME_SIZE / 2
    state["along"][rows] = (BALL + where * (COURT - BALL))[rows]
    state["v_across"][rows] = BALL_SPEED
    state["v_along"][rows] = (BALL_SPEED * MAX_SLOPE * (2 * slope - 1))[rows]
    serves[rows] += 1


def _fly(state: State, move: np.ndarray) -> np.ndarray:
    """Move the agent's paddle by `move` (num,) and the ball, which bounces off the sides and the paddle.

    Returns:
        Whether the ball has passed the agent's paddle and left the court, bool (num,).
    """
    state["paddle"] = np.clip(state["paddle"] + move, HALF_PADDLE, FRAME_SIZE - HALF_PADDLE)
    before = state["across"].copy()
    state["across"] += state["v_across"]
    state["along"] += state["v_along"]
    turned = (state["along"] < BALL) | (state["along"] > COURT)
    state["along"] = np.where(state["along"] < BALL, 2 * BALL - state["along"], state["along"])
    state["along"] = np.where(state["along"] > COURT, 2 * COURT - state["along"], state["along"])
    state["v_along"] = np.where(turned, -state["v_along"], state["v_along"])
    _meet(state, state["paddle"], (before < AGENT) & (state["across"] >= AGENT), AGENT)
    return state["across"] > COURT


def _meet(state: State, paddle: np.ndarray, arrives: np.ndarray, line: float) -> None:
    """Send a ball that arrives at a paddle back from its line; where it was met decides where it goes, as in Pong."""
    off = state["along"] - paddle
    met = arrives & (np.abs(off) <= REACH)
    state["across"] = np.where(met, 2 * line - state["across"], state["across"])
    state["v_across"] = np.where(met, -state["v_across"], state["v_across"])
    state["v_along"] = np.where(met, BALL_SPEED * MAX_SLOPE * off / REACH, state["v_along"])


def _begin_pong(luck: np.ndarray) -> State:
    zero = np.zeros(len(luck), np.int64)
    opponent = np.full(len(luck), FRAME_SIZE / 2)
    return _begin_ball(luck) | {"opponent": opponent, "ours": zero, "theirs": zero.copy()}


def _advance_pong(state: State, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    before = state["across"].copy()
    lost = _fly(state, np.array([0.0, -PADDLE_SPEED, PADDLE_SPEED])[action])
    chase = np.clip(state["along"] - state["opponent"], -OPPONENT_SPEED, OPPONENT_SPEED)
    state["opponent"] = np.clip(state["opponent"] + chase, HALF_PADDLE, FRAME_SIZE - HALF_PADDLE)
    _meet(state, state["opponent"], (before > OPPONENT) & (state["across"] <= OPPONENT), OPPONENT)
    won = state["across"] < BALL
    state["ours"] += won
    state["theirs"] += lost
    _serve(state, won | lost)
    return won * 1.0 - lost, (state["ours"] == POINTS) | (state["theirs"] == POINTS)


def _begin_breakout(luck: np.ndarray) -> State:
    num = len(luck)
    bricks = np.ones((num, BRICK_ROWS, BRICK_COLUMNS), bool)
    return _begin_ball(luck) | {"bricks": bricks, "lives": np.full(num, LIVES)}


def _advance_breakout(state: State, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lost = _fly(state, np.array([0.0, PADDLE_SPEED, -PADDLE_SPEED])[action])
    top = state["across"] < BALL
    state["across"] = np.where(top, 2 * BALL - state["across"], state["across"])
    state["v_across"] = np.where(top, -state["v_across"], state["v_across"])
    row = np.floor((state["across"] - WALL) / BRICK_DEPTH).astype(int)
    column = np.floor(state["along"] / BRICK_WIDTH).astype(int)
    rows = np.arange(len(row))
    inside = (row >= 0) & (row < BRICK_ROWS)
    hit = inside & state["bricks"][rows, np.clip(row, 0, BRICK_ROWS - 1), column]
    state["bricks"][rows[hit], row[hit], column[hit]] = False
    state["v_across"] = np.where(hit, -state["v_across"], state["v_across"])
    state["lives"] = state["lives"] - lost
    _serve(state, lost)
    return hit * 1.0, (state["lives"] == 0) | ~state["bricks"].any((1, 2))


def _draw_pong(state: State) -> np.ndarray:
    frames = _canvas(len(state["paddle"]), _BROWN)
    for k in range(POINTS):
        for score, at in (("theirs", 4.0 + 4 * k), ("ours", 60.0 - 4 * k)):
            _paint(frames, np.where(state[score] > k, 1.5, -9.0), at, 1.5, 1.5, _WHITE)
    _paint(frames, state["opponent"], OPPONENT - BALL - 1, HALF_PADDLE, 1.5, _RED)
    return _draw_ball(frames, state, 1)


def _draw_breakout(state: State) -> np.ndarray:
    frames = _canvas(len(state["paddle"]), _BLACK)
    depth, width = int(BRICK_DEPTH), int(BRICK_WIDTH)
    wall = state["bricks"].repeat(depth, axis=1).repeat(width, axis=2)
    area = frames[:, int(WALL) : int(WALL) + BRICK_ROWS * depth]
    area[wall] = _RED
    for k in range(LIVES):
        _paint(frames, 1.5, np.where(state["lives"] > k, 4.0 + 4 * k, -9.0), 1.5, 1.5, _WHITE)
    return _draw_ball(frames, state, 0)


def _draw_ball(frames: np.ndarray, state: State, axis: int) -> np.ndarray:
    """The agent's paddle and the ball; `axis` 1: across is from left to right, 0: from top to bottom."""
    things = ((AGENT + BALL + 1, state["paddle"], 1.5, HALF_PADDLE, _GREEN),
              (state["across"], state["along"], BALL, BALL, _WHITE))  # fmt: skip
    for across, along, half_across, half_along, colour in things:
        if axis:
            _paint(frames, along, across, half_along, half_across, colour)
        else:
            _paint(frames, across, along, half_across, half_along, colour)
    return frames


# --- A body that thrusts and steers. Angles are in radians from straight up, clockwise.


def _begin_lander(luck: np.ndarray) -> State:
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


def _advance_lander(state: State, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _draw_lander(state: State) -> np.ndarray:
    frames = _canvas(len(state["x"]), _BLACK)
    frames[:, int(GROUND) :] = _GREY
    frames[:, int(GROUND) :, int(PAD - HALF_PAD) : int(PAD + HALF_PAD)] = _GREEN
    row, sin, cos = GROUND - 3 - state["height"], np.sin(state["angle"]), np.cos(state["angle"])
    _paint(frames, np.where(state["firing"], row + 5 * cos, -9), state["x"] - 5 * sin, 1.5, 1.5, _RED)
    _paint(frames, row, state["x"], 3.0, 3.0, _WHITE)
    _paint(frames, row - 5 * cos, state["x"] + 5 * sin, 2.0, 2.0, _BLUE)
    return frames


def _begin_car(luck: np.ndarray) -> State:
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


def _advance_car(state: State, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _draw_car(state: State) -> np.ndarray:
    """From above, the car near the bottom and facing up."""
    right, ahead = np.meshgrid(np.arange(_VIEW) + 0.5 - _VIEW / 2, 24.0 - np.arange(_VIEW) - 0.5)
    right, ahead = (values.ravel().astype(np.float32) for values in (right, ahead))
    sin, cos = (f(state["angle"]).astype(np.float32)[:, None] for f in (np.sin, np.cos))
    x = state["x"].astype(np.float32)[:, None] + right * cos + ahead * sin
    y = state["y"].astype(np.float32)[:, None] - right * sin + ahead * cos
    road = _off_road(state["track"].astype(np.float32), x, y) <= HALF_ROAD
    small = np.array([_GREEN, _GREY], np.uint8).take(road.view(np.uint8), axis=0).reshape(-1, _VIEW, _VIEW, 3)
    frames = small.repeat(2, axis=1).repeat(2, axis=2)
    _paint(frames, 48.0, 32.0, 3.0, 2.0, _RED)
    _paint(frames, 62.0, 4 + 20 * state["speed"] / TOP_SPEED, 2.0, 4.0, _WHITE)  # a speedometer
    return frames


def _canvas(num: int, colour: tuple[int, int, int]) -> np.ndarray:
    frames = np.empty((num, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    frames[:] = colour
    return frames


def _paint(
    frames: np.ndarray,
    row: np.ndarray | float,
    column: np.ndarray | float,
    half_height: float,
    half_width: float,
    colour: tuple[int, int, int],
) -> None:
    """Draw a rectangle in every frame: the pixels whose middle lies within it; row and column are (num,) or numbers."""
    num = len(frames)
    first_row = np.ceil(np.broadcast_to(row, num) - half_height - 0.5).astype(int)
    first_column = np.ceil(np.broadcast_to(column, num) - half_width - 0.5).astype(int)
    rows = (first_row[:, None] + np.arange(int(2 * half_height)))[:, :, None]
    columns = (first_column[:, None] + np.arange(int(2 * half_width)))[:, None, :]
    seen = (rows >= 0) & (rows < FRAME_SIZE) & (columns >= 0) & (columns < FRAME_SIZE)
    which = np.arange(num)[:, None, None]
    frames[tuple(np.broadcast_to(index, seen.shape)[seen] for index in (which, rows, columns))] = colour


WORLDS = {
    "pong": World(_begin_pong, _advance_pong, _draw_pong, 300),
    "lunar-lander": World(_begin_lander, _advance_lander, _draw_lander, 200),
    "breakout": World(_begin_breakout, _advance_breakout, _draw_breakout, 400),
    "car-racing": World(_begin_car, _advance_car, _draw_car, 250),
}
