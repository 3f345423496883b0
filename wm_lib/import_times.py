"""How long importing takes, and what it brings: each module in a fresh interpreter, beside its budget.

`wm_lib` itself and all that works without torch must be quick, because every `wm` command and every notebook begins
with it. Seconds depend on the machine and on what else it does; whether torch comes along does not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wm_lib.doctor import TIMEOUT_SECONDS
from wm_lib.doctor_probes import PROBES
from wm_lib.events import Progress
from wm_lib.processes import TimedProcess

HEAVY = {"torch", "gymnasium", "envpool", "ale_py", "stable_baselines3"}
# What works with the base install alone.
NUMPY_PATH = tuple(
    f"wm_lib.{name}"
    for name in (
        "errors seeding tasks settings config rows checkpoints events rollouts evaluation pipeline cli commands "
        "control.controller control.agent control.evolution models.reservoir worlds.simulation "
        "cluster curriculum compare efficiency experiments doctor processes import_times vet"
    ).split()
)
BUDGETS = {"wm_lib": 0.3, **dict.fromkeys(NUMPY_PATH, 1.0)}  # seconds
_PACKAGE = Path(__file__).resolve().parent
_PROGRAM = """
import importlib, json, sys, time
start = time.perf_counter()
importlib.import_module(sys.argv[1])
seconds = time.perf_counter() - start
print("\\n" + json.dumps([seconds, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def every_module() -> list[str]:
    """The modules of the components that `wm doctor` probes, then those of `wm_lib`."""
    components = dict.fromkeys(module for module, _, _ in PROBES.values() if module)
    ours = [path.relative_to(_PACKAGE.parent).with_suffix("") for path in sorted(_PACKAGE.rglob("*.py"))]
    return [*components, *(".".join(path.parts).removesuffix(".__init__") for path in ours)]


def measure_imports(
    modules: Iterable[str] | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> list[dict[str, Any]]:
    """Import modules, one after another, each in a fresh interpreter.

    Returns:
        One row each: `module`, `seconds` (None where it cannot be imported), `budget` (seconds, None = none), `heavy`
        (the packages of `HEAVY` that came along), `status`: "ok"; "over" its budget in seconds; "heavy" where it
        brings a heavy package against its budget; "failed".
    """
    names = every_module() if modules is None else list(modules)
    rows = []
    with Progress("imports", len(names), "module") as progress:
        for name in names:
            rows.append(_measure(name, timeout_seconds))
            progress.update(1)
    return rows


def _measure(module: str, timeout_seconds: float) -> dict[str, Any]:
    budget = BUDGETS.get(module)
    paths = [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # this wm_lib, no other
    process = TimedProcess([sys.executable, "-P", "-c", _PROGRAM, module], PYTHONPATH=os.pathsep.join(paths))
    try:
        while process.code is None and not process.is_late(timeout_seconds):
            time.sleep(0.02)
        code = process.code
    finally:
        said = [line for line in process.end() if line]
    if code != 0 or not said:
        return {"module": module, "seconds": None, "budget": budget, "heavy": [], "status": "failed"}
    seconds, brought = json.loads(said[-1])
    heavy = sorted(HEAVY & set(brought))
    status = "ok" if budget is None else "heavy" if heavy else "over" if seconds > budget else "ok"
    return {"module": module, "seconds": round(seconds, 3), "budget": budget, "heavy": heavy, "status": status}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [f"{'module':<30} {'seconds':>7} {'budget':>7}  status  brings"]
    for row in rows:
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.2f}"
        budget = "" if row["budget"] is None else f"{row['budget']:.1f}"
        brings = ", ".join(row["heavy"])
        lines.append(f"{row['module']:<30} {seconds:>7} {budget:>7}  {row['status']:<6}  {brings}".rstrip())
    return "\n".join(lines)
