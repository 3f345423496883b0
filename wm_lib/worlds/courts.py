"""A ball and paddles: Pong, and the same court turned by 90 degrees with a wall of bricks, Breakout.

`across` is the way between the paddles, `along` the one they move: Pong's x and y. Lengths are pixels of the frame,
times are decisions. `begin_…`, `advance_…` and `draw_…` are the three functions of a `wm_lib.worlds.simulation.World`.
"""

from __future__ import annotations

import numpy as np

from wm_lib.tasks import FRAME_SIZE
from wm_lib.worlds.canvas import BLACK, BROWN, GREEN, LUCK, RED, WHITE, State, canvas, paint

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


def begin_pong(luck: np.ndarray) -> State:
    zero = np.zeros(len(luck), np.int64)
    opponent = np.full(len(luck), FRAME_SIZE / 2)
    return _begin_ball(luck) | {"opponent": opponent, "ours": zero, "theirs": zero.copy()}


def advance_pong(state: State, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def begin_breakout(luck: np.ndarray) -> State:
    num = len(luck)
    bricks = np.ones((num, BRICK_ROWS, BRICK_COLUMNS), bool)
    return _begin_ball(luck) | {"bricks": bricks, "lives": np.full(num, LIVES)}


def advance_breakout(state: State, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def draw_pong(state: State) -> np.ndarray:
    frames = canvas(len(state["paddle"]), BROWN)
    for k in range(POINTS):
        for score, at in (("theirs", 4.0 + 4 * k), ("ours", 60.0 - 4 * k)):
            paint(frames, np.where(state[score] > k, 1.5, -9.0), at, 1.5, 1.5, WHITE)
    paint(frames, state["opponent"], OPPONENT - BALL - 1, HALF_PADDLE, 1.5, RED)
    return _draw_ball(frames, state, 1)


def draw_breakout(state: State) -> np.ndarray:
    frames = canvas(len(state["paddle"]), BLACK)
    depth, width = int(BRICK_DEPTH), int(BRICK_WIDTH)
    wall = state["bricks"].repeat(depth, axis=1).repeat(width, axis=2)
    area = frames[:, int(WALL) : int(WALL) + BRICK_ROWS * depth]
    area[wall] = RED
    for k in range(LIVES):
        paint(frames, 1.5, np.where(state["lives"] > k, 4.0 + 4 * k, -9.0), 1.5, 1.5, WHITE)
    return _draw_ball(frames, state, 0)


def _draw_ball(frames: np.ndarray, state: State, axis: int) -> np.ndarray:
    """The agent's paddle and the ball; `axis` 1: across is from left to right, 0: from top to bottom."""
    things = ((AGENT + BALL + 1, state["paddle"], 1.5, HALF_PADDLE, GREEN),
              (state["across"], state["along"], BALL, BALL, WHITE))  # fmt: skip
    for across, along, half_across, half_along, colour in things:
        if axis:
            paint(frames, along, across, half_along, half_across, colour)
        else:
            paint(frames, across, along, half_across, half_along, colour)
    return frames
