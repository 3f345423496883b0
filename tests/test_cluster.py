import json
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from distributed import Client, LocalCluster

from wm_lib import checkpoints, cli, cluster
from wm_lib.control.controller import Controller
from wm_lib.control.evolution import pieces, train_evolution
from wm_lib.errors import StageError, UsageError
from wm_lib.evaluation import agent_maker, evaluate, random_maker
from wm_lib.models.reservoir import NUM_PATCHES, Reservoir, echo_state
from wm_lib.rollouts import StickyRandom, collect
from wm_lib.settings import ControllerConfig
from wm_lib.tasks import get_task
from wm_lib.worlds.simulation import stand_in

TASK = replace(stand_in(get_task("pong")), max_decisions=60)
CONFIG = ControllerConfig(
    type="original", population_size=24, rollouts_per_candidate=4, num_generations=3, sigma=0.5, max_decisions=40
)  # two tasks a generation: 16 candidates and 8


def reservoir(size=16, z_dim=4):
    """V and M that nobody has fitted: what they see is random, and that is enough."""
    rng = np.random.default_rng(5)
    recurrent, inputs = echo_state(size, z_dim + TASK.num_actions, 0.9, seed=1)
    normal = partial(rng.standard_normal, dtype=np.float32)
    return Reservoir(
        mean=np.zeros((64, 64, 3), np.float32),
        encoder=normal((NUM_PATCHES, z_dim)) / 10,
        decoder=normal((z_dim, NUM_PATCHES)),
        recurrent=recurrent,
        inputs=inputs,
        leak=np.float32(0.5),
        heads=normal((1 + z_dim + TASK.num_actions + size, z_dim + 2)),
        noise=np.zeros(z_dim, np.float32),
        foresight=normal((1 + z_dim + size, z_dim)),
        low=np.zeros(z_dim, np.float32),
        high=np.zeros(z_dim, np.float32),
    )


def evolve(directory, executor=None, config=CONFIG, model=None):
    return train_evolution(
        model or reservoir(), TASK, config, seed=3, directory=directory, log_dir=directory, executor=executor
    )


def one_policy(seed):
    return StickyRandom(TASK.num_actions, 2, seed)


def everything(directory, executor=None):
    """All three parts that can be spread, as one comparable value."""
    controller = evolve(directory / "c", executor)
    scores = [
        evaluate(TASK, maker, 21, 50, num_envs=4, executor=executor)
        for maker in (agent_maker(TASK, reservoir(), controller), random_maker(TASK))
    ]
    facts = collect(
        TASK, directory / "data", num_steps=90, num_envs=2, shard_length=15, seed=4, make_policy=one_policy,
        executor=executor,
    )  # fmt: skip
    shards = [path.read_bytes() for path in sorted((directory / "data").glob("*.safetensors"))]
    assert len(shards) == 3
    log = (directory / "c" / "scalars.jsonl").read_bytes()
    return controller.params.tobytes(), controller.meta, log, scores, facts, shards


def thread_variables():
    return {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}


@pytest.fixture(scope="module", autouse=True)
def this_process_keeps_its_threads():
    """What starts beside or after a cluster, V's training above all, must compute as without one, to the last bit."""
    before = thread_variables()
    yield
    assert thread_variables() == before  # workers that died and were replaced included


def test_workers_have_one_thread_and_this_process_keeps_its_own():
    before = thread_variables()
    with cluster.connect("local:1") as executor:
        assert thread_variables() == before
        assert executor.submit(os.getenv, "OMP_NUM_THREADS").result() == "1"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def two():
    with cluster.connect("local:2") as executor:
        yield executor


@pytest.fixture
def spare():
    """A cluster that a test may break."""
    with LocalCluster(2, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as made:
        with Client(made, timeout=2, set_as_default=False) as client:
            yield client


def test_pieces_cover_a_generation_once_and_know_nothing_of_workers():
    for size in ((64, 16), (32, 2), (12, 4), (3, 150), (1, 16), (17, 64)):
        covered, largest = np.zeros(size, int), 0
        for piece in pieces(*size):
            covered[piece] += 1
            largest = max(largest, covered[piece].size)
        assert (covered == 1).all() and largest <= 64
    assert len(list(pieces(64, 16))) == 16 and len(list(pieces(32, 2))) == 2


def test_two_workers_do_exactly_what_this_process_does(tmp_path, plain, two):
    assert everything(tmp_path, two) == plain
    found = cluster.report(two, clear=True)
    # 3 generations, all candidates in two tasks and the better half in one, and the final mean; 21 episodes by 8,
    # twice; 3 shards.
    assert found["name"] == "dask local:2" and sum(found["tasks"].values()) == 3 * (2 + 1) + 1 + 2 * 3 + 3
    assert len(found["tasks"]) == 2
    assert cluster.report(two)["tasks"] == {}


def test_one_worker_too(tmp_path, plain):
    with cluster.connect("local:1") as executor:
        assert everything(tmp_path, executor) == plain
        assert len(cluster.report(executor)["tasks"]) == 1


@pytest.mark.parametrize("pool", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
def test_any_executor_will_do(tmp_path, plain, pool):
    made = ThreadPoolExecutor(2) if pool[0] == "T" else ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
    with made as executor:
        assert everything(tmp_path, executor) == plain
        assert cluster.report(executor)["name"] == pool
    assert cluster.report(None) == {"name": "in process"}


class Killer(Reservoir):
    """Kills the worker that first plays with it, in the middle of a generation."""

    @classmethod
    def of(cls, mark):
        model = reservoir()
        model.__class__ = cls
        model.mark = str(mark)
        model.left = 30
        return model

    def encode(self, frames):
        self.left -= 1
        if self.left == 0:
            try:
                os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(frames)


def test_a_worker_killed_in_mid_generation_changes_nothing(tmp_path, plain, spare):
    mark = tmp_path / "killed"
    before = set(spare.scheduler_info()["workers"])
    controller = evolve(tmp_path / "c", spare.get_executor(pure=False), model=Killer.of(mark))
    assert mark.exists()
    assert (controller.params.tobytes(), controller.meta) == plain[:2]
    spare.wait_for_workers(2, timeout=30)  # the nanny has begun another one
    assert set(spare.scheduler_info()["workers"]) != before


SCHEDULER = """
import asyncio
from distributed import Nanny, Scheduler
async def main():
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address=":0") as scheduler:
        print(scheduler.address, flush=True)
        async with Nanny(scheduler.address, nthreads=1, memory_limit=0):
            await scheduler.finished()
if __name__ == "__main__":
    asyncio.run(main())
"""


class KillsScheduler(Reservoir):
    """Ends the scheduler in the middle of the second generation, of three tasks of 40 decisions."""

    def encode(self, frames):
        self.left -= 1
        if self.left == 0:
            os.kill(self.pid, signal.SIGKILL)
        return super().encode(frames)


def test_a_scheduler_that_goes_away_stops_the_run_with_one_line_and_it_goes_on_from_its_checkpoint(
    tmp_path, plain, monkeypatch
):
    script = tmp_path / "scheduler.py"
    script.write_text(SCHEDULER, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL,
        start_new_session=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 5.0)
    address = process.stdout.readline().strip()
    model = reservoir()
    model.__class__ = KillsScheduler
    model.pid, model.left = process.pid, 150
    try:
        with pytest.raises(StageError) as caught, cluster.connect(address) as executor:
            evolve(tmp_path / "c", executor, model=model)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert address in str(caught.value) and "went away" in str(caught.value) and "\n" not in str(caught.value)
    saved = sorted((tmp_path / "c" / "generations").glob("*.safetensors"))
    done = max(checkpoints.load(path)[1]["generation"] for path in saved) if saved else 0
    assert 0 < done < CONFIG.num_generations
    resumed = evolve(tmp_path / "c")
    assert (resumed.params.tobytes(), resumed.meta) == plain[:2]


def test_workers_of_other_versions_are_refused_by_name(two, monkeypatch):
    here = cluster.versions()
    assert {"python", "wm_lib", "numpy", "torch"} <= here.keys()
    monkeypatch.setattr(cluster, "versions", lambda: here | {"numpy": "1.0.0", "torch": "9.9"})
    with pytest.raises(StageError, match=r"worker tcp://\S+ has numpy \d\S+ \(here 1\.0\.0\), torch \S+ \(here 9\.9\)"):
        with cluster.spread(two, abs) as run:  # as a worker that comes later is
            list(run([(-1,)]))

    class Asked:
        def run(self, function, on_error):
            return {"tcp://a:1": here, "tcp://b:2": ModuleNotFoundError("No module named 'wm_lib'")}

    with pytest.raises(StageError, match="tcp://a:1 has numpy"):
        cluster.check_versions(Asked())
    monkeypatch.undo()
    with pytest.raises(StageError, match="tcp://b:2 cannot use wm_lib"):
        cluster.check_versions(Asked())


def test_errors_of_a_task_are_its_own(two):
    with cluster.spread(two, partial(int, base=10)) as run:
        assert list(run([("7",), ("8",)])) == [7, 8]
        with pytest.raises(ValueError, match="invalid literal"):
            list(run([("seven",)]))


@pytest.mark.parametrize("address", ["local:0", "local", "localhost:8786", "tcp://host", "two"])
def test_an_address_that_is_none_is_refused(address, capsys):
    assert cli.main(["evaluate", "--task", "pong", "--mode", "simulation", "--random", "--cluster", address]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "--cluster needs" in said[0] and address in said[0]


def test_nobody_at_an_address_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    command = ["evaluate", "--task", "pong", "--mode", "simulation", "--random", "--cluster", "tcp://127.0.0.1:9"]
    assert cli.main(command) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said == ["wm: no Dask scheduler answers at tcp://127.0.0.1:9; start one with: dask scheduler"]


def test_without_the_package_it_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[cluster\]'"), cluster.connect("local:2"):
        pass


def test_a_whole_training_and_its_record(tmp_path, two, monkeypatch):
    """`wm train --cluster` makes the very files that `wm train` makes, and says who did it."""
    text = {
        "collect": {"num_steps": 200, "num_envs": 4, "shard_length": 25},
        "mdnrnn": {"sequence_length": 8},
        "controller": CONFIG.to_dict() | {"num_generations": 1},
        "evaluation": {"episodes": 3, "random_episodes": 3},
        "gates": {"stop": False},
    }
    config = tmp_path / "own.yaml"
    config.write_text(json.dumps(text), encoding="utf-8")
    arguments = ["train", "--task", "pong", "--mode", "simulation", "--budget", "smoke", "--config", str(config)]
    scheduler = two._client.scheduler.address
    assert cli.main([*arguments, "--run-dir", str(tmp_path / "a")]) == 0
    assert cli.main([*arguments, "--run-dir", str(tmp_path / "b"), "--cluster", scheduler]) == 0
    folders = [tmp_path / name / "pong" / "simulation" for name in "ab"]
    for name in ("collect/shard-0001", "reservoir/reservoir", "controller/controller"):
        one, other = ((folder / f"{name}.safetensors").read_bytes() for folder in folders)
        assert one == other
    manifests = [checkpoints.read_json(folder / "evaluate" / "manifest.json") for folder in folders]
    assert manifests[0]["score"] == manifests[1]["score"]
    assert manifests[0]["executor"] == {"name": "in process"}
    assert manifests[1]["executor"]["name"] == f"dask {scheduler}"
    record = checkpoints.read_json(folders[1] / "controller" / "stage.json")
    assert sum(record["executor"]["tasks"].values()) == 2 + 1 + 1
    assert checkpoints.read_json(folders[0] / "controller" / "stage.json")["key"] == record["key"]
    assert Controller.load(folders[1] / "controller" / "controller.safetensors").num_actions == 3
