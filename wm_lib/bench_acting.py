"""What `wm bench` compares where somebody acts: playing, dreaming, and asking a whole population what to do.

As in `bench_pairs.py` weights are random; the plain environment does not resize, in its favour.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from wm_lib.bench_pairs import Pair, Work, prepare
from wm_lib.control.controller import Controller, num_params, population_logits
from wm_lib.rollouts import Policy, StickyRandom
from wm_lib.settings import Config
from wm_lib.tasks import Task

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

NUM_DREAMS = 1024


def collect(task: Task, config: Config, seed: int, stack: ExitStack) -> Pair:
    """EnvPool and the exploring policy; one plain Gymnasium environment for as many native frames."""
    from wm_lib.worlds.envs import make_env, native_actions

    num_envs, repeat = config.collect.num_envs, task.frames_per_decision
    decide = _player(make_env(task, num_envs, seed, "envpool"), StickyRandom(task.num_actions, num_envs, seed), stack)
    plain = make_env(task, 1, seed, "gymnasium")
    stack.callback(plain.close)
    plain.reset()
    native = plain.envs[0].unwrapped  # without our wrappers
    actions = native_actions(task)
    policy, first = StickyRandom(task.num_actions, 1, seed), np.zeros(1, bool)

    def reference() -> int:
        action = actions[policy(first, first)[0]]
        for _ in range(repeat):
            _, _, terminated, truncated, _ = native.step(action)
            if terminated or truncated:
                native.reset()
        if task.rendered:
            native.render()
        return repeat

    return Pair("frames/s", lambda: decide() * repeat, reference, lambda: f"{task.name}, {num_envs} environments to 1")


def dream_step(task: Task, config: Config, seed: int, stack: ExitStack) -> Pair:
    """Dreams side by side; the real environments side by side, each frame encoded as C's training does it."""
    import torch

    from wm_lib.models.mdn_rnn import MDNRNN
    from wm_lib.models.neural import NeuralWorldModel
    from wm_lib.models.vae import make_vae
    from wm_lib.worlds.dream import DreamVectorEnv
    from wm_lib.worlds.envs import make_env

    precision, num_envs, z_dim = prepare(seed), config.controller.num_envs, config.vae.z_dim
    memory = MDNRNN(z_dim, task.num_actions, config.mdnrnn.rnn_size, config.mdnrnn.num_mixtures)
    torch.nn.init.constant_(memory.done.bias, -8.0)  # untrained, it would end half of the dreams at every step
    eyes = make_vae(config.vae)
    model = NeuralWorldModel(eyes, memory, config.controller.recent_z, bf16=True)
    start_z = np.random.default_rng(seed).standard_normal((1000, z_dim), dtype=np.float32)
    dream = DreamVectorEnv(model, start_z, NUM_DREAMS, task.max_decisions, 1.0, task.num_actions, seed)
    real = make_env(task, num_envs, seed, "envpool")
    ours = _player(dream, StickyRandom(task.num_actions, NUM_DREAMS, seed), stack)
    reference = _player(real, StickyRandom(task.num_actions, num_envs, seed), stack, model.encode)
    detail = f"{task.name}, {NUM_DREAMS} dreams in fp32; {num_envs} environments encoded in {precision}"
    return Pair("decisions/s", ours, reference, lambda: detail)


def cma_generation(task: Task, config: Config, seed: int, stack: ExitStack) -> Pair:
    """The logits of all candidates in all their episodes: one batched product, or one controller after the other."""
    settings, rng = config.controller, np.random.default_rng(seed)
    size, rollouts = settings.population_size, settings.rollouts_per_candidate
    feature_dim = settings.recent_z * config.vae.z_dim + config.mdnrnn.rnn_size
    features = rng.standard_normal((size, rollouts, feature_dim), dtype=np.float32)
    params = rng.standard_normal((size, num_params(feature_dim, task.num_actions)), dtype=np.float32)
    controllers = [Controller.linear(row, feature_dim, task.num_actions) for row in params]

    def ours() -> int:
        return population_logits(params, features)[..., 0].size

    def reference() -> int:
        return np.stack([c.logits(x) for c, x in zip(controllers, features, strict=True)])[..., 0].size

    detail = f"{size} candidates x {rollouts} episodes, {feature_dim} features, {task.num_actions} actions"
    return Pair("decisions/s", ours, reference, lambda: detail)


def _player(env: VectorEnv, policy: Policy, stack: ExitStack, see: Callable[[np.ndarray], Any] | None = None) -> Work:
    """One decision in every environment; the unit is a decision."""
    stack.callback(env.close)
    obs, _ = env.reset()
    first = np.ones(env.num_envs, bool)

    def decide() -> int:
        nonlocal obs, first
        if see:
            see(obs)
        obs, _, terminated, truncated, _ = env.step(policy(obs, first))
        first = terminated | truncated
        if first.any():
            obs, _ = env.reset(options={"reset_mask": first})
        return env.num_envs

    return decide
