"""What is promised of every notebook, without running it: twins agree, the anatomy is whole, links lead somewhere."""

import ast
import re
from pathlib import Path

import jupytext
import nbformat
import papermill
import pytest

from wm_lib import vet
from wm_lib.config import BUDGETS
from wm_lib.tasks import TASKS

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = """00_start_here 01_diagnostics 02_data_collection 03_vae 04_mdn_rnn 05_controller 06_dream 07_curriculum
08_results""".split()


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def notebook(name):
    """The .ipynb."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def markdown(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def headings(notebook):
    """(level, text) of every heading."""
    found = []
    for source in markdown(notebook):
        found += [(len(m[1]), m[2].strip()) for m in re.finditer(r"^(#+) (.+)$", source, re.MULTILINE)]
    return found


def test_these_are_all_notebooks_and_each_has_a_twin():
    for suffix in (".py", ".ipynb"):
        assert sorted(path.stem for path in FOLDER.glob(f"*{suffix}")) == NAMES


def test_vet_finds_nothing(name):
    """Equal twins, no outputs, one cell of plain parameters, links that lead somewhere, no level of heading skipped."""
    assert [str(finding) for finding in vet.notebook(FOLDER.parent, FOLDER / f"{name}.py")] == []


def test_drift_is_noticed():
    script = jupytext.read(FOLDER / "00_start_here.py")
    for change in ("source", "type", "tags", "cell"):
        drifted = jupytext.read(FOLDER / "00_start_here.py")
        if change == "source":
            drifted.cells[-1].source += "."
        elif change == "type":
            drifted.cells[0].cell_type = "raw"
        elif change == "tags":
            drifted.cells[2].metadata["tags"] = []
        else:
            drifted.cells.pop()
        assert vet.difference(script, drifted), change
    assert not vet.difference(script, jupytext.read(FOLDER / "00_start_here.py"))


def test_ipynb_is_valid(notebook):
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_headers_are_small_and_name_the_kernel(name, notebook):
    assert set(notebook.metadata) <= {"jupytext", "kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.jupytext.formats == "ipynb,py:percent"
    header = (FOLDER / f"{name}.py").read_text(encoding="utf-8").split("# ---\n")[1]
    assert "name: python3" in header and "jupytext_version:" not in header
    assert "jupytext_version" not in str(notebook.metadata.jupytext.get("text_representation", ""))


def test_papermill_reads_the_four_parameters(name):
    parameters = papermill.inspect_notebook(str(FOLDER / f"{name}.ipynb"))
    defaults = {key: ast.literal_eval(value["default"]) for key, value in parameters.items()}
    assert defaults == {"task": "car-racing", "budget": "auto", "seed": 0, "run_dir": "auto"}
    assert all(value["help"] for value in parameters.values())
    for words, known in ((parameters["task"]["help"], TASKS), (parameters["budget"]["help"], BUDGETS)):
        assert all(word in words for word in known)


def test_setup_follows_the_parameters(notebook):
    cells = code(notebook)
    assert "parameters" in cells[0].metadata["tags"]
    assert "run = Pipeline.open(task, budget, run_dir, seed)" in cells[1].source.splitlines()


def test_one_title_with_its_number_and_one_question(name, notebook):
    assert headings(notebook)[0][1].startswith(name[:2])
    question = markdown(notebook)[0].splitlines()[1]
    assert question.startswith("**") and question.endswith("?**")


def test_sections_come_in_their_order(notebook):
    second = [text for level, text in headings(notebook) if level == 2]
    assert second[:4] == ["Goals", "Before you start", "Parameters", "Setup"]
    assert second[-2:] == ["Summary", "Next"]
    numbered = [int(re.match(r"\d+", text)[0]) for text in second[4:-2]]
    assert numbered == list(range(1, len(numbered) + 1)) and numbered


def test_readers_predict_before_they_run_and_get_an_explanation(notebook):
    for word in ("**Predict.**", "**Explain.**"):
        assert sum(source.count(word) for source in markdown(notebook)) >= 2, word


def test_the_last_cell_says_what_is_next(name, notebook):
    after = (NAMES * 2)[NAMES.index(name) + 1]
    assert f"({after}.ipynb)" in markdown(notebook)[-1].split("## Next")[1]


def test_code_compiles_and_every_figure_has_a_text_beside_it(notebook):
    """A cell that ends in a figure, or the one before it, prints what it shows; a film brings its own description."""
    cells = code(notebook)
    for before, cell in zip(cells[:-1], cells[1:], strict=True):
        compile(cell.source, "cell", "exec")
        last = ast.parse(cell.source).body[-1]
        if isinstance(last, ast.Expr) and ast.unparse(last).startswith(("plots.", "figure")):
            told = "print(" in cell.source + before.source or "films.film(" in ast.unparse(last)
            assert told, f"nothing says in words what this shows: {cell.source[-80:]}"


def test_every_widget_leaves_a_picture(notebook):
    for cell in code(notebook):
        if re.search(r"\b(widgets\.\w+|\w+\.widget)\(", cell.source):
            assert "widgets.show(" in cell.source, cell.source


def test_no_cell_is_longer_than_a_screen(notebook):
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 45
