"""The minutes in the notebooks' heads are those that a run of the course measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wm_lib import checkpoints
from wm_lib.config import BUDGETS
from wm_lib.course import minutes
from wm_lib.errors import StageError

ROOT = Path(minutes.__file__).parent.parent.parent
NOTEBOOK = '# %% [markdown]\n# # 00 Title\n# **A question?**\n#\n# Words.\n\n# %%\n"*Minutes on nothing*"\n'


@pytest.mark.parametrize("script", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_each_head_says_what_was_measured(script: Path) -> None:
    """Read back without the function that wrote it."""
    published = checkpoints.read_json(ROOT / "assets" / "manifests" / "minutes.json")
    text = script.read_text(encoding="utf-8")
    title, question, blank, said = text.split("# %% [markdown]\n")[1].splitlines()[:4]
    assert title.startswith(f"# # {script.stem[:2]}") and question.endswith("?**") and blank == "#"
    told = {budget: float(number) for budget, number in re.findall(r"([a-z]+) (\d+(?:\.\d)?)", said.partition(":")[2])}
    measured = {budget: published[budget]["notebooks"][script.stem] for budget in BUDGETS if budget in published}
    assert told.keys() == measured.keys() and measured
    for budget, number in told.items():
        assert number == pytest.approx(max(measured[budget], 0.1), abs=0.051 if number < 10 else 0.51)
    assert text.count("*Minutes on") == 1


def a_course(budget: str = "smoke", cores: int = 2, **minutes_of: float) -> dict:
    """As `expected.read_course` returns it."""
    facts = {"measured": True, "commit": "abc", "machine": {"system": "Linux", "processor": "x", "cores": cores}}
    notebooks = [{"name": name, "minutes": number, **facts} for name, number in minutes_of.items()]
    return {"parameters": {"budget": budget}, "notebooks": notebooks}


def a_clone(folder: Path) -> Path:
    (folder / "notebooks").mkdir()
    for name in ("a", "b"):
        (folder / "notebooks" / f"{name}.py").write_text(NOTEBOOK)
    return folder


def heads(root: Path) -> list[str]:
    return [(root / "notebooks" / f"{name}.py").read_text().splitlines()[4] for name in ("a", "b")]


def test_one_budget_after_another_stands_in_the_heads(tmp_path: Path) -> None:
    root = a_clone(tmp_path)
    minutes.publish(a_course("laptop", a=12.345, b=0.01), root)
    assert heads(root) == ["# *Minutes on two cores: laptop 12.*", "# *Minutes on two cores: laptop 0.1.*"]
    minutes.publish(a_course("smoke", a=0.26, b=1.0), root)
    assert heads(root) == [
        "# *Minutes on two cores: smoke 0.3, laptop 12.*",
        "# *Minutes on two cores: smoke 1.0, laptop 0.1.*",
    ]
    minutes.publish(a_course("laptop", cores=8, a=5.04, b=3.0), root)
    assert heads(root)[0] == "# *Minutes on two cores: smoke 0.3; on 8 cores: laptop 5.0.*"
    text = (root / "notebooks" / "a.py").read_text()
    assert text.replace(f"{heads(root)[0]}\n#\n", "") == NOTEBOOK  # and nothing else was touched
    kept = checkpoints.read_json(root / minutes.PATH)
    assert list(kept) == ["schema", "smoke", "laptop"] and kept["schema"] == 1
    assert kept["laptop"]["notebooks"] == {"a": 5.04, "b": 3.0}
    assert kept["smoke"]["machine"]["cores"] == 2 and kept["smoke"]["commits"] == ["abc"]


def test_what_was_not_measured_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    root, course = a_clone(tmp_path), a_course(a=1.0, b=2.0)
    course["notebooks"][1]["measured"] = False
    with pytest.raises(StageError, match="not published, b found work done before; .*wm course --budget smoke"):
        minutes.publish(course, root)
    course = a_course(a=1.0, b=2.0)
    course["notebooks"][1]["machine"] = {"cores": 64}
    with pytest.raises(StageError, match="from one machine to another"):
        minutes.publish(course, root)
    (root / "notebooks" / "b.py").write_text("# # A title\n# No question.\n")
    with pytest.raises(StageError, match="b.py has no place for its minutes"):
        minutes.publish(a_course(a=1.0, b=2.0), root)
    assert (root / "notebooks" / "a.py").read_text() == NOTEBOOK and not (root / minutes.PATH).exists()


def test_every_commit_of_a_run_is_named_once(tmp_path: Path) -> None:
    course = a_course(a=1.0, b=2.0)
    course["notebooks"][0]["commit"] = "before"
    assert minutes.publish(course, a_clone(tmp_path))["smoke"]["commits"] == ["before", "abc"]
