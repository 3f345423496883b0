"""How long the notebooks take: measured by a run of the course, kept in `assets`, said in each notebook's head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wm_lib import checkpoints
from wm_lib.config import BUDGETS
from wm_lib.errors import StageError

PATH = Path("assets/manifests/minutes.json")
_LINE = re.compile(r"^# \*Minutes on .*\*$", re.MULTILINE)
_QUESTION = re.compile(r"^# # .*\n# \*\*.*\?\*\*$", re.MULTILINE)  # below the title


def publish(course: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Put the minutes of a finished run of the course beside those of other budgets, and into the notebooks' .py.

    Args:
        course: What `expected.read_course` returns.
        root: The repository.

    Returns:
        All published minutes, as in the file.

    Raises:
        StageError: Some notebook found work done that it would have had to do, or the machine changed on the way, or
            a notebook's head has no place for the line. Nothing is written then.
    """
    notebooks, parameters = course["notebooks"], course["parameters"]
    found_work = [record["name"] for record in notebooks if not record["measured"]]
    if found_work:
        raise StageError(
            f"minutes are not published, {', '.join(found_work)} found work done before; "
            f"in an empty folder everything is measured: wm course --budget {parameters['budget']} --run-dir NEW"
        )
    machines = [record["machine"] for record in notebooks]
    if any(machine != machines[0] for machine in machines):
        raise StageError("minutes are not published, the course went from one machine to another")
    measured = {
        "machine": machines[0],
        "commits": list(dict.fromkeys(record["commit"] for record in notebooks)),  # more than one, where it changed
        "notebooks": {record["name"]: round(record["minutes"], 2) for record in notebooks},
    }
    everything = {**read(root), parameters["budget"]: measured}
    heads = {}
    for record in notebooks:
        script = root / "notebooks" / f"{record['name']}.py"
        heads[script] = with_line(script.read_text(encoding="utf-8"), line(record["name"], everything), script.name)
    checkpoints.write_json(root / PATH, {"schema": 1, **{b: everything[b] for b in BUDGETS if b in everything}})
    for script, text in heads.items():
        script.write_text(text, encoding="utf-8")
    return everything


def read(root: Path) -> dict[str, Any]:
    """What is published: budget -> machine, commits, and notebooks, name -> minutes."""
    if not (root / PATH).exists():
        return {}
    return {budget: found for budget, found in checkpoints.read_json(root / PATH).items() if budget in BUDGETS}


def line(name: str, everything: Mapping[str, Any]) -> str:
    """What a notebook's head says: its minutes at every budget that was measured, the budgets in their order."""
    by_cores: dict[int, list[str]] = {}
    for budget in BUDGETS:
        found = everything.get(budget, {"notebooks": {}})
        if name in found["notebooks"]:
            minutes = max(found["notebooks"][name], 0.1)  # a kernel alone takes seconds
            words = f"{budget} {minutes:.1f}" if minutes < 10 else f"{budget} {minutes:.0f}"
            by_cores.setdefault(found["machine"]["cores"], []).append(words)
    parts = [f"{'two' if cores == 2 else cores} cores: {', '.join(words)}" for cores, words in by_cores.items()]
    return f"*Minutes on {'; on '.join(parts)}.*"


def with_line(text: str, line: str, name: str) -> str:
    """The text of a notebook's .py with this line below its question, in place of an older one.

    Raises:
        StageError: It has no title with a question below it.
    """
    if _LINE.search(text):
        return _LINE.sub(lambda _: f"# {line}", text, count=1)
    question = _QUESTION.search(text)
    if question is None:
        raise StageError(f"{name} has no place for its minutes: a title, and below it a **question?**")
    return f"{text[: question.end()]}\n#\n# {line}{text[question.end() :]}"
