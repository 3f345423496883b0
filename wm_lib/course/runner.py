"""The whole course as a batch: papermill over the notebooks, a resume that skips what is done, an HTML index."""

from __future__ import annotations

import hashlib
import html
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm.std import tqdm

from wm_lib import checkpoints
from wm_lib.errors import StageError, UsageError
from wm_lib.pipeline import project_root


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
    then. Executed notebooks, their HTML and `index.html` go into `output`.

    Args:
        parameters: Papermill parameters, checked against every notebook before anything runs.
        output: Folder for the results.

    Returns:
        One record per notebook: name, status ("ran" | "skipped"), minutes.

    Raises:
        UsageError: A notebook does not have one of the parameters.
        StageError: A notebook failed; the ones before it stay done.
    """
    import papermill

    notebooks = find_notebooks()
    for notebook in notebooks:
        known = papermill.inspect_notebook(str(notebook))
        for name in parameters:
            if name not in known:
                raise UsageError(f"{notebook.name} has no parameter '{name}'; choose one of {', '.join(sorted(known))}")
    output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    digest = json.dumps(parameters, sort_keys=True)
    for notebook in tqdm(notebooks, desc="course", unit="notebook"):
        digest = hashlib.sha256((digest + notebook.read_text(encoding="utf-8")).encode()).hexdigest()
        records.append(_run_notebook(notebook, parameters, output, digest))
        write_index(records, parameters, output)
    return records


def _run_notebook(notebook: Path, parameters: dict[str, Any], output: Path, digest: str) -> dict[str, Any]:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    record_path = output / f"{notebook.stem}.json"
    if record_path.exists():
        record = checkpoints.read_json(record_path)
        if record["digest"] == digest:
            return record | {"status": "skipped"}
    executed = output / notebook.name
    begin = datetime.now(UTC)
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), parameters, cwd=str(notebook.parent), progress_bar=True
        )
    except PapermillExecutionError as error:
        raise StageError(
            f"{notebook.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}; "
            f"its output is in {executed}; the same command goes on from there"
        ) from None
    _to_html(executed)
    minutes = (datetime.now(UTC) - begin).total_seconds() / 60
    record = {"name": notebook.stem, "digest": digest, "status": "ran", "minutes": minutes}
    checkpoints.write_json(record_path, record)
    return record


def _to_html(executed: Path) -> None:
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(template_name="lab").from_filename(str(executed))
    executed.with_suffix(".html").write_text(body, encoding="utf-8")


def write_index(records: list[dict[str, Any]], parameters: dict[str, Any], output: Path) -> Path:
    """Write `index.html`: the executed notebooks with their minutes; returns its path."""
    rows = "\n".join(
        f'<tr><td><a href="{r["name"]}.html">{r["name"]}</a></td><td>{r["minutes"]:.1f}</td></tr>' for r in records
    )
    settings = html.escape(", ".join(f"{name} = {value}" for name, value in parameters.items()) or "defaults")
    path = output / "index.html"
    path.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><title>World Models, the course</title>"
        "<style>body{font:16px sans-serif;max-width:42em;margin:2em auto}td{padding:.3em 1em}</style>"
        f"<h1>World Models, the course</h1><p>Executed with {settings}.</p>"
        f"<table><tr><th>notebook</th><th>minutes</th></tr>\n{rows}\n</table></html>\n",
        encoding="utf-8",
    )
    return path
