"""One child process with everything it starts: begun, watched, held, ended, and in words what went wrong with it.

A child is the leader of a process group of its own, so that all of it can be ended at once. It inherits a locked file:
as long as the lock is held, something of it is alive, whatever became of the process that began it. (Windows has
neither: there only the child's process tree is ended, it cannot be held, and nothing is locked.)
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from wm_lib.errors import StageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TAIL_LINES, _TAIL_BYTES = 20, 4000
_GENTLE_SECONDS = 10.0
_DISK = re.compile(r"No space left on device|Errno 28\b|Disk quota exceeded")
_MEMORY = re.compile(r"MemoryError|ArrayMemoryError|bad_alloc|[Cc]annot allocate memory|can't allocate memory")


class Child:
    """A running command.

    Args:
        argv: The command.
        log: Where its output goes, after what is there already.
        lock: A file that it and all it starts keep locked.
        environment: Variables that differ from this process's.

    Raises:
        OSError: The command cannot be started.
        StageError: Something that an earlier child started is still alive.
    """

    def __init__(self, argv: Sequence[str], log: Path, lock: Path, environment: dict[str, str]) -> None:
        self.log, self.lock = Path(log), Path(lock)
        self.start = self.written()
        self.held = False
        options: dict = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {}
        held = take_lock(lock, _GENTLE_SECONDS)  # an earlier one that was just killed may take a moment to be gone
        if held is None:
            raise StageError(f"something that an earlier try started is still running, it holds {lock}; end it")
        if fcntl is not None:
            options = {"start_new_session": True, "pass_fds": (held.fileno(),)}
        with held, self.log.open("ab") as output:  # the child has copies of both
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                **options,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code, below 0 the signal that ended it; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """The same, after so many seconds at most."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def hold(self, held: bool) -> bool:
        """Hold all of it, or let it go on; returns whether that changed anything."""
        if self.held == held or os.name == "nt":
            return False
        _signal_group(self.pid, signal.SIGSTOP if held else signal.SIGCONT)
        self.held = held
        return True

    def end(self, gently: bool = False) -> None:
        """End it and all it started; gently: it has some seconds to write down what it spent."""
        if gently and os.name != "nt":
            _signal_group(self.pid, signal.SIGINT)
            self.hold(False)
            self.wait(_GENTLE_SECONDS)
        end_group(self.pid)
        self._process.wait()

    def sweep(self) -> None:
        """Of a child that has ended by itself, end what it has left running."""
        if (held := take_lock(self.lock)) is None:
            end_group(self.pid)
        else:
            held.close()

    def written(self) -> int:
        """Bytes in its log."""
        return self.log.stat().st_size if self.log.exists() else 0

    def tail(self) -> str:
        """The last lines of what it has written."""
        return tail_of(self.log, self.start)


def take_lock(path: Path, seconds: float = 0.0) -> IO[bytes] | None:
    """The file, locked until it and its copies in children are closed; None if others hold it for so many seconds."""
    file = Path(path).open("ab")
    deadline = time.monotonic() + seconds
    while fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                return None
            time.sleep(0.05)
    return file


def end_group(pid: int) -> None:
    """Kill the process group of a child and nothing else; one that is gone is no error."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], capture_output=True)
    else:
        _signal_group(pid, signal.SIGKILL)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # the latter on macOS for a group of zombies
        pass


def tail_of(log: Path, start: int = 0) -> str:
    """The last lines of a log from byte `start` on; of a progress bar that rewrites its line the last state."""
    try:
        with Path(log).open("rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join([line for line in lines if line][-_TAIL_LINES:])


def what_went_wrong(code: int, tail: str) -> tuple[str, str]:
    """Kind of a failure (`disk`, `memory`, `signal`, `usage`, `exit`) and a line about it, from exit code and log."""
    if _DISK.search(tail):
        return "disk", "the disk is full"
    if _MEMORY.search(tail):
        return "memory", "the memory was not enough"
    if code == -getattr(signal, "SIGKILL", 9):
        return "memory", "killed by the system, mostly for lack of memory"
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else str(-code)
        return "signal", f"ended by signal {name}"
    last = tail.rpartition("\n")[2]
    return "usage" if code == 2 else "exit", f"exit code {code}: {last}" if last else f"exit code {code}"
