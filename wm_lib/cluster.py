"""Where the work is done: in this process, or on the workers of a Dask cluster; the same numbers either way.

What can be spread is cut into *tasks* of a fixed size, also in this process, so that no result depends on how many
workers there are. A task is a *frozen* function (V, M and settings), which every worker is given once, and a few
arguments (parameters and seeds); only returns come back. Dask does everything else: the queue, moving a task whose
worker died, sending the frozen function from worker to worker.

`rollouts.collect`, `evolution.train_evolution` and `evaluation.evaluate` take any `concurrent.futures.Executor`. One
without Dask behind it gets the frozen function with every task.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from wm_lib.errors import StageError, UsageError
from wm_lib.tasks import Task

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

CONNECT_SECONDS = 10.0  # for a scheduler to answer, and for one that is gone to come back
WORKER_SECONDS = 60.0  # for the first worker to be there
AT_ONCE = 256  # tasks handed in and not yet taken back
# What must not differ between here and a worker: each of them decides numbers, or how arrays are sent.
_PACKAGES = ("numpy", "torch", "gymnasium", "envpool", "ale-py", "box2d", "distributed")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LOST = "what is finished stays, the same command goes on from there once the cluster runs again"

_done: WeakKeyDictionary[Executor, Counter[str]] = WeakKeyDictionary()
_names: WeakKeyDictionary[Executor, str] = WeakKeyDictionary()
_here = threading.local()  # on a worker: `env`, the environments it keeps, and what they are


@contextmanager
def connect(address: str) -> Iterator[Executor | None]:
    """The executor of a cluster, as long as the context lasts.

    Args:
        address: "" = None, this process; "local:N" = N processes on this machine; "tcp://host:port" (or tls://,
            ucx://, ...) = a scheduler that runs already.

    Raises:
        UsageError: The address is none of these, or the package `distributed` is not installed.
        StageError: Nobody answers there, it has no workers, or the versions differ.
    """
    if not address:
        yield None
        return
    local = re.fullmatch(r"local:([1-9]\d{0,3})", address)
    if not local and not re.fullmatch(r"\w+://\S+:\d+", address):
        raise UsageError(f"--cluster needs tcp://host:port or local:N (N processes), found '{address}'")
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UsageError(f"--cluster {address}: {error}; type: pip install -e '.[cluster]'") from error
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # we say it in one line
    settings = {
        "distributed.admin.large-graph-warning-threshold": "1GB",  # V and M are meant to be sent
        "distributed.worker.daemon": False,  # Gymnasium's environments are children of the worker
        # By default Dask sets these in *our* environment, before it starts a worker: V and M would train on one thread
        # here, and to other weights.
        "distributed.nanny.pre-spawn-environ": {},
        "distributed.nanny.environ": dict.fromkeys(_THREADS, "1"),
    }
    with dask.config.set(settings):
        cluster = None
        if local:
            # One thread each, one worker a core. Results are held for moments, so no memory limit.
            cluster = LocalCluster(
                n_workers=int(local[1]),
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address=":0",
                silence_logs=logging.CRITICAL,
            )
        try:
            try:
                client = Client(cluster or address, timeout=CONNECT_SECONDS, set_as_default=False)
            except (OSError, ValueError) as error:
                raise StageError(f"no Dask scheduler answers at {address}; start one with: dask scheduler") from error
            with client:
                try:
                    client.wait_for_workers(1, timeout=WORKER_SECONDS)
                except TimeoutError as error:
                    where = client.scheduler.address
                    raise StageError(f"{address} has no workers; start one with: dask worker {where}") from error
                check_versions(client)
                executor = client.get_executor(pure=False)
                _names[executor] = f"dask {address}"
                yield executor
        finally:
            if cluster is not None:
                cluster.close()


def versions() -> dict[str, str]:
    """What must be the same on every worker: Python, packages, and the sources of wm_lib by their hash."""
    found = {"python": platform.python_version(), "wm_lib": _sources()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def refuse_others(wanted: dict[str, str], found: dict[str, str], worker: str) -> None:
    """Raise StageError, with names, unless a worker's `versions` are those of the client."""
    other = [f"{name} {found.get(name, 'none')} (here {wanted[name]})" for name in wanted
             if found.get(name, "none") != wanted[name]]  # fmt: skip
    if other:
        raise StageError(f"worker {worker} has {', '.join(other)}; install the same versions there and here")


def check_versions(client: Any) -> None:
    """Refuse a cluster with a worker of other versions; those that come later are asked by each task.

    Raises:
        StageError: Names the worker and what differs.
    """
    for worker, found in client.run(versions, on_error="return").items():
        if isinstance(found, BaseException):
            raise StageError(f"worker {worker} cannot use wm_lib ({found}); install the course there") from found
        refuse_others(versions(), found, worker)


def report(executor: Executor | None, clear: bool = False) -> dict[str, Any]:
    """Who did the work: `name` of the executor, and `tasks` done by each worker since they were last cleared."""
    if executor is None:
        return {"name": "in process"}
    done = _done.pop(executor, {}) if clear else _done.get(executor, {})
    return {"name": _names.get(executor, type(executor).__name__), "tasks": dict(sorted(done.items()))}


@contextmanager
def spread(
    executor: Executor | None, frozen: Callable[..., Any], at_once: int = AT_ONCE
) -> Iterator[Callable[[Iterable[Sequence[Any]]], Iterator[Any]]]:
    """Make a function from the arguments of tasks to their results, in order: `frozen(*arguments)` of each.

    Args:
        executor: Where; None is this process, one task after the other.
        frozen: What the tasks have in common. On a Dask cluster every worker gets it once, as a result of a task of
            its own: kept by the workers, sent from one to the next, and made again when all who had it died.
        at_once: Tasks handed in and not yet taken back, at most.

    Raises:
        StageError: The scheduler went away, a task killed its workers, or a worker has other versions.
    """
    if executor is None:
        yield lambda jobs: (frozen(*arguments) for arguments in jobs)
        return
    client = getattr(executor, "_client", None)  # Dask's: its futures can be arguments, so nothing is sent twice
    given, name = frozen, report(executor)["name"]
    if client is not None:
        with _one_line(client, name):
            given = client.submit(_itself, frozen, pure=False)
            client.amm.stop()  # it would take the copies away again between two generations
            client.replicate(given)
    wanted, counts = versions(), _done.setdefault(executor, Counter())

    def run(jobs: Iterable[Sequence[Any]]) -> Iterator[Any]:
        waiting, rest = deque(), iter(jobs)
        try:
            while True:
                with _one_line(client, name):
                    while len(waiting) < at_once and (arguments := next(rest, None)) is not None:
                        waiting.append(executor.submit(_task, given, wanted, tuple(arguments)))
                    if not waiting:
                        return
                    worker, result = waiting.popleft().result()
                counts[worker] += 1
                yield result
        finally:
            for future in waiting:
                future.cancel()

    yield run


@contextmanager
def environments(
    task: Task, num_envs: int, seeds: Sequence[int], backend: str, sticky: float = 0.0
) -> Iterator[VectorEnv]:
    """Environments that begin with these seeds at `reset(seed=seeds)`.

    In the process they are made and closed. A worker keeps the last ones it made for its next task, where the backend
    obeys seeds at a reset; EnvPool, which takes them only when it is made, is made anew.
    """
    from wm_lib import worlds

    made_for = (repr(task), num_envs, backend, sticky)
    if task.simulated or backend == "gymnasium":
        if getattr(_here, "made_for", None) == made_for:
            yield _here.env
            return
        if getattr(_here, "keeps", False):
            _close_kept()
            _here.env = worlds.make_env(task, num_envs, seeds, backend, sticky)
            _here.made_for = made_for
            yield _here.env
            return
    env = worlds.make_env(task, num_envs, seeds, backend, sticky)
    try:
        yield env
    finally:
        env.close()


def _task(frozen: Callable[..., Any], wanted: dict[str, str], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """On a worker: who it is, and the result."""
    worker = _worker_name()
    refuse_others(wanted, _versions_once(), worker)
    _here.keeps = True
    try:
        return worker, frozen(*arguments)
    except BaseException:
        _close_kept()  # in the middle of a step: not to be used again
        raise


def _close_kept() -> None:
    if getattr(_here, "made_for", None) is not None:
        _here.made_for = None
        _here.env.close()


def _itself(value: Any) -> Any:
    return value


@cache
def _versions_once() -> dict[str, str]:
    return versions()


@cache
def _sources() -> str:
    """Hash of wm_lib's own sources: a version number does not change with every edit."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]


def _worker_name() -> str:
    try:
        from distributed import get_worker

        return str(get_worker().address)
    except (ImportError, ValueError):  # another executor
        return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def _one_line(client: Any, name: str) -> Iterator[None]:
    """What the cluster does to us, in one line; errors of the tasks themselves pass."""
    try:
        yield
    except CancelledError as error:
        raise StageError(f"{name}: the scheduler went away; {_LOST}") from error
    except Exception as error:
        if type(error).__name__ == "KilledWorker":
            raise StageError(f"{name}: several workers died of the same task, is it their memory? {_LOST}") from error
        if client is not None and client.status != "running":
            raise StageError(f"{name}: the scheduler went away ({type(error).__name__}); {_LOST}") from error
        raise
