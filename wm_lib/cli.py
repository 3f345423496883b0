"""The `wm` command. Exit codes: 0 done, 1 a stage failed, 2 bad arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from safetensors import SafetensorError

from wm_lib import bench, commands
from wm_lib.config import BUDGETS, MODES
from wm_lib.errors import StageError, UsageError
from wm_lib.tasks import TASKS


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
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, parents=[common], help=text, description=text)
        added.set_defaults(run=run)
        return added

    tasks = f"{' | '.join(TASKS)}, or an environment id"
    collect = command(
        "collect", commands.do_collect, "Play the task with exploring random actions and keep the frames."
    )
    collect.add_argument("--task", required=True, metavar="T", help=tasks)
    train = command("train", commands.do_train, "Train a part of the agent, or all of it, and measure it.")
    train.add_argument("--task", required=True, metavar="T", help=tasks)
    train.add_argument(
        "--component", default="all", metavar="C", help=f"{' | '.join(commands.COMPONENTS)} (default: all)"
    )
    versus = command(
        "compare",
        commands.do_compare,
        "Train our agent and PPO from pixels side by side and say how many real decisions each of them takes.",
    )
    versus.add_argument("--task", required=True, metavar="T", help=tasks)
    versus.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each agent (default: 3)")
    versus.add_argument("--replot", action="store_true", help="compute and draw the result again, train nothing")
    versus.add_argument("--publish", action="store_true", help="copy the result to assets/manifests/compare")
    trial = command(
        "experiment",
        commands.do_experiment,
        "Change one thing about C at a time, on the V and M of a run: what it sees, its size, how and where it learns.",
    )
    trial.add_argument("names", nargs="*", metavar="NAME", help="features | size | method | world | temperature")
    trial.add_argument("--task", required=True, metavar="T", help=tasks)
    trial.add_argument("--publish", action="store_true", help="copy the rows to assets/manifests/experiments")
    for trains in (collect, train, versus, trial):
        trains.add_argument("--force", action="store_true", help="go on where a gate failed; scores say so")
    score = command(
        "evaluate",
        commands.do_evaluate,
        "Measure an agent in Gymnasium's own environment: of --run-dir, else of the shipped weights.",
    )
    score.add_argument("--task", required=True, metavar="T", help=tasks)
    score.add_argument("--episodes", type=int, default=100, metavar="N", help="episodes (default: 100)")
    score.add_argument("--sticky", type=float, default=0.0, metavar="P", help="Atari: sticky actions (default: 0)")
    score.add_argument("--random", action="store_true", help="measure random play instead of an agent")
    score.add_argument("--publish", action="store_true", help="put it into the manifest of the shipped weights")
    watch = command(
        "play",
        commands.do_play,
        "Watch an agent, of --run-dir, else the shipped one: in a window, or without a screen on film.",
    )
    watch.add_argument("--task", required=True, metavar="T", help=tasks)
    watch.add_argument("--episodes", type=int, default=1, metavar="N", help="games (default: 1)")
    watch.add_argument("--output", metavar="FILE", help=".gif (the first 20 seconds) or .mp4 (everything)")
    watch.add_argument("--dream", action="store_true", help="let it play in its own dream")
    course = command(
        "course", commands.do_course, "Run all notebooks in order with papermill and make an index of them."
    )
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
        commands.do_curriculum,
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
        commands.do_table,
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
    speed = command(
        "bench", commands.do_bench, "Measure how fast the parts are, beside plain ways of doing the same work."
    )
    speed.add_argument("names", nargs="*", metavar="NAME", help=f"{' | '.join(bench.BENCHES)} (default: all)")
    speed.add_argument("--task", metavar="T", help=f"{tasks} (default: car-racing; dream_step: the worst of all)")
    speed.add_argument("--rounds", type=int, default=5, metavar="N", help="times both sides take turns (default: 5)")
    health = command(
        "doctor", commands.do_doctor, "Find out what works on this machine, what mends the rest, and the mode."
    )
    health.add_argument("--imports", action="store_true", help="measure imports beside their budgets instead")
    review = command(
        "vet", commands.do_vet, "Review the repository: code, notebooks, spelling, links, alt texts, README's table."
    )
    review.add_argument("--fix", action="store_true", help="first mend what can be mended safely")
    config = command("config", commands.do_config, "Print every setting of a budget as YAML.")
    config.add_argument("--task", metavar="T", help=tasks)
    config.add_argument("--show", action="store_true", help="print it (the default)")
    for in_a_mode in (collect, train, score, watch, table, config):
        text = f"{' | '.join(MODES)}; auto: what this machine has (default: full)"
        in_a_mode.add_argument("--mode", default="full", metavar="M", help=text)
    return parser  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
