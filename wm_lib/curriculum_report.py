"""What came of a curriculum: as JSON for programs, as a table and a page for people."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wm_lib import checkpoints
from wm_lib.journal import results_of
from wm_lib.report import aligned, html_page, html_table, interval

if TYPE_CHECKING:
    from wm_lib.curriculum import Curriculum

COLUMNS = ("task", "mode", "status", "score", "target", "decisions", "minutes", "further rounds", "failures")


def make_report(curriculum: Curriculum, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What came of a curriculum so far, the tasks that have come to an end; see docs/formats.md.

    Args:
        curriculum: What is run.
        records: Its own, not empty.
    """
    begin, stages = records[0], []
    for task in curriculum.configs:
        results = results_of(records, task)
        status = curriculum.next_try(task, begin, results)
        if isinstance(status, str):
            stages.append(_row(task, status, results, curriculum.target(task)))
    return {
        "schema": 1,
        "mode": begin["mode"],
        "reason": begin["reason"],
        "executor": "process",
        "complete": len(stages) == len(curriculum.configs),
        "stages": stages,
    }


def _row(task: str, status: str, results: Sequence[dict[str, Any]], target: float) -> dict[str, Any]:
    scored = [result for result in results if result["score"] is not None]
    failures = [result for result in results if result["score"] is None]
    final = scored[-1] if scored else results[-1]
    return {
        "task": task,
        "mode": final["mode"],
        "round": final["round"],
        "status": status,
        "score": final["score"],
        "ci95": final.get("ci95", [None, None]),
        "target": None if simulated(final) else target,
        "real_steps": final.get("real_steps"),
        "minutes": final["minutes"] if scored else sum(failure["minutes"] for failure in failures),
        "retries": len({result["round"] for result in results if result["mode"] == final["mode"]}) - 1,
        "failures": [
            {key: failure[key] for key in ("mode", "round", "kind", "reason", "tail", "minutes")}
            for failure in failures
        ],
    }


def report_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row of COLUMNS for each task; a simulated score stands without a target."""
    return [
        (
            row["task"],
            row["mode"],
            row["status"].replace("_", " "),
            "none" if row["score"] is None else interval({"mean": row["score"], "ci95": row["ci95"]}),
            "none" if row["target"] is None else f"{row['target']:g}",
            "unknown" if row["real_steps"] is None else f"{row['real_steps']:,}{' simulated' * simulated(row)}",
            f"{row['minutes']:.1f}",
            str(row["retries"]),
            ", ".join(failure["kind"] for failure in row["failures"]) or "none",
        )
        for row in report["stages"]
    ]


def simulated(row: dict[str, Any]) -> bool:
    """Whether a task was played in a world that stands in for the real one."""
    return row["mode"] == "simulation"


def report_table(report: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    return aligned([COLUMNS, *report_rows(report)])


def write_report(curriculum: Curriculum, report: dict[str, Any]) -> Path:
    """Write `report.json` and, for people, `report.html`; returns the path of the latter."""
    checkpoints.write_json(curriculum.directory / "report.json", report)
    told = [
        f"<h3>{row['task']}, mode {failure['mode']}, round {failure['round']}</h3>"
        f"<p>{html.escape(failure['reason'])}</p><pre>{html.escape(failure['tail'])}</pre>"
        for row in report["stages"]
        for failure in row["failures"]
    ]
    rows = [[html.escape(cell) for cell in row] for row in report_rows(report)]
    path = curriculum.directory / "report.html"
    path.write_text(
        html_page(
            "World Models, the curriculum",
            f"<p>Mode {report['mode']}: {html.escape(report['reason'])}. "
            f"{'' if report['complete'] else 'Not finished yet; the same command goes on. '}"
            "A score is a mean return over whole episodes with its 95 % interval; a simulated world has no target.</p>"
            f'{html_table(COLUMNS, rows)}<p><img src="board.png" alt="Scores against targets and learning curves" '
            f'style="max-width:100%"></p>{"<h2>What went wrong</h2>" if told else ""}{"".join(told)}',
        ),
        encoding="utf-8",
    )
    return path
