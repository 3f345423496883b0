import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from wm_lib import checkpoints, pipeline
from wm_lib.errors import StageError, UsageError
from wm_lib.gates import Gate
from wm_lib.pipeline import STAGES, Pipeline

# Pong on the fast path, seconds for everything together. BLOCK is 4 updates, a PPO block one rollout.
TINY = {
    "collect": {"num_steps": 64, "num_envs": 2, "shard_length": 16},
    "vae": {"z_dim": 4, "num_updates": 10, "batch_size": 8},
    "mdnrnn": {"rnn_size": 8, "num_mixtures": 2, "sequence_length": 8, "batch_size": 4, "num_updates": 10},
    "controller": {
        "recent_z": 2,
        "num_steps": 64,
        "num_envs": 2,
        "rollout_length": 8,
        "num_epochs": 2,
        "batch_size": 16,
        "hidden": [8],
        "block_steps": 32,
    },
}
BLOCK = 4
WEIGHTS = {"vae": "vae.safetensors", "mdn_rnn": "mdn_rnn.safetensors", "controller": "controller.safetensors"}


class Killed(BaseException):
    """What nobody catches, like a kill."""


def write_config(path: Path, **sections: dict) -> Path:
    path.write_text(yaml.safe_dump(sections))
    return path


def open_tiny(run_dir: Path, config: dict = TINY, seed: int = 0) -> Pipeline:
    file = write_config(run_dir.with_suffix(".yaml"), **config)
    return Pipeline.open("pong", "smoke", run_dir, seed, file)


# --- What is made again, and what is not: stages that only write down that they ran.


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the stages by instant ones; the list fills with those that ran."""
    log: list[str] = []

    def step(stage: str):
        def run(self: Pipeline, directory: Path) -> dict:
            log.append(stage)
            value = np.full(3, self.seed + STAGES.index(stage), np.float32)
            checkpoints.save(directory / f"{stage}.safetensors", {"value": value}, {"task": self.task.name})
            return {"value": float(value[0])}

        return run

    monkeypatch.setattr(pipeline, "STEPS", {stage: step(stage) for stage in STAGES})
    monkeypatch.setattr(pipeline, "CHECKS", {})
    return log


def flip(path: Path) -> None:
    """Change the last byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_finished_stage_is_not_made_again(ran, tmp_path):
    directory = open_tiny(tmp_path / "run").build("evaluate")
    assert ran == list(STAGES)
    record = json.loads((directory / "stage.json").read_text())
    assert open_tiny(tmp_path / "run").build("evaluate") == directory == tmp_path / "run" / "pong" / "evaluate"
    assert ran == list(STAGES)
    assert json.loads((directory / "stage.json").read_text()) == record


def test_a_changed_section_makes_its_stage_and_the_later_ones_again(ran, tmp_path):
    open_tiny(tmp_path / "run").build("evaluate")
    old = (tmp_path / "run" / "pong" / "mdn_rnn" / "stage.json").read_bytes()
    ran.clear()
    changed = TINY | {"mdnrnn": TINY["mdnrnn"] | {"rnn_size": 16}}
    open_tiny(tmp_path / "run", changed).build("evaluate")
    assert ran == ["mdn_rnn", "controller", "evaluate"]
    folders = {path.name for path in (tmp_path / "run" / "pong").iterdir()}
    assert folders == {*STAGES, "mdn_rnn.previous", "controller.previous", "evaluate.previous"}
    assert (tmp_path / "run" / "pong" / "mdn_rnn.previous" / "stage.json").read_bytes() == old


def test_another_seed_makes_everything_again_and_a_curriculum_nothing(ran, tmp_path):
    open_tiny(tmp_path / "run").build("evaluate")
    ran.clear()
    open_tiny(tmp_path / "run", TINY | {"curriculum": {"max_retries": 7}}).build("evaluate")
    assert ran == []
    open_tiny(tmp_path / "run", seed=1).build("evaluate")
    assert ran == list(STAGES)


def test_going_back_to_the_old_settings_brings_the_old_stages_back(ran, tmp_path, monkeypatch, capsys):
    first = open_tiny(tmp_path / "run")
    first.build("evaluate")

    def stopped(self, directory):
        checkpoints.write_json(directory / "half.json", {})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(pipeline.STEPS, "vae", stopped)
        with pytest.raises(KeyboardInterrupt):  # a wrong --seed, noticed at once
            open_tiny(tmp_path / "run", seed=1).build("evaluate")
    ran.clear()
    first.build("evaluate")
    assert ran == []
    assert first.facts("vae")["seed"] == 0
    assert "exchanged with vae.previous" in capsys.readouterr().out
    # What was half done for the other seed was kept too.
    open_tiny(tmp_path / "run", seed=1).build("vae")
    assert ran == ["vae"]
    assert (tmp_path / "run" / "pong" / "vae" / "half.json").exists()


@pytest.mark.parametrize("name", ["vae.safetensors", "vae.json"])
def test_a_damaged_artefact_is_named_and_made_again(ran, tmp_path, capsys, name):
    run = open_tiny(tmp_path / "run")
    run.build("latents")
    before = checkpoints.sha256_file(run.directory / "vae" / name)
    flip(run.directory / "vae" / name)
    ran.clear()
    capsys.readouterr()
    run.build("latents")
    assert ran == ["vae"]  # it is what it was, so what was made of it stays
    assert checkpoints.sha256_file(run.directory / "vae" / name) == before
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and str(run.directory / "vae" / name) in out and "making vae again" in out
    (run.directory / "vae" / name).unlink()
    run.build("latents")
    assert ran == ["vae", "vae"]


def test_a_stage_json_cut_short_is_named(ran, tmp_path, capsys):
    run = open_tiny(tmp_path / "run")
    run.build("vae")
    path = run.directory / "vae" / "stage.json"
    path.write_bytes(path.read_bytes()[:40])
    ran.clear()
    with pytest.raises(StageError) as caught:  # read by a later stage: refused, with the remedy
        run.run_stage("latents")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "wm train --component vae --task pong --budget smoke" in str(caught.value)
    assert ran == []
    capsys.readouterr()
    run.run_stage("vae")  # read by its own: made again
    assert ran == ["vae"]
    assert str(path) in capsys.readouterr().out
    path.write_text("[]")  # JSON, but not ours
    run.run_stage("vae")
    assert ran == ["vae", "vae"]


def test_a_damaged_started_json_costs_nothing_but_the_resume(ran, tmp_path):
    run = open_tiny(tmp_path / "run")
    run.build("vae")
    (run.directory / "vae" / "started.json").write_text("")
    ran.clear()
    run.run_stage("vae")
    assert ran == []  # it is done, nothing is resumed
    (run.directory / "vae" / "stage.json").unlink()
    run.run_stage("vae")
    assert ran == ["vae"]
    assert (run.directory / "vae.previous" / "vae.safetensors").exists()


def test_a_missing_earlier_stage_is_named_with_the_command_that_makes_it(ran, tmp_path):
    run = open_tiny(tmp_path / "run", seed=3)
    options = f"--task pong --budget smoke --run-dir {run.directory.parent} --seed 3 --config {tmp_path / 'run.yaml'}"
    with pytest.raises(StageError) as caught:
        run.run_stage("controller")
    assert str(caught.value).endswith(f"type: wm collect {options}")
    run.run_stage("collect")
    with pytest.raises(StageError) as caught:
        run.run_stage("controller")
    assert str(caught.value).startswith("vae, latents, mdn_rnn of pong not made yet")
    assert str(caught.value).endswith(f"type: wm train --component vae {options}")
    run.run_stage("vae")
    with pytest.raises(StageError, match="type: wm train --component vae --task pong"):
        run.latents()  # which that command makes after V
    with pytest.raises(StageError, match="type: wm train --component vae --task pong"):
        Pipeline(run.task, run.config, run.directory).latents()
    run.build("controller")
    with pytest.raises(StageError, match="^evaluate of pong not made yet.*type: wm train --component all --task pong"):
        run.manifest()
    assert ran == list(STAGES[:-1])


def test_using_an_earlier_stage_of_other_settings_is_said(ran, tmp_path, capsys):
    open_tiny(tmp_path / "run").build("latents")
    changed = TINY | {"vae": TINY["vae"] | {"z_dim": 5}}
    capsys.readouterr()
    open_tiny(tmp_path / "run", changed).run_stage("mdn_rnn")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and f"{tmp_path / 'run' / 'pong' / 'vae'} was made with other settings" in out


def test_using_an_earlier_stage_of_another_version_is_said(ran, tmp_path, capsys, monkeypatch):
    run = open_tiny(tmp_path / "run")
    run.build("collect")
    monkeypatch.setattr(pipeline, "VERSION", pipeline.VERSION + 1)
    capsys.readouterr()
    run.run_stage("vae")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and f"{run.directory / 'collect'} was made with" in out and "another version" in out


def test_a_failed_stage_keeps_its_folder_and_goes_on_there(ran, tmp_path, monkeypatch):
    run = open_tiny(tmp_path / "run")

    def fails(self, directory):
        (directory / "half.txt").write_text("done so far")
        raise StageError("the loss became nan")

    good = pipeline.STEPS["vae"]
    monkeypatch.setitem(pipeline.STEPS, "vae", fails)
    with pytest.raises(StageError, match="the loss became nan"):
        run.build("vae")
    assert not (run.directory / "vae" / "stage.json").exists()
    monkeypatch.setitem(pipeline.STEPS, "vae", good)
    run.run_stage("vae")
    assert (run.directory / "vae" / "half.txt").exists()
    started = checkpoints.read_json(run.directory / "vae" / "started.json")
    assert run.facts("vae")["minutes"] == started["minutes"]


def test_minutes_of_all_tries_add_up(ran, tmp_path, monkeypatch):
    clock = iter([0.0, 60.0, 1000.0, 1180.0])  # a minute until it was stopped, three minutes for the rest
    run = open_tiny(tmp_path / "run")
    run.run_stage("collect")
    good = pipeline.STEPS["vae"]

    def stopped(self, directory):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: next(clock))
    monkeypatch.setitem(pipeline.STEPS, "vae", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.run_stage("vae")
    monkeypatch.setitem(pipeline.STEPS, "vae", good)
    run.run_stage("vae")
    assert run.facts("vae")["minutes"] == 4.0


def test_killed_before_its_record_is_written_a_stage_still_has_its_checkpoint(ran, tmp_path, monkeypatch):
    run = open_tiny(tmp_path / "run")
    run.run_stage("collect")
    good = pipeline.STEPS["vae"]

    def with_checkpoint(self, directory):
        checkpoints.save(directory / "checkpoint.safetensors", {"x": np.zeros(1)}, {"step": 1})
        return good(self, directory)

    monkeypatch.setitem(pipeline.STEPS, "vae", with_checkpoint)
    with monkeypatch.context() as patch:

        def killed():
            raise Killed

        patch.setattr(pipeline.provenance, "machine", killed)
        with pytest.raises(Killed):
            run.run_stage("vae")
    assert (run.directory / "vae" / "checkpoint.safetensors").exists()
    run.run_stage("vae")
    assert set(run.facts("vae")["files"]) == {"vae.safetensors", "vae.json"}
    assert not list((run.directory / "vae").glob("checkpoint*"))


def test_stage_json_says_what_was_made_and_of_what(ran, tmp_path):
    run = open_tiny(tmp_path / "run", seed=5)
    run.build("vae")
    record = checkpoints.read_json(run.directory / "vae" / "stage.json")
    assert set(record) == {
        "schema", "stage", "task", "key", "seed", "config", "minutes", "files", "facts", "failed_gates", "machine",
        "versions", "executor",
    }  # fmt: skip
    assert (record["schema"], record["stage"], record["task"], record["seed"]) == (1, "vae", "pong", 5)
    assert record["config"] == run.config.vae.to_dict()
    assert record["files"] == {
        name: checkpoints.sha256_file(run.directory / "vae" / name) for name in ("vae.json", "vae.safetensors")
    }
    assert record["versions"]["numpy"] == np.__version__


# --- Gates: V stands for the stage that is bad, as long as `limit` units are asked for.


@pytest.fixture
def gated(ran, monkeypatch) -> list[str]:
    """Stages as in `ran`, and a gate after V; the list fills with what was measured."""
    measured: list[str] = []

    def check(run: Pipeline, facts: dict) -> list[Gate]:
        measured.append(run.task.name)
        share = facts["value"] / 10
        wanted = run.config.gates.min_active_share
        return [Gate("light", True, "on", "on", "switch it on"),
                Gate("units", share >= wanted, f"{share}", f"{wanted}", "train longer", {"share": share})]  # fmt: skip

    monkeypatch.setattr(pipeline, "CHECKS", {"vae": check})
    return measured


def open_gated(run_dir: Path, force: bool = False, **gates) -> Pipeline:
    file = write_config(run_dir.with_suffix(".yaml"), gates={"stop": True, "min_active_share": 0.5} | gates)
    return Pipeline.open("pong", "smoke", run_dir, 0, file, force)


STOPPED = "gate 'units' failed: measured 0.1; expected 0.5; try: train longer; --force goes on"


def test_a_failed_gate_stops_the_training_until_it_is_forced(ran, gated, tmp_path):
    run = open_gated(tmp_path / "run")
    with pytest.raises(StageError, match=STOPPED):
        run.build("evaluate")
    assert ran == ["collect", "vae"]
    for stage in ("vae", "latents", "controller"):  # what is there already is no way round it
        with pytest.raises(StageError, match=STOPPED if stage != "controller" else "latents, mdn_rnn of pong not made"):
            run.run_stage(stage)
    assert ran == ["collect", "vae"] and gated == ["pong"]
    forced = open_gated(tmp_path / "run", force=True)
    forced.build("evaluate")
    assert ran == list(STAGES) and gated == ["pong"]
    marks = {stage: forced.facts(stage)["failed_gates"] for stage in STAGES}
    assert marks == {stage: [] if stage in ("collect", "vae") else ["units"] for stage in STAGES}
    assert forced.failed_gates() == ["units"]
    with pytest.raises(StageError, match=STOPPED):
        run.build("evaluate")


def test_a_gate_that_does_not_stop_is_written_down_all_the_same(ran, gated, tmp_path):
    run = open_gated(tmp_path / "run", stop=False)
    run.build("evaluate")
    assert ran == list(STAGES) and run.facts("evaluate")["failed_gates"] == ["units"]
    saved = checkpoints.read_json(run.directory / "vae" / "gates.json")["gates"]
    assert [(gate["name"], gate["passed"]) for gate in saved] == [("light", True), ("units", False)]
    assert saved[1]["values"] == {"share": pytest.approx(0.1)}


def test_gates_are_measured_again_for_other_limits_or_another_stage(ran, gated, tmp_path):
    run = open_gated(tmp_path / "run", stop=False)
    run.build("latents")
    before = ran.copy()
    open_gated(tmp_path / "run", min_active_share=0.05).build("latents")  # nothing is trained again for that
    assert ran == before and gated == ["pong"] * 2
    (run.directory / "vae" / "gates.json").write_text("{")
    assert not open_gated(tmp_path / "run", stop=False).gates("vae")[1].passed
    assert gated == ["pong"] * 3
    flip(run.directory / "vae" / "vae.safetensors")
    open_gated(tmp_path / "run", stop=False).build("vae")
    assert gated == ["pong"] * 4


def test_black_frames_stop_a_real_training(tmp_path, monkeypatch):
    collect = pipeline.STEPS["collect"]

    def blind(run: Pipeline, directory: Path) -> dict:
        facts = collect(run, directory)
        for path in directory.glob("shard-*.safetensors"):
            arrays, meta = checkpoints.load(path)
            checkpoints.save(path, arrays | {"frames": np.zeros_like(arrays["frames"])}, meta)
        return facts

    monkeypatch.setitem(pipeline.STEPS, "collect", blind)
    run = open_tiny(tmp_path / "run", TINY | {"gates": {"stop": True}})
    with pytest.raises(StageError, match="gate 'frames' failed: measured 100% of the frames black"):
        run.build("vae")
    assert not (run.directory / "vae").exists()


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(UsageError, match=f"seed must be from 0 to 2147483647, got {seed}"):
        Pipeline.open("pong", "smoke", seed=seed)


def test_an_unknown_stage_is_refused(tmp_path):
    with pytest.raises(UsageError, match="mode full has no stage 'mdnrnn'; choose one of collect, vae, latents"):
        open_tiny(tmp_path / "run").build("mdnrnn")


def test_the_run_folder_is_found_from_the_notebooks_folder(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv("WM_BUDGET", "smoke")
    assert Pipeline.open("pong").directory == tmp_path / "runs" / "smoke" / "pong"
    assert Pipeline.open("pong", "full", rounds=1).directory == tmp_path / "runs" / "full" / "pong"
    assert Pipeline.open("pong", "full").directory == tmp_path / "runs" / "full" / "pong" / "round-2"
    assert Pipeline.open("pong", run_dir="mine").directory == Path("mine") / "pong"


# --- Stopped and gone on with: the real stages.


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run folder in which all stages up to the controller were made in one go."""
    from wm_lib.models import training

    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "BLOCK", BLOCK)
        open_tiny(run_dir).build("controller")
    return run_dir


@pytest.fixture
def copied(undisturbed, tmp_path, monkeypatch):
    """A function: the run as it was before a stage."""
    from wm_lib.models import training

    monkeypatch.setattr(training, "BLOCK", BLOCK)

    def before(stage: str) -> Pipeline:
        for earlier in STAGES[: STAGES.index(stage)]:
            shutil.copytree(undisturbed / "pong" / earlier, tmp_path / "run" / "pong" / earlier)
        return open_tiny(tmp_path / "run")

    return before


def assert_same(stage: str, one: Path, other: Path) -> None:
    """Weights, scalars and facts are those of the other run, bit for bit."""
    name = WEIGHTS[stage]
    assert (one / stage / name).read_bytes() == (other / stage / name).read_bytes()
    assert (one / stage / "scalars.jsonl").read_text() == (other / stage / "scalars.jsonl").read_text()
    records = [checkpoints.read_json(folder / stage / "stage.json") for folder in (one, other)]
    assert records[0]["facts"] == records[1]["facts"] and records[0]["key"] == records[1]["key"]


def stop_after(function, calls: int):
    """The same function, which raises KeyboardInterrupt once it was called so often."""
    count = 0

    def wrapped(*args, **kwargs):
        nonlocal count
        result = function(*args, **kwargs)
        count += 1
        if count == calls:
            raise KeyboardInterrupt
        return result

    return wrapped


@pytest.mark.parametrize("where", ["at a checkpoint", "between checkpoints"])
@pytest.mark.parametrize("stage", ["vae", "mdn_rnn", "controller"])
def test_a_stopped_stage_ends_bit_equal(copied, undisturbed, monkeypatch, stage, where):
    from wm_lib.control import ppo
    from wm_lib.models import training

    run = copied(stage)
    with monkeypatch.context() as patch:
        if where == "at a checkpoint":
            patch.setattr(training, "save", stop_after(training.save, 1))
        elif stage == "controller":
            patch.setattr(ppo._Report, "_on_rollout_end", stop_after(ppo._Report._on_rollout_end, 3))
        else:
            patch.setattr(training, "one_cycle", stop_after(training.one_cycle, 7))
        with pytest.raises(KeyboardInterrupt):
            run.run_stage(stage)
    assert not (run.directory / stage / "stage.json").exists()
    step = checkpoints.read_meta(run.directory / stage / "checkpoint.safetensors")["step"]
    assert step == (32 if stage == "controller" else BLOCK)
    run.run_stage(stage)
    assert_same(stage, run.directory, undisturbed / "pong")


def test_a_stopped_collection_ends_bit_equal(copied, undisturbed, monkeypatch):
    run = copied("collect")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", stop_after(checkpoints.save, 1))
        with pytest.raises(KeyboardInterrupt):
            run.run_stage("collect")
    run.run_stage("collect")
    assert (
        run.facts("collect")["files"] == checkpoints.read_json(undisturbed / "pong" / "collect" / "stage.json")["files"]
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_a_stage_killed_by_the_system_ends_bit_equal(copied, undisturbed):
    run = copied("vae")
    # `wm train`, which kills itself with signal 9 at its seventh update: nothing can be tidied up.
    program = f"""
import os, signal, sys
from wm_lib import cli
from wm_lib.models import training
training.BLOCK = {BLOCK}
one_cycle = training.one_cycle
def deadly(step, *rest):
    if step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return one_cycle(step, *rest)
training.one_cycle = deadly
sys.exit(cli.main(sys.argv[1:]))
"""
    arguments = ["train", "--task", "pong", "--component", "vae", "--budget", "smoke"]
    arguments += ["--run-dir", str(run.directory.parent), "--config", str(run.directory.parent.with_suffix(".yaml"))]
    killed = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=os.environ)
    assert killed.returncode == -9, killed.stderr
    assert checkpoints.read_meta(run.directory / "vae" / "checkpoint.safetensors")["step"] == BLOCK
    run.run_stage("vae")
    assert_same("vae", run.directory, undisturbed / "pong")
