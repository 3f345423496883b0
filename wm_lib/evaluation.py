"""How a score is measured: whole episodes with known seeds in the reference environment, and their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wm_lib import cluster
from wm_lib.control.agent import Agent, RandomAgent
from wm_lib.control.controller import Controller
from wm_lib.errors import UsageError
from wm_lib.events import Progress
from wm_lib.models.world_model import WorldModel
from wm_lib.tasks import Task

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

TASK_ROUNDS = 2  # of num_envs episodes each in a task of an executor
STICKY = 0.25  # probability of a sticky action in an Atari task's second score (Machado et al., 2018)


class Player(Protocol):
    """A policy that can be told which episode begins where."""

    def __call__(self, obs: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Actions int64 (num_envs,) for frames (num_envs, 64, 64, 3) and whether each begins an episode."""
        ...

    def reset_slot(self, slot: int, seed: int) -> None:
        """An episode with this seed begins in this row at the next call."""
        ...


def agent_maker(task: Task, world_model: WorldModel, controller: Controller) -> Callable[[int], Agent]:
    """The `make_agent` that `evaluate` wants; actions are sampled or greedy as the task prescribes."""
    return partial(_make_agent, task, world_model, controller)


def _make_agent(task: Task, world_model: WorldModel, controller: Controller, num_envs: int) -> Agent:
    rngs = [np.random.default_rng(slot) for slot in range(num_envs)] if task.sampled else None
    return Agent(world_model, controller, num_envs, rngs)


def random_maker(task: Task) -> Callable[[int], RandomAgent]:
    """The `make_agent` of the random baseline."""
    return partial(RandomAgent, task.num_actions)


def evaluate(
    task: Task,
    make_agent: Callable[[int], Player],
    episodes: int,
    seed: int,
    *,
    sticky: float = 0.0,
    num_envs: int = 8,
    backend: str = "gymnasium",
    make_env: Callable[[int, Sequence[int]], VectorEnv] | None = None,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Play episodes with the seeds `seed`, `seed` + 1, ... to their end and sum the raw rewards of each.

    Every episode starts from its own seed, environment and sampled actions alike, so its return does not
    depend on how many are played. (Another num_envs may round the networks' sums differently, and games are
    chaotic.)

    Args:
        task: What to play.
        make_agent: num_envs -> a policy for so many rows.
        episodes: At least 1.
        seed: Seed of the first episode.
        sticky: Atari: probability of sticky actions.
        num_envs: Episodes played side by side.
        backend: "gymnasium" for a score of a real task. EnvPool takes seeds only when it is made, so with it all
            episodes are played side by side, whatever num_envs says.
        make_env: (num_envs, seeds) -> another vector environment to play in, under the rules of
            `wm_lib.worlds.envs.make_env` and obeying `reset(seed=[...])`.
        executor: Who plays, see `wm_lib.cluster.spread`; None is this process. A worker gets the agent once and tasks
            of 2 * num_envs seeds; 8 bytes an episode come back. With EnvPool it is one task.

    Returns:
        What `summarise` says, and `real_steps`, the decisions of these episodes.

    Raises:
        UsageError: episodes or num_envs below 1.
    """
    if episodes < 1:
        raise UsageError(f"episodes must be at least 1, got {episodes}; a published score needs 100")
    if num_envs < 1:
        raise UsageError(f"num_envs must be at least 1, got {num_envs}")
    if make_env is None and backend != "gymnasium":
        num_envs = episodes
    games = Games(task, make_agent, num_envs, sticky, backend, make_env)
    seeds = [seed + i for i in range(episodes)]
    size = num_envs * TASK_ROUNDS
    with cluster.spread(executor, games) as run, Progress(f"evaluate {task.name}", episodes, "episode") as progress:
        if executor is None:
            played = [games(seeds, progress.update)]
        else:
            played = []
            for found in run((seeds[first : first + size],) for first in range(0, episodes, size)):
                played.append(found)
                progress.update(len(found[0]))
    returns = [value for values, _ in played for value in values.tolist()]
    return summarise(returns, seeds) | {"real_steps": sum(decisions for _, decisions in played)}


@dataclass(frozen=True)
class Games:
    """What the episodes of an evaluation have in common; a call plays some of them. Attributes as for `evaluate`."""

    task: Task
    make_agent: Callable[[int], Player]
    num_envs: int
    sticky: float = 0.0
    backend: str = "gymnasium"
    make_env: Callable[[int, Sequence[int]], VectorEnv] | None = None

    def __call__(self, seeds: Sequence[int], finished: Callable[[int], None] | None = None) -> tuple[np.ndarray, int]:
        """Returns float64 (episodes,) and the decisions taken; `finished` is called with 1 for every episode."""
        episodes, num_envs = len(seeds), self.num_envs
        returns = np.zeros(episodes)
        real_steps = 0
        num_slots = min(num_envs, episodes)
        playing = np.arange(num_slots)  # the episode in each slot, -1 when there is none left for it
        slot_seeds = list(seeds[:num_slots])
        num_started = num_slots
        agent = self.make_agent(num_envs)
        for slot in range(num_slots):
            agent.reset_slot(slot, slot_seeds[slot])
        if self.make_env is not None:
            made = closing(self.make_env(num_slots, slot_seeds))
        else:
            made = cluster.environments(self.task, num_slots, slot_seeds, self.backend, self.sticky)
        with made as env:
            obs, _ = env.reset(seed=slot_seeds)
            # The agent's batch keeps its shape to the end, also when there are fewer slots: sums stay the same.
            batch = np.zeros((num_envs, *obs.shape[1:]), obs.dtype)
            first = np.ones(num_envs, bool)
            while (busy := playing >= 0).any():
                batch[:num_slots] = obs
                # A slot without an episode stands still, its action is a dummy.
                action = np.where(busy, agent(batch, first)[:num_slots], 0)
                obs, reward, terminated, truncated, _ = env.step(action)
                returns[playing[busy]] += reward[busy]
                real_steps += int(busy.sum())
                begins = np.zeros(num_slots, bool)
                for slot in np.flatnonzero(busy & (terminated | truncated)):
                    if finished is not None:
                        finished(1)
                    playing[slot] = -1
                    if num_started < episodes:
                        playing[slot] = num_started
                        slot_seeds[slot] = seeds[num_started]
                        agent.reset_slot(slot, slot_seeds[slot])
                        begins[slot] = True
                        num_started += 1
                if begins.any():
                    obs, _ = env.reset(seed=slot_seeds, options={"reset_mask": begins})
                first = np.zeros(num_envs, bool)
                first[:num_slots] = begins
        return returns, real_steps


def summarise(returns: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
    """Mean return and how sure it is, as JSON values.

    Returns:
        mean, std (of the sample; 0 for one episode), ci95 ([low, high], Student's t interval of the mean;
        [None, None] for one episode, which says nothing about the spread), episodes, seeds, returns,
        distinct_returns (how many different ones: few of them betray a deterministic agent with few starts).
    """
    values = np.asarray(returns, np.float64)
    num = len(values)
    mean = float(values.mean())
    std, ci95 = 0.0, [None, None]
    if num > 1:
        std = float(values.std(ddof=1))
        half = t_quantile(0.975, num - 1) * std / math.sqrt(num)
        ci95 = [mean - half, mean + half]
    return {
        "mean": mean,
        "std": std,
        "ci95": ci95,
        "episodes": num,
        "seeds": [int(seed) for seed in seeds],
        "returns": values.tolist(),
        "distinct_returns": len(set(values.tolist())),
    }


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t with `df` >= 1 degrees of freedom, for p in [0.5, 1).

    Bisection on the finite sums of Abramowitz & Stegun (1964), 26.7.3 and 26.7.4, exact for whole df.
    """
    low, high = 0.0, 1.0
    while _t_central(high, df) < 2 * p - 1:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_central(middle, df) < 2 * p - 1 else (low, middle)
    return (low + high) / 2


def _t_central(t: float, df: int) -> float:
    """Probability that |T| < t."""
    theta = math.atan2(t, math.sqrt(df))
    sin, cos = math.sin(theta), math.cos(theta)
    if df == 1:
        return 2 * theta / math.pi
    k = np.arange(1, df // 2)
    if df % 2:
        terms = np.cumprod(2 * k / (2 * k + 1) * cos**2)
        return 2 / math.pi * (theta + sin * cos * (1 + float(terms.sum())))
    terms = np.cumprod((2 * k - 1) / (2 * k) * cos**2)
    return sin * (1 + float(terms.sum()))
