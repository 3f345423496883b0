"""Dreams of a finished run: made by name, for any library that speaks Gymnasium, and measured against reality.

gymnasium.make("wm_lib.dreams:WorldModelsDream-v0", task="pong")
gymnasium.make_vec("wm_lib.dreams:WorldModelsDream-v0", num_envs=1000, task="pong", temperature=1.15)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wm_lib.control.agent import Agent, FeatureAgent, RandomAgent
from wm_lib.control.controller import Controller, Population, num_params
from wm_lib.control.evolution import CMAES, play_once
from wm_lib.errors import UsageError
from wm_lib.pipeline import Pipeline
from wm_lib.seeding import derive_seed
from wm_lib.worlds.dreaming import Dreams

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from wm_lib.worlds.dream import DreamEnv, DreamVectorEnv

TEMPERATURES = (0.1, 0.5, 1.0, 1.3)


def make_dreams(
    task: str,
    num_envs: int = 1,
    budget: str = "auto",
    run_dir: str | Path = "auto",
    horizon: int = 0,
    temperature: float = 1.0,
    starts: Literal["episodes", "anywhere"] = "episodes",
    seed: int = 0,
    done_threshold: float | None = None,
    rounds: int | None = None,
    vectorization_mode: Any = None,
) -> DreamVectorEnv:
    """Many dreams of the world model that a run has trained.

    Args:
        task, budget, run_dir, rounds: Which run, and which round's world model; see `Pipeline.open`.
        num_envs: Dreams side by side.
        horizon: Decisions after which a dream is cut off; 0 = four of M's training sequences.
        temperature: Uncertainty, see `DreamVectorEnv`.
        starts: Which real moments a dream starts from: "episodes" = where episodes began, "anywhere" = all.
        seed: Of everything drawn.
        done_threshold: Probability of the end above which a dream terminates; None: drawn, see `DreamVectorEnv`.
        vectorization_mode: Set by `gymnasium.make_vec`; there is only one way.

    Raises:
        StageError: The run has no M yet.
        UsageError: An argument is out of range.
    """
    run = Pipeline.open(task, budget, run_dir, rounds=rounds)
    return dreams_of(run, num_envs, horizon, temperature, starts, seed, done_threshold)


def make_dream(task: str, render_mode: str | None = None, **options: Any) -> DreamEnv:
    """One dream; the options are those of `make_dreams`, without `num_envs`."""
    from wm_lib.worlds.dream import DreamEnv

    return DreamEnv(make_dreams(task, 1, **options), render_mode)


def dreams_of(
    run: Pipeline,
    num_envs: int,
    horizon: int = 0,
    temperature: float = 1.0,
    starts: str = "episodes",
    seed: int = 0,
    done_threshold: float | None = None,
) -> DreamVectorEnv | Dreams:
    """`make_dreams` for a run that is already open; in mode simulation they do without Gymnasium."""
    if starts not in ("episodes", "anywhere"):
        raise UsageError(f"starts must be episodes or anywhere, found {starts}")
    latents = run.latents()
    mu = latents["mu"]
    start_z = mu[latents["first"]] if starts == "episodes" else mu.reshape(-1, mu.shape[-1])
    horizon = horizon or default_horizon(run)
    make = Dreams
    if run.mode != "simulation":
        from wm_lib.worlds.dream import DreamVectorEnv as make
    return make(run.world_model(), start_z, num_envs, horizon, temperature, run.task.num_actions, seed, done_threshold)


def default_horizon(run: Pipeline) -> int:
    """Decisions of a dream: four times `mdnrnn.sequence_length`, the windows that M learns from in mode full."""
    return 4 * run.config.mdnrnn.sequence_length


def dream_against_reality(
    run: Pipeline,
    temperatures: Sequence[float] = TEMPERATURES,
    num_episodes: int = 32,
    num_candidates: int = 16,
    seed: int = 0,
    backend: str = "auto",
) -> dict[str, Any]:
    """What the run's controller earns asleep and awake, and whether the dream knows better from worse.

    All play for the same number of decisions, `default_horizon`, from the start of an episode, or until they lose a
    life, which ends a dream too: so the returns can be compared. For the second question a population of CMA-ES's first
    generation, linear controllers drawn around zero, plays in both worlds: a rank correlation of 1 says that evolution
    would choose the same parents in either.

    Args:
        run: Trained up to its controller.
        temperatures: Of the dreams.
        num_episodes: Episodes behind each mean.
        num_candidates: Size of the population; each of them plays num_episodes / 4 episodes.
        seed: Of everything drawn.
        backend: Of the real environments, see `make_env`.

    Returns:
        `horizon`, `num_episodes`; `real` and `real_random`, mean and standard error of the controller and of random
        play; `dream` and `dream_random`, the same by temperature; `rank_correlation`, Spearman's, by temperature;
        `rank_ceiling`, that of reality with itself in other games: more cannot be asked of a dream.
    """
    from wm_lib.worlds import make_env

    horizon, world_model, task = default_horizon(run), run.world_model(), run.task
    start = np.zeros(num_params(world_model.feature_dim, task.num_actions))
    candidates = CMAES(start, num_candidates, run.config.controller.sigma, derive_seed(seed, "population")).ask()
    population = Population(candidates.astype(np.float32), world_model.feature_dim)
    rollouts = max(1, num_episodes // 4)

    def play(env: VectorEnv, player: Controller | Population | None, make_agent: type) -> np.ndarray:
        """Return of each episode."""
        if player is None:
            agent = RandomAgent(task.num_actions, env.num_envs)
        else:
            rngs = [np.random.default_rng([seed, slot]) for slot in range(env.num_envs)] if task.sampled else None
            agent = make_agent(world_model, player, env.num_envs, rngs)
        try:
            return play_once(env, agent, horizon, one_life=True)[0]
        finally:
            env.close()

    def awake(player: Controller | Population | None, count: int, name: str = "awake") -> np.ndarray:
        return play(make_env(task, count, derive_seed(seed, name), backend), player, Agent)

    def asleep(player: Controller | Population | None, count: int, temperature: float) -> np.ndarray:
        return play(dreams_of(run, count, horizon, temperature, seed=derive_seed(seed, "asleep")), player, FeatureAgent)

    def each(returns: np.ndarray) -> np.ndarray:
        """Mean return of each candidate."""
        return returns.reshape(num_candidates, -1).mean(1)

    controller, crowd = run.controller(), num_candidates * rollouts
    real_ranks = each(awake(population, crowd))
    found: dict[str, Any] = {
        "horizon": horizon,
        "num_episodes": num_episodes,
        "real": _mean(awake(controller, num_episodes)),
        "real_random": _mean(awake(None, num_episodes)),
        "dream": {},
        "dream_random": {},
        "rank_correlation": {},
        "rank_ceiling": spearman(each(awake(population, crowd, "awake again")), real_ranks),
    }
    for temperature in temperatures:
        key = f"{temperature:g}"
        found["dream"][key] = _mean(asleep(controller, num_episodes, temperature))
        found["dream_random"][key] = _mean(asleep(None, num_episodes, temperature))
        found["rank_correlation"][key] = spearman(each(asleep(population, crowd, temperature)), real_ranks)
    return found


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation of a and b, each (n,); equal values share a rank. None if all of one are equal."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[place]

    a, b = ranks(a), ranks(b)
    return None if not a.std() or not b.std() else float(np.corrcoef(a, b)[0, 1])


def _mean(returns: np.ndarray) -> dict[str, float]:
    error = returns.std(ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else 0.0
    return {"mean": float(returns.mean()), "standard_error": float(error)}


try:
    import gymnasium
except ImportError:  # mode simulation
    pass
else:
    if "WorldModelsDream-v0" not in gymnasium.registry:
        gymnasium.register("WorldModelsDream-v0", entry_point=make_dream, vector_entry_point=make_dreams)
