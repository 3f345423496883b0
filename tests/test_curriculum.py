"""The curriculum with children that only pretend to train, and do all that a training may do to whoever started it."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from test_pipeline import TINY
from tqdm.std import tqdm

from wm_lib import attempts, checkpoints, cli, curriculum, journal
from wm_lib.attempts import Try, control
from wm_lib.child import tail_of, take_lock, what_went_wrong
from wm_lib.curriculum import MODES, Curriculum, next_try, run
from wm_lib.curriculum_report import report_table
from wm_lib.errors import StageError, UsageError
from wm_lib.journal import Journal, read_journal
from wm_lib.settings import CurriculumConfig

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to crash by and no groups to hold")

# A child that does what its last argument says.
CHILD = """
import json, os, signal, subprocess, sys, time
result, mode, what = sys.argv[1:]
word, _, value = what.partition(" ")
print("child begins", flush=True)
def sleep():
    with open(result + ".pid", "w") as file:
        file.write(str(os.getpid()))
    os.replace(result + ".pid", result + ".ready")
    while True:
        time.sleep(60)
if word == "score":
    score = {"mean": float(value), "ci95": [float(value) - 1, float(value) + 1], "episodes": 2}
    manifest = {"mode": mode, "score": score, "real_steps": {"total": 100}, "minutes": {"vae": 1.5, "mdn_rnn": 1.0}}
    with open(result, "w") as file:
        json.dump(manifest, file)
elif word == "exit":
    print("\\rcollect 10%\\rcollect 20%\\nwm: it broke", flush=True)
    sys.exit(int(value))
elif word == "signal":
    os.kill(os.getpid(), getattr(signal, value))
elif word == "raise":
    raise {"MemoryError": MemoryError, "OSError": OSError(28, "No space left on device")}[value]
elif word == "nonsense":
    with open(result, "w") as file:
        file.write(value)
elif word == "hang":
    sleep()
elif word == "family":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    sleep()
elif word == "leave":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
"""
Behaviour = dict[tuple[str, str, int], list[str]]


def fake(behaviour: Behaviour) -> Callable[[Curriculum, Try], list[str]]:
    """Children by (task, mode, round): what each try does, in their order; a try that was interrupted comes again."""

    def argv(plan: Curriculum, attempt: Try) -> list[str]:
        for ready in plan.directory.glob("*.ready"):
            ready.unlink()
        place = (attempt.task, attempt.mode, attempt.round)
        made = [r for r in plan.records() if r["event"] == "result"]
        number = sum((r["task"], r["mode"], r["round"]) == place for r in made)
        return [sys.executable, "-S", "-c", CHILD, str(attempt.result), attempt.mode, behaviour[place][number]]

    return argv


@pytest.fixture
def plan(tmp_path):
    """A function: the curriculum of these settings, in mode full."""

    def opened(*stages: str, mode: str = "full", **settings) -> Curriculum:
        file = tmp_path / "mine.yaml"
        defaults = {"stages": list(stages or ["pong"]), "timeout_seconds": 30, "max_retries": 1}
        file.write_text(yaml.safe_dump({"curriculum": defaults | settings}))
        return Curriculum.open("smoke", tmp_path / "run", 0, file, mode)

    return opened


def outcome(report: dict) -> list[tuple]:
    """What is the same however often a run was interrupted."""
    assert report["schema"] == 1 and report["complete"] and report["executor"] == "process"
    columns = ("task", "mode", "status", "score", "ci95", "target", "real_steps", "retries")
    return [
        (*(row[name] for name in columns), [(f["mode"], f["round"], f["kind"]) for f in row["failures"]])
        for row in report["stages"]
    ]


def story(plan: Curriculum) -> list[tuple]:
    """Results in the order in which they came."""
    return [
        (r["task"], r["mode"], r["round"], r["score"], r.get("kind")) for r in plan.records() if r["event"] == "result"
    ]


def quiet(plan: Curriculum, behaviour: Behaviour) -> dict:
    return run(plan, fake(behaviour), say=lambda line: None)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# --- What follows from what


def every_course(results: list[dict], max_retries: int) -> list[tuple[list[dict], str]]:
    """All the ways a task can go on from here: the results in the end, and the status."""
    found = next_try(results, "full", 2, 10.0, max_retries)
    if isinstance(found, str):
        return [(results, found)]
    mode, number = found
    assert len(results) < 3 * 2 * (max_retries + 1) + 1, "it never ends"
    courses = []
    for score, kind in ((10.0, None), (9.9, None), (None, "signal"), (None, "disk")):
        courses += every_course([*results, {"mode": mode, "round": number, "score": score, "kind": kind}], max_retries)
    return courses


@pytest.mark.parametrize("max_retries", [0, 1, 2])
def test_whatever_happens_a_task_ends_as_promised(max_retries):
    courses = every_course([], max_retries)
    assert {status for _, status in courses} == {"reached", "not_reached", "failed"}
    for results, status in courses:
        modes = [MODES.index(result["mode"]) for result in results]
        assert modes == sorted(modes)  # never back up
        scored = [result for result in results if result["score"] is not None]
        real = [result for result in scored if result["mode"] != "simulation"]
        met = [result for result in real if result["score"] >= 10.0]
        assert (status == "reached") == bool(met) and met in ([], results[-1:])
        assert (status == "failed") == (not scored)
        for result in results:
            assert 2 <= result["round"] <= 2 + max_retries if result["mode"] == "full" else result["round"] == 1
        for place in {(result["mode"], result["round"]) for result in results}:
            kinds = [result["kind"] for result in results if (result["mode"], result["round"]) == place]
            assert kinds in ([None], ["signal"] * 2, ["signal", None], ["disk"], ["signal", "disk"])
        if status == "not_reached" and results[-1]["score"] is not None and results[-1]["mode"] == "full":
            assert results[-1]["round"] == 2 + max_retries


# --- Children that reach, miss, crash, hang


def test_a_target_reached_leads_to_the_next_task(plan):
    one = plan("lunar-lander", "pong")
    report = quiet(one, {("lunar-lander", "full", 1): ["score 200"], ("pong", "full", 1): ["score 18.5"]})
    assert outcome(report) == [
        ("lunar-lander", "full", "reached", 200.0, [199.0, 201.0], 200.0, 100, 0, []),
        ("pong", "full", "reached", 18.5, [17.5, 19.5], 18.0, 100, 0, []),
    ]
    assert [row["minutes"] for row in report["stages"]] == [2.5, 2.5]
    assert json.loads((one.directory / "report.json").read_text()) == report
    page = (one.directory / "report.html").read_text()
    assert "18.5 [17.5, 19.5]" in page and "What went wrong" not in page


def test_a_target_missed_costs_further_rounds(plan):
    behaviour = {("pong", "full", n): [f"score {n}"] for n in (1, 2, 3)} | {("breakout", "full", 1): ["score 999"]}
    report = quiet(plan("pong", "breakout", max_retries=2), behaviour)
    assert outcome(report)[0][2:5] == ("not_reached", 3.0, [2.0, 4.0])
    assert [row["retries"] for row in report["stages"]] == [2, 0]
    assert [row["status"] for row in report["stages"]] == ["not_reached", "reached"]


def test_further_rounds_end_where_the_target_is_met(plan):
    one = plan(max_retries=5, targets={"PongNoFrameskip-v4": 2})
    report = quiet(one, {("pong", "full", n): [f"score {n}"] for n in (1, 2)})
    assert outcome(report) == [("pong", "full", "reached", 2.0, [1.0, 3.0], 2.0, 100, 1, [])]


def test_rounds_go_on_from_those_of_the_budget(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("rounds: {num_rounds: 3}\ncurriculum: {stages: [pong], max_retries: 1}")
    one = Curriculum.open("smoke", tmp_path / "run", 0, file, "full")
    assert [r[2] for r in (quiet(one, {("pong", "full", n): ["score 0"] for n in (3, 4)}), story(one))[1]] == [3, 4]


@pytest.mark.parametrize(
    ("crash", "kind", "reason"),
    [
        ("exit 3", "exit", "exit code 3: wm: it broke"),
        ("signal SIGSEGV", "signal", "ended by signal SIGSEGV"),
        ("signal SIGKILL", "memory", "killed by the system, mostly for lack of memory"),
        ("raise MemoryError", "memory", "the memory was not enough"),
        ("nonsense {}", "exit", "ended without a score: 'score'"),
        ("nonsense {", "exit", "ended without a score: "),
        ('nonsense {"mode": "simulation", "score": {"mean": 1}}', "exit", "ended without a score: it is of mode simul"),
        ('nonsense {"mode": "full", "score": {"mean": NaN}}', "exit", "ended without a score: it is nan"),
    ],
)
def test_what_crashed_is_tried_once_more(plan, crash, kind, reason):
    one = plan()
    report = quiet(one, {("pong", "full", 1): [crash, "score 21"]})
    (row,) = report["stages"]
    assert outcome(report)[0][1:4] == ("full", "reached", 21.0) and row["retries"] == 0
    (failure,) = row["failures"]
    assert (failure["kind"], failure["mode"], failure["round"]) == (kind, "full", 1)
    assert failure["reason"].startswith(reason)
    assert failure["tail"].startswith("child begins")
    if crash == "exit 3":
        assert failure["tail"] == "child begins\ncollect 20%\nwm: it broke"  # a bar's last state only
    assert "What went wrong" in (one.directory / "report.html").read_text()


def test_what_keeps_failing_goes_on_one_mode_lower(plan):
    one = plan("pong", "breakout", "car-racing", max_retries=0)
    behaviour = {
        ("pong", "full", 1): ["exit 1", "signal SIGABRT"],
        ("pong", "gym_only", 1): ["score 19"],
        ("breakout", "full", 1): ["raise OSError"],  # the disk is full: the same again would not help
        ("breakout", "gym_only", 1): ["exit 2"],
        ("breakout", "simulation", 1): ["score 9999"],
        ("car-racing", "full", 1): ["exit 2"],
        ("car-racing", "gym_only", 1): ["exit 2"],
        ("car-racing", "simulation", 1): ["exit 1", "exit 1"],
    }
    report = quiet(one, behaviour)
    pong, breakout, car_racing = outcome(report)
    assert pong[1:4] == ("gym_only", "reached", 19.0) and pong[5] == 18.0
    assert [kind for *_, kind in pong[-1]] == ["exit", "signal"]
    # A simulated score is no real one: neither reached nor printed beside the target.
    assert breakout[1:4] == ("simulation", "not_reached", 9999.0) and breakout[5] is None
    assert breakout[-1] == [("full", 1, "disk"), ("gym_only", 1, "usage")]
    assert car_racing[1:4] == ("simulation", "failed", None) and car_racing[6] is None
    (line,) = [line for line in report_table(report).splitlines() if "breakout" in line]
    assert "300" not in line and "9999" in line and "100 simulated" in line
    assert "300" not in (one.directory / "report.html").read_text()


def test_the_score_before_a_failing_round_stands(plan):
    behaviour = {("pong", "full", 1): ["score 3"], ("pong", "full", 2): ["signal SIGSEGV", "exit 1"]}
    (row,) = quiet(plan(), behaviour)["stages"]
    assert (row["status"], row["mode"], row["score"], row["retries"]) == ("not_reached", "full", 3.0, 1)
    assert [failure["round"] for failure in row["failures"]] == [2, 2]


@pytest.mark.parametrize(
    ("limit", "limits"),
    [("timeout", {"timeout_seconds": 30}), ("silence", {"timeout_seconds": 1000, "silence_seconds": 30})],
)
def test_what_hangs_is_ended_with_all_it_started(plan, monkeypatch, limit, limits):
    """With a clock that stands still except while a child sleeps."""
    one, now = plan(**limits), [0.0]

    def clock() -> float:
        now[0] += 5.0 * any(one.directory.glob("*.ready"))
        return now[0]

    monkeypatch.setattr(attempts, "time", SimpleNamespace(monotonic=clock))
    report = quiet(one, {("pong", "full", 1): ["family", "score 20"]})
    (row,) = report["stages"]
    assert row["status"] == "reached" and [failure["kind"] for failure in row["failures"]] == [limit]
    # The lock is inherited by the whole family: it is free only when all are gone.
    take_lock(one.directory / "child.lock").close()


def test_what_a_child_leaves_behind_is_ended(plan):
    one = plan()
    quiet(one, {("pong", "full", 1): ["leave", "score 20"]})
    take_lock(one.directory / "child.lock").close()


def test_pauses_do_not_count_as_time(tmp_path, monkeypatch):
    """With a clock that makes a second of every look at it."""
    clock = iter(range(10**6))
    monkeypatch.setattr(attempts, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))

    class Sleeper:
        log, held, polls, ended = tmp_path / "log", False, 0, False
        lock = tmp_path / "lock"

        def wait(self, seconds):
            self.polls += 1
            control(tmp_path, "pause" if 5 <= self.polls < 100 else "run")

        def hold(self, held):
            changed, self.held = self.held != held, held
            return changed

        def written(self):
            return 0

        def end(self, gently=False):
            self.ended = True

    child, events = Sleeper(), []
    bar = SimpleNamespace(disable=True)
    found = attempts._watch(child, tmp_path, CurriculumConfig(timeout_seconds=20), events.append, bar)
    assert found == ("timeout", "took longer than 20 seconds")
    assert child.ended and events == ["paused", "resumed"] and 115 < child.polls < 125


# --- Told to pause, to stop


@pytest.fixture
def background():
    """A function: run in a thread; returns a function that waits for the report."""
    threads = []

    def begin(plan: Curriculum, behaviour: Behaviour) -> Callable[[], dict]:
        reports: list[dict] = []
        thread = threading.Thread(target=lambda: reports.append(quiet(plan, behaviour)), daemon=True)
        thread.start()
        threads.append((thread, plan))

        def wait() -> dict:
            thread.join(30)
            return reports[0]

        return wait

    yield begin
    for thread, plan in threads:
        if thread.is_alive():
            control(plan.directory, "stop")
            thread.join(30)


def child_of(plan: Curriculum) -> int:
    """Process id of the hanging child, once there is one."""
    for _ in range(3000):
        for path in plan.directory.glob("*.ready"):
            pid = int(path.read_text())
            path.unlink()
            return pid
        threading.Event().wait(0.01)
    raise AssertionError("the child never began")


def test_pause_go_on_and_stop(plan, background):
    one = plan("pong", "breakout")
    wait = background(one, {("pong", "full", 1): ["score 20"], ("breakout", "full", 1): ["hang"]})
    pid = child_of(one)
    with pytest.raises(StageError, match="is running in .* already"):
        quiet(one, {})
    for word, happened, event in (("pause", os.WIFSTOPPED, "paused"), ("run", os.WIFCONTINUED, "resumed")):
        control(one.directory, word)
        _, status = os.waitpid(pid, os.WUNTRACED if word == "pause" else os.WCONTINUED)
        assert happened(status)
        while one.records()[-1]["event"] != event:
            threading.Event().wait(0.01)
    control(one.directory, "pause")
    os.waitpid(pid, os.WUNTRACED)
    control(one.directory, "stop")  # also what is paused can be stopped
    report = wait()
    assert gone(pid) and not report["complete"]
    assert [row["task"] for row in report["stages"]] == ["pong"]
    assert "Not finished yet" in (one.directory / "report.html").read_text()
    assert [r["event"] for r in one.records()][-1] == "stopped"
    report = quiet(one, {("breakout", "full", 1): ["score 400"]})  # pong is not tried again
    assert [(row[0], row[2], row[3]) for row in outcome(report)] == [
        ("pong", "reached", 20.0),
        ("breakout", "reached", 400.0),
    ]


def test_an_interrupt_ends_the_child(plan):
    one = plan()

    def interrupted(line: str) -> None:
        if "begun" in line:
            child_of(one)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(one, fake({("pong", "full", 1): ["hang"]}), say=interrupted)
    take_lock(one.directory / "child.lock").close()
    assert story(one) == []


def test_only_three_words_are_heeded(tmp_path):
    with pytest.raises(UsageError, match="pause, run or stop, found 'halt'"):
        control(tmp_path, "halt")


# --- Killed

KILLED: Behaviour = {
    ("pong", "full", 1): ["score 5"],
    ("pong", "full", 2): ["score 19"],
    ("lunar-lander", "full", 1): ["signal SIGSEGV", "exit 1"],
    ("lunar-lander", "gym_only", 1): ["raise MemoryError", "score 250"],
    ("breakout", "full", 1): ["raise OSError"],
    ("breakout", "gym_only", 1): ["nonsense {}", "exit 2"],
    ("breakout", "simulation", 1): ["score 3"],
}
TASKS = ("pong", "lunar-lander", "breakout")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[list, list]:
    """Outcome and story of the same curriculum that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    one = Curriculum.open("smoke", folder, 0, killed_config(folder), "full")
    report = quiet(one, KILLED)
    assert [row["status"] for row in report["stages"]] == ["reached", "reached", "not_reached"]
    return outcome(report), story(one)


def killed_config(folder: Path) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"curriculum": {"stages": list(TASKS), "max_retries": 1, "timeout_seconds": 30}}))
    return path


def forked(work: Callable[[], object]) -> int:
    """Do something in a copy of this process; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        # tqdm's own lock is one semaphore for all copies of a process: killed while it holds it, one would stop all.
        tqdm.set_lock(threading.RLock())
        work()
        os._exit(0)
    finally:
        os._exit(9)


def test_killed_at_every_record_it_ends_the_same(tmp_path, undisturbed):
    """Before a record is written, in the middle of it, and after: each time by a signal that nobody catches."""
    one = Curriculum.open("smoke", tmp_path, 0, killed_config(tmp_path), "full")
    path = one.directory / "journal.jsonl"
    whole = Journal.append
    turns = itertools.cycle([("before", 1), ("torn", 2), ("after", 1), ("before", 2), ("torn", 1), ("after", 2)])

    def session(how: str, which: int) -> None:
        """Killed at the first or second record that it writes."""
        count = itertools.count(1)

        def append(self: Journal, event: str, **values) -> dict:
            now = next(count) == which
            if now and how == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            record = whole(self, event, **values)
            if now and how == "torn":
                with path.open("rb+") as file:
                    file.truncate(path.stat().st_size - 10)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return record

        Journal.append = append
        quiet(one, KILLED)

    kills = 0
    while "end" not in [record["event"] for record in read_journal(path)]:
        how, which = next(turns)
        pid = forked(lambda how=how, which=which: session(how, which))
        kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert kills > 2 * len(undisturbed[1])
    report = json.loads((one.directory / "report.json").read_text())
    assert (outcome(report), story(one)) == undisturbed


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_any_moment_it_ends_the_same(tmp_path, undisturbed, seed):
    """The seed says when; which instruction that hits is up to the machine."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    one = Curriculum.open("smoke", tmp_path, 0, killed_config(tmp_path), "full")
    for _ in range(8):
        pid = forked(lambda: quiet(one, KILLED))
        timer = threading.Timer(rng.uniform(0.0, 0.6), os.kill, (pid, signal.SIGKILL))
        timer.start()
        os.waitpid(pid, 0)
        timer.cancel()
    report = quiet(one, KILLED)
    assert (outcome(report), story(one)) == undisturbed


def test_the_child_of_a_killed_run_is_ended_before_it_goes_on(plan):
    one = plan()
    runner = forked(lambda: quiet(one, {("pong", "full", 1): ["hang"]}))
    pid = child_of(one)
    while not any(r["event"] == "try" for r in one.records()):
        threading.Event().wait(0.01)
    os.kill(pid, signal.SIGSTOP)  # as if it had been paused
    os.kill(runner, signal.SIGKILL)
    os.waitpid(runner, 0)
    assert take_lock(one.directory / "child.lock") is None
    report = quiet(one, {("pong", "full", 1): ["score 20"]})
    take_lock(one.directory / "child.lock").close()
    assert report["stages"][0]["failures"] == []


# --- Begun again


def test_a_finished_curriculum_is_not_run_again_but_what_failed_is(plan):
    one = plan("pong", "breakout", max_retries=0)
    bad = {("breakout", mode, 1): ["exit 2"] for mode in MODES}
    quiet(one, {("pong", "full", 1): ["score 20"]} | bad)
    report = quiet(one, {("breakout", "full", 1): ["score 301"]})
    assert [(row[2], row[3]) for row in outcome(report)] == [("reached", 20.0), ("reached", 301.0)]
    assert outcome(quiet(one, {})) == outcome(report)


def test_other_settings_are_another_curriculum(plan):
    quiet(plan(), {("pong", "full", 1): ["score 18"]})
    harder = plan(targets={"pong": 19}, max_retries=0)
    report = quiet(harder, {("pong", "full", 1): ["score 18"]})
    assert outcome(report)[0][2] == "not_reached" and outcome(report)[0][5] == 19.0
    assert outcome(quiet(plan(), {}))[0][2] == "reached"  # and the one before is still known


def test_the_mode_is_found_once_and_written_down(plan, monkeypatch):
    asked = []

    def detect_mode() -> SimpleNamespace:
        asked.append(True)
        modes = {"pong": "gym_only", "lunar-lander": "simulation"}
        return SimpleNamespace(mode="gym_only", reason="torch is missing", components={}, mode_for=modes.get)

    monkeypatch.setitem(sys.modules, "wm_lib.doctor", SimpleNamespace(detect_mode=detect_mode))
    one, said = plan("pong", "lunar-lander", mode="auto"), []
    behaviour = {("pong", "gym_only", 1): ["score 18"], ("lunar-lander", "simulation", 1): ["score 18"]}

    def killed(line: str) -> None:
        said.append(line)
        if "begun" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(one, fake(behaviour), say=killed)
    report = run(one, fake(behaviour), say=said.append)
    assert len(asked) == 1 and said[0] == "mode gym_only: torch is missing" == said[2]
    assert (report["mode"], report["reason"]) == ("gym_only", "torch is missing")
    assert [row[1:3] for row in outcome(report)] == [("gym_only", "reached"), ("simulation", "not_reached")]


def test_a_picture_that_cannot_be_drawn_takes_nothing_down(plan):
    said = []

    def draw() -> None:
        raise ZeroDivisionError("no")

    report = run(plan(), fake({("pong", "full", 1): ["score 18"]}), said.append, draw)
    assert report["complete"] and "the board could not be drawn: ZeroDivisionError: no" in said


# --- Journal, log, messages


def test_a_torn_line_is_dropped_and_written_over(tmp_path):
    path = tmp_path / "folder" / "journal.jsonl"
    log = Journal(path)
    log.append("one", value=1)
    log.append("two")
    path.write_bytes(path.read_bytes()[:-3])
    assert [r["event"] for r in read_journal(path)] == ["one"]
    log = Journal(path)
    log.append("three")
    path.write_bytes(path.read_bytes() + b"\0\0\n[1]\n7\n")
    assert [r["event"] for r in Journal(path).records] == ["one", "three"] == [r["event"] for r in log.records]


def test_a_full_disk_leaves_no_half_a_line(tmp_path, monkeypatch):
    log = Journal(tmp_path / "journal.jsonl")
    log.append("one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.append("two")
    log.append("three")
    assert [r["event"] for r in read_journal(log.path)] == ["one", "three"]


@pytest.mark.parametrize(
    ("code", "tail", "kind"),
    [
        (1, "OSError: [Errno 28] No space left on device: 'x'", "disk"),
        (1, "RuntimeError: [enforce fail at alloc_cpu.cpp] can't allocate memory: you tried", "memory"),
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'", "memory"),
        (-9, "", "memory"),
        (-11, "Fatal Python error: Segmentation fault", "signal"),
        (-250, "", "signal"),
        (2, "wm: unknown task", "usage"),
        (1, "", "exit"),
    ],
)
def test_kinds_of_failure(code, tail, kind):
    assert what_went_wrong(code, tail)[0] == kind


def test_the_tail_of_a_log_begins_where_the_try_began(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"an earlier try\n" + b"x" * 9000 + b"\n" + b"\n".join(b"%d" % n for n in range(30)) + b"\n\xff\n")
    assert tail_of(path).splitlines() == [*(str(n) for n in range(11, 30)), "\ufffd"]
    assert tail_of(path, path.stat().st_size - 5).splitlines() == ["29", "\ufffd"]
    assert tail_of(tmp_path / "none") == ""


# --- The command


def test_help_and_imports(capsys):
    with pytest.raises(SystemExit):
        cli.main(["curriculum", "--help"])
    text = capsys.readouterr().out
    assert all(option in text for option in ("--mode", "--budget", "--run-dir", "--seed", "--config", "--json"))
    program = """
import sys
import wm_lib.curriculum, wm_lib.course.board
heavy = {"torch", "gymnasium", "envpool", "stable_baselines3", "ipywidgets"} & sys.modules.keys()
sys.exit(str(heavy) if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_of_a_try(plan):
    one = plan()
    attempt = Try("pong", "full", 2, one.directory / "x.json")
    command = curriculum.wm_train(one, attempt)
    assert command[:4] == [sys.executable, "-m", "wm_lib.cli", "train"] and "--mode" not in command
    assert cli._parser().parse_args(command[3:]).rounds == 2
    lower = curriculum.wm_train(one, Try("pong", "gym_only", 1, attempt.result))
    assert lower[lower.index("--mode") + 1] == "gym_only"


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """A function: let the command's children do this."""
    (tmp_path / "mine.yaml").write_text("curriculum: {stages: [pong], mode: full}")

    def pretend(behaviour: Behaviour) -> list[str]:
        monkeypatch.setattr(curriculum, "run", partial(run, argv=fake(behaviour)))
        folder = str(tmp_path / "run")
        return ["curriculum", "--budget", "smoke", "--run-dir", folder, "--config", str(tmp_path / "mine.yaml")]

    return pretend


def test_not_reached_is_no_error_and_a_failure_is_one(pretended, tmp_path, capsys):
    command = pretended({("pong", "full", 1): ["score -20"]})
    assert cli.main([*command, "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "mode full: as the settings say" in out and "not reached" in out and "report.html" in out
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["stages"][0]["status"] == "not_reached" and report["stages"][0]["score"] == -20
    assert (tmp_path / "run" / "curriculum" / "board.png").read_bytes().startswith(b"\x89PNG")
    command = pretended({("pong", mode, 1): ["exit 2"] for mode in MODES})
    assert cli.main([*command, "--seed", "1"]) == 1
    assert "wm: pong failed in every mode; " in capsys.readouterr().err
    assert cli.main([*command, "--mode", "best"]) == 2
    assert "unknown mode 'best'; choose one of auto, full, gym_only, simulation" in capsys.readouterr().err


def test_a_real_child_trains_and_the_curriculum_takes_its_score(tmp_path):
    settings = TINY | {
        "curriculum": {"stages": ["lunar-lander"], "targets": {"lunar-lander": -100_000}},
        "evaluation": {"episodes": 1, "random_episodes": 1},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["--budget", "smoke", "--run-dir", str(tmp_path / "run"), "--config", str(tmp_path / "mine.yaml")]
    assert cli.main(["curriculum", "--mode", "full", "--json", str(tmp_path / "out.json"), *arguments]) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["stages"]
    manifest = checkpoints.read_json(tmp_path / "run" / "lunar-lander" / "evaluate" / "manifest.json")
    assert row["status"] == "reached" and row["failures"] == []
    assert row["score"] == manifest["score"]["mean"] and row["real_steps"] == manifest["real_steps"]["total"]
