"""What works on this machine, and therefore in which mode the course can be played.

Every component is imported and put to a small real use in a process of its own (`doctor_probes.py`), because one that
hangs or crashes would take us with it. As many compute at a time as there are cores; one that gives no answer for a
while no longer keeps the others waiting. What does not answer within the time-out is ended with all it started. Where
Linux tells, waiting for a core that others hold does not count, so that a training beside us makes nothing hang.

| mode       | plays in          | with the world model of | needs |
|------------|-------------------|-------------------------|-------|
| full       | real environments | torch                   | torch, stable-baselines3, the task's environment |
| gym_only   | real environments | NumPy (the reservoir)   | the task's environment |
| simulation | simulated ones    | NumPy (the reservoir)   | the base install |

The task's environment is Gymnasium with either ale-py, its ROMs and OpenCV (Pong, Breakout) or Box2D, pygame, a frame
drawn without a screen, and OpenCV (LunarLander, CarRacing), so tasks can differ: `Diagnosis.mode_for`. EnvPool may be
missing, Gymnasium takes its place; but where it hangs or crashes nobody can make an environment before it is gone.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from wm_lib.doctor_probes import MARK, PROBES
from wm_lib.errors import UsageError
from wm_lib.processes import TimedProcess
from wm_lib.tasks import FRAME_SIZE, TASKS, Task, get_task

MODES = ("simulation", "gym_only", "full")  # from the least to the most that is needed
TIMEOUT_SECONDS = 15.0
BASE = ("numpy", "cma", "matplotlib")
BRAIN = ("torch", "stable-baselines3")
ATARI = ("gymnasium", "ale-py", "roms", "opencv-python")
BOX2D = ("gymnasium", "box2d", "pygame", "renderer", "opencv-python")
DECIDE = tuple(name for name in PROBES if name in {*BRAIN, *ATARI, *BOX2D, "envpool"})  # the mode
NEEDS = {  # not probed where one of these does not work
    "roms": ("ale-py",),
    "renderer": ("gymnasium", "box2d", "pygame"),
    "stable-baselines3": ("torch", "gymnasium"),
    "bf16": ("torch",),
}
_PROJECT = "world-models-course"
_ROOT = Path(__file__).resolve().parent.parent
_PATIENCE = 1.5  # seconds after which a probe that has not answered no longer holds its place


@dataclass(frozen=True)
class Component:
    """How one component is.

    Attributes:
        status: "ok", "slow", "missing", "wrong_version", "import_error" (or it fails in use), "hang" or "crash".
        seconds: What importing and using it took.
        version: Its version; of disk, memory, cores and bf16 what was found; None where unknown.
        problem: What is wrong, as the rest of a sentence that begins with its name; "" where it is ok.
        command: The one command that mends it; "" where nothing is to be mended.
        imported: Whether the import succeeded.
    """

    status: str
    seconds: float = 0.0
    version: str | None = None
    problem: str = ""
    command: str = ""
    imported: bool = True

    @property
    def works(self) -> bool:
        """Whether it can be used, if slowly."""
        return self.status in ("ok", "slow")

    @property
    def hint(self) -> str:
        """What is wrong and what to type, on one line; "" where it is ok."""
        return f"{self.problem}; type: {self.command}" if self.command else self.problem

    def to_dict(self) -> dict[str, Any]:
        """As in `wm doctor --json`."""
        seconds = round(self.seconds, 3)
        return {"status": self.status, "seconds": seconds, "version": self.version, "hint": self.hint}


@dataclass(frozen=True)
class Diagnosis:
    """Components by name, and what follows from them; the mode needs those in `DECIDE`."""

    components: Mapping[str, Component]

    @property
    def mode(self) -> str:
        """The highest mode that any of the tasks can be played in: "full", "gym_only" or "simulation"."""
        return max(map(self.mode_for, TASKS), key=MODES.index)

    @property
    def reason(self) -> str:
        """One line: why not a higher mode, or which tasks are played in a lower one; "" where nothing is missing."""
        reasons: dict[str, list[str]] = {}
        for task in TASKS:
            reasons.setdefault(self.reason_for(task), []).append(task)
        if len(reasons) == 1:
            return next(iter(reasons))
        return "; ".join(f"{', '.join(tasks)}: {reason}" for reason, tasks in reasons.items() if reason)

    def mode_for(self, task: str | Task) -> str:
        """The highest mode that one task can be played in."""
        return self._mode_and_reason(task)[0]

    def reason_for(self, task: str | Task) -> str:
        """One line: why this task cannot be played in a higher mode; "" for "full"."""
        return self._mode_and_reason(task)[1]

    def to_dict(self) -> dict[str, Any]:
        """As in `wm doctor --json`."""
        return {"mode": self.mode, "components": {name: each.to_dict() for name, each in self.components.items()}}

    def _mode_and_reason(self, task: str | Task) -> tuple[str, str]:
        atari = (task if isinstance(task, Task) else get_task(task)).atari
        envpool = self.components["envpool"]
        # Where it cannot be imported, Gymnasium takes its place; where it can, it is used.
        if envpool.status in ("hang", "crash") or (envpool.status == "import_error" and envpool.imported):
            return "simulation", f"envpool {envpool.problem}: playing in a simulated world"
        for names, mode, instead in (
            (ATARI if atari else BOX2D, "simulation", "playing in a simulated world"),
            (BRAIN, "gym_only", "playing with the NumPy world model"),
        ):
            for name in names:
                if not self.components[name].works:
                    return mode, f"{name} {self.components[name].problem}: {instead}"
        return "full", ""


def detect_mode(timeout_seconds: float = TIMEOUT_SECONDS) -> Diagnosis:
    """Find the mode: its `mode`, `reason` and `components`. Seconds where all is well; a hang costs the time-out."""
    return diagnose(DECIDE, timeout_seconds)


def diagnose(
    names: Iterable[str] = tuple(PROBES),
    timeout_seconds: float = TIMEOUT_SECONDS,
    run_dir: Path = Path(),
    needed_bytes: float = 0,
) -> Diagnosis:
    """Probe components, in parallel.

    Args:
        names: Which, of `PROBES`; what one of them needs is looked at first where it is among them.
        timeout_seconds: For each.
        run_dir: Where a run would write.
        needed_bytes: What it would write there.

    Raises:
        UsageError: The time-out is not positive.
    """
    if not timeout_seconds > 0:
        raise UsageError(f"the time-out must be above 0 seconds, got {timeout_seconds}")
    wanted = [name for name in PROBES if name in set(names)]
    options = json.dumps({"run_dir": str(run_dir), "needed_bytes": needed_bytes})
    waiting, running, found = list(wanted), {}, {}
    try:
        while waiting or running:
            for name in waiting[:]:
                needs = [need for need in NEEDS.get(name, ()) if need in wanted]
                broken = next((need for need in needs if need in found and not found[need].works), None)
                if broken:
                    why = f"needs {broken}, which {found[broken].problem}"
                    found[name] = Component("import_error", 0.0, None, why, found[broken].command, imported=False)
                elif not all(need in found for need in needs):
                    continue
                elif sum(each.own_seconds < _PATIENCE for each in running.values()) >= (os.cpu_count() or 1):
                    break
                else:
                    running[name] = _start(name, options)
                waiting.remove(name)
            for name, process in list(running.items()):
                if process.code is not None or process.is_late(timeout_seconds):
                    found[name] = _end(name, process, timeout_seconds)
                    del running[name]
            time.sleep(0.02)
    finally:  # Ctrl-C too
        for process in running.values():
            process.end()
    return Diagnosis({name: found[name] for name in wanted})


def bytes_of_frames(budget: str = "auto", file: str | Path | None = None) -> int:
    """What the data of all tasks take on the disk."""
    from wm_lib.config import load_config

    configs = [load_config(budget, task, file) for task in TASKS]
    return 3 * FRAME_SIZE**2 * sum(each.collect.num_steps * each.rounds.num_rounds for each in configs)


def _start(name: str, options: str) -> TimedProcess:
    probes = str(Path(__file__).with_name("doctor_probes.py"))
    return TimedProcess([sys.executable, "-P", probes, name, options])


def _end(name: str, process: TimedProcess, timeout_seconds: float) -> Component:
    code, seconds = process.code, process.seconds
    events = [json.loads(line[1:]) for line in process.end() if line.startswith(MARK) and line.endswith("}")]
    return classify(name, events, code, seconds, timeout_seconds)


def classify(
    name: str, events: Sequence[dict[str, Any]], code: int | None, seconds: float, timeout_seconds: float
) -> Component:
    """The verdict on one component.

    Args:
        name: Of `PROBES`.
        events: What its process said.
        code: How that ended: its exit code, minus the signal's number on Linux and macOS, None = it did not end.
        seconds: How long it ran.
        timeout_seconds: How long it was given.
    """
    last = events[-1] if events else {"event": "import"}
    phase = "in use" if any(event["event"] == "use" for event in events) else "on import"
    version = next((event["version"] for event in reversed(events) if event.get("version")), None)
    imported = phase == "in use"

    def verdict(status: str, problem: str) -> Component:
        return Component(status, seconds, version, problem, mend(name, status, problem), imported)

    wrong = _wrong_version(name, version) if imported else ""
    if wrong:
        return verdict("wrong_version", wrong)
    if last["event"] == "done":
        seconds = last["seconds"]
        if last["found"]:
            version, status, problem = last["found"]
            return verdict(status, problem) if problem else Component("ok", seconds, version)
        if seconds > timeout_seconds / 2:
            return verdict("slow", f"took {seconds:.0f} s")
        return Component("ok", seconds, version)
    if last["event"] == "failed":
        seconds, absent = last["seconds"], last["absent"]
        module = PROBES[name][0]
        if last["phase"] == "import" and absent in ("", module, module.split(".")[0]):
            version = None
            return verdict("missing", "is missing")
        fails = "cannot be imported" if last["phase"] == "import" else "fails in use"
        return verdict("import_error", f"{fails} ({last['error']}: {last['text']})")
    if code is None:
        return verdict("hang", f"hangs {phase} ({timeout_seconds:g} s)")
    return verdict("crash", f"crashes {phase} ({_ending(code)})")


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}" if code < 2**31 else f"exit code {code:#x}"  # Windows' own are large
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _wrong_version(name: str, version: str | None) -> str:
    from packaging.version import InvalidVersion, Version  # matplotlib brings it

    wanted = requirements().get(PROBES[name][1])
    try:
        found = Version(version or "")
    except InvalidVersion:  # unknown: it is judged by what it does
        return ""
    if wanted is None or wanted.specifier.contains(found, prereleases=True):
        return ""
    return f"is version {version}, the course needs {wanted.specifier}"


@functools.cache
def requirements() -> dict[str, Any]:
    """Package -> its `packaging` requirement: from the clone's pyproject.toml, else from what was installed."""
    from packaging.requirements import Requirement

    try:
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        try:
            lines = metadata.requires(_PROJECT) or []
        except metadata.PackageNotFoundError:
            lines = []
    return {each.name: each for each in map(Requirement, lines) if each.name != _PROJECT}


def mend(name: str, status: str, problem: str = "") -> str:
    """The one command that mends a component on this platform; "" where none does."""
    windows = sys.platform == "win32"
    if name in ("cores", "memory", "bf16") and status == "slow":
        return ""
    if name in ("disk", "run_dir"):
        return "wm doctor --run-dir FOLDER (one with room that is yours)"
    package = "pygame" if name == "renderer" else PROBES[name][1] or PROBES[name][0]
    if status == "slow" or not package:  # what was read once is in memory the second time
        return "wm doctor"
    if name == "roms" and os.environ.get("ALE_ROMS_DIR"):
        return "Remove-Item Env:ALE_ROMS_DIR" if windows else "unset ALE_ROMS_DIR"
    if name == "kernel" and "registered" in problem:
        return f"{_python()} -m ipykernel install --sys-prefix --name python3"
    if name == "envpool" and status not in ("missing", "wrong_version"):
        return f"{_python()} -m pip uninstall -y envpool"  # Gymnasium takes its place
    if sys.platform == "linux" and "libGL" in problem:
        return "sudo apt-get install -y libgl1"
    wanted = requirements().get(package)
    line = f'"{package}{wanted.specifier if wanted else ""}"'
    if name == "torch" and sys.platform == "linux":  # the small build, see the README
        line += " --extra-index-url https://download.pytorch.org/whl/cpu"
    # What is installed stays where something that it needs is missing: pip then brings that.
    stays = name != "roms" and (status in ("missing", "wrong_version") or "ModuleNotFoundError" in problem)
    again = "" if stays else "--force-reinstall --no-deps "
    return f"{_python()} -m pip install {again}{line}"


def _python() -> str:
    """This Python, as one types it here."""
    path = Path(sys.executable)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    if sys.platform == "win32":
        return f'& "{path}"' if " " in str(path) else str(path)
    return shlex.quote(str(path))


def table(diagnosis: Diagnosis) -> str:
    """Components for people: a word for each status, its figures, and below the table what to type."""
    rows = [("component", "status", "seconds", "version")]
    rows += [(name, c.status, f"{c.seconds:.1f}", c.version or "") for name, c in diagnosis.components.items()]
    lines = [f"{name:<18} {status:<14} {seconds:>7}  {version}".rstrip() for name, status, seconds, version in rows]
    hints = [f"{name} {each.hint}" for name, each in diagnosis.components.items() if each.hint]
    return "\n".join([*lines, *([""] if hints else []), *hints])


def summary(diagnosis: Diagnosis) -> str:
    """The mode, and on the same line why not a higher one."""
    return f"mode: {diagnosis.mode}" + (f" ({diagnosis.reason})" if diagnosis.reason else "")
