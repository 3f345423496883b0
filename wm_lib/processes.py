"""A process that is given a time: ended with all that it started, and not blamed for a busy machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_AT_MOST = 4  # time-outs, whatever else the machine does


class TimedProcess:
    """A command that may hang or die. It prints into a file: a pipe could be held open by what it started."""

    def __init__(self, command: Sequence[str], **environment: str) -> None:
        """Start it; on one thread, so that several do not slow each other."""
        self._output: IO[bytes] = tempfile.TemporaryFile()
        self._start = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            **({"creationflags": 0x200} if sys.platform == "win32" else {"start_new_session": True}),
        )

    @property
    def code(self) -> int | None:
        """Its exit code, minus the number of a signal on Linux and macOS; None while it runs."""
        return self._process.poll()

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._start

    @property
    def own_seconds(self) -> float:
        """The same without the waiting for a core that others hold, where Linux tells."""
        return self.seconds - queued_seconds(self._process.pid)

    def is_late(self, timeout_seconds: float) -> bool:
        """Whether it has had this time of its own."""
        seconds = self.seconds
        if seconds <= timeout_seconds:
            return False
        return seconds > _AT_MOST * timeout_seconds or self.own_seconds > timeout_seconds

    def end(self) -> list[str]:
        """End it and all that it started, and return the lines it printed."""
        if self._process.poll() is None:
            if sys.platform == "win32":
                tree = ["taskkill", "/F", "/T", "/PID", str(self._process.pid)]
                subprocess.run(tree, capture_output=True, check=False)
            else:
                os.killpg(self._process.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
            try:
                self._process.wait(timeout=1)
            except subprocess.TimeoutExpired:  # stuck in the kernel, on a disk that does not answer: leave it
                pass
        with self._output:
            self._output.seek(0)
            return self._output.read().decode(errors="replace").split("\n")


def queued_seconds(process: int) -> float:
    """How long a process, and then one that it started, was ready to compute while no core was free; 0 but on Linux."""
    folder = Path("/proc", str(process))
    try:
        own = int((folder / "schedstat").read_text().split()[1]) / 1e9
        children = (folder / "task" / str(process) / "children").read_text().split()
    except (OSError, IndexError, ValueError):
        return 0.0
    return own + max((queued_seconds(int(child)) for child in children), default=0.0)
