"""What `wm report --task` measures, against worlds whose answers are known."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import TINY, write_config

from wm_lib import checkpoints, cli, dreams, examine, examine_report, probes
from wm_lib.errors import StageError
from wm_lib.pipeline import Pipeline
from wm_lib.tasks import TASKS
from wm_lib.worlds.truth import names

SETTINGS = TINY | {"gates": {"probe_decisions": 30}}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """What probes and dreams find is not what is tested here, but that they are asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "_UPDATES", 20)
        few = partial(dreams.dream_against_reality, num_episodes=4, num_candidates=4)
        patch.setattr(dreams, "dream_against_reality", few)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Pipeline:
    folder = tmp_path_factory.mktemp("examine")
    file = write_config(folder / "run.yaml", **SETTINGS)
    opened = Pipeline.open("breakout", "smoke", folder / "run", 0, file)
    opened.build("controller")
    return opened


@pytest.fixture(scope="module")
def found(run) -> dict:
    return examine.examine(run)


def test_it_says_all_there_is_to_say(run, found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["task"] == "breakout" and found["schema"] == 1
    assert set(found["eyes"]["probes"]) == set(found["memory"]["position_drift"]) == {"random", "agent"}
    for kinds in found["eyes"]["probes"].values():
        velocities = {name + suffix for name in ("velocity", "velocity from h") for suffix in ("", " mlp")}
        assert set(kinds) == {"linear", "mlp"} | velocities
        assert set(kinds["mlp"]) == {"ball_x", "ball_y", "paddle_x"}
    assert found["eyes"]["num_frames"] == run.rollouts().num_frames
    assert {"nll", "copy_last_nll", "linear_nll", "single_gaussian_nll"} <= found["memory"].keys()
    steps = found["memory"]["drift"]
    assert set(steps) == {"1", "5", "15"}  # no episode goes on for 50
    assert found["dream"]["horizon"] == 32
    text = examine_report.tables(found)
    words = "paddle_x", "one Gaussian", "rank correlation", "V of the real frame", "change of ball_x", "M said", "±"
    for word in words:
        assert word in text


def test_it_is_measured_once(run, found, monkeypatch):
    monkeypatch.setattr(examine, "play_with_truth", lambda run: pytest.fail("measured again"))
    assert examine.examine(run) == found
    path = run.directory / "examination.json"
    whole = path.read_text()
    path.write_text(whole[:100])  # cut short: measured again
    with pytest.raises(pytest.fail.Exception):
        examine.examine(run)
    path.write_text(whole)


def test_a_rival_trained_on_other_latents_is_trained_anew(run, found):
    folder = run.directory / "single_gaussian"
    record = checkpoints.read_json(folder / "started.json")
    assert record["key"] == run.facts("mdn_rnn")["key"]
    weights = checkpoints.load(folder / "checkpoint.safetensors")[0]
    stale = {name: np.zeros_like(value) for name, value in weights.items()}
    checkpoints.save(folder / "checkpoint.safetensors", stale, {"step": TINY["mdnrnn"]["num_updates"]})
    checkpoints.write_json(folder / "started.json", record | {"key": "of other latents"})
    assert examine.memory(run, {})["single_gaussian_nll"] == found["memory"]["single_gaussian_nll"]
    assert (folder.parent / "single_gaussian.previous").exists()


def test_without_an_agent_random_play_alone_is_probed(run, tmp_path):
    import shutil

    shutil.copytree(run.directory, tmp_path / "run" / "breakout", ignore=shutil.ignore_patterns("controller", "exam*"))
    file = write_config(tmp_path / "run.yaml", **SETTINGS)
    bare = Pipeline.open("breakout", "smoke", tmp_path / "run", 0, file)
    found = examine.examine(bare)
    assert list(found["eyes"]["probes"]) == ["random"] and found["dream"] is None
    assert "no agent of breakout yet" in examine_report.tables(found)
    with pytest.raises(StageError, match="not made yet"):
        examine.examine(Pipeline.open("pong", "smoke", tmp_path / "run", 0, file))


def test_the_command_prints_and_publishes_what_a_full_run_showed(run, found, tmp_path, monkeypatch, capsys):
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    file = write_config(tmp_path / "run.yaml", **SETTINGS)
    command = f"report --task breakout --run-dir {run.directory.parent} --config {file} --publish --json out.json"
    assert cli.main([*command.split(), "--budget", "smoke"]) == 2
    assert "only a full run" in capsys.readouterr().err and examine_report.shipped("breakout") is None

    path = run.directory / "examination.json"
    whole = path.read_text()
    path.write_text(whole.replace("--budget smoke", "--budget full"))
    assert cli.main([*command.split(), "--budget", "full", "--rounds", "1"]) == 0
    path.write_text(whole)
    full = found | {"command": found["command"].replace("smoke", "full")}
    assert capsys.readouterr().out == examine_report.tables(full) + "\n"
    assert json.loads(Path("out.json").read_text()) == full == examine_report.shipped("breakout")
    assert examine_report.shipped("pong") is None


def test_h_is_asked_for_what_it_has_read(run):
    """An h that holds the frame before, from which it was made: it knows each frame one decision later."""
    episode = np.array([[0, 0, 0, 1, 1]])
    h = np.array([[[0.0], [10], [11], [0], [20]]])  # after frames 10, 11, 12; 20, 21
    after, read = examine._having_read(h, episode)
    assert after[read].tolist() == [10, 11, 20] and read[0, :, 0].tolist() == [True, True, False, True, False]


class Drifting:
    """A ball that moves by its velocity; z is [x, y, vx, vy], and a dream goes `error` pixels astray at every step."""

    z_dim, feature_dim, state_dim = 4, 4, 1

    def __init__(self, error: float) -> None:
        self.error = error

    def initial_state(self, batch: int) -> np.ndarray:
        return np.zeros((batch, 1), np.float32)

    def step(self, z, action, h):
        return h

    def imagine(self, z, action, h, temperature, rng, done_threshold=None):
        moved = z.copy()
        moved[:, :2] += z[:, 2:] + self.error
        return moved, np.zeros(len(z)), np.zeros(len(z), bool), h


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_where_the_dream_thinks_the_ball_is(run, error, monkeypatch):
    monkeypatch.setattr(probes, "_UPDATES", 3000)
    rng = np.random.default_rng(0)
    rows, length = 40, 60
    velocity = rng.uniform(-0.4, 0.4, (rows, 1, 2))
    place = rng.uniform(25, 40, (rows, 1, 2)) + velocity * np.arange(length)[None, :, None]
    z = np.concatenate([place, np.broadcast_to(velocity, place.shape)], -1).astype(np.float32)
    paddle = rng.uniform(10, 50, (rows, length, 1))  # not in z: nobody can know it
    values = np.concatenate([place, paddle], -1).astype(np.float32)
    truth = {
        "z": z,
        "action": np.zeros((rows, length), np.int64),
        "values": values,
        "visible": np.ones(values.shape, bool),
        "episode": np.repeat(np.arange(rows)[:, None], length, 1),
        "lost": np.zeros((rows, length), bool),
    }
    assert names(TASKS["breakout"]) == ("ball_x", "ball_y", "paddle_x")
    found = examine.drift_of_positions(run, Drifting(error), truth)
    assert list(found) == ["1", "5", "15", "50"]
    for k, row in found.items():
        for name in ("ball_x", "ball_y"):
            assert row[name] == pytest.approx(int(k) * error, abs=0.7)
            assert row[f"{name}_seen"] < 0.7
        assert row["paddle_x"] > 5
    assert found["50"]["ball_x_copy"] > 5 > 2 * found["1"]["ball_x_copy"]
