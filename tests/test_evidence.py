"""What the documents claim is what the shipped manifests say."""

from __future__ import annotations

from pathlib import Path

import pytest

from wm_lib import checkpoints, examine, vet
from wm_lib.evaluation import summarise
from wm_lib.tasks import TASKS

ROOT = Path(__file__).parent.parent
MANIFESTS = sorted((ROOT / "assets" / "manifests").glob("*.json"))
WORLD_MODELS = sorted((ROOT / "assets" / "manifests" / "world-models").glob("*.json"))


def test_the_readme_has_the_table_of_the_shipped_manifests() -> None:
    assert MANIFESTS
    assert list(vet.results(ROOT)) == []


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_figures_of_a_manifest_follow_from_its_returns(path: Path) -> None:
    manifest = checkpoints.read_json(path)
    task = TASKS[path.stem]
    assert (manifest["task"], manifest["env_id"], manifest["target"]) == (task.name, task.env_id, task.target)
    for name in ("score", "random_score"):
        score = manifest[name]
        assert score["seeds"] == list(range(score["seeds"][0], score["seeds"][0] + score["episodes"]))
        again = summarise(score["returns"], score["seeds"])
        for key, value in again.items():
            assert score[key] == pytest.approx(value), key
    steps = manifest["real_steps"]
    assert steps["total"] == sum(value for name, value in steps.items() if name != "total")
    enough = manifest["score"]["episodes"] >= 100 and manifest["score"]["mean"] >= manifest["target"]
    assert manifest["provisional"] == (not enough)


@pytest.mark.parametrize("path", WORLD_MODELS, ids=lambda path: path.stem)
def test_a_published_world_model_can_be_shown_and_beats_simpler_ones(path: Path) -> None:
    found = checkpoints.read_json(path)
    assert found["task"] == path.stem and found["schema"] == 1
    text = examine.tables(found)
    assert "velocity" in text and "one Gaussian" in text
    memory = found["memory"]
    assert memory["nll"] < min(memory[f"{rival}_nll"] for rival in ("copy_last", "linear", "single_gaussian"))
    for kinds in found["eyes"]["probes"].values():
        for name, result in kinds["mlp"].items():
            assert result["median_error"] < result["mean_baseline_error"], name
