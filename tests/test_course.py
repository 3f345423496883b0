import re
from pathlib import Path

import nbformat
import pytest

from wm_lib import cli
from wm_lib.course import runner
from wm_lib.course.runner import find_notebooks, run_course
from wm_lib.errors import StageError, UsageError

PARAMETERS = 'task: str = "pong"\nseed: int = 0\nrate: float = 0.5'
NAMES = ["00_first", "01_second", "02_third"]


def write_notebook(folder: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> None:
    """A notebook with a parameters cell and then these."""
    first = nbformat.v4.new_code_cell(parameters, id="cell-0", metadata={"tags": ["parameters"]})
    others = [nbformat.v4.new_code_cell(cell, id=f"cell-{i}") for i, cell in enumerate(cells, 1)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[first, *others], metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")


def output_of(path: Path) -> str:
    """Everything an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(part.get("text", "") for cell in cells if cell.cell_type == "code" for part in cell.outputs)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A repository of two notebooks, seen from its notebooks' folder."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    for name in NAMES[:2]:
        write_notebook(tmp_path, name, "print('ran with', task, seed)")
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


@pytest.fixture
def executed(monkeypatch) -> list[tuple[str, dict]]:
    """Replace execution by a copy of the notebook; the list fills with names and parameters."""
    import papermill

    log: list[tuple[str, dict]] = []

    def execute(source: str, target: str, parameters: dict, **options) -> None:
        log.append((Path(source).stem, parameters))
        Path(target).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    monkeypatch.setattr(runner, "_to_html", lambda path: path.with_suffix(".html").write_text("<p>"))
    return log


def names(log: list[tuple[str, dict]]) -> list[str]:
    return [name for name, _ in log]


def test_a_course_that_fails_is_mended_and_goes_on(project, capsys):
    """With real kernels: four notebooks executed."""
    write_notebook(project, NAMES[1], "print('before')", "raise ValueError('two\\nlines')", "print('after')")
    write_notebook(project, NAMES[2], "from pathlib import Path", "print(Path.cwd().name, task, seed)")
    output = project / "build"
    with pytest.raises(StageError) as caught:
        run_course({"task": "breakout", "seed": 3}, output)
    # The injected parameters are cell 2, so the one that fails is cell 4.
    assert str(caught.value).startswith("01_second.ipynb failed in cell 4: ValueError: two lines; its output is in ")
    assert "before" in output_of(output / "01_second.ipynb") and "after" not in output_of(output / "01_second.ipynb")
    progress = capsys.readouterr().err
    assert re.search(r"course:.*1/3.*notebook", progress)  # notebooks done
    assert re.search(r"Executing:.*3/3.*cell", progress)  # cells done within one
    first = (output / "00_first.ipynb").read_bytes()

    write_notebook(project, NAMES[1], "print('mended')")
    records = run_course({"task": "breakout", "seed": 3}, output)
    assert [(record["name"], record["status"]) for record in records] == [
        ("00_first", "skipped"),
        ("01_second", "ran"),
        ("02_third", "ran"),
    ]
    assert all(record["minutes"] > 0 for record in records)
    assert (output / "00_first.ipynb").read_bytes() == first
    assert output_of(output / "00_first.ipynb") == "ran with breakout 3\n"
    assert output_of(output / "02_third.ipynb") == "notebooks breakout 3\n"
    index = (output / "index.html").read_text()
    assert re.findall('href="(.*?)"', index) == [f"{name}.html" for name in NAMES]
    assert "task = breakout, seed = 3" in index
    assert "notebooks breakout 3" in (output / "02_third.html").read_text()


def test_a_kernel_that_dies_is_a_failed_notebook(project):
    write_notebook(project, NAMES[0], "import os", "os._exit(1)")
    with pytest.raises(StageError, match="^00_first.ipynb failed: its kernel died"):
        run_course({}, project / "build")


def test_what_is_done_is_skipped_until_source_or_parameters_change(project, executed):
    write_notebook(project, NAMES[2], "print('three')")
    output = project / "build"

    def statuses(**parameters) -> list[str]:
        executed.clear()
        records = run_course(parameters, output)
        assert names(executed) == [record["name"] for record in records if record["status"] == "ran"]
        return [record["status"] for record in records]

    assert statuses(seed=1) == ["ran", "ran", "ran"]
    assert statuses(seed=1) == ["skipped", "skipped", "skipped"]
    write_notebook(project, NAMES[1], "print('other')")
    assert statuses(seed=1) == ["skipped", "ran", "ran"]  # what comes after may build on it
    assert statuses(seed=2) == ["ran", "ran", "ran"]
    (output / "01_second.html").unlink()
    assert statuses(seed=2) == ["skipped", "ran", "skipped"]
    (output / "02_third.json").write_text('{"digest"')
    assert statuses(seed=2) == ["skipped", "skipped", "ran"]


def test_without_the_folder_of_the_run_nothing_counts_as_done(project, executed):
    run_dir = project / "runs" / "smoke"
    for name in NAMES[:2]:
        write_notebook(project, name, parameters='run_dir: str = "auto"')
    run_dir.mkdir(parents=True)
    for _ in range(2):
        run_course({"run_dir": str(run_dir)}, project / "build")
    assert len(executed) == 2
    run_dir.rmdir()
    run_course({"run_dir": str(run_dir)}, project / "build")
    assert len(executed) == 4


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"tsk": "pong"}, "no notebook has a parameter 'tsk'; choose one of depth, rate, seed, task"),
        ({"task": "pong", "seed": "3"}, "00_first.ipynb: seed is 0 there, '3' is no such value"),
        ({"seed": True}, "00_first.ipynb: seed is 0 there, True is no such value"),
        ({"task": 3}, '00_first.ipynb: task is "pong" there, 3 is no such value'),
        ({"rate": "high"}, "00_first.ipynb: rate is 0.5 there, 'high' is no such value"),
        ({"depth": 1.5}, "02_third.ipynb: depth is 4 there, 1.5 is no such value"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_runs(project, executed, parameters, told):
    write_notebook(project, NAMES[2], parameters="depth = 4")
    with pytest.raises(UsageError) as caught:
        run_course(parameters, project / "build")
    assert str(caught.value) == told
    assert executed == [] and not (project / "build").exists()


def test_each_notebook_gets_the_parameters_it_has(project, executed):
    write_notebook(project, NAMES[2], parameters="depth = 2 + 2\nseed = None")
    run_course({"seed": 3, "rate": 1, "depth": 5}, project / "build")
    assert executed == [
        ("00_first", {"seed": 3, "rate": 1}),
        ("01_second", {"seed": 3, "rate": 1}),
        ("02_third", {"seed": 3, "depth": 5}),
    ]


def test_notebooks_come_in_the_order_of_their_numbers(project):
    write_notebook(project, "10_tenth")
    write_notebook(project, "02_third")
    write_notebook(project, "scratch")
    assert [path.stem for path in find_notebooks()] == [*NAMES, "10_tenth"]


def test_outside_of_the_repository_there_are_no_notebooks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no notebooks in .*; run this inside a clone of the repository"):
        run_course({}, tmp_path / "build")


def test_the_index_shows_parameters_as_text(tmp_path):
    runner.write_index([], {"task": "<b>"}, tmp_path)
    assert "task = &lt;b&gt;" in (tmp_path / "index.html").read_text()


def test_the_command_prints_one_line_for_a_wrong_parameter(project, executed, capsys):
    parameters = PARAMETERS + '\nbudget = "auto"\nrun_dir = "auto"'
    for name in NAMES[:2]:
        write_notebook(project, name, parameters=parameters)
    assert cli.main(["course", "--budget", "smoke", "-p", "sped", "3"]) == 2
    assert capsys.readouterr().err.startswith("wm: no notebook has a parameter 'sped'; choose one of budget, rate")
    assert cli.main(["course", "--budget", "smoke", "-p", "rate", "1e-3"]) == 0
    expected = {"budget": "smoke", "seed": 0, "run_dir": str(project / "runs" / "smoke"), "rate": 0.001}
    assert executed == [(name, expected) for name in NAMES[:2]]
    assert f"2 notebooks done in 0 minutes: {project / 'build' / 'course' / 'smoke' / 'index.html'}" in (
        capsys.readouterr().out
    )


def test_a_page_shows_the_picture_of_a_widget(tmp_path):
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    view = {"application/vnd.jupyter.widget-view+json": {"version_major": 2, "version_minor": 0, "model_id": "abc"}}
    output = nbformat.v4.new_output("execute_result", {"text/plain": "a slider", "image/png": png, **view})
    cell = nbformat.v4.new_code_cell("slider", outputs=[output])
    state = {
        "application/vnd.jupyter.widget-state+json": {"state": {"abc": {}}, "version_major": 2, "version_minor": 0}
    }
    path = tmp_path / "01_slider.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": state}), path)
    before = path.read_bytes()
    runner._to_html(path)
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert f"data:image/png;base64,{png}" in page and "model_id" not in page.split("<body")[1]
    assert "<title>01_slider</title>" in page and path.read_bytes() == before
