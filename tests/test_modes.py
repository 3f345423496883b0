"""The modes without torch: whole trainings where the packages they do without cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from wm_lib import checkpoints, cli, config, pipeline, report, stages
from wm_lib.config import load_config
from wm_lib.errors import UsageError
from wm_lib.pipeline import Pipeline
from wm_lib.tasks import TASKS

ROOT = Path(__file__).parent.parent
BASE_ONLY = ("torch", "gymnasium", "envpool", "cv2", "stable_baselines3", "ale_py", "Box2D", "pygame")
# Whoever imports one of these gets what they would get where it is not installed; torch's absence is then asserted.
BLOCKED = """
import sys
blocked = {blocked!r}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from wm_lib import cli
for arguments in {commands!r}:
    code = cli.main(arguments)
    if code:
        sys.exit(code)
assert not set(blocked) & set(sys.modules)
"""
# Seconds a task, and enough to be better than chance.
SMALL = {
    "collect": {"num_steps": 8192, "num_envs": 32, "shard_length": 256},
    "reservoir": {"z_dim": 16, "size": 64},
    "controller": {"population_size": 24, "rollouts_per_candidate": 2, "num_generations": 8},
    "evaluation": {"episodes": 32, "random_episodes": 32},
}


def without(blocked: tuple[str, ...], *commands: list[str]) -> str:
    """Run `wm` commands in one process in which these packages are not installed; what it printed."""
    program = BLOCKED.format(blocked=blocked, commands=list(commands))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def options(run_dir: Path, task: str, mode: str, *more: str) -> list[str]:
    return ["--task", task, "--budget", "smoke", "--run-dir", str(run_dir), "--mode", mode, *more]


def test_simulation_goes_from_nothing_to_a_score_with_the_base_install(tmp_path: Path) -> None:
    run_dir, result = tmp_path / "run", tmp_path / "score.json"
    printed = without(
        BASE_ONLY,
        ["collect", *options(run_dir, "breakout", "simulation")],
        ["train", "--component", "reservoir", *options(run_dir, "breakout", "simulation")],
        ["train", *options(run_dir, "breakout", "simulation")],
        ["evaluate", "--episodes", "3", "--json", str(result), *options(run_dir, "breakout", "simulation")],
        ["evaluate", "--episodes", "2", "--random", *options(run_dir, "breakout", "simulation")],
        ["report", "--run-dir", str(run_dir), "--mode", "simulation"],
    )
    folder = run_dir / "breakout" / "simulation"
    assert {path.name for path in folder.iterdir()} == {"collect", "reservoir", "controller", "evaluate"}
    manifest = checkpoints.read_json(folder / "evaluate" / "manifest.json")
    assert (manifest["mode"], manifest["target"]) == ("simulation", None)
    assert manifest["variant"] == "original" and "--mode simulation" in manifest["command"]
    assert set(manifest["weights"]) == {"reservoir.safetensors", "controller.safetensors"}
    assert set(manifest["minutes"]) == {"collect", "reservoir", "controller"}
    score = json.loads(result.read_text())
    assert score["mode"] == "simulation" and score["returns"][:2] == manifest["score"]["returns"]
    assert "breakout (simulated)" in printed and "a simulated score, which has no target" in printed
    assert "300" not in printed  # the real target, which nobody may read beside it


def test_gym_only_plays_the_real_world_without_torch_and_without_the_fast_path(tmp_path: Path) -> None:
    printed = without(
        ("torch", "envpool", "stable_baselines3"), ["train", *options(tmp_path / "run", "lunar-lander", "gym_only")]
    )
    manifest = checkpoints.read_json(tmp_path / "run" / "lunar-lander" / "gym_only" / "evaluate" / "manifest.json")
    assert (manifest["mode"], manifest["target"], manifest["env_id"]) == ("gym_only", 200, "LunarLander-v3")
    assert "simulated" not in printed


@pytest.mark.parametrize("task", ["lunar-lander", "car-racing"])
def test_a_simulated_agent_learns_to_beat_chance(task: str, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    run = Pipeline.open(task, "smoke", tmp_path / "run", config_file=file, mode="simulation")
    # smoke cuts training episodes off early, and what is learnt then is not how they end
    run = pipeline.replace(
        run,
        loaded=run.loaded.model_copy(
            update={"controller": run.loaded.controller.model_copy(update={"max_decisions": 0})}
        ),
    )
    run.build("evaluate")
    manifest = run.manifest()
    assert report.beats_random(manifest), (manifest["score"]["ci95"], manifest["random_score"]["ci95"])


def test_what_runs_in_which_mode_stands_in_one_place() -> None:
    assert tuple(stages.STAGES) == config.MODES
    assert {stage for each in stages.STAGES.values() for stage in each} == set(stages.STEPS)
    assert set(stages.CHECKS) <= set(stages.STEPS) and set(stages.SECTIONS) <= set(stages.STEPS)


def test_the_modes_of_one_run_do_not_meet(tmp_path: Path) -> None:
    opened = {mode: Pipeline.open("pong", "smoke", tmp_path, mode=mode) for mode in config.MODES}
    assert opened["full"].directory == tmp_path / "pong"
    assert opened["gym_only"].directory == tmp_path / "pong" / "gym_only"
    assert opened["simulation"].directory == tmp_path / "pong" / "simulation"
    assert opened["simulation"]._key("collect") != opened["full"]._key("collect")
    assert opened["gym_only"].task == opened["full"].task != opened["simulation"].task
    assert np.isnan(opened["simulation"].task.target)


def test_a_stage_of_another_mode_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="mode simulation has no stage 'vae'; choose one of collect, reservoir"):
        Pipeline.open("pong", "smoke", tmp_path, mode="simulation").build("vae")
    with pytest.raises(UsageError, match="mode full has no stage 'reservoir'"):
        Pipeline.open("pong", "smoke", tmp_path).build("reservoir")
    for wrong in (
        ["train", "--task", "pong", "--mode", "dream"],
        ["report", "--task", "pong", "--mode", "simulation", "--run-dir", str(tmp_path)],
        ["train", "--task", "pong", "--mode", "gym_only", "--rounds", "2"],
    ):
        assert cli.main(wrong) == 2
    printed = capsys.readouterr().err
    assert "unknown mode 'dream'; choose one of auto, full" in printed and "has one, got 2" in printed


def test_ppo_is_refused_where_there_is_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "ppo.yaml"
    file.write_text(yaml.safe_dump({"modes": {"simulation": {"controller": {"type": "ppo"}}}}))
    run = Pipeline.open("pong", "smoke", tmp_path / "run", config_file=file, mode="simulation")
    with pytest.raises(UsageError, match="mode simulation trains C by evolution"):
        stages.STEPS["controller"](run, tmp_path / "run")


def test_a_file_may_say_what_is_different_in_a_mode(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    own = {
        "reservoir": {"size": 10},
        "modes": {"simulation": {"reservoir": {"size": 20}, "tasks": {"pong": {"reservoir": {"size": 30}}}}},
    }
    file.write_text(yaml.safe_dump(own))
    sizes = [load_config("smoke", task, file, mode).reservoir.size
             for task, mode in (("pong", "full"), ("breakout", "simulation"), ("pong", "simulation"))]  # fmt: skip
    assert sizes == [10, 20, 30]
    for wrong, message in (
        ({"modes": {"simulatoin": {}}}, "modes.simulatoin: unknown mode; did you mean simulation"),
        ({"modes": {"gym_only": {"vae": {"z_dim": 0}}}}, "modes.gym_only.vae.z_dim: needs a whole number"),
        ({"modes": {"gym_only": {"tasks": {"pong": {"vea": {}}}}}}, r"modes.gym_only.tasks.pong.vea: unknown key"),
        ({"modes": {"gym_only": {"tasks": {"pogn": {}}}}}, "modes.gym_only.tasks.pogn: unknown task"),
    ):
        file.write_text(yaml.safe_dump(wrong))
        with pytest.raises(UsageError, match=message):
            load_config("smoke", "breakout", file)


def test_the_settings_of_mode_full_are_those_of_no_mode() -> None:
    """What is different without torch must not change what finished stages of mode full were made from."""
    for budget in config.BUDGETS:
        for task in ("pong", "lunar-lander", "breakout", "car-racing"):
            assert load_config(budget, task) == load_config(budget, task, mode="full")
            assert load_config(budget, task).controller.type == "ppo"
            assert load_config(budget, task, mode="simulation").controller.type == "original"


def test_auto_asks_what_the_machine_has_for_this_very_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_roms = SimpleNamespace(mode="full", mode_for=lambda task: "simulation" if task.atari else "full")
    monkeypatch.setattr("wm_lib.doctor.detect_mode", lambda: without_roms)
    opened = {task: Pipeline.open(task, "smoke", tmp_path, mode="auto").mode for task in TASKS}
    assert opened == {"pong": "simulation", "lunar-lander": "full", "breakout": "simulation", "car-racing": "full"}
