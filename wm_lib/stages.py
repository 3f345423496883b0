"""What each stage of a training makes, and the gates that check it before the next one builds on it.

`wm_lib.pipeline` decides when a stage is made; here is what happens then. A stage is a function of the pipeline and a
folder that returns facts worth keeping; a check is a function of the pipeline and these facts that returns gates.
`STAGES` says which of them a mode has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wm_lib import checkpoints, cluster, gates, provenance, rollouts
from wm_lib.control.agent import Agent, feature_statistics
from wm_lib.control.controller import Controller
from wm_lib.errors import UsageError
from wm_lib.evaluation import STICKY, agent_maker, evaluate, random_maker
from wm_lib.report import is_provisional
from wm_lib.seeding import derive_seed

if TYPE_CHECKING:
    from wm_lib.models.world_model import WorldModel
    from wm_lib.pipeline import Pipeline


def _explorer(run: Pipeline, num_envs: int) -> Callable[[int], rollouts.Policy]:
    """Who plays for data: random play in the first round, then the agent of the round before, its actions sampled."""
    if run.previous is None:
        return partial(_random_player, run.task.num_actions, num_envs, run.config.collect.repeat)
    return partial(_sampled_player, run.previous.world_model(bf16=True), run.previous.controller(), num_envs)


def _random_player(num_actions: int, num_envs: int, repeat: float, seed: int) -> rollouts.Policy:
    return rollouts.StickyRandom(num_actions, num_envs, seed, repeat)


def _sampled_player(world_model: WorldModel, controller: Controller, num_envs: int, seed: int) -> rollouts.Policy:
    return Agent(world_model, controller, num_envs, np.random.default_rng(seed).spawn(num_envs))


def _collect(run: Pipeline, directory: Path) -> dict[str, Any]:
    config = run.config.collect
    return rollouts.collect(
        run.task,
        directory,
        num_steps=config.num_steps,
        num_envs=config.num_envs,
        shard_length=config.shard_length,
        seed=run.round_seed,
        make_policy=_explorer(run, config.num_envs),
        gymnasium_fraction=config.gymnasium_fraction,
        log_dir=directory,
        executor=run.executor,
    )


def _vae(run: Pipeline, directory: Path) -> dict[str, Any]:
    from wm_lib.models import vae

    start = vae.load_vae(run.previous.weights("vae")) if run.previous else None
    net = vae.train_vae(run.rollouts(), run.config.vae, seed=run.round_seed, directory=directory, start=start)
    vae.save_vae(directory / "vae.safetensors", net, {"task": run.task.name})
    return {"num_params": sum(p.numel() for p in net.parameters())}


def _latents(run: Pipeline, directory: Path) -> dict[str, Any]:
    from wm_lib.models import vae
    from wm_lib.models.latents import encode_frames

    data = run.rollouts()
    path, old = run.weights("vae"), None
    if run.previous:
        before = run.previous.weights("vae")
        if checkpoints.read_meta(before)["sha256"] == checkpoints.read_meta(path)["sha256"]:
            latents = run.previous.latents()  # V is the same, so its latents are
            old = latents["mu"], latents["log_sigma"]
    mu, log_sigma = encode_frames(vae.load_vae(path), data, old=old)
    checkpoints.save(directory / "latents.safetensors", {"mu": mu, "log_sigma": log_sigma} | data.steps(), {})
    return {"active_units": vae.active_units(mu), "encoded": len(mu) - (len(old[0]) if old else 0)}


def _mdn_rnn(run: Pipeline, directory: Path) -> dict[str, Any]:
    from wm_lib.models import forecast, mdn_rnn

    latents = run.latents()
    start = mdn_rnn.load_mdn_rnn(run.previous.weights("mdn_rnn")) if run.previous else None
    net = mdn_rnn.train_mdn_rnn(
        latents,
        run.config.mdnrnn,
        num_actions=run.task.num_actions,
        seed=run.round_seed,
        directory=directory,
        start=start,
    )
    path = directory / "mdn_rnn.safetensors"
    mdn_rnn.save_mdn_rnn(path, net, {"task": run.task.name})
    _, held_out = rollouts.split_sequences(len(latents["mu"]))
    return forecast.evaluate_mdn_rnn(mdn_rnn.load_mdn_rnn(path), latents, held_out)


def _reservoir(run: Pipeline, directory: Path) -> dict[str, Any]:
    from wm_lib.models.reservoir import fit_reservoir

    data = run.rollouts()
    model, latents, facts = fit_reservoir(data, run.config.reservoir, num_actions=run.task.num_actions, seed=run.seed)
    model.save(directory / "reservoir.safetensors", {"task": run.task.name})
    checkpoints.save(directory / "latents.safetensors", latents, {})
    return facts


def _controller(run: Pipeline, directory: Path) -> dict[str, Any]:
    config = run.config.controller
    if config.type == "ppo" and run.mode != "full":
        raise UsageError(f"mode {run.mode} trains C by evolution; set controller.type to original or cpu")
    return train_controller(run, run.world_model(bf16=True), directory)


def train_controller(run: Pipeline, world_model: WorldModel, directory: Path) -> dict[str, Any]:
    """Train C as `controller` of the settings says on this world model, which need not be the run's own.

    Returns:
        `real_steps`, and `dream_steps` where C has learnt in dreams.
    """
    config = run.config.controller
    facts: dict[str, Any] = {}
    if config.type == "ppo":
        from wm_lib.control.ppo import train_ppo
        from wm_lib.worlds.envs import make_env

        backend = "gymnasium" if run.config.collect.gymnasium_fraction == 1 else "auto"
        if config.tile_price and (backend == "auto" or run.task.name != "car-racing"):
            raise UsageError(
                f"controller.tile_price {config.tile_price:g} needs Gymnasium's CarRacing, which alone tells of tiles; "
                f"set collect.gymnasium_fraction to 1 or the price to 0"
            )
        if config.end_at_lost_life and not run.task.atari:
            raise UsageError(f"controller.end_at_lost_life is for Atari, {run.task.name} has no lives; set it to false")
        start = run.previous.directory / "controller" if run.previous else None
        statistics = None if start else feature_statistics(world_model, run.latents())
        if config.where != "real":
            asleep = directory if config.where == "dream" else directory / "dream"
            controller = _dream(run, asleep, world_model.feature_dim, statistics, start)
            facts, start = {"dream_steps": controller.meta["dream_steps"]}, asleep
            if run.watch:
                run.watch(run, controller, 0)
        if config.where != "dream":
            controller = train_ppo(
                world_model,
                run.task,
                config,
                seed=run.round_seed,
                directory=directory,
                make_env=lambda num_envs, seed: make_env(run.task, num_envs, seed, backend),
                statistics=statistics,
                start=start,
                on_update=partial(run.watch, run) if run.watch else None,
            )
    else:
        from wm_lib.control.evolution import train_evolution
        from wm_lib.control.first_guess import first_guess

        start = run.previous.controller() if run.previous else None
        if run.mode != "full":
            start = first_guess(world_model, run.latents(), run.task.num_actions)
        controller = train_evolution(
            world_model,
            run.task,
            config,
            seed=run.round_seed,
            directory=directory,
            log_dir=directory,
            start=start,
            executor=run.executor,
        )
    controller.save(directory / "controller.safetensors", {"task": run.task.name, "recent_z": config.recent_z})
    return {"real_steps": controller.meta["real_steps"], **facts}


def _dream(
    run: Pipeline,
    directory: Path,
    feature_dim: int,
    statistics: tuple[np.ndarray, np.ndarray] | None,
    start: Path | None,
) -> Controller:
    """Train C by PPO in the dreams of M, which begin anywhere in the data; it costs no real decisions."""
    from wm_lib.control.ppo import train_ppo
    from wm_lib.dreams import dreams_of
    from wm_lib.worlds.dream import Dreamt

    config = run.config.controller
    controller = train_ppo(
        Dreamt(feature_dim),
        run.task,
        config.model_copy(update={"num_steps": config.dream_steps, "end_at_lost_life": False, "tile_price": 0.0}),
        seed=derive_seed(run.round_seed, "dream"),
        directory=directory,
        make_env=lambda num_envs, seed: dreams_of(run, num_envs, 0, config.dream_temperature, "anywhere", seed),
        statistics=statistics,
        start=start,
    )
    controller.meta = {"real_steps": 0, "dream_steps": controller.meta["real_steps"]}
    controller.save(directory / "controller.safetensors")
    return controller


def _evaluate(run: Pipeline, directory: Path) -> dict[str, Any]:
    config = run.config.evaluation
    make_agent = agent_maker(run.task, run.world_model(), run.controller())
    score = evaluate(run.task, make_agent, config.episodes, config.seed, executor=run.executor)
    sticky = {}
    if run.task.atari and config.sticky_episodes:
        played = evaluate(
            run.task, make_agent, config.sticky_episodes, config.seed, sticky=STICKY, executor=run.executor
        )
        sticky = {"sticky_score": played}
    random = evaluate(run.task, random_maker(run.task), config.random_episodes, config.seed, executor=run.executor)
    made = {stage: run.facts(stage) for stage in STAGES[run.mode] if stage != "evaluate"}
    steps, minutes = ({stage: 0 for stage in stages} for stages in (("collect", "controller"), made))
    for each in run.rounds:
        for stage in steps:
            steps[stage] += each.facts(stage)["facts"]["real_steps"]
        for stage in minutes:
            minutes[stage] += each.facts(stage)["minutes"]
    checkpoints.write_json(
        directory / "manifest.json",
        {
            "schema": 1,
            "task": run.task.name,
            "env_id": run.task.env_id,
            "target": None if run.task.simulated else run.task.target,
            "mode": run.mode,
            "frames_per_decision": run.task.frames_per_decision,
            "num_actions": run.task.num_actions,
            "variant": made["controller"]["config"]["type"],
            "provisional": is_provisional(score, run.task.target),
            "seed": run.seed,
            "rounds": run.round,
            "score": score,
            **sticky,
            "random_score": random,
            "real_steps": {"total": sum(steps.values()), **steps},
            "minutes": minutes,
            "failed_gates": run.failed_gates(),
            "config": run.config.to_dict() | {SECTIONS[stage]: record["config"]
                                              for stage, record in made.items() if stage in SECTIONS},
            "executor": cluster.report(run.executor),
            "command": run.command("evaluate"),
            **provenance.stamp(),
            "weights": {name: sha for record in made.values() for name, sha in record["files"].items()
                        if name in WEIGHTS},
        },
    )  # fmt: skip
    return {"mean": score["mean"], "random_mean": random["mean"]}


def _check_data(run: Pipeline, facts: dict[str, Any]) -> list[gates.Gate]:
    data = run.rollouts()
    return [gates.frames_are_alive(data), gates.enough_episodes(data)]


def _check_latents(run: Pipeline, facts: dict[str, Any]) -> list[gates.Gate]:
    settings, task = run.config.gates, run.task
    mu = run.latents()["mu"]
    checks = [gates.active_units(mu, min_share=settings.min_active_share)]
    # The truth about CarRacing comes from one slow environment at a time: no gate, see `wm report`.
    if settings.probe_decisions and task.name != "car-racing":
        from wm_lib import probes
        from wm_lib.models.mdn_rnn import MDNRNN
        from wm_lib.models.neural import NeuralWorldModel
        from wm_lib.models.vae import load_vae
        from wm_lib.worlds.truth import frame_names, names

        eyes = NeuralWorldModel(load_vae(run.weights("vae")), MDNRNN(mu.shape[-1], task.num_actions, rnn_size=1))
        # Velocities are not in a frame: a network that is asked for them too says worse where things are.
        shown = frame_names(task)
        columns = [names(task).index(name) for name in shown]
        positions = [name for name in shown if name.endswith(("_x", "_y"))]
        # Paddles are not held to it: Pong's is drawn up to a pixel from where it is, see `ground_truth`.
        small = [name for name in positions if name.startswith(("ball", "ship"))]
        limits = dict.fromkeys(small, settings.max_pixels) if settings.max_pixels else None

        def seen(policy: rollouts.Policy) -> dict[str, dict[str, float | None]]:
            truth = probes.play(task, eyes, policy, probes.NUM_ENVS, settings.probe_decisions, run.seed)
            values, visible = truth["values"][..., columns], truth["visible"][..., columns]
            return probes.probe(truth["z"], values, visible, truth["episode"], shown, kind="mlp", seed=run.seed)

        random = _random_player(task.num_actions, probes.NUM_ENVS, run.config.collect.repeat, run.seed)
        checks.append(gates.probe_error(seen(random), limits=limits, only=positions))
        if run.previous:
            # On good play a V that is new to it is only asked not to be blind.
            play = seen(_explorer(run, probes.NUM_ENVS)(run.seed))
            checks.append(replace(gates.probe_error(play, only=positions), name="probe_agent"))
    return checks


def _check_memory(run: Pipeline, facts: dict[str, Any]) -> list[gates.Gate]:
    latents = run.latents()
    _, held_out = rollouts.split_sequences(len(latents["mu"]))
    world_model = run.world_model()
    return [gates.nll_beats_copy_last(facts), gates.drift_bounded(world_model, latents, sequences=held_out)]


def _check_reservoir(run: Pipeline, facts: dict[str, Any]) -> list[gates.Gate]:
    latents = run.latents()
    _, held_out = rollouts.split_sequences(len(latents["mu"]))
    return [
        gates.prediction_beats_copy_last(facts),
        gates.drift_bounded(run.world_model(), latents, sequences=held_out),
    ]


# What runs in which mode, in this order.
STAGES = {
    "full": ("collect", "vae", "latents", "mdn_rnn", "controller", "evaluate"),
    "gym_only": ("collect", "reservoir", "controller", "evaluate"),
    "simulation": ("collect", "reservoir", "controller", "evaluate"),
}
STEPS = {
    "collect": _collect,
    "vae": _vae,
    "latents": _latents,
    "mdn_rnn": _mdn_rnn,
    "reservoir": _reservoir,
    "controller": _controller,
    "evaluate": _evaluate,
}
WEIGHTS = {f"{stage}.safetensors" for stage in ("vae", "mdn_rnn", "reservoir", "controller")}
CHECKS = {"collect": _check_data, "latents": _check_latents, "mdn_rnn": _check_memory, "reservoir": _check_reservoir}
SECTIONS = {
    "collect": "collect",
    "vae": "vae",
    "mdn_rnn": "mdnrnn",
    "reservoir": "reservoir",
    "controller": "controller",
    "evaluate": "evaluation",
}  # of the configuration, which decide a stage's result
