"""What does C need? One change at a time, on the V and M of one run: what C sees, its size, how and where it learns.

Every controller is trained from nothing with as many decisions and measured by the protocol of `wm_lib.evaluation`.
What is measured becomes a row of a CSV and is not measured again.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wm_lib import provenance
from wm_lib.control.controller import Controller
from wm_lib.errors import UsageError
from wm_lib.evaluation import agent_maker, evaluate, random_maker
from wm_lib.events import Stopwatch
from wm_lib.folders import keep_settings, project_root
from wm_lib.pipeline import Pipeline
from wm_lib.report import aligned
from wm_lib.rows import append_row, read_rows
from wm_lib.seeding import derive_seed
from wm_lib.stages import train_controller
from wm_lib.tasks import get_task

if TYPE_CHECKING:
    from wm_lib.models.neural import NeuralWorldModel
    from wm_lib.models.world_model import WorldModel

RANDOM = "random play"
ROWS, SETTINGS = "experiments.csv", "settings.json"


@dataclass(frozen=True)
class Variant:
    """What is different from the run's own settings.

    Attributes:
        changes: In the section `controller`; C learns `AWAKE` unless they say otherwise.
        blind_to: "z" or "h", the part of the features that C sees as zeros; "" = it sees all.
        untrained: Whether M is left as it was drawn, before its first update.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    blind_to: str = ""
    untrained: bool = False


AWAKE = {"where": "real", "dream_temperature": 1.0}
VARIANTS = {
    "as it is": Variant(),
    "z only": Variant(blind_to="h"),
    # Some recent z tell how fast things move, and so does h: the paper's C sees one z.
    "latest z only": Variant({"recent_z": 1}, blind_to="h"),
    "latest z and h": Variant({"recent_z": 1}),
    "h only": Variant(blind_to="z"),
    "untrained M": Variant(untrained=True),
    "linear": Variant({"hidden": []}),
    "one layer of 64": Variant({"hidden": [64]}),
    "CMA-ES": Variant({"type": "original"}),
    "dream": Variant({"where": "dream"}),
    "dream, then real": Variant({"where": "dream_then_real"}),
    "dream at 0.5": Variant({"where": "dream", "dream_temperature": 0.5}),
    "dream at 1.25": Variant({"where": "dream", "dream_temperature": 1.25}),
    "dream at 1.5": Variant({"where": "dream", "dream_temperature": 1.5}),
}
EXPERIMENTS = {
    "features": ("as it is", "z only", "latest z only", "latest z and h", "h only", "untrained M"),
    "size": ("linear", "one layer of 64", "as it is"),
    "method": ("CMA-ES", "linear", "as it is"),  # CMA-ES breeds a linear C
    "world": ("dream", "dream, then real", "as it is"),
    "temperature": ("dream at 0.5", "dream", "dream at 1.25", "dream at 1.5"),
}


@dataclass(frozen=True)
class Row:
    """One controller.

    Attributes:
        variant: A key of `VARIANTS`, or `RANDOM`.
        real_decisions, dream_decisions: That C learnt from, without the data of V and M.
        score: Mean return over so many `episodes`.
        ci_low, ci_high: Its 95 % interval.
        minutes: Of training.
    """

    variant: str
    real_decisions: int
    dream_decisions: int
    score: float
    ci_low: float
    ci_high: float
    episodes: int
    minutes: float


class Blindfold:
    """A `WorldModel` of whose features C sees a part as zeros.

    Args:
        world_model: Whose features.
        part: "z" or "h".
    """

    def __init__(self, world_model: NeuralWorldModel, part: str) -> None:
        self._world_model = world_model
        size = world_model.mdn_rnn.rnn_size
        self._unseen = slice(-size, None) if part == "h" else slice(None, -size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world_model, name)

    def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        """What C sees, float32 (batch, feature_dim)."""
        found = self._world_model.features(z, h)
        found[:, self._unseen] = 0
        return found


def experiment(run: Pipeline, names: Sequence[str]) -> list[Row]:
    """Train and measure the variants of these experiments, all if none is named; goes on where it was stopped.

    Args:
        run: Has V, M and latents; only its first round is looked at.
        names: Keys of `EXPERIMENTS`.

    Returns:
        The rows of these experiments, random play first, each once.

    Raises:
        UsageError: An unknown experiment, or a run of another mode than full.
    """
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        raise UsageError(f"unknown experiment '{unknown[0]}'; choose of {', '.join(EXPERIMENTS)}")
    if run.mode != "full":
        raise UsageError(f"experiments need a VAE and an MDN-RNN, mode {run.mode} has a reservoir; leave --mode out")
    run = run.rounds[0]
    _keep_settings(run)
    wanted = dict.fromkeys(variant for name in names or EXPERIMENTS for variant in EXPERIMENTS[name])
    return [_measured(run, variant) for variant in (RANDOM, *wanted)]


def folder_of(run: Pipeline) -> Path:
    """Where the rows and the trainings of a run are kept."""
    return run.rounds[0].directory / "experiments"


def _keep_settings(run: Pipeline) -> None:
    """Write down what these experiments are made with, or make sure that it is still the same.

    Raises:
        UsageError: It is not.
    """
    made = {
        "schema": 1,
        "task": run.task.name,
        "seed": run.seed,
        "world_model": run.facts("mdn_rnn")["key"],
        "config": {name: run.config.to_dict()[name] for name in ("controller", "evaluation")},
        **provenance.stamp(),
    }
    keep_settings(folder_of(run) / SETTINGS, made, ("seed", "world_model", "config"), "experiments")


def _measured(run: Pipeline, name: str) -> Row:
    path, evaluation = folder_of(run) / ROWS, run.config.evaluation
    for row in read_rows(path, Row):
        if row.variant == name:
            return row
    directory, facts, minutes = path.parent / name.replace(" ", "-").replace(",", ""), {}, 0.0
    if name == RANDOM:
        make_agent = random_maker(run.task)
    else:
        varied = with_changes(run, VARIANTS[name])
        with Stopwatch(directory / "clock.json") as clock:
            facts = train_controller(varied, _world_model(varied, VARIANTS[name], bf16=True), directory)
        minutes = clock.wall / 60
        controller = Controller.load(directory / "controller.safetensors")
        make_agent = agent_maker(run.task, _world_model(varied, VARIANTS[name]), controller)
    episodes = max(2, evaluation.episodes)  # one has no interval
    score = evaluate(run.task, make_agent, episodes, evaluation.seed)
    steps = facts.get("real_steps", 0), facts.get("dream_steps", 0)
    row = Row(name, *steps, score["mean"], *score["ci95"], episodes, round(minutes, 2))
    append_row(path, row)
    return row


def with_changes(run: Pipeline, variant: Variant) -> Pipeline:
    """The run with the settings of a variant."""
    own = run.loaded.controller
    changes = AWAKE | variant.changes
    if changes.get("type") == "original":
        # As many decisions as PPO makes, up to the last generation's and the final measurement; the row says how many.
        shortest = own.population_size * own.rollouts_per_candidate  # a generation of episodes of one decision
        changes |= {"num_generations": math.ceil(own.num_steps / shortest), "decision_budget": own.num_steps}
    controller = own.model_copy(update=changes)
    return replace(run, loaded=run.loaded.model_copy(update={"controller": controller}))


def _world_model(run: Pipeline, variant: Variant, bf16: bool = False) -> WorldModel:
    world_model = run.world_model(bf16)
    if variant.untrained:
        import torch

        from wm_lib.models.mdn_rnn import MDNRNN
        from wm_lib.models.neural import NeuralWorldModel

        trained = world_model.mdn_rnn
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(run.seed, "untrained"))
            fresh = MDNRNN(trained.z_dim, trained.num_actions, trained.rnn_size, trained.num_mixtures)
        fresh.steady.copy_(trained.steady)  # what it reads is of the data, and not learnt by gradients
        world_model = NeuralWorldModel(world_model.vae, fresh, run.config.controller.recent_z, bf16)
    return Blindfold(world_model, variant.blind_to) if variant.blind_to else world_model


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    head = ("C", "score, 95 % interval", "episodes", "real decisions", "dreamt", "minutes")
    lines = [
        (
            row.variant,
            f"{row.score:.1f} [{row.ci_low:.1f}, {row.ci_high:.1f}]",
            str(row.episodes),
            f"{row.real_decisions:,}",
            f"{row.dream_decisions:,}",
            f"{row.minutes:.1f}",
        )
        for row in rows
    ]
    return aligned([head, *lines])


def shipped_path(root: Path, task: str) -> Path:
    """The published rows of a task in the repository `root`."""
    return root / "assets" / "manifests" / "experiments" / f"{get_task(task).name}.csv"


def shipped(task: str, names: Sequence[str]) -> list[Row]:
    """The published rows of these experiments on a task, random play first, each once; none where none is published."""
    rows = {row.variant: row for row in read_rows(shipped_path(project_root(), task), Row)}
    wanted = dict.fromkeys([RANDOM, *(variant for name in names for variant in EXPERIMENTS[name])])
    return [rows[variant] for variant in wanted if variant in rows]


def publish(run: Pipeline, root: Path) -> Path:
    """Copy the rows of a run into the repository; returns where to."""
    path = shipped_path(root, run.task.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder_of(run) / ROWS, path)
    shutil.copyfile(folder_of(run) / SETTINGS, path.with_suffix(".json"))
    return path
