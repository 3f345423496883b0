"""A small clone with one fault after another; what is planted is found in its line, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest

from wm_lib import checkpoints, cli, efficiency, report, vet
from wm_lib.errors import StageError, UsageError

ROOT = Path(vet.__file__).parent.parent
NOTEBOOK = """\
# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 Title
# **A question?** See [the README](../README.md#title) and [this](00_a.py).
#
# ## Goals

# %% tags=["parameters"]
task: str = "pong"  # a comment
seed: int = 0

# %%
# ![](no.png) is code here
x = [1][0]
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone in which there is nothing to mend."""
    for folder in ("notebooks", "docs", "wm_lib", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\nline-length = 120\n")
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\n" + "\n".join((*report.marks("results"), *report.marks("comparison"))))
    report.put_table(readme, "results", report.results_table([]))
    report.put_table(readme, "comparison", efficiency.overview([]))
    (tmp_path / "docs" / "a.md").write_text(
        "# A\n\n```\n#### not a heading, [nor](a-link)\n```\n`[no](link)`\n\n## B\n"
    )
    (tmp_path / "wm_lib" / "module.py").write_text("x = 1\n")
    write_twins(tmp_path, NOTEBOOK)
    return tmp_path


def write_twins(clone: Path, text: str) -> None:
    script = clone / "notebooks" / "00_a.py"
    script.write_text(text, encoding="utf-8")
    jupytext.write(jupytext.read(script), script.with_suffix(".ipynb"))


def told(clone: Path) -> list[str]:
    return [str(finding) for finding in vet.vet(clone)]


def test_there_is_nothing_to_mend_in_this_repository() -> None:
    assert told(ROOT) == []


def test_there_is_nothing_to_mend_in_a_good_clone(clone: Path) -> None:
    assert told(clone) == []


# --- Prose, the same in documents and notebooks


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[gone](nowhere.md)", "link to nowhere.md, which does not exist"),
        ('[gone](nowhere.md#part "with a title")', "link to nowhere.md#part, which does not exist"),
        ('<a href="nowhere.md">', "link to nowhere.md, which does not exist"),
        ("#### Too deep", "heading 'Too deep' is of level 4, after one of level 2"),
        ("# Again", "'Again' is a second title"),
        ("![](a.png)", "picture a.png has no alternative text"),
        ('<img src="a.png">', "picture <img> has no alternative text"),
        ('<img alt=" " src="a.png">', "picture <img> has no alternative text"),
    ],
)
def test_faults_of_prose(clone: Path, line: str, message: str) -> None:
    for folder in ("docs", "notebooks"):
        (clone / folder / "a.png").write_bytes(b"")
    with (clone / "docs" / "a.md").open("a") as file:
        file.write(f"\n{line}\n")
    write_twins(clone, NOTEBOOK.replace("# ## Goals\n", f"# ## Goals\n# {line}\n"))
    assert told(clone) == [f"notebooks/00_a.py:16: {message}", f"docs/a.md:10: {message}"]


@pytest.mark.parametrize(
    "line",
    [
        "[there](../README.md#part)",
        "[out](https://example.org/x) <mailto:a@example.org> [here](#part)",
        "![a ball](a.png)",
        '<img src="a.png" alt="a ball">',
        "`![](nowhere.png)`",
        "### One deeper",
    ],
)
def test_good_prose(clone: Path, line: str) -> None:
    (clone / "docs" / "a.png").write_bytes(b"")
    with (clone / "docs" / "a.md").open("a") as file:
        file.write(f"\n{line}\n")
    assert told(clone) == []


def test_a_document_without_a_heading(clone: Path) -> None:
    (clone / "docs" / "b.md").write_text("Only words.\n")
    assert told(clone) == ["docs/b.md:1: has no heading"]


# --- Notebooks


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('# %% tags=["parameters"]', "# %%", "1: 0 cells are tagged 'parameters', papermill wants one"),
        ("seed: int = 0", "seed: int = 1 + 1", "19: the cell of parameters holds only `name: type = constant`"),
        ("seed: int = 0", "seed = 0", "19: the cell of parameters holds only `name: type = constant`"),
        ("seed: int = 0", "import os", "19: the cell of parameters holds only `name: type = constant`"),
    ],
)
def test_faults_of_parameters(clone: Path, old: str, new: str, message: str) -> None:
    write_twins(clone, NOTEBOOK.replace(old, new))
    assert f"notebooks/00_a.py:{message}" in told(clone)


def test_parameters_that_are_not_python(clone: Path) -> None:
    script = clone / "notebooks" / "00_a.py"
    script.write_text(NOTEBOOK.replace("seed: int = 0", "seed: int ="))
    (finding,) = vet.parameters("00_a.py", script)
    assert finding.line == 19 and "not Python" in finding.message


def test_a_twin_that_is_missing_or_was_left_behind(clone: Path) -> None:
    script = clone / "notebooks" / "00_a.py"
    script.write_text(NOTEBOOK.replace("[1][0]", "[2][0]"))
    (finding,) = told(clone)
    assert finding.startswith("notebooks/00_a.py:1: cell 2: ") and "[2][0]" in finding and "wm vet --fix" in finding
    script.with_suffix(".ipynb").unlink()
    assert told(clone) == ["notebooks/00_a.py:1: has no .ipynb; type: wm vet --fix"]


def with_outputs(clone: Path) -> Path:
    path = clone / "notebooks" / "00_a.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    notebook.cells[2].execution_count = 1
    nbformat.write(notebook, path)
    return path


def test_outputs_are_found(clone: Path) -> None:
    with_outputs(clone)
    assert told(clone) == ["notebooks/00_a.ipynb:1: cell 2 holds outputs; type: wm vet --fix"]


# --- Spelling


def test_a_misspelt_word_is_found_wherever_it_stands(clone: Path) -> None:
    wrong = "recie" + "ve"
    (clone / "README.md").write_text((clone / "README.md").read_text() + f"\nYou {wrong} it.\n")
    (clone / "CONTRIBUTING.md").write_text(f"# Title\n{wrong.capitalize()} colour and behaviour.\n")
    (clone / "docs" / "a.md").write_text(f"# A\n\n{wrong}\n")
    (clone / "wm_lib" / "inner").mkdir()
    (clone / "wm_lib" / "inner" / "module.py").write_text(f'def f() -> None:\n    """To {wrong}."""\n')
    write_twins(clone, NOTEBOOK.replace("# ## Goals\n", f"# ## Goals\n# {wrong}\n"))
    lines = len((clone / "README.md").read_text().splitlines())
    places = [
        "CONTRIBUTING.md:2",
        f"README.md:{lines}",
        "docs/a.md:3",
        "notebooks/00_a.py:16",
        "wm_lib/inner/module.py:2",
    ]
    words = [wrong.capitalize() if place.startswith("CONTR") else wrong for place in places]
    assert sorted(told(clone)) == [
        f"{place}: '{word}' is misspelt: {word.replace('ie', 'ei')}" for place, word in zip(places, words, strict=True)
    ]


def test_words_of_ours_are_left_alone(clone: Path) -> None:
    (clone / "docs" / "a.md").write_text("# A\n\nA fooo.\nThe coleague.\n")
    assert told(clone) == ["docs/a.md:4: 'coleague' is misspelt: colleague"]
    with (clone / "pyproject.toml").open("a") as file:
        file.write('[tool.codespell]\nignore-words-list = "coleague"\n')
    assert told(clone) == []


# --- Code and results


def test_faults_of_code_come_from_ruff(clone: Path) -> None:
    (clone / "wm_lib" / "module.py").write_text("x = 1\nimport os\nprint( x)\n")
    found = told(clone)
    assert "wm_lib/module.py:2: F401: `os` imported but unused" in found
    assert [line.split(": ")[0] for line in found if "unformatted" in line] == ["wm_lib/module.py:3"]


def test_the_readme_has_the_tables_of_the_manifests(clone: Path) -> None:
    score = {"mean": 1.0, "ci95": [0.0, 2.0], "episodes": 2}
    manifest = {"task": "pong", "target": 18, "score": score, "random_score": score, "minutes": {"vae": 1}}
    manifest |= {"real_steps": {"total": 3}, "rounds": 1, "command": "", "failed_gates": []}
    checkpoints.write_json(clone / "assets" / "manifests" / "pong.json", manifest)
    (finding,) = told(clone)
    assert finding.startswith("README.md:3: the table is not that of assets/manifests")
    assert vet.vet(clone, fix=True) == []
    table = report.results_table(report.find_manifests(clone / "assets" / "manifests"))
    assert report.table_in((clone / "README.md").read_text(), "results") == table
    report.put_table(clone / "README.md", "comparison", "| by hand |")
    (finding,) = told(clone)
    assert finding.endswith("the table is not that of assets/manifests; type: wm vet --fix")
    (clone / "README.md").write_text("# Title\n")
    assert [finding.partition(", ")[0] for finding in told(clone)] == [
        "README.md:1: has no place for the table of the results",
        "README.md:1: has no place for the table of the comparison",
    ]


# --- Mending, and the command


def test_fix_mends_what_is_safe_and_leaves_the_rest(clone: Path) -> None:
    (clone / "wm_lib" / "module.py").write_text("import os\nx = [ 1]\nprint(y)\n")
    script = clone / "notebooks" / "00_a.py"
    path = with_outputs(clone)
    ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
    script.write_text(NOTEBOOK.replace("[1][0]", "[2][0]").replace("## Goals", "## Goals [x](gone.md)"))
    assert [str(finding) for finding in vet.vet(clone, fix=True)] == [
        "wm_lib/module.py:2: F821: Undefined name `y`",
        "notebooks/00_a.py:15: link to gone.md, which does not exist",
    ]
    assert (clone / "wm_lib" / "module.py").read_text() == "x = [1]\nprint(y)\n"
    mended = nbformat.read(path, as_version=4)
    assert "[2][0]" in mended.cells[2].source and mended.cells[2].outputs == []
    assert [cell.id for cell in mended.cells] == ids


def test_the_command_prints_findings_and_fails_where_there_are_any(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(clone)
    assert cli.main(["vet", "--json", "vet.json"]) == 0
    assert capsys.readouterr().out == "nothing to mend\n"
    assert checkpoints.read_json(clone / "vet.json") == {"schema": 1, "findings": []}
    (clone / "docs" / "a.md").write_text("# A\n[x](gone.md)\n")
    assert cli.main(["vet", "--json", "vet.json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "docs/a.md:2: link to gone.md, which does not exist\n"
    assert captured.err == "wm: findings: 1; some are mended by: wm vet --fix\n"
    assert checkpoints.read_json(clone / "vet.json")["findings"] == [
        {"path": "docs/a.md", "line": 2, "message": "link to gone.md, which does not exist"}
    ]


def test_outside_of_a_clone_and_without_a_tool(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = clone / "planted" / "ruff"
    planted.mkdir(parents=True)
    (planted / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(planted.parent))
    with pytest.raises(StageError, match="ruff failed: .*; if it is missing, type: pip install"):
        vet.vet(clone)
    shutil.rmtree(clone / "notebooks")
    with pytest.raises(UsageError, match="no notebooks in"):
        vet.vet(clone)
