"""Measurements as the rows of a CSV: a dataclass of text and numbers is a row, its fields are the columns."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from wm_lib.errors import StageError

RowT = TypeVar("RowT")  # a dataclass
_TYPES = {"str": str, "int": int, "float": float}


def read_rows(path: Path, kind: type[RowT]) -> list[RowT]:
    """The rows of a CSV as what `kind` says; none where there is no file.

    Raises:
        StageError: A line is not such a row.
    """
    rows: list[RowT] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for values in csv.DictReader(file):
                rows.append(kind(**{field.name: _TYPES[field.type](values[field.name]) for field in fields(kind)}))
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError) as error:
        raise StageError(f"{path}, row {len(rows) + 1} is damaged ({error}); restore the file or delete it") from error
    return rows


def append_row(path: Path, row: Any) -> None:
    """Add a row; a process killed meanwhile leaves the file as it was."""
    rows = [*read_rows(path, type(row)), row]
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(each) for each in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
    os.replace(temporary, path)
