"""How many real decisions does a world model save? Our agent and PPO from pixels, measured alike while they learn.

Both see the same frames of the same games; PPO learns on the fast path, where there is one, as our C does unless
`collect.gymnasium_fraction` says otherwise. After every so many real decisions they are measured by the protocol of
`wm_lib.evaluation`, in Gymnasium's own environment; measuring costs neither decisions nor time. Its seeds are not those
of final scores, so that PPO is not stopped by luck on the very games that it is judged by. What is measured becomes a
row of `curves.csv` and is not measured again; `wm_lib.efficiency` computes all figures from these.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from wm_lib import checkpoints, pipeline, provenance
from wm_lib.child import take_lock
from wm_lib.config import resolve_budget
from wm_lib.control.controller import Controller
from wm_lib.efficiency import Row, figure, overview, summarise
from wm_lib.errors import StageError, UsageError
from wm_lib.evaluation import Player, agent_maker, evaluate, random_maker
from wm_lib.events import Progress, Stopwatch
from wm_lib.folders import in_project, keep_settings, project_root, resolve_run_dir
from wm_lib.pipeline import Pipeline
from wm_lib.report import published, put_table
from wm_lib.rows import append_row, read_rows
from wm_lib.seeding import check_seed
from wm_lib.settings import Config
from wm_lib.tasks import TASKS, Task, get_task

if TYPE_CHECKING:
    from stable_baselines3 import PPO

VERSION = 1  # raise it when the rows mean something else
FIRST_SEED = 20_000  # of the games played while learning; final scores have evaluation.seed, 10,000
CURVES, RESULT, SETTINGS, PICTURE = "curves.csv", "comparison.json", "settings.json", "comparison.png"
_SAME = ("version", "pipeline", "task", "rounds", "config")  # must not change within a comparison
_KEPT = ("task", "target", "rounds", "config", "machine", "versions", "commit", "command")  # of settings.json


def folder_of(task: str, budget: str = "auto", run_dir: str | Path = "auto") -> Path:
    """Where the comparison of a task is kept: `runs/<run>/compare/<task>`."""
    return resolve_run_dir(run_dir, budget) / "compare" / get_task(task).name


def compare(
    task: str,
    budget: str = "auto",
    run_dir: str | Path = "auto",
    seeds: Sequence[int] = (0, 1, 2),
    config_file: str | Path | None = None,
    force: bool = False,
    rounds: int | None = None,
) -> dict[str, Any]:
    """Train both agents for every seed, measure them on the way, and say what it took; goes on where it was stopped.

    Args: as for `Pipeline.open`; the pipelines, with all their rounds, are kept under `folder_of`.

    Returns:
        What `redraw` returns.

    Raises:
        StageError: A stage or a gate failed.
        UsageError: A bad argument, or the folder holds a comparison with other settings, or one that is going on.
    """
    if not seeds:
        raise UsageError("--seeds must be at least 1")
    for seed in seeds:
        check_seed(seed)
    root = folder_of(task, budget, run_dir)
    runs = [Pipeline.open(task, budget, root / f"ours-{s}", s, config_file, force, rounds) for s in seeds]
    root.mkdir(parents=True, exist_ok=True)
    if (lock := take_lock(root / "compare.lock")) is None:
        raise UsageError(f"another wm compare is at work in {root}; wait for it, or give another --run-dir")
    with lock:
        _keep_settings(root, runs[0], budget, seeds, config_file)
        _measure_random(root, runs[0])
        for run in runs:
            ours = Judge.of(run, root, "ours")
            limit = round(run.config.compare.max_factor * train_ours(run, ours))
            train_ppo(run, Judge.of(run, root, "ppo"), limit)
            found = redraw(root)
    return found


def redraw(root: Path) -> dict[str, Any]:
    """Compute the result of a comparison from its rows, and write and draw it; nothing is trained.

    Without rows of its own it is made from the published ones.

    Returns:
        What `summarise` returns, with the task, its target and how it was made.

    Raises:
        StageError: There is nothing to draw yet.
    """
    rows, settings = read_rows(root / CURVES, Row), root / SETTINGS
    if not rows:
        settings = shipped_path(project_root(), root.name)
        rows = read_rows(settings.with_suffix(".csv"), Row)
    if not rows:
        raise StageError(f"nothing measured in {root} yet; type: wm compare --task {root.name}")
    made = checkpoints.read_json(settings)
    figures = summarise(rows, made["target"], made["config"]["collect"]["num_steps"])
    found = {"schema": 1} | {key: made[key] for key in _KEPT} | figures
    checkpoints.write_json(root / RESULT, found)
    figure(found, published(project_root(), found["task"])).savefig(root / PICTURE, dpi=120)
    for agent, seed in {(row.agent, row.seed) for row in rows if row.kind == "curve"}:
        _log(root, rows, agent, seed)
    return found


def shipped_path(root: Path, task: str) -> Path:
    """The published result of a task in the repository `root`."""
    return root / "assets" / "manifests" / "compare" / f"{task}.json"


def publish(folder: Path, root: Path) -> None:
    """Copy rows and result of a comparison to `assets/manifests/compare`, and put the table of all into README.md.

    Raises:
        StageError: There are no rows.
    """
    path = shipped_path(root, folder.name)
    if not (folder / CURVES).exists():
        raise StageError(f"{folder} has no rows of its own to publish; type: wm compare --task {folder.name}")
    checkpoints.write_json(path, checkpoints.read_json(folder / RESULT))
    shutil.copyfile(folder / CURVES, path.with_suffix(".csv"))
    shutil.copyfile(folder / PICTURE, path.with_suffix(".png"))
    put_table(root / "README.md", "comparison", overview_of_shipped(root))


def overview_of_shipped(root: Path) -> str:
    """The published results of the repository `root` as tables, beside what others report."""
    return overview(find_shipped(root), [entry for task in TASKS for entry in published(root, task)])


def find_shipped(root: Path) -> list[dict[str, Any]]:
    """The published results of the repository `root`, in the tasks' order."""
    paths = [shipped_path(root, task) for task in TASKS]
    return [checkpoints.read_json(path) for path in paths if path.exists()]


def find_result(task: str, budget: str = "auto", run_dir: str | Path = "auto") -> dict[str, Any] | None:
    """The result of this run, else the published one, else None."""
    own, shipped = folder_of(task, budget, run_dir), shipped_path(project_root(), get_task(task).name)
    if (own / RESULT).exists() and (own / CURVES).exists():  # else it is drawn from what was published then
        return checkpoints.read_json(own / RESULT)
    return checkpoints.read_json(shipped) if shipped.exists() else None


@dataclass
class Judge:
    """Measures one training while its clock stands still, and writes down what it finds.

    Attributes:
        task, config: What is played, and the settings.
        root: Folder of the comparison.
        agent, seed: Whose training it is.
        clock: Runs while it learns.
    """

    task: Task
    config: Config
    root: Path
    agent: str
    seed: int
    clock: Stopwatch

    @classmethod
    def of(cls, run: Pipeline, root: Path, agent: str) -> Self:
        """The judge of one agent with the seed of this run."""
        directory = root / f"{agent}-{run.seed}"
        return cls(run.task, run.config, root, agent, run.seed, Stopwatch(directory / "clock.json"))

    @property
    def rows(self) -> list[Row]:
        """What was measured of this training."""
        return [row for row in read_rows(self.root / CURVES, Row) if (row.agent, row.seed) == (self.agent, self.seed)]

    @property
    def final(self) -> Row | None:
        """The measurement at the end, if it was made."""
        return next((row for row in self.rows if row.kind == "final"), None)

    def is_due(self, decisions: int) -> bool:
        """Whether the agent should be measured now: once in every `compare.every` decisions, or again if it was now."""
        every = self.config.compare.every
        known = {row.decisions for row in self.rows if row.kind == "curve"}
        return decisions in known or (decisions >= every and decisions // every not in {at // every for at in known})

    def measure(self, make_agent: Callable[[int], Player], decisions: int, kind: str = "curve") -> Row:
        """Play, and write the row down; one that is there already is not measured again."""
        for row in self.rows:
            if (row.kind, row.decisions) == (kind, decisions):
                return row
        with self.clock.paused():
            final = kind == "final"
            episodes = max(2, self.config.evaluation.episodes) if final else self.config.compare.episodes
            score = evaluate(self.task, make_agent, episodes, self.config.evaluation.seed if final else FIRST_SEED)
            row = Row(
                self.agent, self.seed, kind, decisions, score["mean"], *score["ci95"], episodes,
                self.clock.cpu, self.clock.wall, self.clock.interruptions,
            )  # fmt: skip
            append_row(self.root / CURVES, row)
            _log(self.root, self.rows, self.agent, self.seed)
        return row


def train_ours(run: Pipeline, judge: Judge) -> int:
    """Train our agent with all its rounds; returns the real decisions it made."""
    if judge.final:
        return judge.final.decisions

    def watch(now: Pipeline, controller: Controller, steps: int) -> None:
        decisions = _real_decisions(now, steps)
        if judge.is_due(decisions):
            judge.measure(agent_maker(now.task, now.world_model(), controller), decisions)

    with judge.clock:
        for each in replace(run, watch=watch).rounds:
            each.build("controller")
            make_agent = agent_maker(each.task, each.world_model(), each.controller())
            decisions = _real_decisions(each, each.facts("controller")["facts"]["real_steps"])
            judge.measure(make_agent, decisions)
        return judge.measure(make_agent, decisions, "final").decisions


def train_ppo(run: Pipeline, judge: Judge, limit: int) -> None:
    """Train PPO from pixels until it reaches the target or has made `limit` real decisions."""
    if judge.final:
        return
    from wm_lib.control.pixels import ZOO, pixel_agent_maker, train_pixels
    from wm_lib.control.ppo import Enough
    from wm_lib.worlds.envs import make_env

    def watch(model: PPO, decisions: int) -> None:
        if judge.is_due(decisions):
            row = judge.measure(pixel_agent_maker(run.task, model), decisions)
            if row.score >= run.task.target:
                raise Enough

    config = run.config.controller
    with judge.clock:
        model = train_pixels(
            run.task,
            ZOO[run.task.name],
            num_steps=limit,
            block_steps=config.block_steps,
            seed=run.seed,
            directory=judge.clock.path.parent,
            make_env=lambda num_envs, seed: make_env(run.task, num_envs, seed),
            reward_scale=config.reward_scale,
            clip_reward=config.clip_reward or run.task.atari,
            end_at_lost_life=run.task.atari,
            on_update=watch,
        )
        for kind in ("curve", "final"):
            judge.measure(pixel_agent_maker(run.task, model), model.num_timesteps, kind)


def _real_decisions(run: Pipeline, steps: int) -> int:
    """Decisions in the real environment when C has made `steps` in this round, the data of all rounds included."""
    collected = sum(each.facts("collect")["facts"]["real_steps"] for each in run.rounds)
    return collected + steps + sum(each.facts("controller")["facts"]["real_steps"] for each in run.rounds[:-1])


def _measure_random(root: Path, run: Pipeline) -> None:
    if not any(row.agent == "random" for row in read_rows(root / CURVES, Row)):
        episodes = max(2, run.config.evaluation.random_episodes)  # one has no interval
        score = evaluate(run.task, random_maker(run.task), episodes, run.config.evaluation.seed)
        row = Row("random", 0, "final", 0, score["mean"], *score["ci95"], episodes, 0.0, 0.0, 0)
        append_row(root / CURVES, row)


def _keep_settings(
    root: Path, run: Pipeline, budget: str, seeds: Sequence[int], config_file: str | Path | None
) -> None:
    """Write down what this comparison is made with, or make sure that it is still the same.

    Raises:
        UsageError: It is not.
    """
    config = {name: section for name, section in run.loaded.to_dict().items() if name not in ("curriculum", "cluster")}
    command = f"wm compare --task {run.task.name} --budget {resolve_budget(budget)} --rounds {run.round}"
    command += f" --seeds {len(seeds)}" + (f" --seed {seeds[0]}" if seeds[0] else "")
    if config_file is not None:
        command += f" --config {in_project(config_file)}"
    made = {
        "schema": 1,
        "version": VERSION,
        "pipeline": pipeline.VERSION,
        "task": run.task.name,
        "target": run.task.target,
        "rounds": run.round,
        "config": config,
        "command": command,
        **provenance.stamp(),
    }
    keep_settings(root / SETTINGS, made, _SAME, "a comparison")


def _log(root: Path, rows: Sequence[Row], agent: str, seed: int) -> None:
    """Write a curve for TensorBoard: all curves of a comparison have real decisions as their axis."""
    own = [row for row in rows if (row.agent, row.seed, row.kind) == (agent, seed, "curve")]
    own.sort(key=lambda row: row.decisions)
    directory = root / "tensorboard" / f"{agent}-{seed}"
    with Progress(f"{root.name} {agent}-{seed}", None, "decision", directory) as progress:
        for row in own:
            progress.update(row.decisions - progress.step, score=row.score, cpu_hours=row.cpu_seconds / 3600)
