"""What each `wm` command does with its arguments, and what it prints."""

from __future__ import annotations

import argparse
import ast
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wm_lib import bench, checkpoints, cluster, doctor, report
from wm_lib.config import load_config, resolve_budget
from wm_lib.control.agent import load_agent
from wm_lib.control.controller import Controller
from wm_lib.errors import StageError, UsageError
from wm_lib.evaluation import agent_maker, evaluate, random_maker
from wm_lib.folders import project_root, resolve_run_dir, shipped_weights
from wm_lib.modes import resolve_mode, task_in
from wm_lib.pipeline import Pipeline
from wm_lib.seeding import check_seed
from wm_lib.tasks import Task, get_task

if TYPE_CHECKING:
    from wm_lib.models.world_model import WorldModel

COMPONENTS = ("vae", "mdn_rnn", "reservoir", "controller", "evaluate", "all")


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


def do_collect(args: argparse.Namespace) -> None:
    with _opened(args) as run:
        directory = run.run_stage("collect")
    facts = run.facts("collect")["facts"]
    print(f"{facts['real_steps']} decisions of {run.task.name} in {directory}")
    _report(args, {"task": run.task.name, "directory": directory, **facts})


def do_train(args: argparse.Namespace) -> None:
    if args.component not in COMPONENTS:
        raise UsageError(f"unknown component '{args.component}'; choose one of {', '.join(COMPONENTS)}")
    with _opened(args) as run:
        if args.component == "all":
            run.build("evaluate")
        else:
            directory = run.run_stage(args.component)
        if args.component in ("all", "evaluate"):
            manifest = run.manifest()
            print(report.results_table([manifest]))
            _report(args, manifest)
            return
        if args.component == "vae":
            run.run_stage("latents")
    print(f"{args.component} of {run.task.name} is in {directory}")
    _report(args, {"task": run.task.name, "directory": directory, **run.facts(args.component)["facts"]})


def do_evaluate(args: argparse.Namespace) -> None:
    args.mode = resolve_mode(args.mode, args.task)
    task = task_in(args.mode, args.task)
    if args.episodes < 1:
        raise UsageError(f"--episodes must be at least 1, got {args.episodes}")
    if not 0 <= args.sticky < 1:
        raise UsageError(f"--sticky must be from 0 up to (not including) 1, got {args.sticky}")
    if args.sticky and not task.atari:
        raise UsageError(f"--sticky is for the Atari tasks, {task.name} is none")
    if args.publish and args.mode != "full":
        raise UsageError(f"only scores of mode full are published, this is mode {args.mode}")
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
    if args.publish:
        name = "random_score" if args.random else "sticky_score" if args.sticky else "score"
        report.publish_score(project_root(), task.name, name, result, weights)
    _report(
        args,
        {"task": task.name, "mode": args.mode, "weights": weights, "sticky": args.sticky, **result, "executor": worked},
    )


def do_play(args: argparse.Namespace) -> None:
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
    world_model, controller = load_agent(paths)
    return world_model, controller, {path.name: checkpoints.read_meta(path)["sha256"] for path in paths.values()}


def find_weights(args: argparse.Namespace, task: str) -> dict[str, Path]:
    """Where V, M and C of a task are: in --run-dir, or, where none is given, the shipped ones (mode full)."""
    nothing_named = args.run_dir == args.budget == "auto" and args.rounds is None and args.mode == "full"
    if nothing_named and (shipped := shipped_weights(project_root(), task)):
        print(f"using the shipped weights in {shipped['controller'].parent}")
        return shipped
    names = ("vae", "mdn_rnn", "controller") if args.mode == "full" else ("reservoir", "controller")
    run = Pipeline.open(task, args.budget, args.run_dir, 0, args.config, rounds=args.rounds, mode=args.mode)
    for name in names:
        run.facts(name)
    return {name: run.weights(name) for name in names}


def do_course(args: argparse.Namespace) -> None:
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


def do_curriculum(args: argparse.Namespace) -> None:
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


def do_table(args: argparse.Namespace) -> None:
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
    from wm_lib import examine, examine_report

    args.force = True  # nothing is built on what is only looked at
    found = examine.examine(_open(args))
    if args.publish:
        examine_report.publish(found, project_root())
    print(examine_report.tables(found))
    _report(args, found)


def do_compare(args: argparse.Namespace) -> None:
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
    print(efficiency.tables(found, report.published(project_root(), found["task"])))
    print(f"\nrows, result and picture are in {folder}")
    _report(args, found)


def do_experiment(args: argparse.Namespace) -> None:
    from wm_lib import experiments

    run = Pipeline.open(args.task, args.budget, args.run_dir, args.seed or 0, args.config, args.force, rounds=1)
    run.build("mdn_rnn")
    rows = experiments.experiment(run, args.names)
    print(experiments.table(rows))
    if args.publish:
        print(f"published: {experiments.publish(run, project_root())}")
    _report(args, {"task": run.task.name, "rows": [asdict(row) for row in rows]})


def do_bench(args: argparse.Namespace) -> None:
    seed = args.seed or 0
    check_seed(seed)
    result = bench.run_bench(args.names, args.task, budget=args.budget, file=args.config, seed=seed, rounds=args.rounds)
    print(bench.table(result))
    _report(args, result)


def do_doctor(args: argparse.Namespace) -> None:
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


def do_vet(args: argparse.Namespace) -> None:
    from wm_lib import vet

    findings = vet.vet(project_root(), args.fix)
    for finding in findings:
        print(finding)
    _report(args, {"findings": [asdict(finding) for finding in findings]})
    if findings:
        raise StageError(f"findings: {len(findings)}" + ("" if args.fix else "; some are mended by: wm vet --fix"))
    print("nothing to mend")


def do_config(args: argparse.Namespace) -> None:
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
