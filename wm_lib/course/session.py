"""A curriculum that runs beside a notebook: its board with buttons in JupyterLab, text and a picture elsewhere."""

from __future__ import annotations

import atexit
import html
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wm_lib.attempts import control
from wm_lib.course.board import COLUMNS, Picture, Snapshot, describe, draw, look, pictures, save, table, text, to_png
from wm_lib.curriculum import Curriculum, run
from wm_lib.report import html_table


class Session:
    """A curriculum that runs beside a notebook, in a thread, with its board.

    Ends with the notebook; begun again, it goes on where it was.

    Args:
        curriculum: What is run.
        start: Runs it; takes `say` and `changed`, and returns the report, see `wm_lib.curriculum.run`.
        seconds: Between two looks at it.
    """

    def __init__(self, curriculum: Curriculum, start: Callable[..., dict] = run, seconds: float = 5.0) -> None:
        self.curriculum, self._start, self._seconds = curriculum, start, seconds
        self._report: dict[str, Any] | None = None
        self._error: BaseException | None = None
        self._widgets = _widgets(curriculum)
        self._pictures: tuple[Any, dict[str, np.ndarray]] = None, {}
        self._done = threading.Event()
        self.refreshed = threading.Thread(target=self._refresh, daemon=True)  # ends after the last look
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        atexit.register(self._end)
        if self._widgets:
            self.refreshed.start()

    @property
    def board(self) -> Any:
        """What a notebook shows: the widgets, or where there are none the board in words."""
        return self._widgets["board"] if self._widgets else _Text(text(look(self.curriculum)))

    def wait(self) -> dict[str, Any]:
        """Wait for the end; returns the report. An interrupt stops the curriculum, in good order.

        Raises:
            StageError: It could not be run.
        """
        try:
            while not self._done.wait(0.2):
                pass
        except KeyboardInterrupt:
            self._end()
        if self.refreshed.is_alive():
            self.refreshed.join(30)
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report

    def picture(self) -> Picture:
        """The board as it is now, with what the agent sees, V keeps and M dreams."""
        snapshot = look(self.curriculum)
        return Picture(to_png(draw(snapshot, self._look_inside(snapshot))), describe(snapshot))

    def _run(self) -> None:
        try:
            self._report = self._start(self.curriculum, say=lambda line: None, changed=lambda: save(self.curriculum))
        except BaseException as error:  # told to whoever waits
            self._error = error
        finally:
            self._done.set()

    def _end(self) -> None:
        if not self._done.is_set():
            control(self.curriculum.directory, "stop")
            self._done.wait(30)

    def _refresh(self) -> None:
        while True:
            ended = self._done.wait(self._seconds)
            try:
                show(self._widgets, look(self.curriculum), self.picture())
            except Exception as error:  # a board is not worth a run
                self._widgets["line"].value = html.escape(f"the board could not be drawn: {error}")
            if ended:
                break

    def _look_inside(self, snapshot: Snapshot) -> dict[str, np.ndarray]:
        """The pictures, made anew only when there is another world model."""
        attempt = snapshot.attempt
        if attempt is None:
            return {}
        for number in range(attempt.round, 0, -1):
            run = self.curriculum.pipeline(attempt.task, attempt.mode, number)
            if (run.directory / "collect" / "stage.json").exists():
                version = [(path, path.stat().st_mtime) for path in sorted(run.directory.glob("*/stage.json"))]
                if self._pictures[0] != version:
                    self._pictures = version, pictures(run)
                return self._pictures[1]
        return {}


class _Text(str):
    """A string that a notebook shows as it is."""

    def __repr__(self) -> str:
        return str(self)


def _widgets(curriculum: Curriculum) -> dict[str, Any]:
    """Table, line, picture and buttons; empty without ipywidgets."""
    try:
        import ipywidgets
    except ImportError:
        return {}
    parts: dict[str, Any] = {name: ipywidgets.HTML() for name in ("table", "line", "picture")}
    for name, word in (("pause", "Pause"), ("run", "Go on"), ("stop", "Stop")):
        parts[name] = ipywidgets.Button(description=word)
        parts[name].on_click(lambda _, name=name: control(curriculum.directory, name))
        # ipykernel 7.4 takes a click to the shell that made the button, where the cell with `wait` is running. If
        # it does not know which that was, the click goes where JupyterLab sent it, to a shell that is free.
        vars(parts[name].comm).pop("_reply_subshell_id", None)
    buttons = ipywidgets.HBox([parts["pause"], parts["run"], parts["stop"]])
    parts["board"] = ipywidgets.VBox([parts["table"], parts["line"], buttons, parts["picture"]])
    return parts


def show(widgets: Mapping[str, Any], snapshot: Snapshot, picture: Picture) -> None:
    """Bring the widgets up to date."""
    rows = [[html.escape(cell) for cell in row] for row in table(snapshot)]
    widgets["table"].value = html_table(COLUMNS, rows)
    widgets["line"].value = html.escape(text(snapshot).rpartition("|\n")[2])
    widgets["picture"].value = picture._repr_html_()
