"""Where one can act: the real environments, simulated ones, dreams; one vector interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from wm_lib.tasks import Task
    from wm_lib.worlds.simulation import SimulatedVectorEnv


def make_env(
    task: Task, num_envs: int, seed: int | Sequence[int], backend: str = "auto", sticky: float = 0.0
) -> VectorEnv | SimulatedVectorEnv:
    """Make environments of a task, simulated ones if it is; see `wm_lib.worlds.envs.make_env`.

    Simulated ones have no backends and no sticky actions, and need nothing but NumPy.
    """
    if task.simulated:
        from wm_lib.worlds import simulation

        return simulation.make_env(task, num_envs, seed)
    from wm_lib.worlds.envs import make_env

    return make_env(task, num_envs, seed, backend, sticky)
