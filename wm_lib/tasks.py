"""The four tasks: what the agent plays, sees and may do, and the score that counts as reached."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from wm_lib.errors import UsageError

FRAME_SIZE = 64


@dataclass(frozen=True)
class Task:
    """One environment as the agent meets it: 64 x 64 RGB frames in, an index into `actions` out.

    Attributes:
        name: Name on the command line.
        env_id: Gymnasium id, the one scores are measured in.
        envpool_id: Id of the same environment in EnvPool, the fast path.
        target: Mean return over 100 episodes that counts as reached.
        actions: Native action of each of the agent's choices: an integer, or a vector for CarRacing
            (steering in [-1, 1], gas and brake in [0, 1]).
        action_repeat: Native steps per decision (Atari: 1, its frame skip of 4 is inside the environment).
        frames_per_decision: Native frames per decision, for counting frames.
        max_decisions: Decisions after which an episode is cut off.
        atari: Whether it runs on the Arcade Learning Environment.
        fire: Whether FIRE must be pressed to serve a ball.
        crop: What is kept of the picture, (top, bottom, left, right): on Atari of 84 x 64 (rows x columns), on
            LunarLander of 200 x 300; None keeps it all.
        rendered: Whether its native observation is a vector, so that frames have to be asked for.
        blank: What is painted black in the frame, (top, bottom, left, right): on CarRacing the digits of the return.
        sampled: Whether scores are measured with sampled actions; otherwise the most likely action is taken.
        unseen_goal: Whether a well-ended episode ends without a sign beforehand in what C sees: a lap of CarRacing.
        simulated: Whether it is played in `wm_lib.worlds.simulation`, where there is no target.
    """

    name: str
    env_id: str
    envpool_id: str
    target: float
    actions: tuple[int, ...] | tuple[tuple[float, float, float], ...]
    max_decisions: int
    action_repeat: int = 1
    frames_per_decision: int = 1
    atari: bool = False
    fire: bool = False
    crop: tuple[int, int, int, int] | None = None
    sampled: bool = False
    # Keys of finished stages are made of the repr: what came later stays out of it.
    rendered: bool = field(default=False, repr=False)
    blank: tuple[int, int, int, int] | None = field(default=None, repr=False)
    unseen_goal: bool = field(default=False, repr=False)
    simulated: bool = field(default=False, repr=False)

    @property
    def num_actions(self) -> int:
        """Number of choices the agent has."""
        return len(self.actions)


# Atari: NOOP, RIGHT (up in Pong), LEFT (down). The environment presses FIRE by itself.
_PADDLE = (0, 2, 3)
# CarRacing: coast, two sharpnesses of steering either way, gas, brake.
_DRIVING = (
    (0.0, 0.0, 0.0),
    (-0.8, 0.0, 0.0),
    (0.8, 0.0, 0.0),
    (-0.3, 0.1, 0.0),
    (0.3, 0.1, 0.0),
    (0.0, 0.8, 0.0),
    (0.0, 0.0, 0.6),
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("pong", "PongNoFrameskip-v4", "Pong-v5", 18.0, _PADDLE, 27_000,
             frames_per_decision=4, atari=True, fire=True, crop=(14, 78, 0, 64), sampled=True),
        # The whole picture shrunk to 64 x 64 shows where the ship is but not how it is tilted; its middle does.
        Task("lunar-lander", "LunarLander-v3", "LunarLander-v3", 200.0, (0, 1, 2, 3), 500,
             action_repeat=2, frames_per_decision=2, crop=(0, 160, 60, 240), sampled=True, rendered=True),
        Task("breakout", "BreakoutNoFrameskip-v4", "Breakout-v5", 300.0, _PADDLE, 27_000,
             frames_per_decision=4, atari=True, fire=True, crop=(13, 77, 0, 64), sampled=True),
        Task("car-racing", "CarRacing-v3", "CarRacing-v3", 900.0, _DRIVING, 250,
             action_repeat=4, frames_per_decision=4, sampled=True, blank=(56, 64, 0, 8), unseen_goal=True),
    )
}  # fmt: skip

# What the actions do, for people. In Pong the paddle goes up and down.
ACTION_NAMES = {
    "pong": ("stay", "up", "down"),
    "lunar-lander": ("nothing", "left engine", "main engine", "right engine"),
    "breakout": ("stay", "right", "left"),
    "car-racing": ("coast", "sharp left", "sharp right", "left, some gas", "right, some gas", "gas", "brake"),
}

_OLD_IDS = {"LunarLander-v2": "LunarLander-v3", "CarRacing-v2": "CarRacing-v3"}


def get_task(name: str) -> Task:
    """Find a task by its name or its environment id.

    Old ids (LunarLander-v2, CarRacing-v2) are mapped to v3 with one printed notice.

    Raises:
        UsageError: The name is none of the four.
    """
    if name in _OLD_IDS:
        print(f"{name} is no longer in Gymnasium; using {_OLD_IDS[name]}.", file=sys.stderr)
        name = _OLD_IDS[name]
    for task in TASKS.values():
        if name in (task.name, task.env_id):
            return task
    raise UsageError(f"unknown task '{name}'; choose one of {', '.join(TASKS)}")
