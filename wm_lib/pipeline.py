"""Whole trainings: the stages of one task, each kept on disk and made again only when something it read changed.

    collect -> vae -> latents -> mdn_rnn -> controller -> evaluate

A stage lives in `runs/<run>/<task>/<stage>/`. When it is done, `stage.json` says what it was made from: a key over
its settings, its seed and the key of the stage before. The same key means nothing to do; another key means that
the old folder is moved aside (`<stage>.previous`) and the stage made anew, or brought back if it was there. A stage
that was stopped goes on from its last checkpoint.

Later rounds (`runs/<run>/<task>/round-2/`, ...) have the same stages: the agent of the round before collects, and V, M
and C go on from its weights, with the data of all rounds.

In the modes without torch a reservoir takes the place of vae, latents and mdn_rnn (`wm_lib.stages.STAGES`), and the
stages live in `runs/<run>/<task>/<mode>/`.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wm_lib import checkpoints, cluster, folders, gates, provenance, rollouts
from wm_lib.config import load_config, resolve_budget
from wm_lib.control.controller import Controller
from wm_lib.errors import StageError, UsageError
from wm_lib.modes import resolve_mode, task_in
from wm_lib.seeding import check_seed, derive_seed
from wm_lib.settings import Config
from wm_lib.stages import CHECKS, SECTIONS, STEPS
from wm_lib.stages import STAGES as STAGES_OF
from wm_lib.tasks import Task

if TYPE_CHECKING:
    from wm_lib.models.world_model import WorldModel

STAGES = STAGES_OF["full"]
VERSION = 7  # of the stages' meaning: raise it when a stage's result changes for the same settings
DREAMS = {"where", "dream_steps", "dream_temperature"}  # of the controller's settings
_NOT_KEPT = ("stage", "started", "gates", "checkpoint")  # files of these names are not what a stage is made for
_RECORD = {"key", "seed", "config", "minutes", "files", "facts"}  # what is read from a stage.json


@dataclass(frozen=True)
class Pipeline:
    """The stages of one task in one run folder.

    Attributes:
        task: What is played.
        loaded: All settings; `config` are those of this round.
        directory: `runs/<run>/<task>`.
        seed: Seed of the run.
        arguments: What to give to `wm` for this run, for messages and manifests; "" = task and folder.
        force: Whether to go on where a gate failed.
        round: 1 for the first, which starts from nothing.
        mode: "full", "gym_only" or "simulation": what the world and the world model are.
        executor: Who collects, evolves and evaluates, see `wm_lib.cluster`; None is this process.
        watch: Gets this pipeline, C and the decisions C has made in this round after every update of PPO.
    """

    task: Task
    loaded: Config
    directory: Path
    seed: int = 0
    arguments: str = ""
    force: bool = False
    round: int = 1
    mode: str = "full"
    executor: Executor | None = field(default=None, compare=False)
    watch: Callable[[Pipeline, Controller, int], None] | None = field(default=None, compare=False)

    @classmethod
    def open(
        cls,
        task: str,
        budget: str = "auto",
        run_dir: str | Path = "auto",
        seed: int = 0,
        config_file: str | Path | None = None,
        force: bool = False,
        rounds: int | None = None,
        mode: str = "full",
    ) -> Pipeline:
        """The pipeline of a task as a command line or a notebook names it; run_dir "auto" is runs/<budget>.

        It is that of the last of so many rounds, `rounds.num_rounds` if None; the earlier ones are its `previous`.
        Mode "auto" is what this machine has, see `wm_lib.doctor`.

        Raises:
            UsageError: An unknown task, budget or mode, a bad configuration, a seed or a number of rounds out of range.
        """
        mode = resolve_mode(mode, task)
        found = task_in(mode, task)
        check_seed(seed)
        config = load_config(budget, found.name, config_file, mode)
        arguments = ["--task", found.name, "--budget", resolve_budget(budget)]
        if mode != "full":
            arguments += ["--mode", mode]
        if str(run_dir) != "auto":
            arguments += ["--run-dir", str(run_dir)]
        if seed:
            arguments += ["--seed", str(seed)]
        if config_file is not None:
            arguments += ["--config", str(config_file)]
        number = config.rounds.num_rounds if rounds is None else rounds
        if not 1 <= number <= 100:
            raise UsageError(f"--rounds must be from 1 to 100, got {number}")
        if number > 1 and mode != "full":
            raise UsageError(f"rounds are for mode full; mode {mode} has one, got {number}")
        directory = folders.resolve_run_dir(run_dir, budget) / found.name
        if mode != "full":
            directory /= mode
        run = cls(found, config, directory, seed, shlex.join(arguments), force, mode=mode)
        return run if number == 1 else replace(run, directory=directory / f"round-{number}", round=number)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of its mode, in order."""
        return STAGES_OF[self.mode]

    def before(self, stage: str) -> tuple[str, ...]:
        """The stages before one.

        Raises:
            UsageError: This mode has no such stage.
        """
        if stage not in self.stages:
            raise UsageError(f"mode {self.mode} has no stage '{stage}'; choose one of {', '.join(self.stages)}")
        return self.stages[: self.stages.index(stage)]

    @cached_property
    def config(self) -> Config:
        """The settings of this round."""
        return self.loaded.for_round(self.round)

    @property
    def round_seed(self) -> int:
        """Seed of what is drawn in this round: a later one must not play the games of the one before again."""
        return self.seed if self.round == 1 else derive_seed(self.seed, "round", self.round)

    @cached_property
    def previous(self) -> Pipeline | None:
        """The round before; None in the first."""
        if self.round == 1:
            return None
        base, number = self.directory.parent, self.round - 1
        return replace(self, directory=base / f"round-{number}" if number > 1 else base, round=number)

    @property
    def rounds(self) -> list[Pipeline]:
        """All rounds up to this one, the first one first."""
        return [*(self.previous.rounds if self.previous else ()), self]

    def build(self, stage: str) -> Path:
        """Make a stage and whatever it needs; returns its folder. What is there already is not made again."""
        if self.previous:
            self.previous.build("controller")
        for name in (*self.before(stage), stage):
            self.run_stage(name)
        return self.directory / stage

    def run_stage(self, stage: str) -> Path:
        """Make one stage from the stages before it, which must be there; returns its folder.

        Raises:
            StageError: The stage before is missing, not finished, or damaged; or a gate failed, of this stage or of
                one before, and neither `force` nor `gates.stop: false` says to go on.
        """
        directory, key = self.directory / stage, self._key(stage)
        if self._is_done(stage, key) or (folders.bring_back(directory, key) and self._is_done(stage, key)):
            self._require_gates(stage)
            return directory
        for earlier in self.before(stage):
            where = self.directory / earlier
            if (where / "stage.json").exists() and self.facts(earlier)["key"] != self._key(earlier):
                print(f"{where} was made with other settings or another version; {stage} goes on from it as it is")
            self._require_gates(earlier)
        spent = folders.open_stage(directory, key)
        (directory / "gates.json").unlink(missing_ok=True)
        start = time.perf_counter()
        try:
            facts = STEPS[stage](self, directory)
        finally:
            minutes = spent + (time.perf_counter() - start) / 60
            checkpoints.write_json(directory / "started.json", {"key": key, "minutes": minutes})
        artefacts = [path for path in sorted(directory.iterdir()) if path.suffix in (".safetensors", ".json")]
        checkpoints.write_json(
            directory / "stage.json",
            {
                "schema": 1,
                "stage": stage,
                "task": self.task.name,
                "key": key,
                "seed": self.seed,
                "config": self._settings(stage),
                "minutes": minutes,
                "files": {path.name: checkpoints.sha256_file(path) for path in artefacts if path.stem not in _NOT_KEPT},
                "facts": facts,
                "failed_gates": self.failed_gates(self.before(stage)),
                "executor": cluster.report(self.executor, clear=True),
                "machine": provenance.machine(),
                "versions": provenance.versions(),
            },
        )
        # Only now: killed before, the stage would have neither a record nor anything to resume from.
        for name in ("checkpoint.safetensors", "checkpoint.json"):
            (directory / name).unlink(missing_ok=True)
        self._require_gates(stage)
        return directory

    def gates(self, stage: str) -> list[gates.Gate]:
        """The checks of a finished stage, measured now or read from its `gates.json`."""
        if stage not in CHECKS:
            return []
        record, path = self.facts(stage), self.directory / stage / "gates.json"
        settings = self.config.gates.to_dict() | {"stop": None}
        made_from = {"version": gates.VERSION, "stage": record["key"], "settings": settings}
        try:
            found = checkpoints.read_json(path)
            if found["made_from"] == made_from:
                return [gates.Gate(**values) for values in found["gates"]]
        except (StageError, KeyError, TypeError):  # none yet, or damaged
            pass
        measured = CHECKS[stage](self, record["facts"])
        rows = [asdict(gate) for gate in measured]
        checkpoints.write_json(path, {"schema": 1, "made_from": made_from, "gates": rows})
        return measured

    def failed_gates(self, stages: Iterable[str] | None = None) -> list[str]:
        """Names of the gates that these stages (all, if None), and any of the rounds before, did not pass
        ("round 2: drift")."""
        stages = self.stages if stages is None else stages
        earlier = self.previous.failed_gates() if self.previous else []
        prefix = f"round {self.round}: " if self.round > 1 else ""
        return earlier + [prefix + gate.name for stage in stages for gate in self.gates(stage) if not gate.passed]

    def _require_gates(self, stage: str) -> None:
        found = self.gates(stage)
        if self.config.gates.stop and not self.force:
            gates.require(found)

    def facts(self, stage: str) -> dict[str, Any]:
        """What `stage.json` of a finished stage says.

        Raises:
            StageError: The stage has not been made, or its record is damaged; the message says what to type.
        """
        missing = [name for name in (*self.before(stage), stage) if not (self.directory / name / "stage.json").exists()]
        if stage in missing:
            raise StageError(
                f"{', '.join(missing)} of {self.task.name} not made yet in {self.directory}; "
                f"type: {self.command(missing[0])}"
            )
        path = self.directory / stage / "stage.json"
        try:
            record = checkpoints.read_json(path)
        except StageError:
            record = None
        if not isinstance(record, dict) or not _RECORD <= record.keys():
            raise StageError(f"{path} is damaged; make {stage} again with: {self.command(stage)}")
        return record

    def rollouts(self) -> rollouts.Rollouts:
        """The collected data of all rounds."""
        for run in self.rounds:
            run.facts("collect")
        return rollouts.Rollouts(*(run.directory / "collect" for run in self.rounds))

    def latents(self) -> dict[str, np.ndarray]:
        """V's posterior of every frame with the actions, rewards and ends, as M reads them."""
        stage = "latents" if self.mode == "full" else "reservoir"
        self.facts(stage)
        return checkpoints.load(self.directory / stage / "latents.safetensors")[0]

    def weights(self, stage: str) -> Path:
        """Where V, M, the reservoir or C of this round is, or will be."""
        return self.directory / stage / f"{stage}.safetensors"

    def world_model(self, bf16: bool = False) -> WorldModel:
        """V and M together; `bf16` see `NeuralWorldModel`."""
        if self.mode != "full":
            from wm_lib.models.reservoir import Reservoir

            self.facts("reservoir")
            return Reservoir.load(self.weights("reservoir"))
        from wm_lib.models.neural import NeuralWorldModel

        for stage in ("vae", "mdn_rnn"):
            self.facts(stage)
        recent_z = self.config.controller.recent_z
        return NeuralWorldModel.load(self.weights("vae"), self.weights("mdn_rnn"), recent_z, bf16)

    def controller(self) -> Controller:
        """C."""
        self.facts("controller")
        return Controller.load(self.weights("controller"))

    def manifest(self) -> dict[str, Any]:
        """What `evaluate` measured."""
        self.facts("evaluate")
        return checkpoints.read_json(self.directory / "evaluate" / "manifest.json")

    def _settings(self, stage: str) -> dict[str, Any]:
        section = SECTIONS.get(stage)
        settings = self.config.to_dict()[section] if section else {}
        # What a run does not read is not in its keys.
        unread = DREAMS if settings.get("where") == "real" else set()
        unread = unread | {name for name in ("tile_price", "decision_budget") if not settings.get(name, True)}
        settings = {name: value for name, value in settings.items() if name not in unread}
        return settings

    def _key(self, stage: str) -> str:
        """Hash of all that decides the result of a stage."""
        made_from: dict[str, Any] = {
            "version": VERSION,
            "stage": stage,
            "task": repr(self.task),
            "seed": self.seed,
            "config": self._settings(stage),
        }
        if earlier := self.before(stage):
            made_from["upstream"] = self.facts(earlier[-1])["key"]
        elif self.previous:
            made_from["upstream"] = self.previous.facts("controller")["key"]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def command(self, stage: str) -> str:
        """What to type to have this stage made, the ones before it being there."""
        arguments = self.arguments or shlex.join(["--task", self.task.name, "--run-dir", str(self.directory.parent)])
        if self.round != self.loaded.rounds.num_rounds:
            arguments += f" --rounds {self.round}"
        if stage == "collect":
            return f"wm collect {arguments}"
        component = {"latents": "vae", "evaluate": "all"}.get(stage, stage)
        return f"wm train --component {component} {arguments}"

    def _is_done(self, stage: str, key: str) -> bool:
        path = self.directory / stage / "stage.json"
        if not path.exists():
            return False
        try:
            record = self.facts(stage)
        except StageError:
            damaged = path
        else:
            if record["key"] != key:
                return False
            damaged = folders.first_damaged(path.parent, record["files"])
        if damaged is None:
            return True
        print(f"{damaged} is missing or damaged; making {stage} again")
        path.unlink()
        return False
