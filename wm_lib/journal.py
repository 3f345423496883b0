"""An append-only file of JSON lines that survives being killed while it is written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Journal:
    """What happened, one JSON object a line, each on disk before `append` returns.

    A process killed while it writes leaves at most one line that is cut short; opening the journal again drops it.

    Args:
        path: The file; made, with its folder, if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        with self.path.open("rb+") as file:
            whole = file.read().rpartition(b"\n")
            file.truncate(len(whole[0] + whole[1]))
        self.records = read_journal(self.path)

    def append(self, event: str, **values: Any) -> dict[str, Any]:
        """Write one record: the event, the time (seconds since 1970) and these values; returns it.

        Raises:
            OSError: It cannot be written, the disk being full say; the file is then as it was before.
            ValueError: JSON cannot hold a value (NaN and infinity included).
        """
        record = {"event": event, "time": round(time.time(), 3), **values}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with self.path.open("ab", buffering=0) as file:
            length = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(f"{self.path}: a line could not be written whole; is the disk full?")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(length)
                raise
        self.records.append(record)
        return record


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The records of a journal, also while another process writes it; a line that is no JSON object is left out."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for line in lines[:-1]:  # what follows the last newline is not finished
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("event"), str):
            records.append(record)
    return records


def results_of(records: Iterable[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """What came of the tries at a task."""
    return [record for record in records if record["event"] == "result" and record["task"] == task]
