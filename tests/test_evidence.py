"""What the documents claim is what the shipped manifests say, and the shipped weights still play like that."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wm_lib import checkpoints, cli, examine_report, probes, report, vet
from wm_lib.control.agent import load_agent
from wm_lib.control.controller import Controller
from wm_lib.course import minutes
from wm_lib.errors import StageError
from wm_lib.evaluation import agent_maker, evaluate, summarise
from wm_lib.folders import project_root, shipped_weights
from wm_lib.models.mdn_rnn import MDNRNN, save_mdn_rnn
from wm_lib.models.neural import NeuralWorldModel
from wm_lib.models.vae import VAE, save_vae
from wm_lib.tasks import TASKS, get_task

ROOT = Path(__file__).parent.parent
MANIFESTS = sorted(set((ROOT / "assets" / "manifests").glob("*.json")) - {ROOT / minutes.PATH})
SHIPPED = [path for path in MANIFESTS if (ROOT / "assets" / "weights" / path.stem).exists()]
REPLAYED = {"pong": 2, "lunar-lander": 8, "breakout": 2, "car-racing": 2}  # games; in seconds, so few where one is long
WORLD_MODELS = sorted((ROOT / "assets" / "manifests" / "world-models").glob("*.json"))


def test_the_readme_has_the_table_of_the_shipped_manifests() -> None:
    assert MANIFESTS
    assert list(vet.results(ROOT)) == []


def test_notebook_08_prints_that_table_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source = (ROOT / "notebooks" / "08_results.py").read_text(encoding="utf-8")
    (cell,) = [cell for cell in source.split("# %%") if "results_table(" in cell and "import" not in cell]
    monkeypatch.chdir(ROOT)
    place = {"run": SimpleNamespace(directory=tmp_path / "run" / "pong"), "names": list(TASKS)}
    exec(cell, vars(report) | {"project_root": project_root, "StageError": StageError} | place)
    assert report.results_table(report.find_manifests(ROOT / "assets" / "manifests")) in capsys.readouterr().out


def check_shipped_hashes(root: Path, task: str) -> None:
    """The manifest names the shipped files, and they are whole and small."""
    manifest, folder = (
        checkpoints.read_json(root / "assets" / "manifests" / f"{task}.json"),
        root / "assets" / "weights",
    )
    files = sorted((folder / task).glob("*.safetensors"))
    assert {path.name: checkpoints.verify(path)["sha256"] for path in files} == manifest["weights"]
    assert set(manifest["weights"]) == set(report.WEIGHTS.values())
    assert all(path.stat().st_size < 20e6 for path in files)
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 60e6


def check_replay(root: Path, task: str, episodes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`wm evaluate` on the shipped weights, with the manifest's first seeds, finds what the manifest says.

    On the machine and with the packages of the manifest the returns are equal. Elsewhere sums are rounded differently
    and games take another turn: then their mean has to be as near to the manifest's as 2 standard errors.
    """
    score = checkpoints.read_json(root / "assets" / "manifests" / f"{task}.json")["score"]
    monkeypatch.chdir(root)
    arguments = ["--task", task, "--episodes", str(episodes), "--seed", str(score["seeds"][0])]
    assert cli.main(["evaluate", *arguments, "--json", str(tmp_path / "replay.json")]) == 0
    replay = checkpoints.read_json(tmp_path / "replay.json")
    assert replay["seeds"] == score["seeds"][:episodes]
    near = abs(replay["mean"] - score["mean"]) <= 2 * score["std"] / math.sqrt(episodes)
    told = f"{replay['returns']} instead of {score['returns'][:episodes]}, of {report.interval(score)}"
    assert near or replay["returns"] == score["returns"][:episodes], told


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_weights_are_those_of_the_manifest(path: Path) -> None:
    check_shipped_hashes(ROOT, path.stem)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_weights_play_as_the_manifest_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_replay(ROOT, path.stem, REPLAYED[path.stem], monkeypatch, tmp_path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_there_is_a_short_film_of_every_shipped_agent(path: Path) -> None:
    film = f"assets/figures/{path.stem}.gif"
    assert 0 < (ROOT / film).stat().st_size < 2e6 and film in (ROOT / "README.md").read_text(encoding="utf-8")
    asleep = f"assets/figures/{path.stem}-dream.gif"
    shown = (ROOT / "notebooks" / "06_dream.py").read_text(encoding="utf-8")
    assert 0 < (ROOT / asleep).stat().st_size < 2e6 and asleep in shown


def test_the_shipped_v_of_breakout_sees_the_ball_beside_the_paddle() -> None:
    """In the agent's own play, where V of earlier trainings went blind without any median telling so."""
    task = get_task("breakout")
    model, controller = load_agent(shipped_weights(ROOT, task.name))
    agent = agent_maker(task, model, controller)(8)
    truth = probes.play(task, model, agent, 8, 150, seed=7)
    z, seen = truth["z"][..., : 2 * model.vae.num_places], truth["visible"][..., 0]
    ball_x, ball_y, paddle_x = np.moveaxis(truth["values"], 2, 0)
    flying = seen & (ball_y < 50)
    read = probes.learn(z[flying], truth["values"][flying], truth["visible"][flying])  # learns what a place means
    off = np.abs(read(z.reshape(-1, z.shape[2])).reshape(truth["values"].shape)[..., :2] - truth["values"][..., :2])
    beside = seen & (ball_y >= 50) & (np.abs(ball_x - paddle_x) < 10)
    assert beside.sum() > 50 and np.median(off[beside]) < 1
    assert (off[beside] > 2).any(1).mean() < 0.2


def test_no_weights_are_shipped_without_a_manifest() -> None:
    folders = (ROOT / "assets" / "weights").glob("*")
    assert {path.name for path in folders if path.is_dir()} <= {path.stem for path in MANIFESTS}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that ships the weights of an agent of LunarLander, drawn at random, and how it played four games."""
    root, task = tmp_path_factory.mktemp("repository"), get_task("lunar-lander")
    run = root / "run" / task.name
    torch.manual_seed(0)
    save_vae(run / "vae" / "vae.safetensors", VAE(4), {"task": task.name})
    save_mdn_rnn(run / "mdn_rnn" / "mdn_rnn.safetensors", MDNRNN(4, task.num_actions, 8), {"task": task.name})
    model = NeuralWorldModel.load(run / "vae" / "vae.safetensors", run / "mdn_rnn" / "mdn_rnn.safetensors", 2)
    params = np.random.default_rng(0).standard_normal((model.feature_dim + 1) * task.num_actions).astype(np.float32)
    controller = Controller.linear(params, model.feature_dim, task.num_actions)
    controller.save(run / "controller" / "controller.safetensors", {"recent_z": 2})
    score = evaluate(task, agent_maker(task, model, controller), 4, 10_000)
    weights = {name: checkpoints.sha256_file(run / stage / name) for stage, name in report.WEIGHTS.items()}
    manifest = {"schema": 1, "task": task.name, "mode": "full", "target": task.target, "score": score}
    manifest |= {"random_score": score, "real_steps": {"total": 0}, "minutes": {}, "weights": weights}
    manifest |= {"rounds": 1, "command": "", "failed_gates": []}
    checkpoints.write_json(run / "evaluate" / "manifest.json", manifest)
    (root / "README.md").write_text("".join(report.marks("results")))
    (root / "pyproject.toml").touch()
    report.publish(root / "run", root)
    return root


@pytest.fixture
def copied(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("WM_BUDGET", raising=False)
    return Path(shutil.copytree(repository, tmp_path / "copy"))


def test_the_checks_accept_what_was_published(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_shipped_hashes(copied, "lunar-lander")
    check_replay(copied, "lunar-lander", 3, monkeypatch, tmp_path)


def test_the_checks_reject_other_weights(copied: Path) -> None:
    path = copied / "assets" / "weights" / "lunar-lander" / "controller.safetensors"
    other = Controller.load(path)
    other.biases[0] += 1e-3
    other.save(path)
    with pytest.raises(AssertionError, match="controller.safetensors"):
        check_shipped_hashes(copied, "lunar-lander")


def test_the_checks_reject_a_score_that_the_weights_do_not_play(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied / "assets" / "manifests" / "lunar-lander.json"
    manifest = checkpoints.read_json(path)
    manifest["score"] |= summarise([value + 2000 for value in manifest["score"]["returns"]], range(10_000, 10_004))
    checkpoints.write_json(path, manifest)
    with pytest.raises(AssertionError, match="instead of"):
        check_replay(copied, "lunar-lander", 3, monkeypatch, tmp_path)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_figures_of_a_manifest_follow_from_its_returns(path: Path) -> None:
    manifest = checkpoints.read_json(path)
    task = TASKS[path.stem]
    assert (manifest["task"], manifest["env_id"], manifest["target"]) == (task.name, task.env_id, task.target)
    names = {"score", "random_score", *(["sticky_score"] if task.atari else [])}
    for name in names | ({"check_score"} & set(manifest)):
        score = manifest[name]
        assert score["seeds"] == list(range(score["seeds"][0], score["seeds"][0] + score["episodes"]))
        again = summarise(score["returns"], score["seeds"])
        for key, value in again.items():
            assert score[key] == pytest.approx(value), key
    if "check_score" in manifest:
        low, high = manifest["score"]["ci95"]
        assert not set(manifest["check_score"]["seeds"]) & set(manifest["score"]["seeds"])
        assert abs(manifest["check_score"]["mean"] - manifest["score"]["mean"]) < high - low
    steps = manifest["real_steps"]
    assert steps["total"] == sum(value for name, value in steps.items() if name != "total")
    enough = manifest["score"]["episodes"] >= 100 and manifest["score"]["mean"] >= manifest["target"]
    assert manifest["provisional"] == (not enough)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_world_model_that_is_shipped_is_the_one_whose_examination_is_published(path: Path) -> None:
    examined = checkpoints.read_json(path.parent / "world-models" / path.name)
    assert examined["weights"] == checkpoints.read_json(path)["weights"]
    assert examined["failed_gates"] == []


@pytest.mark.parametrize("path", WORLD_MODELS, ids=lambda path: path.stem)
def test_a_published_world_model_can_be_shown_and_beats_simpler_ones(path: Path) -> None:
    found = checkpoints.read_json(path)
    assert found["task"] == path.stem and found["schema"] == 1
    text = examine_report.tables(found)
    assert "change of" in text and "one Gaussian" in text
    memory = found["memory"]
    assert memory["nll"] < min(memory[f"{rival}_nll"] for rival in ("copy_last", "linear", "single_gaussian"))
    for kinds in found["eyes"]["probes"].values():
        for name, result in kinds["mlp"].items():
            assert result["median_error"] < result["mean_baseline_error"], name
