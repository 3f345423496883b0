"""The curriculum: task after task, each in a process of its own, towards its target, whatever goes wrong on the way.

A try is one `wm train` of one task, in one mode, up to one round. What came of it goes into a journal, and the
journal alone says what is tried next (`next_try`). So a killed curriculum, started again, takes up where it was; what
the interrupted try had made, the stages of the pipeline find again.

    target met               -> the next task
    target not met           -> a further round, at most `max_retries` times, then "not_reached"
    crash, hang, no memory   -> once more the same, then one mode lower, in the end "failed"
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.std import tqdm

from wm_lib import folders
from wm_lib.attempts import LOCK, Try, carry_out
from wm_lib.child import end_group, take_lock
from wm_lib.config import MODES, load_config, resolve_budget
from wm_lib.curriculum_report import make_report, write_report
from wm_lib.errors import StageError, UsageError
from wm_lib.journal import Journal, read_journal, results_of
from wm_lib.pipeline import VERSION, Pipeline
from wm_lib.seeding import check_seed
from wm_lib.settings import Config
from wm_lib.tasks import get_task

MAX_ROUNDS = 100
_HOPELESS = ("disk", "usage")  # kinds of failure that the same try would only repeat


@dataclass(frozen=True)
class Curriculum:
    """What is to be run, and where.

    Attributes:
        run_dir: Folder of the run.
        budget: One of BUDGETS.
        seed: Of everything random.
        config_file: YAML on top of the budget's, or None.
        mode: One of MODES, or "auto" for what the machine has.
        configs: Settings by task, in the order of the curriculum.
        cluster: What its trainings get as --cluster; "" leaves it to the settings.
    """

    run_dir: Path
    budget: str
    seed: int
    config_file: Path | None
    mode: str
    configs: dict[str, Config]
    cluster: str = ""

    @classmethod
    def open(
        cls,
        budget: str = "auto",
        run_dir: str | Path = "auto",
        seed: int = 0,
        config_file: str | Path | None = None,
        mode: str | None = None,
    ) -> Curriculum:
        """The curriculum that the settings describe; mode None: `curriculum.mode`.

        Raises:
            UsageError: An unknown budget or mode, a bad configuration, a seed out of range.
        """
        check_seed(seed)
        settings = load_config(budget, None, config_file).curriculum
        mode = mode or settings.mode
        if mode not in ("auto", *MODES):
            raise UsageError(f"unknown mode '{mode}'; choose one of auto, {', '.join(MODES)}")
        return cls(
            folders.resolve_run_dir(run_dir, budget).resolve(),
            resolve_budget(budget),
            seed,
            None if config_file is None else Path(config_file).resolve(),
            mode,
            {task: load_config(budget, task, config_file) for task in settings.stages},
        )

    @property
    def directory(self) -> Path:
        """Where journal, logs, report and the picture of the board are."""
        return self.run_dir / "curriculum"

    @property
    def key(self) -> str:
        """Hash of all that decides what is tried and what comes of it."""
        settings = [
            [task, config.model_dump(mode="json", exclude={"cluster"})] for task, config in self.configs.items()
        ]
        made_from = [VERSION, self.mode, self.seed, settings]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def pipeline(self, task: str, mode: str, number: int) -> Pipeline:
        """The training that a try makes."""
        own = {} if mode == "full" else {"mode": mode}
        return Pipeline.open(task, self.budget, self.run_dir, self.seed, self.config_file, rounds=number, **own)

    def target(self, task: str) -> float:
        """Mean return in the real environment that counts as reached."""
        return self.configs[task].curriculum.targets.get(task, get_task(task).target)

    def records(self) -> list[dict[str, Any]]:
        """What the journal says about this curriculum, also while it runs."""
        return own_records(read_journal(self.directory / "journal.jsonl"), self.key)

    def next_try(self, task: str, begin: dict[str, Any], results: Sequence[dict[str, Any]]) -> Try | str:
        """What to try next for a task after these results, or how it ended."""
        config = self.configs[task]
        found = next_try(
            results, begin["modes"][task], config.rounds.num_rounds, self.target(task), config.curriculum.max_retries
        )
        if isinstance(found, str):
            return found
        mode, number = found
        return Try(task, mode, number, self.directory / f"{task}-{mode}-round-{number}.json")


def wm_train(curriculum: Curriculum, attempt: Try) -> list[str]:
    """The command of a try."""
    arguments = {
        "task": attempt.task,
        "budget": curriculum.budget,
        "run-dir": curriculum.run_dir,
        "seed": curriculum.seed,
        "rounds": attempt.round,
        "json": attempt.result,
    }
    if attempt.mode != "full":
        arguments["mode"] = attempt.mode
    if curriculum.cluster:
        arguments["cluster"] = curriculum.cluster
    if curriculum.config_file is not None:
        arguments["config"] = curriculum.config_file
    options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "wm_lib.cli", "train", *options]


def next_try(
    results: Sequence[dict[str, Any]], mode: str, first_round: int, target: float, max_retries: int
) -> tuple[str, int] | str:
    """What follows from what was tried: (mode, round), or "reached", "not_reached" or "failed".

    Args:
        results: Of one task, in their order: `mode`, `round`, `score` (None: it failed), `kind` (of the failure).
        mode: Where to begin; lower ones follow where it fails.
        first_round: Rounds of the first try in mode full; the other modes have one round.
        target: A simulated score is never held against it.
        max_retries: Further rounds in mode full.
    """
    if not results:
        return mode, first_round if mode == "full" else 1
    last = results[-1]
    if last["score"] is not None:
        if last["mode"] != "simulation" and last["score"] >= target:
            return "reached"
        further = last["mode"] == "full" and last["round"] < min(first_round + max_retries, MAX_ROUNDS)
        return ("full", last["round"] + 1) if further else "not_reached"
    again = sum((other["mode"], other["round"]) == (last["mode"], last["round"]) for other in results)
    if again == 1 and last["kind"] not in _HOPELESS:
        return last["mode"], last["round"]
    if any(other["score"] is not None for other in results):
        return "not_reached"  # a further round failed; the score before it stands
    lower = MODES[MODES.index(last["mode"]) + 1 :]
    return (lower[0], 1) if lower else "failed"


def own_records(records: Iterable[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Records since this curriculum was last begun, and the scores of the times before if the modes were the same."""
    kept: list[dict[str, Any]] = []
    for record in records:
        if record.get("key") != key:
            continue
        if record["event"] == "begin":  # what failed then is tried again
            kept = [r for r in kept if r["event"] == "result" and kept[0]["modes"] == record["modes"]]
            scored = {r["task"] for r in kept if r["score"] is not None}
            kept = [record, *(r for r in kept if r["task"] in scored)]
        elif kept:
            kept.append(record)
    return kept


def choose_modes(wanted: str, tasks: Iterable[str]) -> dict[str, Any]:
    """What to begin with and why: `mode`, `reason`, and `modes` by task, which may be lower where a part is missing."""
    if wanted != "auto":
        return {"mode": wanted, "reason": "as the settings say", "modes": dict.fromkeys(tasks, wanted)}
    from wm_lib.doctor import detect_mode

    found = detect_mode()
    modes = {task: found.mode_for(task) for task in tasks}
    return {"mode": found.mode, "reason": found.reason or "nothing is missing", "modes": modes}


def run(
    curriculum: Curriculum,
    argv: Callable[[Curriculum, Try], list[str]] = wm_train,
    say: Callable[[str], None] = tqdm.write,
    changed: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run a curriculum to its end, or go on with one that was interrupted; returns its report.

    The report, `report.json` and `report.html` in the curriculum's folder, is complete unless `control` said stop.

    Args:
        curriculum: What to run.
        argv: The command of a try.
        say: Takes lines for people.
        changed: Called after every try.

    Raises:
        StageError: Another process runs a curriculum in this folder.
    """
    directory = curriculum.directory
    directory.mkdir(parents=True, exist_ok=True)
    held = take_lock(directory / "runner.lock")
    if held is None:
        raise StageError(f"a curriculum is running in {directory} already; wait for it, or stop it first")
    with held:
        journal = Journal(directory / "journal.jsonl")
        _end_orphan(curriculum, journal)
        (directory / "control.json").unlink(missing_ok=True)
        records, append = curriculum.records, partial(journal.append, key=curriculum.key)
        begun = records()
        if not begun or begun[-1]["event"] == "end":
            append("begin", **choose_modes(curriculum.mode, curriculum.configs))
        begin = records()[0]
        say(f"mode {begin['mode']}: {begin['reason']}")
        complete = True
        with tqdm(total=len(curriculum.configs), desc="curriculum", unit="task", disable=None) as bar:
            for task in curriculum.configs:
                while isinstance(attempt := curriculum.next_try(task, begin, results_of(records(), task)), Try):
                    settings = curriculum.configs[task].curriculum
                    if carry_out(attempt, argv(curriculum, attempt), settings, append, say, bar) is None:
                        complete = False
                        break
                    _look(changed, say)
                if not complete:
                    append("stopped")
                    break
                bar.update(1)
        report = make_report(curriculum, records())
        write_report(curriculum, report)
        _look(changed, say)
        if complete:
            append("end")
    return report


def _end_orphan(curriculum: Curriculum, journal: Journal) -> None:
    """End the child of a run that was killed itself; it is still there as long as its lock is held."""
    lock = curriculum.directory / LOCK
    if (held := take_lock(lock)) is not None:
        held.close()
        return
    tries = [record for record in journal.records if record["event"] in ("try", "result")]
    if tries and tries[-1]["event"] == "try":
        end_group(tries[-1]["pid"])
    # Killed between the start of its child and the record of it, the run has left a child whose pid nobody knows.
    patience = max(config.curriculum.timeout_seconds for config in curriculum.configs.values())
    if (held := take_lock(lock, patience)) is None:
        raise StageError(f"a training that an earlier run started is still going on, it holds {lock}; end it first")
    held.close()


def _look(changed: Callable[[], None], say: Callable[[str], None]) -> None:
    try:
        changed()
    except Exception as error:  # a picture is not worth a run
        say(f"the board could not be drawn: {type(error).__name__}: {error}")
