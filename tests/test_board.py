"""The board: read from a run's folder, drawn, and its buttons."""

import json
import os
import sys

import numpy as np
import pytest
from test_curriculum import Behaviour, child_of, fake

from wm_lib import checkpoints
from wm_lib.course import board, session
from wm_lib.course.board import describe, draw, look, save, text, to_png
from wm_lib.course.session import Session
from wm_lib.curriculum import Curriculum, run
from wm_lib.errors import StageError
from wm_lib.journal import Journal

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def plan(tmp_path) -> Curriculum:
    file = tmp_path / "mine.yaml"
    file.write_text("curriculum: {stages: [pong, breakout, car-racing], max_retries: 0, targets: {pong: 15}}")
    return Curriculum.open("smoke", tmp_path / "run", 0, file, "full")


def begin(plan: Curriculum) -> Journal:
    log = Journal(plan.directory / "journal.jsonl")
    log.append("begin", key=plan.key, mode="full", reason="", modes=dict.fromkeys(plan.configs, "full"))
    return log


def measured(score: float, mode: str = "full", minutes: float = 3.0) -> dict:
    return {"mode": mode, "round": 1, "score": score, "ci95": [score - 1, score + 1], "minutes": minutes}


def states(plan: Curriculum) -> list[str]:
    return [row["state"] for row in look(plan).rows]


def test_the_board_follows_the_journal(plan):
    assert states(plan) == ["waiting"] * 3 and look(plan).attempt is None
    log = begin(plan)
    assert states(plan) == ["waiting"] * 3
    pong = {"key": plan.key, "task": "pong"}
    log.append("try", **pong, mode="full", round=1, pid=1)
    assert states(plan) == ["running", "waiting", "waiting"] and look(plan).minutes_left is None
    for event, state in (("paused", "paused"), ("resumed", "running"), ("stopped", "stopped")):
        log.append(event, key=plan.key)
        assert states(plan)[0] == state
    log.append("result", **pong, **measured(16.0))
    log.append("result", key="another curriculum", task="breakout", **measured(999.0))
    breakout = {"key": plan.key, "task": "breakout", "round": 1}
    log.append("try", **breakout, mode="full", pid=1)
    (plan.directory / "breakout-full-round-1.log").write_bytes(
        b"earlier\n\rppo breakout:  10%|#  | 1/10 [00:01<00:09]\rppo breakout:  45%|####| 9/20 [00:10<01:12, 3.1/s]"
    )
    snapshot = look(plan)
    assert [row["state"] for row in snapshot.rows] == ["reached", "running", "waiting"]
    assert snapshot.doing == "ppo breakout: 45 %, 01:12 left of it"
    assert snapshot.minutes_left == 3.0  # one task waits, and the one that is done took three minutes
    assert "1 of 3 tasks done; about 3 minutes for the tasks after this. ppo breakout" in text(snapshot)
    assert "16.0 [15.0, 17.0]" in text(snapshot) and "| 15 " in text(snapshot)
    log.append("result", **breakout, mode="full", score=None, kind="usage", reason="", tail="", minutes=1.0)
    log.append("result", **breakout, mode="gym_only", score=None, kind="usage", reason="", tail="", minutes=1.0)
    log.append("result", key=plan.key, task="breakout", **measured(7777.0, "simulation"))
    assert states(plan) == ["reached", "not reached", "waiting"]
    (line,) = [line for line in text(look(plan)).splitlines() if "breakout" in line]
    assert "7777" in line and "300" not in line  # a simulated score, and no target


def test_the_curve_is_that_of_the_newest_training(plan):
    begin(plan).append("try", key=plan.key, task="pong", mode="full", round=2, pid=1)
    for n, (place, name) in enumerate((("controller", "return"), ("round-2/controller", "best_return"))):
        folder = plan.run_dir / "pong" / place
        folder.mkdir(parents=True)
        (folder / "scalars.jsonl").write_text("".join(f'{{"step": {i}, "{name}": {n + i}}}\n' for i in (1, 2)))
        os.utime(folder / "scalars.jsonl", (n, n))
    steps, returns = look(plan).curve
    assert steps.tolist() == [1, 2] and returns.tolist() == [2.0, 3.0]


def test_the_picture_shows_scores_targets_and_what_there_is(plan):
    log = begin(plan)
    log.append("result", key=plan.key, task="pong", **measured(16.0))
    log.append("result", key=plan.key, task="breakout", **(measured(2.0) | {"ci95": [None, None]}))
    shown = {title: np.zeros((5, 64, 64, 3), np.uint8) for title in ("the agent sees", "V keeps")}
    figure = draw(look(plan), shown)
    pong, breakout, car_racing, training, *pictures = figure.axes
    assert [patch.get_height() for patch in pong.patches] == [16.0]
    assert 15.0 in [line.get_ydata()[0] for line in pong.lines]
    assert car_racing.patches == [] or len(car_racing.patches) == 0
    assert [axes.get_title() for axes in pictures] == list(shown)
    assert pictures[0].images[0].get_array().shape == (64, 5 * 64, 3)
    assert to_png(figure).startswith(PNG)
    assert "pong: reached, score 16.0 [15.0, 17.0]; breakout: not reached, score 2.0; car-racing: waiting" in describe(
        look(plan)
    )
    assert save(plan).read_bytes().startswith(PNG)
    assert [path.name for path in plan.directory.iterdir() if path.suffix == ".tmp"] == []


class Still:
    """A world model in which z is a brightness that every action raises by its number."""

    def encode(self, frames):
        return frames.reshape(len(frames), -1).mean(1, keepdims=True).astype(np.float32)

    def decode(self, z):
        return np.broadcast_to(z[:, :, None, None], (len(z), 64, 64, 3)).astype(np.uint8)

    def initial_state(self, batch):
        return np.zeros((batch, 0), np.float32)

    def imagine(self, z, action, h, temperature, rng):
        return z + action[:, None], None, None, h


class Made:
    """A run whose collect is made, and the rest if there is a world model."""

    seed = 0

    def __init__(self, model):
        self.model = model
        shard = np.zeros((2, 40, 64, 64, 3), np.uint8)
        shard[0] = np.arange(40)[:, None, None, None] * 2
        older = np.full_like(shard, 99)
        action = np.ones((4, 40), np.int64)
        action[:2] = 9  # of the older shard
        self.data = type("Data", (), {"frames": [older, shard], "action": action})

    def rollouts(self):
        return self.data

    def world_model(self):
        if self.model is None:
            raise StageError("not made yet")
        return self.model


def test_what_the_agent_sees_v_keeps_and_m_dreams():
    assert list(board.pictures(Made(None))) == ["the agent sees"]
    found = board.pictures(Made(Still()))
    first = {title: frames[:, 0, 0, 0].tolist() for title, frames in found.items()}
    assert first == {
        "the agent sees": [0, 12, 24, 36, 48],
        "V keeps": [0, 12, 24, 36, 48],
        "M dreams": [0, 6, 12, 18, 24],  # one brighter with each action
    }


# --- Beside a notebook


def starting(behaviour: Behaviour):
    return lambda plan, say, changed: run(plan, fake(behaviour), say, changed)


REACHED: Behaviour = {(task, "full", 1): ["score 999"] for task in ("pong", "breakout", "car-racing")}


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot hold a process")
def test_the_buttons_work(plan):
    hangs = REACHED | {("breakout", "full", 1): ["hang"]}
    session = Session(plan, starting(hangs), seconds=0.05)
    pid = child_of(plan)
    buttons = {button.description: button for button in session.board.children[2].children}
    for name, wanted, happened in (
        ("Pause", os.WUNTRACED, os.WIFSTOPPED),
        ("Go on", os.WCONTINUED, os.WIFCONTINUED),
    ):
        buttons[name].click()
        assert happened(os.waitpid(pid, wanted)[1])
    buttons["Stop"].click()
    report = session.wait()
    assert not report["complete"] and [row["status"] for row in report["stages"]] == ["reached"]
    again = Session(plan, starting(REACHED), seconds=0.05)
    assert again.wait()["complete"]


@pytest.mark.skipif(os.name == "nt", reason="the pretended children need signals")
def test_the_widgets_show_the_end(plan, monkeypatch):
    session = Session(plan, starting(REACHED), seconds=0.05)
    session.wait()
    rows, line, _, picture = session.board.children
    assert rows.value.count("reached") == 3 and "3 of 3 tasks done" in line.value
    assert picture.value.startswith('<img src="data:image/png;base64,') and "car-racing: reached" in picture.value
    assert (plan.directory / "board.png").read_bytes().startswith(PNG)
    json.loads((plan.directory / "report.json").read_text())


@pytest.mark.skipif(os.name == "nt", reason="the pretended children need signals")
def test_without_widgets_the_board_is_text(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    session = Session(plan, starting(REACHED))
    assert session.wait()["complete"]
    assert "3 of 3 tasks done" in repr(session.board)


def test_what_goes_wrong_is_told_to_whoever_waits(plan):
    def start(plan, say, changed):
        raise StageError("a curriculum is running already")

    with pytest.raises(StageError, match="running already"):
        Session(plan, start).wait()


def test_the_pictures_are_made_anew_only_for_another_world_model(plan, monkeypatch):
    made = []
    monkeypatch.setattr(session, "pictures", lambda run: made.append(run.round) or {})
    begin(plan).append("try", key=plan.key, task="pong", mode="full", round=2, pid=1)
    beside = Session(plan, lambda plan, say, changed: {})
    beside.wait()
    made.clear()
    picture = beside.picture()
    assert made == []  # nothing is collected
    assert picture.png.startswith(PNG) and repr(picture) in picture._repr_html_()
    checkpoints.write_json(plan.run_dir / "pong" / "collect" / "stage.json", {})
    beside.picture()
    beside.picture()
    assert made == [1]  # the round before, once
    checkpoints.write_json(plan.run_dir / "pong" / "round-2" / "collect" / "stage.json", {})
    beside.picture()
    assert made == [1, 2]
