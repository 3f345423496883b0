"""What `wm bench scale_overhead` compares: one worker of a cluster with this process. And what the paper would cost."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np

from wm_lib.bench_pairs import Pair, prepare
from wm_lib.control.controller import num_params
from wm_lib.settings import Config
from wm_lib.tasks import Task

SCALE_DECISIONS = 50  # of each episode in scale_overhead; the price is that of whole ones
SCALE_TASKS = 2
SCHEDULER_RATE = 1000.0  # tasks a second, assumed: Dask's manual reckons with up to a millisecond for each
PAPER = (64, 16, 1800)  # candidates, episodes of each, generations: how C of CarRacing was evolved in the paper
PAPER_CORE_HOURS = 71_600  # of the original


def scale_overhead(task: Task, config: Config, seed: int, stack: ExitStack) -> Pair:
    """A piece of a generation by one worker of a Dask cluster; the same tasks in this process. One thread each.

    From what a task takes follows where more workers would not help, and what the paper's schedule would cost.
    """
    import pickle

    import torch

    from wm_lib import cluster
    from wm_lib.control.evolution import Play, pieces
    from wm_lib.models.mdn_rnn import MDNRNN
    from wm_lib.models.neural import NeuralWorldModel
    from wm_lib.models.vae import VAE

    prepare(seed)
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(1)
    memory = MDNRNN(config.vae.z_dim, task.num_actions, config.mdnrnn.rnn_size, config.mdnrnn.num_mixtures)
    model = NeuralWorldModel(VAE(config.vae.z_dim), memory, config.controller.recent_z, bf16=True)
    candidates, rollouts, generations = PAPER
    cut = list(pieces(candidates, rollouts))
    size, rng = num_params(model.feature_dim, task.num_actions), np.random.default_rng(seed)
    params = rng.standard_normal((candidates, size), dtype=np.float32)
    seeds = list(range(rollouts))
    jobs = [(params[rows], seeds[columns]) for rows, columns in cut[:SCALE_TASKS]]
    episodes = [len(params) * len(seeds) for params, seeds in jobs]
    game = Play(model, task, SCALE_DECISIONS)
    executor = stack.enter_context(cluster.connect("local:1"))
    run = stack.enter_context(cluster.spread(executor, game))
    here = stack.enter_context(cluster.spread(None, game))
    cores, made = [], []

    def ours() -> int:
        return sum(decisions for _, decisions in run(jobs))

    def reference() -> int:
        start = time.process_time()  # of all threads
        decisions = sum(decisions for _, decisions in here(jobs))
        cores.append(time.process_time() - start)
        made.append(decisions)
        return decisions

    def detail() -> str:
        second = sum(cores) / sum(made)  # of a core, for a decision
        task_seconds = second * task.max_decisions * sum(episodes) / len(jobs)
        sent = len(pickle.dumps((cluster.versions(), *jobs[0])))
        back = len(pickle.dumps(np.zeros(episodes[0])))
        hours = second * task.max_decisions * candidates * rollouts * generations / 3600
        return (
            f"{task.name}, a task of {episodes[0]} episodes to {task.max_decisions} decisions is {task_seconds:,.0f} "
            f"core-seconds, {sent:,} bytes out and {back:,} back, V and M {len(pickle.dumps(game)):,} bytes a worker; "
            f"{SCHEDULER_RATE:,.0f} tasks/s (assumed) feed {task_seconds * SCHEDULER_RATE:,.0f} workers, but a "
            f"generation of {candidates} x {rollouts} has {len(cut)} tasks and ends there; "
            f"{candidates} x {rollouts} x {generations:,}: {hours:,.0f} core-hours, the original {PAPER_CORE_HOURS:,}"
        )

    return Pair("decisions/s", ours, reference, detail)
