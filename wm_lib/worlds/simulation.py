"""Simulated worlds, NumPy alone: one in place of each task, for machines without Gymnasium, and for quick trials.

Two small engines. A *ball and paddles* (`courts`): Pong against an opponent that follows the ball, and the same court
with a wall of bricks in the opponent's place and turned by 90 degrees, Breakout. A *body that thrusts and steers*
(`bodies`): a lander under gravity, and a car on a closed track, seen from above and from its own seat. They have the
actions of the real tasks and frames of the same shape, and they are much easier: a score here says nothing about the
real one.

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
from wm_lib.tasks import FRAME_SIZE, Task
from wm_lib.worlds import bodies, courts
from wm_lib.worlds.canvas import LUCK, State


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


WORLDS = {
    "pong": World(courts.begin_pong, courts.advance_pong, courts.draw_pong, 300),
    "lunar-lander": World(bodies.begin_lander, bodies.advance_lander, bodies.draw_lander, 200),
    "breakout": World(courts.begin_breakout, courts.advance_breakout, courts.draw_breakout, 400),
    "car-racing": World(bodies.begin_car, bodies.advance_car, bodies.draw_car, 250),
}
