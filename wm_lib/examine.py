"""How good are the eyes, the memory and the dreams of a run? What `wm report --task` measures, prints and keeps.

Everything is measured on play that neither V nor M was trained on: the held-out sequences, and new games in which the
environment lets out the truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wm_lib import checkpoints, drift, probes, provenance, rollouts
from wm_lib.control.agent import Agent
from wm_lib.errors import StageError
from wm_lib.events import read_scalars
from wm_lib.folders import open_stage
from wm_lib.report import anywhere
from wm_lib.worlds.truth import frame_names, names

if TYPE_CHECKING:
    from wm_lib.models.neural import NeuralWorldModel
    from wm_lib.pipeline import Pipeline

VERSION = 3  # raise it when what is measured changes
Truth = dict[str, np.ndarray]


def examine(run: Pipeline) -> dict[str, Any]:
    """Measure a run that has its M; with C too, its own play and its dreams are judged as well. Kept until it changes.

    Returns:
        `eyes`, `memory` and `dream` (None without C), see `eyes`, `memory` and `dreams.dream_against_reality`; and what
        it was measured on.

    Raises:
        StageError: M has not been made.
    """
    stages = ("latents", "mdn_rnn", "controller")
    weights = {f"{stage}.safetensors": run.weights(stage) for stage in ("vae", "mdn_rnn", "controller")}
    weights = {name: checkpoints.sha256_file(path) for name, path in weights.items() if path.exists()}
    keys = {stage: run.facts(stage)["key"] for stage in stages if stage != "controller" or has_controller(run)}
    made_from = {"version": VERSION, "stages": keys, "probe_decisions": run.config.gates.probe_decisions}
    path = run.directory / "examination.json"
    try:
        found = checkpoints.read_json(path)
        if found["made_from"] == made_from:
            return found | {"weights": weights, "failed_gates": run.failed_gates()}
    except (StageError, KeyError, TypeError):  # none yet, or damaged
        pass
    truths = play_with_truth(run)
    dream = None
    if has_controller(run):
        from wm_lib.dreams import dream_against_reality

        dream = dream_against_reality(run)
    found = {
        "schema": 1,
        "task": run.task.name,
        "rounds": run.round,
        "seed": run.seed,
        "made_from": made_from,
        "eyes": eyes(run, truths),
        "memory": memory(run, truths),
        "dream": dream,
        "config": run.config.to_dict(),
        "command": anywhere(f"wm report {run.arguments}"),
        "failed_gates": run.failed_gates(),
        "weights": weights,
        **provenance.stamp(),
    }
    checkpoints.write_json(path, found)
    return found


def has_controller(run: Pipeline) -> bool:
    """Whether C of this round is there."""
    return (run.directory / "controller" / "stage.json").exists()


def play_with_truth(run: Pipeline) -> dict[str, Truth]:
    """New games of `random` play and, where one is trained, of the `agent`: what `probes.play` returns of each."""
    decisions, task = run.config.gates.probe_decisions, run.task
    if not decisions:
        return {}
    num_envs = 1 if task.name == "car-racing" else probes.NUM_ENVS
    random = rollouts.StickyRandom(task.num_actions, num_envs, run.seed, run.config.collect.repeat)
    policies: dict[str, rollouts.Policy] = {"random": random}
    player = run if has_controller(run) else run.previous
    if player is not None:
        rngs = np.random.default_rng(run.seed).spawn(num_envs)
        policies["agent"] = Agent(player.world_model(), player.controller(), num_envs, rngs)
    model = run.world_model()
    return {name: probes.play(task, model, policy, num_envs, decisions, run.seed) for name, policy in policies.items()}


def eyes(run: Pipeline, truths: dict[str, Truth]) -> dict[str, Any]:
    """V: size, held-out loss, active units, and what probes read from z and, of velocities, from what C sees.

    Returns:
        `num_params`, `num_frames`, `held_out_error`, `held_out_kl`, `active_units`, `z_dim`; and `probes`, by player:
        `linear` and `mlp`, of z; `velocity` and `velocity mlp`, the changes per decision (of what is a speed, the speed
        itself) from C's features; `velocity from h` and `velocity from h mlp`, the same from h alone once it has read
        the frame. See `probes.probe`.
    """
    from wm_lib.models.vae import active_units

    mu = run.latents()["mu"]
    scalars = read_scalars(run.directory / "vae")
    shown, found = frame_names(run.task), {}
    columns = [names(run.task).index(name) for name in shown]
    for who, truth in truths.items():
        values, visible = truth["values"][..., columns], truth["visible"][..., columns]
        found[who] = {
            kind: probes.probe(truth["z"], values, visible, truth["episode"], shown, kind=kind, seed=run.seed)
            for kind in ("linear", "mlp")
        }
        change, known = probes.changes(values, visible, truth["episode"])
        speeds = [name.endswith("_speed") for name in shown]
        change[..., speeds], known[..., speeds] = values[..., speeds], visible[..., speeds]
        h, read = _having_read(truth["features"][..., -run.config.mdnrnn.rnn_size :], truth["episode"])
        for name, sees, there in (("velocity", truth["features"], known), ("velocity from h", h, known & read)):
            for kind, suffix in (("linear", ""), ("mlp", " mlp")):
                found[who][name + suffix] = probes.probe(
                    sees, change, there, truth["episode"], shown, kind=kind, seed=run.seed
                )
    return {
        "num_params": run.facts("vae")["facts"]["num_params"],
        "num_frames": mu[..., 0].size,
        **{name: float(scalars[name][1][-1]) for name in ("held_out_error", "held_out_kl") if name in scalars},
        "active_units": active_units(mu),
        "z_dim": mu.shape[-1],
        "probes": found,
    }


def _having_read(h: np.ndarray, episode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M's memory after it has read the frame of each row, which is that of the next row; and where there is one.

    Args: arrays (num_envs, num_decisions, ...) of `probes.play`.

    Returns:
        (num_envs, num_decisions, rnn_size), and bool (num_envs, num_decisions, 1).
    """
    follows = np.zeros((*episode.shape, 1), bool)
    follows[:, :-1, 0] = episode[:, 1:] == episode[:, :-1]
    return np.roll(h, -1, axis=1), follows


def memory(run: Pipeline, truths: dict[str, Truth]) -> dict[str, Any]:
    """M: surprise beside simpler guesses, reward and end, and how its dreams stray.

    Returns:
        What `evaluate_mdn_rnn` says, with `linear` and `single_gaussian` (the same M, trained alike, with one
        Gaussian) among its rivals; `drift`, see `drift_in_pixels`; `position_drift`, see `drift_of_positions`.
    """
    from wm_lib.models import forecast, mdn_rnn

    latents, config, num_actions = run.latents(), run.config.mdnrnn, run.task.num_actions
    train, held_out = rollouts.split_sequences(len(latents["mu"]))
    updates = sum(each.config.mdnrnn.num_updates for each in run.rounds)
    settings = config.model_copy(update={"num_mixtures": 1, "num_updates": updates})
    folder = run.directory / "single_gaussian"
    open_stage(folder, run.facts("mdn_rnn")["key"])  # a training on other latents is not gone on with
    single = mdn_rnn.train_mdn_rnn(latents, settings, num_actions=num_actions, seed=run.seed, directory=folder)
    rivals = {
        "linear": forecast.linear(latents, train, num_actions, run.seed),
        "single_gaussian": lambda batch: single(batch.z, batch.action, border=batch.border)[0],
    }
    world_model = run.world_model()
    return {
        **forecast.evaluate_mdn_rnn(world_model.mdn_rnn, latents, held_out, rivals=rivals),
        "drift": drift_in_pixels(run, world_model, latents, held_out),
        "position_drift": {who: drift_of_positions(run, world_model, truth) for who, truth in truths.items()},
    }


def drift_in_pixels(
    run: Pipeline, world_model: NeuralWorldModel, latents: dict[str, np.ndarray], held_out: np.ndarray
) -> dict[str, dict[str, float]]:
    """Open loop on held-out sequences, drawn by V.

    Returns:
        For each number of steps k: `z`, `z_copy` and `spread` as in `drift.open_loop_error`; and `pixels`, the mean
        error of what V draws (of 255) where the real frame differs from its episode's scenery, with `pixels_copy` of
        the last real z instead and `pixels_seen` of the real z, which V could do at best.
    """
    from wm_lib.models import foreground

    data = run.rollouts()
    scenery, episode = foreground.episode_scenery(data, np.random.default_rng(run.seed)), data.episode
    mu = latents["mu"][held_out]
    strayed = drift.open_loop_error(world_model, latents, sequences=held_out, seed=run.seed)
    found: dict[str, dict[str, float]] = {}
    for k in drift.HORIZONS:
        row, start, dreamt = drift.dream_along(
            world_model,
            mu,
            *(latents[name][held_out] for name in ("action", "first")),
            k,
            ended=latents["terminated"][held_out],
            seed=run.seed,
        )
        if not len(row):
            continue
        frames = data.gather(held_out[row] * data.length + start + k).astype(int)
        moving = np.abs(frames - scenery[episode[held_out[row], start]]).max(-1) > foreground.FOREGROUND_THRESHOLD
        drawn = {"pixels": dreamt, "pixels_copy": mu[row, start], "pixels_seen": mu[row, start + k]}
        found[str(k)] = {"z": strayed[f"error_{k}"], "z_copy": strayed[f"copy_{k}"], "spread": strayed["spread"]} | {
            name: float(np.abs(frames - world_model.decode(z)).mean(-1)[moving].mean()) for name, z in drawn.items()
        }
    return found


def drift_of_positions(run: Pipeline, world_model: NeuralWorldModel, truth: Truth) -> dict[str, dict[str, float]]:
    """Where does the dream think the ball is? Median errors, in the units of `names`, on episodes new to the probe.

    Returns:
        For each number of steps k and position: `<name>` of the dream, `<name>_copy` of the last real z and
        `<name>_seen` of the real z; only where the object is in sight at the end.
    """
    wanted = [name for name in frame_names(run.task) if name.endswith(("_x", "_y", "_offset"))]
    columns = [names(run.task).index(name) for name in wanted]
    z, action, episode = truth["z"], truth["action"], truth["episode"]
    values, visible = truth["values"][..., columns], truth["visible"][..., columns]
    test = probes.split_episodes(episode, run.seed)
    read = probes.learn(z[~test], values[~test].astype(float), visible[~test], kind="mlp", seed=run.seed)
    first = np.ones_like(test)
    first[:, 1:] = episode[:, 1:] != episode[:, :-1]
    found: dict[str, dict[str, float]] = {}
    for k in drift.HORIZONS:
        row, start, dreamt = drift.dream_along(
            world_model, z, action, first, k, ended=truth["lost"], where=test, num_starts=512, seed=run.seed
        )
        errors: dict[str, float] = {}
        for suffix, seen in {"": dreamt, "_copy": z[row, start], "_seen": z[row, start + k]}.items():
            error = np.abs(read(seen) - values[row, start + k])
            for column, name in enumerate(wanted):
                in_sight = visible[row, start + k, column]
                if in_sight.any():
                    errors[name + suffix] = float(np.median(error[in_sight, column]))
        if errors:
            found[str(k)] = errors
    return found
