"""C by evolution: try a population of controllers, move towards the better ones; no gradients (section 2.3).

"original" is the paper's CMA-ES, "cpu" a simple evolution strategy that fits on a page. A generation is cut into tasks
of some candidates (`pieces`), each of them one vector environment: its candidates play the same few episodes, all at
the same time, and the logits of all are one batched product, so one process goes a long way. The tasks are the same
in the process and on a cluster (`wm_lib.cluster`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wm_lib import checkpoints, cluster
from wm_lib.control.agent import Agent, FeatureAgent
from wm_lib.control.controller import Controller, Population, num_params
from wm_lib.errors import StageError, UsageError
from wm_lib.events import Progress
from wm_lib.models.world_model import WorldModel
from wm_lib.seeding import derive_seed
from wm_lib.settings import ControllerConfig
from wm_lib.tasks import Task

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

# Up to here CMA-ES learns a full covariance matrix (the paper's C has 867 parameters). That takes in the
# order of n^2 evaluations, which a few hundred generations do not have for larger n; the diagonal alone is
# learnt about n times faster (Ros & Hansen, 2008) and costs O(n) instead of O(n^2), at 2,700 parameters 6 ms
# a generation and not 600.
MAX_FULL_COVARIANCE = 1000
_CHECKPOINTS = "generations"  # folder
CANDIDATES_PER_TASK, EPISODES_PER_TASK = 16, 64  # at most; other sizes round the networks' sums differently
FINAL_EPISODES = 16  # to see what the mean of the final distribution is worth


class CMAES:
    """Covariance matrix adaptation (Hansen, 2016) from the `cma` package, maximising.

    Args:
        start: Where the search starts, (num_params,), at least 2 of them.
        population_size: Candidates in a generation, at least 2.
        sigma: Initial standard deviation in every direction.
        seed: Of its random numbers. NumPy's global generator, the package's default, is left alone: whatever
            else draws from it would change the search.
    """

    def __init__(self, start: np.ndarray, population_size: int, sigma: float, seed: int) -> None:
        import cma

        rng = np.random.default_rng(seed)
        options = {
            "popsize": population_size,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": np.nan,  # the package's word for "do not seed"
            "CMA_diagonal": len(start) > MAX_FULL_COVARIANCE,
            "CMA_elitist": False,  # a noisy evaluation must not keep a lucky candidate for ever
            "verbose": -9,
            "verb_log": 0,
        }
        self._strategy = cma.CMAEvolutionStrategy(start, sigma, options)

    @property
    def mean(self) -> np.ndarray:
        """Centre of the distribution, float64 (num_params,)."""
        return np.array(self._strategy.mean)

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the next candidates, float64 (num_params, num_params)."""
        return self._strategy.sigma**2 * np.array(self._strategy.C)

    def ask(self) -> np.ndarray:
        """The next candidates, float64 (population_size, num_params)."""
        self._candidates = self._strategy.ask()
        return np.array(self._candidates)

    def tell(self, fitness: np.ndarray) -> None:
        """Take the fitness (population_size,) of the candidates last asked for; more is better."""
        self._strategy.tell(self._candidates, list(-fitness))


class SimpleES:
    """Gaussian perturbations in mirrored pairs, averaged with weights by rank; sigma never changes.

    The mean moves to the weighted average of the better half, weights log(n/2 + 1/2) - log(rank) as in
    CMA-ES. A population of odd size has the mean itself as a candidate. Candidates of equal fitness share
    their weights, so a generation in which all are equal moves nothing.

    Arguments and methods as for `CMAES`.
    """

    def __init__(self, start: np.ndarray, population_size: int, sigma: float, seed: int) -> None:
        self.mean = np.array(start, np.float64)
        self._sigma = sigma
        self._rng = np.random.default_rng(seed)
        ranks = np.arange(1, population_size + 1)
        weights = np.maximum(np.log(population_size / 2 + 0.5) - np.log(ranks), 0)
        self._weights = weights / weights.sum()

    def ask(self) -> np.ndarray:
        """The next candidates, float64 (population_size, num_params)."""
        size = len(self._weights)
        half = self._sigma * self._rng.standard_normal((size // 2, len(self.mean)))
        self._steps = np.concatenate([half, -half, np.zeros((size % 2, len(self.mean)))])
        return self.mean + self._steps

    def tell(self, fitness: np.ndarray) -> None:
        """Take the fitness (population_size,) of the candidates last asked for; more is better."""
        _, group, sizes = np.unique(-fitness, return_inverse=True, return_counts=True)
        order = np.argsort(-fitness, kind="stable")
        shared = np.bincount(group[order], weights=self._weights) / sizes
        self.mean = self.mean + shared[group] @ self._steps


STRATEGIES: dict[str, type[CMAES] | type[SimpleES]] = {"original": CMAES, "cpu": SimpleES}


def train_evolution(
    world_model: WorldModel,
    task: Task,
    config: ControllerConfig,
    *,
    seed: int,
    directory: Path,
    log_dir: Path | None = None,
    backend: str = "auto",
    make_env: Callable[[int, Sequence[int]], VectorEnv] | None = None,
    observes_features: bool = False,
    start: Controller | None = None,
    executor: Executor | None = None,
) -> Controller:
    """Evolve a linear controller for a frozen world model.

    Within a generation all candidates play the same seeds, so that luck does not decide between them; the
    next generation has new ones. A candidate's fitness is its mean return, and most episodes go to those that may
    become parents, see `_race`. What is returned is the mean of the final distribution, never the best candidate, whose
    fitness is mostly luck.

    After each generation its fitnesses are saved in `directory`/generations. The strategy's state follows
    from them: to resume, the generations are asked for and told again, without playing. So a killed run ends
    bit for bit where an undisturbed one does, on the same machine with the same number of threads.

    Args:
        world_model: Frozen V and M.
        task: What to play; actions are sampled where its score is measured with sampled actions.
        config: type "original" or "cpu", population_size, rollouts_per_candidate, num_generations, sigma,
            max_decisions, decision_budget.
        seed: Of the run.
        directory: For the checkpoints; another run's must not be there.
        log_dir: For best_return, mean_return and decisions of each generation.
        backend: As for `wm_lib.worlds.envs.make_env`.
        make_env: (num_envs, seeds) -> another vector environment to train in, for instance a dream.
        observes_features: Whether the observations of `make_env` already are features, as those of a dream
            are. Then none of the decisions is a real step.
        start: A linear controller to begin with; zeros if None.
        executor: Who plays, see `wm_lib.cluster.spread`; None is this process. The result is the same as long as the
            workers compute with as many threads.

    Returns:
        The controller. Its meta has algorithm, recent_z, generations, decisions (in all, including those of
        the final evaluation), real_steps (the same, or 0 in a dream), and mean_return over `FINAL_EPISODES`
        training episodes of the final mean, which is not a score.

    Raises:
        UsageError: config.type is not one of the two.
        StageError: The checkpoints in `directory` were made with other settings.
    """
    if config.type not in STRATEGIES:
        raise UsageError(f"evolution needs controller.type original or cpu, found {config.type}")
    dim = num_params(world_model.feature_dim, task.num_actions)
    mean = np.zeros(dim) if start is None else start.params
    strategy = STRATEGIES[config.type](mean, config.population_size, config.sigma, derive_seed(seed, "strategy"))
    history, decisions = _resume(directory, strategy, config)
    game = Play(world_model, task, config.max_decisions, backend, make_env, observes_features)
    bar = Progress(f"evolve {task.name}", config.num_generations, "generation", log_dir, start=len(history))
    with cluster.spread(executor, game) as run, bar as progress:
        for generation in range(len(history), config.num_generations):
            if 0 < config.decision_budget <= decisions:
                break
            fitness, played = _race(
                run, strategy.ask(), config.rollouts_per_candidate, derive_seed(seed, "generation", generation)
            )
            strategy.tell(fitness)
            history.append(fitness)
            decisions += played
            progress.update(1, best_return=fitness.max(), mean_return=fitness.mean(), decisions=decisions)
            _save(directory, history, strategy.mean, decisions)
        final_seeds = [derive_seed(seed, "final", rollout) for rollout in range(FINAL_EPISODES)]
        final_return, played = _measure(run, strategy.mean[None], final_seeds)
    controller = Controller.linear(strategy.mean, world_model.feature_dim, task.num_actions)
    controller.meta = {
        "algorithm": "cma-es" if config.type == "original" else "simple-es",
        "recent_z": config.recent_z,
        "generations": len(history),
        "decisions": decisions + played,
        "real_steps": 0 if observes_features else decisions + played,
        "mean_return": float(final_return[0]),
    }
    return controller


@dataclass(frozen=True)
class Play:
    """What all tasks of a training have in common; a call is one task.

    The whole of it, V and M above all, goes to each worker once; a task takes 4 bytes for each parameter of its
    candidates and a few for each seed, and 8 bytes an episode come back. Attributes as for `train_evolution`.
    """

    world_model: WorldModel
    task: Task
    max_decisions: int
    backend: str = "auto"
    make_env: Callable[[int, Sequence[int]], VectorEnv] | None = None
    observes_features: bool = False

    def __call__(self, params: np.ndarray, seeds: Sequence[int]) -> tuple[np.ndarray, int]:
        """Returns float64 (candidates, seeds) of params float32 (candidates, num_params), and the decisions taken."""
        slot_seeds = list(seeds) * len(params)
        rngs = None
        if self.task.sampled:
            rngs = [np.random.default_rng(derive_seed(slot_seed, "actions")) for slot_seed in slot_seeds]
        population = Population(params, self.world_model.feature_dim)
        make_agent = FeatureAgent if self.observes_features else Agent
        agent = make_agent(self.world_model, population, len(slot_seeds), rngs)
        if self.make_env is not None:
            with closing(self.make_env(len(slot_seeds), slot_seeds)) as env:
                returns, decisions = play_once(env, agent, self.max_decisions)
        else:
            with cluster.environments(self.task, len(slot_seeds), slot_seeds, self.backend) as env:
                returns, decisions = play_once(env, agent, self.max_decisions, slot_seeds)
        return returns.reshape(len(params), len(seeds)), decisions


def pieces(num_candidates: int, num_seeds: int) -> Iterator[tuple[slice, slice]]:
    """Cut a generation into tasks: slices of its candidates and of their seeds. It asks nobody about workers."""
    episodes = min(num_seeds, EPISODES_PER_TASK)
    candidates = min(CANDIDATES_PER_TASK, EPISODES_PER_TASK // episodes)
    for first in range(0, num_candidates, candidates):
        for seed in range(0, num_seeds, episodes):
            yield slice(first, first + candidates), slice(seed, seed + episodes)


def _race(
    run: Callable[..., Iterator[tuple[np.ndarray, int]]], candidates: np.ndarray, rollouts: int, seed: int
) -> tuple[np.ndarray, int]:
    """Fitness of each candidate, and the decisions of all, for `rollouts` episodes a candidate on average.

    All play half as many; then the better half of them, whose order decides where the search goes, play the other
    half's share too. How hard those games are must not count against who plays them: their mean is made that of before.
    """
    heats = max(1, rollouts // 2)
    finals = 2 * (rollouts - heats)
    seeds = [derive_seed(seed, rollout) for rollout in range(heats + finals)]
    fitness, decisions = _measure(run, candidates, seeds[:heats])
    if finals:
        best = np.argsort(-fitness, kind="stable")[: len(fitness) // 2]
        again, played = _measure(run, candidates[best], seeds[heats:])
        again += fitness[best].mean() - again.mean()
        fitness[best] = (heats * fitness[best] + finals * again) / (heats + finals)
        decisions += played
    return fitness, decisions


def _measure(
    run: Callable[..., Iterator[tuple[np.ndarray, int]]], candidates: np.ndarray, seeds: list[int]
) -> tuple[np.ndarray, int]:
    """Mean return of each candidate over the seeds, and the decisions of all."""
    params, returns, decisions = candidates.astype(np.float32), np.empty((len(candidates), len(seeds))), 0
    cut = list(pieces(*returns.shape))
    for piece, (found, played) in zip(cut, run((params[rows], seeds[columns]) for rows, columns in cut), strict=True):
        returns[piece] = found
        decisions += played
    return returns.mean(axis=1), decisions


def play_once(
    env: VectorEnv,
    agent: Agent | FeatureAgent,
    max_decisions: int,
    seeds: Sequence[int] | None = None,
    one_life: bool = False,
) -> tuple[np.ndarray, int]:
    """Play one episode in every slot, cut off after `max_decisions` (0 = never), or with `one_life` when one is lost.

    A slot that has finished stands still until all have. `seeds` are for environments that played before.

    Returns:
        Returns float64 (num_envs,), and the decisions taken in all of them, without those of finished slots.
    """
    obs, _ = env.reset(seed=seeds)
    returns = np.zeros(env.num_envs)
    playing = np.ones(env.num_envs, bool)
    first = np.ones(env.num_envs, bool)
    decisions = step = lives = 0
    while playing.any() and not (max_decisions and step == max_decisions):
        action = agent(obs, first)
        obs, reward, terminated, truncated, info = env.step(action)
        returns[playing] += reward[playing]
        decisions += int(playing.sum())
        playing &= ~(terminated | truncated)
        before, lives = lives, info.get("lives", 0)
        if one_life:
            playing &= lives >= before
        first = np.zeros(env.num_envs, bool)
        step += 1
    return returns, decisions


def _save(directory: Path, history: list[np.ndarray], mean: np.ndarray, decisions: int) -> None:
    # Two files in turn: killed while it writes one, the run still has the other, a generation older.
    path = directory / _CHECKPOINTS / f"{'odd' if len(history) % 2 else 'even'}.safetensors"
    tensors = {"fitness": np.stack(history), "mean": mean}
    checkpoints.save(path, tensors, {"generation": len(history), "decisions": decisions})


def _resume(directory: Path, strategy: CMAES | SimpleES, config: ControllerConfig) -> tuple[list[np.ndarray], int]:
    """Bring a new strategy to where the newest whole checkpoint stands: fitnesses and decisions so far."""
    found = []
    for path in sorted((directory / _CHECKPOINTS).glob("*.safetensors")):
        try:
            found.append(checkpoints.load(path))
        except StageError as error:
            # Killed while it was written, as a rule. What is lost is played again.
            print(f"passed over: {error}", file=sys.stderr)
    if not found:
        return [], 0
    tensors, meta = max(found, key=lambda checkpoint: checkpoint[1]["generation"])
    history = list(tensors["fitness"])
    fits = len(history) <= config.num_generations and history[0].shape == (config.population_size,)
    if fits:
        for fitness in history:
            strategy.ask()
            strategy.tell(fitness)
        fits = np.array_equal(strategy.mean, tensors["mean"])
    if not fits:
        raise StageError(
            f"the checkpoints in {directory / _CHECKPOINTS} were made with other settings or threads; "
            "delete the folder to start again"
        )
    return history, int(meta["decisions"])
