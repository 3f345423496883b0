"""The whole course as a batch: papermill over the notebooks, a resume that skips what is done, an HTML index."""

from __future__ import annotations

import ast
import hashlib
import html
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm.std import tqdm

from wm_lib import checkpoints
from wm_lib.errors import StageError, UsageError
from wm_lib.folders import project_root
from wm_lib.report import COLUMNS, find_manifests, html_page, html_table, results_rows


def find_notebooks() -> list[Path]:
    """The notebooks in order.

    Raises:
        UsageError: There are none above the current folder.
    """
    folder = project_root() / "notebooks"
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise UsageError(f"no notebooks in {folder}; run this inside a clone of the repository")
    return found


def run_course(parameters: dict[str, Any], output: Path) -> list[dict[str, Any]]:
    """Execute every notebook with the same parameters; what an earlier call finished is skipped.

    A notebook counts as finished when its source, the parameters and the notebooks before it are the same as
    then, and the folder they worked in is still there. Executed notebooks, their HTML and `index.html` go into
    `output`.

    Args:
        parameters: Papermill parameters, checked before anything runs. Each notebook gets those it has.
        output: Folder for the results.

    Returns:
        One record per notebook: name, digest, status ("ran" | "skipped"), minutes.

    Raises:
        UsageError: No notebook has one of the parameters, or its value is of another type than the notebook's own.
        StageError: A notebook failed; the ones before it stay done.
    """
    notebooks = find_notebooks()
    chosen = _check_parameters(notebooks, parameters)
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    run_dir = parameters.get("run_dir")
    afresh = run_dir is not None and not Path(run_dir).exists()
    records: list[dict[str, Any]] = []
    digest = json.dumps(parameters, sort_keys=True, default=str)
    with tqdm(notebooks, desc="course", unit="notebook") as bar:
        for notebook in bar:
            bar.set_postfix_str(notebook.stem)
            digest = hashlib.sha256((digest + notebook.read_text(encoding="utf-8")).encode()).hexdigest()
            record = None if afresh else _finished(notebook, output, digest)
            records.append(record or _run_notebook(notebook, chosen[notebook], output, digest))
            write_index(records, parameters, output)
    return records


def _check_parameters(notebooks: list[Path], parameters: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """The parameters that each notebook has."""
    import papermill

    known = {notebook: papermill.inspect_notebook(str(notebook)) for notebook in notebooks}
    every = sorted({name for own in known.values() for name in own})
    for name, value in parameters.items():
        if name not in every:
            raise UsageError(f"no notebook has a parameter '{name}'; choose one of {', '.join(every) or 'none'}")
        for notebook, own in known.items():
            if name in own and not _fits(value, own[name]["default"]):
                raise UsageError(f"{notebook.name}: {name} is {own[name]['default']} there, {value!r} is no such value")
    return {
        notebook: {name: value for name, value in parameters.items() if name in own} for notebook, own in known.items()
    }


def _fits(value: Any, default: str) -> bool:
    """Whether a value is of the type of a notebook's default, which is given as source."""
    try:
        wanted = type(ast.literal_eval(default))
    except (ValueError, SyntaxError):  # an expression
        return True
    return wanted is type(None) or type(value) is wanted or (wanted is float and type(value) is int)


def _finished(notebook: Path, output: Path, digest: str) -> dict[str, Any] | None:
    """The record of an earlier call that executed the same; None without one."""
    try:
        record = checkpoints.read_json(output / f"{notebook.stem}.json")
    except StageError:
        return None
    same = isinstance(record, dict) and record.get("digest") == digest
    return record | {"status": "skipped"} if same and (output / f"{notebook.stem}.html").exists() else None


def _run_notebook(notebook: Path, parameters: dict[str, Any], output: Path, digest: str) -> dict[str, Any]:
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    executed = output / notebook.name
    again = f"its output is in {executed}; the same command goes on from there"
    begin = datetime.now(UTC)
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), parameters, cwd=str(notebook.parent), progress_bar=True
        )
    except PapermillExecutionError as error:
        what = " ".join(f"{error.ename}: {error.evalue}".split())
        raise StageError(f"{notebook.name} failed in cell {error.exec_count}: {what}; {again}") from None
    except DeadKernelError:
        raise StageError(f"{notebook.name} failed: its kernel died, mostly for lack of memory; {again}") from None
    except NoSuchKernel as error:
        raise StageError(
            f"{notebook.name} needs the Jupyter kernel {error.name}; type: pip install ipykernel"
        ) from None
    _to_html(executed)
    minutes = (datetime.now(UTC) - begin).total_seconds() / 60
    record = {"name": notebook.stem, "digest": digest, "status": "ran", "minutes": minutes}
    checkpoints.write_json(output / f"{notebook.stem}.json", record)
    return record


def _to_html(executed: Path) -> None:
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, as_version=4)
    # A page has no kernel that a widget could ask, so where there is a picture of it, that is shown.
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if "image/png" in output.get("data", {}):
            output.data.pop("application/vnd.jupyter.widget-view+json", None)
    resources = {"metadata": {"name": executed.stem}}
    body, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook, resources)
    executed.with_suffix(".html").write_text(body, encoding="utf-8")


def write_index(records: list[dict[str, Any]], parameters: dict[str, Any], output: Path) -> Path:
    """Write `index.html`: the scores of the run, and the executed notebooks with their minutes; returns its path."""
    notebooks = [(f'<a href="{r["name"]}.html">{r["name"]}</a>', f"{r['minutes']:.1f}") for r in records]
    manifests = find_manifests(Path(parameters["run_dir"])) if "run_dir" in parameters else []
    settings = html.escape(", ".join(f"{name} = {value}" for name, value in parameters.items()) or "defaults")
    path = output / "index.html"
    path.write_text(
        html_page(
            "World Models, the course",
            f"<p>Executed with {settings}.</p>"
            f"<h2>Scores</h2><p>Mean return with its 95 % interval.</p>{html_table(COLUMNS, results_rows(manifests))}"
            f"<h2>Notebooks</h2>{html_table(('notebook', 'minutes'), notebooks)}",
        ),
        encoding="utf-8",
    )
    return path
