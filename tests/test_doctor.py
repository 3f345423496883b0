"""Faults are planted as modules on the path of real processes; what is probed, is probed for real."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from wm_lib import cli, doctor, import_times, processes
from wm_lib.course import plots
from wm_lib.doctor import Component, Diagnosis
from wm_lib.errors import UsageError
from wm_lib.processes import TimedProcess
from wm_lib.tasks import TASKS

ROOT = Path(doctor.__file__).parent.parent
BODIES = {
    "hang": "import time\ntime.sleep(60)",
    "crash": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "missing": "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)",
    "import_error": "raise ImportError('libfoo.so.1: cannot open shared object file')",
    "wrong_version": "__version__ = '0.0.1'",
}
ALL_TASKS = ", ".join(TASKS)


@pytest.fixture(scope="module")
def healthy() -> Diagnosis:
    """This machine, with everything that the tests' requirements install."""
    return doctor.diagnose(timeout_seconds=120)


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a module with a fault, or with this source, before the installed one."""
    folder = tmp_path / "planted"
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def plant(module: str, fault: str) -> None:
        (folder / module).mkdir(parents=True)
        (folder / module / "__init__.py").write_text(BODIES.get(fault, fault))

    return plant


def probed(healthy: Diagnosis, *names: str, seconds: float = 60) -> Diagnosis:
    """What was found of a healthy machine, but for these, which are probed now."""
    return Diagnosis({**healthy.components, **doctor.diagnose(names, seconds).components})


# --- A healthy machine


def test_here_everything_works_and_the_mode_is_full(healthy: Diagnosis) -> None:
    broken = {name: each.hint for name, each in healthy.components.items() if not each.works}
    assert broken == {}
    assert (healthy.mode, healthy.reason) == ("full", "")
    assert {healthy.mode_for(task) for task in TASKS} == {"full"}
    assert healthy.components["torch"].version.startswith("2.")
    for name, each in healthy.components.items():
        assert 0 <= each.seconds < 120, name
        assert bool(each.hint) == (each.status != "ok"), name


def test_the_mode_is_detected_from_the_components_that_decide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(doctor, "diagnose", lambda names, seconds: asked.append((names, seconds)))
    doctor.detect_mode(3.0)
    assert asked == [(doctor.DECIDE, 3.0)]
    assert set(doctor.DECIDE) == {*doctor.BRAIN, *doctor.ATARI, *doctor.BOX2D, "envpool"}


def test_the_versions_wanted_are_those_of_the_project() -> None:
    wanted = doctor.requirements()
    assert "2.0.0" not in wanted["torch"].specifier and "2.13.0" in wanted["torch"].specifier
    named = {distribution for _, distribution, _ in doctor.PROBES.values() if distribution}
    assert named <= set(wanted)


# --- Faults of torch: the real worlds, without it


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("missing", "is missing"),
        ("import_error", "cannot be imported (ImportError: libfoo.so.1: cannot open shared object file)"),
        ("crash", "crashes on import (SIGSEGV)"),
        ("wrong_version", "is version 0.0.1, the course needs <3,>=2.8"),
        ("hang", "hangs on import (2 s)"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals have names on Linux and macOS only")
def test_faults_of_torch(healthy: Diagnosis, plant, fault: str, problem: str) -> None:
    plant("torch", fault)
    found = probed(healthy, "torch", "stable-baselines3", "bf16", seconds=2 if fault == "hang" else 60)
    torch = found.components["torch"]
    assert (torch.status, torch.problem) == (fault, problem)
    assert "-m pip install" in torch.command and '"torch<3,>=2.8"' in torch.command
    assert torch.hint == f"{problem}; type: {torch.command}" and "\n" not in torch.hint
    assert found.mode == "gym_only"
    assert found.reason == f"torch {problem}: playing with the NumPy world model"
    # What stands on torch was not tried, and the same command mends it.
    for name in ("stable-baselines3", "bf16"):
        assert found.components[name].status == "import_error"
        assert found.components[name].hint == f"needs torch, which {torch.hint}"


def test_a_module_that_is_not_to_be_found_at_all_is_missing(plant) -> None:
    blocker = "import sys\nclass Blocker:\n  def find_spec(self, name, path=None, target=None):\n"
    blocker += "    if name == 'cma': raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
    plant("sitecustomize", blocker + "sys.meta_path.insert(0, Blocker())")
    assert doctor.diagnose(["cma"]).components["cma"].status == "missing"


def test_a_module_of_a_package_that_is_missing_is_a_broken_package(plant) -> None:
    plant("cma", "import cma.nowhere")
    cma = doctor.diagnose(["cma"]).components["cma"]
    assert cma.status == "import_error" and "No module named 'cma.nowhere'" in cma.problem


@pytest.mark.parametrize(
    ("source", "status", "problem"),
    [
        ("raise SystemExit(3)", "import_error", "cannot be imported (SystemExit: 3)"),
        ("import os; os._exit(3)", "crash", "crashes on import (exit code 3)"),
        ("import os; os._exit(0)", "crash", "crashes on import (exit code 0)"),
        ("print('\\x1e{'); __version__ = '4.5'", "import_error", "fails in use (AttributeError: module 'cma' has no"),
    ],
)
def test_whatever_a_module_does_there_is_a_verdict(plant, source: str, status: str, problem: str) -> None:
    plant("cma", source)
    cma = doctor.diagnose(["cma"]).components["cma"]
    assert cma.status == status and cma.problem.startswith(problem)


@pytest.mark.skipif(sys.platform == "win32", reason="looks for a process by its number")
def test_a_hung_module_is_ended_with_all_that_it_started(plant, tmp_path: Path) -> None:
    number = tmp_path / "number"
    plant(
        "cma",
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(number)!r}, 'w').write(str(child.pid))\ntime.sleep(60)",
    )
    assert doctor.diagnose(["cma"], timeout_seconds=2).components["cma"].status == "hang"
    child = int(number.read_text())
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        os.sched_yield()
    assert not _alive(child)


def _alive(process: int) -> bool:
    answer = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return answer.stdout.strip()[:1] not in ("", "Z")


def test_several_that_hang_do_not_wait_for_each_other(plant) -> None:
    for module in ("cma", "pygame", "Box2D", "ipywidgets"):
        plant(module, "hang")
    start = time.monotonic()
    found = doctor.diagnose(["cma", "pygame", "box2d", "ipywidgets", "cores"], timeout_seconds=3)
    assert time.monotonic() - start < 8  # the time-out + 5 s
    assert {each.status for name, each in found.components.items() if name != "cores"} == {"hang"}
    assert found.components["cores"].works


def test_waiting_for_a_core_is_no_hanging(plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant("cma", "import time\ntime.sleep(1.5)\nraise ImportError")
    monkeypatch.setattr(processes, "queued_seconds", lambda process: 60.0)
    assert doctor.diagnose(["cma"], timeout_seconds=1).components["cma"].status == "import_error"
    monkeypatch.setattr(processes, "_AT_MOST", 1)
    assert doctor.diagnose(["cma"], timeout_seconds=1).components["cma"].status == "hang"


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux counts the waiting")
def test_waiting_for_a_core_is_counted_also_that_of_children() -> None:
    cores = os.sched_getaffinity(0)
    spin = "import time\nend = time.process_time() + 20\nwhile time.process_time() < end: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    try:
        os.sched_setaffinity(0, {min(cores)})  # all of them share one core
        started = [TimedProcess([sys.executable, "-c", parent]) for _ in range(2)]
    finally:
        os.sched_setaffinity(0, cores)
    try:
        deadline = time.monotonic() + 30
        while (waited := [each.seconds - each.own_seconds for each in started]) and min(waited) < 0.3:
            assert time.monotonic() < deadline, waited
        assert processes.queued_seconds(2**30) == 0
    finally:
        for process in started:
            process.end()


# --- Faults of the worlds


def test_without_gymnasium_worlds_are_simulated(healthy: Diagnosis, plant) -> None:
    plant("gymnasium", "missing")
    found = probed(healthy, "gymnasium", "renderer")
    assert found.components["gymnasium"].status == "missing"
    assert found.components["gymnasium"].version is None
    assert '"gymnasium<2,>=1.4"' in found.components["gymnasium"].command
    assert found.components["renderer"].problem == "needs gymnasium, which is missing"
    assert (found.mode, found.reason) == ("simulation", "gymnasium is missing: playing in a simulated world")


def test_without_envpool_everything_is_played_in_gymnasium(healthy: Diagnosis, plant) -> None:
    plant("envpool", "missing")
    found = probed(healthy, "envpool")
    assert found.components["envpool"].status == "missing"
    assert '"envpool<2,>=1.2.5"' in found.components["envpool"].command
    assert (found.mode, found.reason) == ("full", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals have names on Linux and macOS only")
def test_an_envpool_that_crashes_stands_in_the_way(healthy: Diagnosis, plant) -> None:
    plant("envpool", "crash")
    found = probed(healthy, "envpool")
    assert "-m pip uninstall -y envpool" in found.components["envpool"].command
    assert found.mode == "simulation"
    assert found.reason == "envpool crashes on import (SIGSEGV): playing in a simulated world"


def test_without_roms_the_other_two_are_played(
    healthy: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    found = probed(healthy, "ale-py", "roms")
    assert found.components["ale-py"].status == "ok"
    assert found.components["roms"].status == "missing"
    assert "ALE_ROMS_DIR" in found.components["roms"].command
    assert {task: found.mode_for(task) for task in TASKS} == {
        "pong": "simulation", "lunar-lander": "full", "breakout": "simulation", "car-racing": "full",
    }  # fmt: skip
    assert found.mode == "full" and found.mode_for("CarRacing-v3") == "full"
    missing = f"roms are missing (no pong.bin in {tmp_path})"
    assert found.reason == f"pong, breakout: {missing}: playing in a simulated world"


def test_with_the_base_install_alone_everything_is_simulated(healthy: Diagnosis, plant) -> None:
    gone = "torch gymnasium ale_py Box2D pygame cv2 envpool stable_baselines3".split()
    for module in gone:
        plant(module, "missing")
    found = probed(healthy, *doctor.DECIDE, *doctor.BASE)
    assert [found.components[name].status for name in doctor.BASE] == ["ok"] * 3
    assert not any(found.components[name].works for name in doctor.DECIDE)
    assert (found.mode, found.reason) == ("simulation", "gymnasium is missing: playing in a simulated world")


# --- What follows from components, without any process


def with_(healthy: Diagnosis, names: Iterable[str], status: str, **changes) -> Diagnosis:
    bad = {name: dataclasses.replace(healthy.components[name], status=status, problem="is bad") for name in names}
    bad = {name: dataclasses.replace(each, **changes) for name, each in bad.items()}
    return Diagnosis({**healthy.components, **bad})


def test_slow_is_good_enough(healthy: Diagnosis) -> None:
    assert with_(healthy, healthy.components, "slow").mode == "full"


@pytest.mark.parametrize("status", ["missing", "wrong_version", "import_error", "hang", "crash"])
def test_each_component_takes_away_what_needs_it(healthy: Diagnosis, status: str) -> None:
    for name in healthy.components:
        found = with_(healthy, [name], status, imported=False)
        modes = [found.mode_for(task) for task in ("pong", "car-racing")]
        if name in doctor.BRAIN:
            assert modes == ["gym_only"] * 2
        elif name == "envpool":
            assert modes == (["simulation"] if status in ("hang", "crash") else ["full"]) * 2
        else:
            assert modes == ["simulation" if name in needs else "full" for needs in (doctor.ATARI, doctor.BOX2D)]
        assert bool(found.reason) == (modes != ["full"] * 2) and "\n" not in found.reason


def test_an_envpool_that_imports_and_then_fails_stands_in_the_way_too(healthy: Diagnosis) -> None:
    assert with_(healthy, ["envpool"], "import_error", imported=True).mode == "simulation"


def test_tasks_that_differ_are_named(healthy: Diagnosis) -> None:
    found = with_(with_(healthy, ["roms"], "missing"), ["torch"], "hang")
    assert found.mode == "gym_only"
    assert found.reason == (
        "pong, breakout: roms is bad: playing in a simulated world; "
        "lunar-lander, car-racing: torch is bad: playing with the NumPy world model"
    )


def test_slow_is_more_than_half_of_the_time_out() -> None:
    def verdict(seconds: float) -> Component:
        done = {"event": "done", "seconds": seconds, "found": None}
        return doctor.classify("cma", [{"event": "use", "version": "4.5.0"}, done], 0, seconds, 15)

    assert verdict(7.4).status == "ok" and verdict(7.4).hint == ""
    assert verdict(7.6).status == "slow" and verdict(7.6).hint == "took 8 s; type: wm doctor"


@pytest.mark.parametrize(
    ("platform", "name", "status", "problem", "command"),
    [
        ("linux", "torch", "missing", "", '-m pip install "torch<3,>=2.8" --extra-index-url https://'),
        ("darwin", "torch", "missing", "", '-m pip install "torch<3,>=2.8"'),
        ("win32", "torch", "wrong_version", "", '-m pip install "torch<3,>=2.8"'),
        ("darwin", "cma", "crash", "", '-m pip install --force-reinstall --no-deps "cma<5,>=4.0"'),
        ("darwin", "cma", "import_error", "ModuleNotFoundError: no numpy", '-m pip install "cma<5,>=4.0"'),
        ("linux", "opencv-python", "import_error", "libGL.so.1", "sudo apt-get install -y libgl1"),
        ("darwin", "kernel", "missing", "is not registered", "-m ipykernel install --sys-prefix --name python3"),
        ("darwin", "renderer", "import_error", "", '--no-deps "pygame<3,>=2.6.1"'),
        ("darwin", "roms", "missing", "", '--force-reinstall --no-deps "ale-py<0.13,>=0.12"'),
    ],
)
def test_one_command_mends_it(
    monkeypatch: pytest.MonkeyPatch, platform: str, name: str, status: str, problem: str, command: str
) -> None:
    monkeypatch.delenv("ALE_ROMS_DIR", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    found = doctor.mend(name, status, problem)
    assert command in found and "\n" not in found and (platform == "linux" or found.endswith(command))


def test_a_run_folder_that_cannot_be_written_and_a_disk_that_is_too_small(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = doctor.diagnose(["run_dir", "disk"], 60, tmp_path / "file" / "run", needed_bytes=1e18).components
    assert found["run_dir"].status == found["disk"].status == "missing"
    assert "--run-dir" in found["run_dir"].command and "1000000000.0 GB" in found["disk"].problem
    found = doctor.diagnose(["run_dir", "disk"], 60, tmp_path / "new" / "run", needed_bytes=1).components
    assert found["run_dir"].status == found["disk"].status == "ok"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_the_data_of_a_budget_are_counted(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "collect: {num_steps: 1000, shard_length: 100}\nrounds: {num_rounds: 2}\nmdnrnn: {sequence_length: 8}\n"
    )
    assert doctor.bytes_of_frames("smoke", tmp_path / "mine.yaml") == 4 * 2 * 1000 * 64 * 64 * 3


def test_a_time_out_is_positive() -> None:
    with pytest.raises(UsageError, match="above 0 seconds, got 0"):
        doctor.detect_mode(0)


# --- The command, and the board of notebook 01


@pytest.mark.skipif(sys.platform == "win32", reason="signals have names on Linux and macOS only")
def test_the_command_with_a_torch_that_hangs(plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    plant("torch", "hang")
    for module in ("envpool", "papermill", "jupytext", "nbmake", "ipykernel"):  # the slow ones
        plant(module, "missing")
    (tmp_path / "mine.yaml").write_text("doctor: {timeout_seconds: 10}")
    start = time.monotonic()
    assert cli.main(["doctor", "--config", "mine.yaml", "--json", "doctor.json"]) == 0
    assert time.monotonic() - start < 15  # the time-out + 5 s
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert set(written) == {"schema", "mode", "components"}
    assert (written["schema"], written["mode"]) == (1, "gym_only")
    assert set(written["components"]) == set(doctor.PROBES)
    for each in written["components"].values():
        assert set(each) == {"status", "seconds", "version", "hint"}
    assert written["components"]["torch"]["status"] == "hang"
    printed = capsys.readouterr().out
    assert "mode: gym_only (torch hangs on import (10 s): playing with the NumPy world model)" in printed
    assert written["components"]["torch"]["hint"] in printed


def test_the_command_without_the_base_install(healthy: Diagnosis, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    broken = with_(healthy, ["cma"], "missing", problem="is missing", command="pip install cma")
    monkeypatch.setattr(doctor, "diagnose", lambda **settings: broken)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "wm: no mode without cma: it is missing; type: pip install cma\n"


def test_the_table_and_the_board_say_it_in_words(healthy: Diagnosis) -> None:
    found = with_(healthy, ["torch"], "crash", problem="crashes <here>", command="pip install torch")
    board = plots.Board(found)
    html = board._repr_html_()
    assert "✗ crash" in html and "✓ ok" in html and "crashes &lt;here&gt;; type: pip install torch" in html
    assert html.count('<th scope="row">') == len(found.components)
    for text in (repr(board), html):
        assert "mode: gym_only" in text
        assert all(name in text for name in found.components)
    assert "torch crashes <here>; type: pip install torch" in repr(board)


# --- Imports


def test_the_numpy_path_brings_nothing_heavy_and_wm_lib_hardly_anything() -> None:
    rows = import_times.measure_imports(["wm_lib", "wm_lib.control.controller", "wm_lib.control.evolution"], 60)
    for row in rows:
        assert row["heavy"] == [] and row["status"] in ("ok", "over") and row["budget"] in (0.3, 1.0)
    program = "import sys; before = set(sys.modules); import wm_lib; print(len(set(sys.modules) - before))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, env=environment)
    assert int(done.stdout) == 1


def test_what_imports_torch_against_its_budget_or_fails_is_told(plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant("torch", "x = 1")
    plant("light", "import torch")
    plant("broken", "raise RuntimeError")
    plant("stuck", "hang")
    monkeypatch.setattr(import_times, "BUDGETS", {"light": 60.0})
    rows = import_times.measure_imports(["light", "torch", "broken", "stuck"], timeout_seconds=2)
    assert [(row["status"], row["heavy"]) for row in rows] == [
        ("heavy", ["torch"]), ("ok", ["torch"]), ("failed", []), ("failed", []),
    ]  # fmt: skip
    assert "-" in import_times.table(rows).splitlines()[3]


def test_every_module_is_measured_and_every_budget_is_of_one() -> None:
    modules = import_times.every_module()
    assert len(set(modules)) == len(modules)
    assert {"torch", "wm_lib", "wm_lib.control.controller", "wm_lib.models"} <= set(modules)
    assert set(import_times.BUDGETS) <= set(modules)
