"""Modes: with what the world and the world model are made, by what a machine has.

full: the real environments, VAE and MDN-RNN (torch). gym_only: the real environments and a reservoir (NumPy).
simulation: small worlds in NumPy and a reservoir.
"""

from __future__ import annotations

from wm_lib.config import MODES
from wm_lib.errors import UsageError
from wm_lib.tasks import Task, get_task


def resolve_mode(mode: str = "full", task: str | None = None) -> str:
    """Turn a mode into one of `MODES`; "auto" is what this machine has for a task, or for any if that is None.

    Raises:
        UsageError: It is none of them.
    """
    if mode == "auto":
        from wm_lib.doctor import detect_mode

        found = detect_mode()
        mode = found.mode if task is None else found.mode_for(get_task(task))
    if mode not in MODES:
        raise UsageError(f"unknown mode '{mode}'; choose one of auto, {', '.join(MODES)}")
    return mode


def task_in(mode: str, name: str) -> Task:
    """The task as a mode plays it.

    Raises:
        UsageError: There is no such task.
    """
    task = get_task(name)
    if mode != "simulation":
        return task
    from wm_lib.worlds.simulation import stand_in

    return stand_in(task)
