"""The `wm` command. Exit codes: 0 done, 1 a stage failed, 2 bad arguments."""

from __future__ import annotations

import argparse
import ast
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError

from wm_lib import bench, checkpoints, cluster, doctor, report
from wm_lib.config import BUDGETS, MODES, load_config, resolve_budget
from wm_lib.control.controller import Controller
from wm_lib.errors import StageError, UsageError
from wm_lib.evaluation import agent_maker, evaluate, random_maker
from wm_lib.folders import project_root, resolve_run_dir
from wm_lib.pipeline import Pipeline, resolve_mode, task_in
from wm_lib.seeding import check_seed
from wm_lib.tasks import TASKS, Task, get_task

if TYPE_CHECKING:
    from wm_lib.models.world_model import WorldModel

COMPONENTS = ("vae", "mdn_rnn", "reservoir", "controller", "all")


class _Parser(argparse.ArgumentParser):
    """Bad arguments are one line, like every other error of ours."""

    def error(self, message: str) -> None:
        raise UsageError(f"{message}; see: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        args = _parser().parse_args(argv)
        args.run(args)
        return 0
    except UsageError as error:
        print(f"wm: {error}", file=sys.stderr)
        return 2
    except (StageError, OSError, SafetensorError) as error:  # the last two: the disk is full, a folder is not ours
        print(f"wm: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"wm: {error}; type: pip install -r requirements.txt", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nwm: stopped; what is finished stays, the same command goes on from there", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument(
        "--budget",
        default="auto",
        metavar="B",
        help=f"{' | '.join(BUDGETS)} (default: $WM_BUDGET, else laptop)",
    )
    common.add_argument("--run-dir", default="auto", metavar="DIR", help="folder of the run (default: runs/<budget>)")
    common.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="seed of the run (default: 0; evaluate, play: first of the seeds, 10000)",
    )
    common.add_argument("--config", metavar="FILE", help="YAML with your own numbers, on top of the budget's")
    common.add_argument("--json", metavar="FILE", help="also write the result as JSON")

    parser = _Parser(prog="wm", description="World Models from pixels: collect, see, remember, dream, act.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=text, description=text)
        added.set_defaults(run=run)
        return added

    tasks = f"{' | '.join(TASKS)}, or an environment id"
    collect = command("collect", _collect, "Play the task with exploring random actions and keep the frames.")
    collect.add_argument("--task", required=True, metavar="T", help=tasks)
    train = command("train", _train, "Train a part of the agent, or all of it, and measure it.")
    train.add_argument("--task", required=True, metavar="T", help=tasks)
    train.add_argument("--component", default="all", metavar="C", help=f"{' | '.join(COMPONENTS)} (default: all)")
    versus = command(
        "compare",
        _compare,
        "Train our agent and PPO from pixels side by side and say how many real decisions each of them takes.",
    )
    versus.add_argument("--task", required=True, metavar="T", help=tasks)
    versus.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each agent (default: 3)")
    versus.add_argument("--replot", action="store_true", help="compute and draw the result again, train nothing")
    versus.add_argument("--publish", action="store_true", help="copy the result to assets/manifests/compare")
    trial = command(
        "experiment",
        _experiment,
        "Change one thing about C at a time, on the V and M of a run: what it sees, its size, how and where it learns.",
    )
    trial.add_argument("names", nargs="*", metavar="NAME", help="features | size | method | world | temperature")
    trial.add_argument("--task", required=True, metavar="T", help=tasks)
    trial.add_argument("--publish", action="store_true", help="copy the rows to assets/manifests/experiments")
    for trains in (collect, train, versus, trial):
        trains.add_argument("--force", action="store_true", help="go on where a gate failed; scores say so")
    score = command(
        "evaluate",
        _evaluate,
        "Measure an agent in Gymnasium's own environment: of --run-dir, else of the shipped weights.",
    )
    score.add_argument("--task", required=True, metavar="T", help=tasks)
    score.add_argument("--episodes", type=int, default=100, metavar="N", help="episodes (default: 100)")
    score.add_argument("--sticky", type=float, default=0.0, metavar="P", help="Atari: sticky actions (default: 0)")
    score.add_argument("--random", action="store_true", help="measure random play instead of an agent")
    watch = command(
        "play", _play, "Watch an agent, of --run-dir, else the shipped one: in a window, or without a screen on film."
    )
    watch.add_argument("--task", required=True, metavar="T", help=tasks)
    watch.add_argument("--episodes", type=int, default=1, metavar="N", help="games (default: 1)")
    watch.add_argument("--output", metavar="FILE", help=".gif (the first 20 seconds) or .mp4 (everything)")
    watch.add_argument("--dream", action="store_true", help="let it play in its own dream")
    course = command("course", _course, "Run all notebooks in order with papermill and make an index of them.")
    course.add_argument("--task", metavar="T", help="the task notebooks 02-06 look at; " + tasks)
    course.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="another notebook parameter",
    )
    course.add_argument("--output", metavar="DIR", help="executed notebooks (default: build/course/<budget>)")
    course.add_argument(
        "--publish",
        action="store_true",
        help="run nothing; write the minutes of the finished run there and its pictures into notebooks and assets",
    )
    stages = command(
        "curriculum",
        _curriculum,
        "Train task after task towards its target, each in its own process; whatever fails is recorded and survived.",
    )
    stages.add_argument(
        "--mode", metavar="M", help="auto | full | gym_only | simulation (default: curriculum.mode of the settings)"
    )
    for spreads in (collect, train, score, stages):
        spreads.add_argument(
            "--cluster",
            default="",
            metavar="A",
            help="Dask cluster that does the work: tcp://host:port, or local:N for N processes (default: none)",
        )
    table = command(
        "report",
        _table,
        "Print the scores of a run beside random play; with --task, how good the V, M and dreams of that task are.",
    )
    table.add_argument("--task", metavar="T", help=f"measure the world model of this task; {tasks}")
    table.add_argument(
        "--publish", action="store_true", help="ship it in assets: scores with their weights, and README's table"
    )
    table.add_argument("--force", action="store_true", help="publish a score that is below the published one too")
    for of_a_round in (collect, train, score, watch, table, versus):
        of_a_round.add_argument(
            "--rounds",
            type=int,
            metavar="N",
            help="the last of N rounds, each going on with its agent's data (default: rounds.num_rounds of the budget)",
        )
    speed = command("bench", _bench, "Measure how fast the parts are, beside plain ways of doing the same work.")
    speed.add_argument("names", nargs="*", metavar="NAME", help=f"{' | '.join(bench.BENCHES)} (default: all)")
    speed.add_argument("--task", metavar="T", help=f"{tasks} (default: car-racing; dream_step: the worst of all)")
    speed.add_argument("--rounds", type=int, default=5, metavar="N", help="times both sides take turns (default: 5)")
    health = command("doctor", _doctor, "Find out what works on this machine, what mends the rest, and the mode.")
    health.add_argument("--imports", action="store_true", help="measure imports beside their budgets instead")
    review = command("vet", _vet, "Review the repository: code, notebooks, spelling, links, alt texts, README's table.")
    review.add_argument("--fix", action="store_true", help="first mend what can be mended safely")
    config = command("config", _config, "Print every setting of a budget as YAML.")
    config.add_argument("--task", metavar="T", help=tasks)
    config.add_argument("--show", action="store_true", help="print it (the default)")
    for in_a_mode in (collect, train, score, watch, table, config):
        text = f"{' | '.join(MODES)}; auto: what this machine has (default: full)"
        in_a_mode.add_argument("--mode", default="full", metavar="M", help=text)
    return parser  # fmt: skip


def _open(args: argparse.Namespace) -> Pipeline:
    return Pipeline.open(
        args.task, args.budget, args.run_dir, args.seed or 0, args.config, args.force, args.rounds, args.mode
    )


@contextmanager
def _opened(args: argparse.Namespace) -> Iterator[Pipeline]:
    """The same with the cluster that --cluster or the settings name."""
    run = _open(args)
    with cluster.connect(args.cluster or run.config.cluster.address) as executor:
        yield replace(run, executor=executor)


def _report(args: argparse.Namespace, result: dict[str, Any]) -> None:
    if args.json:
        checkpoints.write_json(Path(args.json), {"schema": 1, **result})


def _collect(args: argparse.Namespace) -> None:
    with _opened(args) as run:
        directory = run.run_stage("collect")
    facts = run.facts("collect")["facts"]
    print(f"{facts['real_steps']} decisions of {run.task.name} in {directory}")
    _report(args, {"task": run.task.name, "directory": directory, **facts})


def _train(args: argparse.Namespace) -> None:
    if args.component not in COMPONENTS:
        raise UsageError(f"unknown component '{args.component}'; choose one of {', '.join(COMPONENTS)}")
    with _opened(args) as run:
        if args.component == "all":
            run.build("evaluate")
            manifest = run.manifest()
            print(report.results_table([manifest]))
            _report(args, manifest)
            return
        directory = run.run_stage(args.component)
        if args.component == "vae":
            run.run_stage("latents")
    print(f"{args.component} of {run.task.name} is in {directory}")
    _report(args, {"task": run.task.name, "directory": directory, **run.facts(args.component)["facts"]})


def _evaluate(args: argparse.Namespace) -> None:
    args.mode = resolve_mode(args.mode, args.task)
    task = task_in(args.mode, args.task)
    if args.episodes < 1:
        raise UsageError(f"--episodes must be at least 1, got {args.episodes}")
    if not 0 <= args.sticky < 1:
        raise UsageError(f"--sticky must be from 0 up to (not including) 1, got {args.sticky}")
    if args.sticky and not task.atari:
        raise UsageError(f"--sticky is for the Atari tasks, {task.name} is none")
    seed = _first_seed(args, task)
    weights: dict[str, str] = {}
    if args.random:
        make_agent = random_maker(task)
    else:
        world_model, controller, weights = _load_agent(args, task)
        make_agent = agent_maker(task, world_model, controller)
    address = args.cluster or load_config(args.budget, task.name, args.config, args.mode).cluster.address
    with cluster.connect(address) as executor:
        result = evaluate(task, make_agent, args.episodes, seed, sticky=args.sticky, executor=executor)
        worked = cluster.report(executor)
    beside = "a simulated score, which has no target" if task.simulated else f"target {task.target:g}"
    print(f"{task.name}: {report.interval(result)} over {args.episodes} episodes; {beside}")
    _report(
        args,
        {"task": task.name, "mode": args.mode, "weights": weights, "sticky": args.sticky, **result, "executor": worked},
    )


def _play(args: argparse.Namespace) -> None:
    args.mode = resolve_mode(args.mode, args.task)
    if args.mode == "simulation":
        raise UsageError("wm play shows the real games only; give --mode full or gym_only")
    task = task_in(args.mode, args.task)
    if args.episodes < 1:
        raise UsageError(f"--episodes must be at least 1, got {args.episodes}")
    if args.output and Path(args.output).suffix not in (".gif", ".mp4"):
        raise UsageError(f"--output must end in .gif or .mp4, got {args.output}")
    seed = _first_seed(args, task)
    world_model, controller, weights = _load_agent(args, task)
    from wm_lib import play

    path = Path(args.output) if args.output else None
    if path is None and not play.has_window():
        path = project_root() / "build" / "play" / f"{task.name}.gif"
    seeds = range(seed, seed + args.episodes)
    returns = play.play(task, world_model, controller, seeds, path, args.dream)
    for number, value in zip(seeds, returns, strict=False):
        print(f"{task.name}, seed {number}: {'dreamt ' if args.dream else ''}return {value:.1f}")
    if path is not None:
        print(f"the film is {path}")
    played = {"seeds": list(seeds)[: len(returns)], "returns": returns, "dream": args.dream, "film": path}
    _report(args, {"task": task.name, "mode": args.mode, "weights": weights, **played})


def _first_seed(args: argparse.Namespace, task: Task) -> int:
    config = load_config(args.budget, task.name, args.config, args.mode)
    seed = config.evaluation.seed if args.seed is None else args.seed
    check_seed(seed)
    return seed


def _load_agent(args: argparse.Namespace, task: Task) -> tuple[WorldModel, Controller, dict[str, str]]:
    """V and M, C, and the sha256 of each file."""
    paths = find_weights(args, task.name)
    controller = Controller.load(paths["controller"])
    if args.mode == "full":
        from wm_lib.models.neural import NeuralWorldModel

        world_model = NeuralWorldModel.load(paths["vae"], paths["mdn_rnn"], controller.meta.get("recent_z", 1))
    else:
        from wm_lib.models.reservoir import Reservoir

        world_model = Reservoir.load(paths["reservoir"])
    return world_model, controller, {path.name: checkpoints.read_meta(path)["sha256"] for path in paths.values()}


def find_weights(args: argparse.Namespace, task: str) -> dict[str, Path]:
    """Where V, M and C of a task are: in --run-dir, or, where none is given, the shipped ones (mode full)."""
    names = ("vae", "mdn_rnn", "controller") if args.mode == "full" else ("reservoir", "controller")
    shipped = project_root() / "assets" / "weights" / task
    nothing_named = args.run_dir == args.budget == "auto" and args.rounds is None and args.mode == "full"
    if nothing_named and (shipped / "controller.safetensors").exists():
        print(f"using the shipped weights in {shipped}")
        return {name: shipped / f"{name}.safetensors" for name in names}
    run = Pipeline.open(task, args.budget, args.run_dir, 0, args.config, rounds=args.rounds, mode=args.mode)
    for name in names:
        run.facts(name)
    return {name: run.directory / name / f"{name}.safetensors" for name in names}


def _course(args: argparse.Namespace) -> None:
    from wm_lib.course.runner import run_course

    budget = resolve_budget(args.budget)
    output = Path(args.output) if args.output else project_root() / "build" / "course" / budget
    if args.publish:
        _publish_course(args, output)
        return
    check_seed(args.seed or 0)
    parameters: dict[str, Any] = {
        "budget": budget,
        "seed": args.seed or 0,
        "run_dir": str(resolve_run_dir(args.run_dir, budget).resolve()),
    }
    if args.task:
        parameters["task"] = get_task(args.task).name
    if args.config:
        raise UsageError("the notebooks take no --config; train with `wm train --config FILE` and give --run-dir")
    for name, value in args.parameter:
        if name in ("task", "budget", "seed", "run_dir"):
            raise UsageError(f"give the notebooks' {name} as --{name.replace('_', '-')} {value}")
        parameters[name] = _literal(value)
    records = run_course(parameters, output)
    print(f"{len(records)} notebooks done in {sum(r['minutes'] for r in records):.0f} minutes: {output / 'index.html'}")
    _report(args, {"parameters": parameters, "notebooks": records})


def _publish_course(args: argparse.Namespace, output: Path) -> None:
    from wm_lib import vet
    from wm_lib.course import expected, minutes

    root = project_root()
    course = expected.read_course(output, root)
    missing = expected.publish(course, output, root)
    try:
        measured = minutes.publish(course, root)
    finally:
        vet.update_twins(root)
    print(f"published: {', '.join(sorted(set(expected.read(root)) - set(missing)))}; minutes of {', '.join(measured)}")
    if missing:
        print(f"not drawn in this run, and left as they were: {', '.join(missing)}")
    _report(args, {"minutes": measured, "figures": expected.read(root), "not_drawn": missing})


def _curriculum(args: argparse.Namespace) -> None:
    from wm_lib import curriculum, curriculum_report
    from wm_lib.course import board

    plan = curriculum.Curriculum.open(args.budget, args.run_dir, args.seed or 0, args.config, args.mode)
    plan = replace(plan, cluster=args.cluster)
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C, so that the child ends with us; unless nohup has them ignored
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    found = curriculum.run(plan, changed=lambda: board.save(plan))
    _report(args, found)
    print(curriculum_report.report_table(found))
    print(f"report: {plan.directory / 'report.html'}")
    if not found["complete"]:
        raise KeyboardInterrupt
    failed = [row["task"] for row in found["stages"] if row["status"] == "failed"]
    if failed:
        raise StageError(f"{', '.join(failed)} failed in every mode; the report says why, the same command tries again")


def _table(args: argparse.Namespace) -> None:
    if args.task:
        _world_model(args)
        return
    folder, mode = resolve_run_dir(args.run_dir, args.budget), resolve_mode(args.mode)
    manifests = report.find_manifests(folder, mode)
    if not manifests:
        option = "" if mode == "full" else f" --mode {mode}"
        raise StageError(f"no scores in {folder}; make one with: wm train --task pong --run-dir {folder}{option}")
    if args.publish and mode != "full":
        raise UsageError(f"only scores of mode full are published, these are of mode {mode}")
    refused: list[str] = []
    if args.publish:
        manifests, refused = report.publish(folder, project_root(), args.force)
    print(report.results_table(manifests))
    _report(args, {"manifests": manifests})
    if refused:
        raise StageError(f"not published: {', '.join(refused)}; --force publishes it all the same")


def _world_model(args: argparse.Namespace) -> None:
    if resolve_mode(args.mode, args.task) != "full":
        raise UsageError("wm report --task examines the VAE and the MDN-RNN of mode full; leave --mode out")
    from wm_lib import examine

    args.force = True  # nothing is built on what is only looked at
    found = examine.examine(_open(args))
    if args.publish:
        checkpoints.write_json(examine.shipped_path(project_root(), found["task"]), found)
    print(examine.tables(found))
    _report(args, found)


def _compare(args: argparse.Namespace) -> None:
    from wm_lib import compare, efficiency

    folder = compare.folder_of(args.task, args.budget, args.run_dir)
    if args.replot:
        found = compare.redraw(folder)
    else:
        first = args.seed or 0
        seeds = range(first, first + args.seeds)
        found = compare.compare(args.task, args.budget, args.run_dir, seeds, args.config, args.force, args.rounds)
    if args.publish:
        compare.publish(folder, project_root())
    print(efficiency.tables(found, efficiency.published(project_root(), found["task"])))
    print(f"\nrows, result and picture are in {folder}")
    _report(args, found)


def _experiment(args: argparse.Namespace) -> None:
    from wm_lib import experiments

    run = Pipeline.open(args.task, args.budget, args.run_dir, args.seed or 0, args.config, args.force, rounds=1)
    run.build("mdn_rnn")
    rows = experiments.experiment(run, args.names)
    print(experiments.table(rows))
    if args.publish:
        print(f"published: {experiments.publish(run, project_root())}")
    _report(args, {"task": run.task.name, "rows": [asdict(row) for row in rows]})


def _bench(args: argparse.Namespace) -> None:
    seed = args.seed or 0
    check_seed(seed)
    result = bench.run_bench(args.names, args.task, budget=args.budget, file=args.config, seed=seed, rounds=args.rounds)
    print(bench.table(result))
    _report(args, result)


def _doctor(args: argparse.Namespace) -> None:
    config = load_config(args.budget, None, args.config).doctor
    if args.imports:
        from wm_lib import import_times

        rows = import_times.measure_imports(timeout_seconds=config.timeout_seconds)
        print(import_times.table(rows))
        _report(args, {"imports": rows})
        return
    diagnosis = doctor.diagnose(
        timeout_seconds=config.timeout_seconds,
        run_dir=resolve_run_dir(args.run_dir, args.budget),
        needed_bytes=doctor.bytes_of_frames(args.budget, args.config),
    )
    print(doctor.table(diagnosis))
    print(f"\n{doctor.summary(diagnosis)}")
    _report(args, diagnosis.to_dict())
    for name in doctor.BASE:
        if not diagnosis.components[name].works:
            raise StageError(f"no mode without {name}: it {diagnosis.components[name].hint}")


def _vet(args: argparse.Namespace) -> None:
    from wm_lib import vet

    findings = vet.vet(project_root(), args.fix)
    for finding in findings:
        print(finding)
    _report(args, {"findings": [asdict(finding) for finding in findings]})
    if findings:
        raise StageError(f"findings: {len(findings)}" + ("" if args.fix else "; some are mended by: wm vet --fix"))
    print("nothing to mend")


def _config(args: argparse.Namespace) -> None:
    task = get_task(args.task).name if args.task else None
    config = load_config(args.budget, task, args.config, resolve_mode(args.mode, task))
    print(yaml.safe_dump(config.to_dict(), sort_keys=False), end="")
    _report(args, {"config": config.to_dict()})


def _literal(text: str) -> Any:
    """A number, a list, True, ... as Python writes it; anything else is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    sys.exit(main())
