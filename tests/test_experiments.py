"""Variants of C: what each of them changes and nothing else, what is trained, and what is not measured twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_pipeline import TINY, open_tiny

from wm_lib import cli, commands, experiments
from wm_lib.control.controller import Controller
from wm_lib.errors import UsageError
from wm_lib.experiments import EXPERIMENTS, RANDOM, VARIANTS, Row, Variant, experiment, with_changes
from wm_lib.folders import project_root
from wm_lib.pipeline import Pipeline
from wm_lib.rows import read_rows
from wm_lib.settings import ControllerConfig
from wm_lib.tasks import TASKS

SMALL = TINY | {
    "controller": TINY["controller"] | {"block_steps": 64, "dream_steps": 64, "population_size": 2,
                                        "rollouts_per_candidate": 1, "max_decisions": 8},
    "evaluation": {"episodes": 2, "random_episodes": 2},
    "gates": {"stop": False, "probe_decisions": 0},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """V and M of Pong, hardly trained."""
    made = open_tiny(tmp_path_factory.mktemp("runs") / "run", SMALL)
    made.build("mdn_rnn")
    return made


def short(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a score be the mean action on a few frames; the list fills with the tasks measured."""
    asked: list[str] = []
    frames = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)

    def evaluate(task, make_agent, episodes, seed):
        asked.append(task.name)
        agent = make_agent(8)
        for slot in range(8):
            agent.reset_slot(slot, seed + slot)
        actions = agent(frames, np.ones(8, bool))
        return {"mean": float(actions.mean()), "ci95": [float(actions.min()), float(actions.max())]}

    monkeypatch.setattr(experiments, "evaluate", evaluate)
    return asked


def test_every_variant_is_of_an_experiment_and_a_valid_setting() -> None:
    assert set(VARIANTS) == {name for names in EXPERIMENTS.values() for name in names}
    for variant in VARIANTS.values():
        ControllerConfig.model_validate(ControllerConfig().to_dict() | variant.changes)
        assert variant.blind_to in ("", "z", "h")


@pytest.mark.parametrize(("part", "seen"), [("h", slice(0, 8)), ("z", slice(8, 16))])
def test_blind_to_a_part_it_is_zeros_and_the_rest_stays(run: Pipeline, part: str, seen: slice) -> None:
    model, rng = run.world_model(), np.random.default_rng(1)
    assert model.feature_dim == 16  # two z of 4, h of 8
    blind = experiments._world_model(run, Variant(blind_to=part))
    z = rng.normal(size=(3, 4)).astype(np.float32)
    h = blind.step(z, np.arange(3), rng.normal(size=(3, model.state_dim)).astype(np.float32))
    expected = np.zeros((3, 16), np.float32)
    expected[:, seen] = model.features(z, h)[:, seen]
    np.testing.assert_array_equal(blind.features(z, h), expected)
    assert expected.any()
    assert blind.feature_dim == 16


def test_an_untrained_m_is_another_one_behind_the_same_eyes(run: Pipeline) -> None:
    model, fresh = run.world_model(), experiments._world_model(run, Variant(untrained=True))
    frames = np.random.default_rng(2).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fresh.encode(frames), model.encode(frames))
    z, action = model.encode(frames), np.zeros(2, np.int64)
    before = model.initial_state(2)
    assert not np.allclose(fresh.step(z, action, before), model.step(z, action, before))
    np.testing.assert_array_equal(fresh.mdn_rnn.steady, model.mdn_rnn.steady)  # what M reads is the same
    again = experiments._world_model(run, Variant(untrained=True))
    np.testing.assert_array_equal(again.step(z, action, before), fresh.step(z, action, before))


def test_variants_do_not_dream_because_the_run_does(run: Pipeline) -> None:
    own = run.loaded.controller.model_copy(update={"where": "dream_then_real", "dream_temperature": 0.5})
    dreamer = replace(run, loaded=run.loaded.model_copy(update={"controller": own}))
    learns = {name: with_changes(dreamer, variant).config.controller for name, variant in VARIANTS.items()}
    assert {learns[name].where for name in (*EXPERIMENTS["features"], *EXPERIMENTS["size"])} == {"real"}
    assert (learns["dream"].where, learns["dream"].dream_temperature) == ("dream", 1.0)
    assert len({repr(settings) for settings in learns.values()}) == len(VARIANTS) - 4  # which see or remember otherwise


def test_cma_es_gets_as_many_decisions_as_ppo(run: Pipeline) -> None:
    varied = with_changes(run, VARIANTS["CMA-ES"]).config.controller
    wanted = SMALL["controller"]["num_steps"]
    assert (varied.type, varied.decision_budget) == ("original", wanted)
    assert varied.num_generations * 2 * 1 >= wanted  # were every episode one decision long


def test_all_variants_learn_and_none_is_measured_twice(run, monkeypatch, capsys) -> None:
    asked = short(monkeypatch)
    rows = experiment(run, ["features", "method"])
    features = ["as it is", "z only", "latest z only", "latest z and h", "h only", "untrained M"]
    names = [RANDOM, *features, "CMA-ES", "linear"]
    assert [row.variant for row in rows] == names
    assert len(asked) == len(names)
    folder = experiments.folder_of(run)
    assert [row.real_decisions for row in rows][:7] == [0] + 6 * [64]
    linear = Controller.load(folder / "linear" / "controller.safetensors")
    assert [weight.shape for weight in linear.weights] == [(16, 3)]
    latest = Controller.load(folder / "latest-z-only" / "controller.safetensors")
    assert latest.weights[0].shape[0] == 12  # one z of 4, h of 8
    assert latest.feature_mean[:4].any() and not latest.feature_mean[4:].any()
    blind = Controller.load(folder / "h-only" / "controller.safetensors")
    same = np.random.default_rng(3).normal(size=(1, 16)).astype(np.float32)
    assert blind.feature_mean[:8].any() == False  # noqa: E712 (a mean of zeros)
    assert Controller.load(folder / "as-it-is" / "controller.safetensors").logits(same).shape == (1, 3)

    rows += experiment(run, ["world"])
    dreamt = {row.variant: (row.real_decisions, row.dream_decisions) for row in rows}
    assert (dreamt["dream"], dreamt["dream, then real"]) == ((0, 64), (64, 64))
    assert len(asked) == len(names) + 2
    assert experiment(run, ["features", "method", "world"]) == list({row.variant: row for row in rows}.values())
    assert len(asked) == len(names) + 2
    text = experiments.table(rows)
    assert "| z only" in text
    assert "| random play" in text


def test_other_settings_do_not_mix_with_what_was_measured(run, monkeypatch) -> None:
    asked = short(monkeypatch)
    experiment(run, ["size"])
    before = len(asked)
    other = run.loaded.model_copy(update={"controller": run.loaded.controller.model_copy(update={"num_steps": 128})})
    with pytest.raises(UsageError, match="holds experiments with another config; give another --run-dir"):
        experiment(replace(run, loaded=other), ["size"])
    assert len(asked) == before


def test_what_cannot_be_tried_is_said(run: Pipeline) -> None:
    with pytest.raises(UsageError, match=r"unknown experiment 'sizes'; choose of features, size"):
        experiment(run, ["sizes"])
    with pytest.raises(UsageError, match="leave --mode out"):
        experiment(replace(run, mode="gym_only"), ["size"])


def test_the_command_makes_publishes_and_tells(tmp_path, monkeypatch, capsys) -> None:
    short(monkeypatch)
    made = open_tiny(tmp_path / "run", SMALL)
    monkeypatch.setattr(commands, "project_root", lambda: tmp_path / "repository")
    arguments = ["--task", "pong", "--budget", "smoke", "--run-dir", str(tmp_path / "run")]
    arguments += ["--config", str(tmp_path / "run.yaml"), "--json", str(tmp_path / "out.json")]
    assert cli.main(["experiment", "size", "--publish", *arguments]) == 0
    assert "one layer of 64" in capsys.readouterr().out
    found = read_rows(experiments.shipped_path(tmp_path / "repository", "pong"), Row)
    assert [row.variant for row in found] == [RANDOM, *EXPERIMENTS["size"]]
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["variant"] for row in written["rows"]] == [row.variant for row in found]
    monkeypatch.setattr(experiments, "project_root", lambda: tmp_path / "repository")
    assert experiments.shipped("pong", ["size"]) == found
    wanted = [RANDOM, *(name for name in EXPERIMENTS["method"] if name in EXPERIMENTS["size"])]  # CMA-ES is not made
    assert [row.variant for row in experiments.shipped("pong", ["method"])] == wanted
    assert experiments.shipped("breakout", ["size"]) == []
    settings = json.loads(experiments.shipped_path(tmp_path / "repository", "pong").with_suffix(".json").read_text())
    assert settings["world_model"] == made.facts("mdn_rnn")["key"]


@pytest.mark.parametrize("task", TASKS)
def test_published_rows_fit_together(task: str) -> None:
    path = experiments.shipped_path(project_root(), task)
    rows = read_rows(path, Row)
    if not rows:
        assert not path.with_suffix(".json").exists()
        return
    assert len({row.variant for row in rows}) == len(rows)
    assert {row.variant for row in rows} <= {RANDOM, *VARIANTS}
    settings = json.loads(Path(path.with_suffix(".json")).read_text())
    assert {row.episodes for row in rows} == {max(2, settings["config"]["evaluation"]["episodes"])}
    for row in rows:
        assert row.ci_low <= row.score <= row.ci_high
