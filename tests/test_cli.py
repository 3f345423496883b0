import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError

from wm_lib import checkpoints, cli, pipeline, report
from wm_lib.config import load_config
from wm_lib.course import runner
from wm_lib.errors import StageError
from wm_lib.gates import Gate

SCORE = {"mean", "std", "ci95", "episodes", "seeds", "returns", "distinct_returns", "real_steps"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Away from the repository, its runs and its weights, and without a budget in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WM_BUDGET", raising=False)


def refused(capsys: pytest.CaptureFixture, *arguments: str, code: int = 2) -> str:
    """Run a command that must fail; returns its one line."""
    assert cli.main(arguments) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("wm: ") and captured.err.count("\n") == 1, captured.err
    assert captured.out == ""
    return captured.err


# --- Help


COMMANDS = ("collect", "train", "evaluate", "play", "course", "curriculum", "compare", "doctor", "vet", "config")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_names_every_option(capsys, command):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    if command:
        for option in ("--run-dir", "--seed", "--budget", "--config", "--json"):
            assert option in text
        assert "smoke | laptop | full" in text
    else:
        for name in COMMANDS:
            assert name in text


def test_help_and_settings_need_no_heavy_import():
    program = """
import sys
from wm_lib import cli
cli.main(["config", "--show", "--task", "pong"])
heavy = {"torch", "gymnasium", "envpool", "stable_baselines3", "papermill", "tensorboard", "cv2", "matplotlib"}
sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- Bad arguments: one line on stderr, exit code 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", ["COMMAND", "wm --help"]),
        ("trian", ["'trian'", "collect", "train", "evaluate", "course", "config", "wm --help"]),
        ("train", ["--task", "wm train --help"]),
        ("train --task pong --speed 3", ["--speed 3"]),
        ("train --task tetris", ["'tetris'", "pong, lunar-lander, breakout, car-racing"]),
        ("collect --task Pong-v5", ["'Pong-v5'", "pong, lunar-lander, breakout, car-racing"]),
        ("evaluate --task tetris", ["'tetris'", "pong, lunar-lander, breakout, car-racing"]),
        ("course --task tetris", ["'tetris'", "pong, lunar-lander, breakout, car-racing"]),
        ("config --task tetris", ["'tetris'", "pong, lunar-lander, breakout, car-racing"]),
        ("train --task pong --budget huge", ["'huge'", "smoke, laptop, full"]),
        ("course --budget huge", ["'huge'", "smoke, laptop, full"]),
        ("config --budget laptob", ["'laptob'", "did you mean laptop?"]),
        ("play --task pong --mode simulation", ["real games", "--mode full or gym_only"]),
        ("train --task pong --component rnn", ["'rnn'", "vae, mdn_rnn, reservoir, controller, evaluate, all"]),
        ("train --task pong --seed -1", ["seed must be from 0 to 2147483647, got -1"]),
        ("train --task pong --seed 2147483648", ["seed must be from 0 to 2147483647, got 2147483648"]),
        ("train --task pong --seed one", ["--seed", "'one'"]),
        ("course --seed -1", ["seed must be from 0 to 2147483647, got -1"]),
        ("evaluate --task pong --seed -1", ["seed must be from 0 to 2147483647, got -1"]),
        ("evaluate --task pong --episodes 0", ["--episodes must be at least 1, got 0"]),
        ("evaluate --task pong --episodes -3", ["--episodes must be at least 1, got -3"]),
        ("evaluate --task pong --episodes many", ["--episodes", "'many'"]),
        ("play --task pong --episodes 0", ["--episodes must be at least 1, got 0"]),
        ("play --task pong --output film.avi", ["--output must end in .gif or .mp4, got film.avi"]),
        ("play --task pong --seed -1", ["seed must be from 0 to 2147483647, got -1"]),
        ("evaluate --task pong --sticky 1", ["--sticky", "1.0"]),
        ("evaluate --task pong --sticky -0.1", ["--sticky", "-0.1"]),
        ("evaluate --task pong --sticky nan", ["--sticky", "nan"]),
        ("evaluate --task car-racing --sticky 0.25", ["--sticky", "Atari", "car-racing"]),
        ("config --config nowhere.yaml", ["nowhere.yaml", "No such file"]),
        ("train --task pong --config .", ["cannot read the configuration .", "irectory"]),
        ("course --config mine.yaml", ["--config", "wm train"]),
        ("course -p seed 3", ["--seed 3"]),
        ("course -p run_dir here", ["--run-dir here"]),
    ],
)
def test_bad_arguments(capsys, arguments, told):
    line = refused(capsys, *arguments.split())
    for part in told:
        assert part in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vae: {z_dmi: 32}", ["vae.z_dmi", "32", "did you mean vae.z_dim?"]),
        ("vea: {z_dim: 32}", ["vea", "did you mean vae?"]),
        ("vae: {z_dim: '32'}", ["vae.z_dim", '"32"', "a whole number"]),
        ("vae: {z_dim: 0}", ["vae.z_dim", "from 1 to 1024", "found 0"]),
        ("controller: {type: dqn}", ["controller.type", '"dqn"', "ppo, original, cpu"]),
        ("tasks: {tetris: {vae: {z_dim: 8}}}", ["tasks.tetris", "unknown task"]),
        ("vae: [", ["line 1", "not YAML"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "config"])
def test_bad_settings(capsys, tmp_path, command, text, told):
    (tmp_path / "mine.yaml").write_text(text)
    line = refused(capsys, command, "--task", "pong", "--config", "mine.yaml")
    for part in ("mine.yaml", *told):
        assert part in line


def test_a_bad_budget_in_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("WM_BUDGET", "big")
    assert "$WM_BUDGET 'big'" in refused(capsys, "train", "--task", "pong")


# --- A stage that fails: one line, exit code 1


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ("train --component vae", "wm collect --task pong --budget smoke --run-dir here"),
        ("train --component controller --seed 2", "wm collect --task pong --budget smoke --run-dir here --seed 2"),
        ("evaluate", "wm collect --task pong --budget smoke --run-dir here"),
        ("play", "wm collect --task pong --budget smoke --run-dir here"),
    ],
)
def test_a_missing_stage(capsys, arguments, remedy):
    command, *rest = arguments.split()
    line = refused(capsys, command, "--task", "pong", "--budget", "smoke", "--run-dir", "here", *rest, code=1)
    assert line.endswith(f"; type: {remedy}\n")


def test_a_file_where_the_run_folder_should_be(capsys, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "taken" in refused(capsys, "collect", "--task", "pong", "--run-dir", "taken", code=1)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StageError("V's loss became nan; lower vae.learning_rate"), "V's loss became nan"),
        (OSError(28, "No space left on device", "runs/x"), "No space left on device"),
        (SafetensorError("Error while serializing: I/O error: No space left on device"), "No space left on device"),
        (ModuleNotFoundError("No module named 'torch'"), "No module named 'torch'; type: pip install"),
        (KeyboardInterrupt(), "stopped; what is finished stays, the same command goes on from there"),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_line(capsys, monkeypatch, error, told):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(pipeline.Pipeline, "run_stage", fails)
    assert cli.main(["collect", "--task", "pong"]) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("wm: ") and told in line and "\n" not in line


def test_a_bug_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(pipeline.Pipeline, "run_stage", lambda *args: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        cli.main(["collect", "--task", "pong"])


# --- Settings


def test_config_prints_yaml_that_is_read_again(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("tasks: {pong: {vae: {learning_rate: 1e-5}}}")
    assert cli.main(["config", "--show", "--task", "pong", "--budget", "full", "--config", "mine.yaml"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    config = load_config("full", "pong", tmp_path / "mine.yaml")
    assert config.vae.learning_rate == 1e-5
    assert load_config("smoke", None, tmp_path / "printed.yaml") == config
    assert list(yaml.safe_load(printed)) == [
        "collect",
        "vae",
        "mdnrnn",
        "reservoir",
        "controller",
        "evaluation",
        "gates",
        "rounds",
        "compare",
        "curriculum",
        "doctor",
        "cluster",
    ]


def test_config_as_json(tmp_path, capsys):
    assert cli.main(["config", "--budget", "smoke", "--json", "deep/down/config.json"]) == 0
    written = json.loads((tmp_path / "deep" / "down" / "config.json").read_text())
    assert written == {"schema": 1, "config": load_config("smoke").to_dict()}


@pytest.mark.parametrize(("old", "new"), [("CarRacing-v2", "car-racing"), ("LunarLander-v2", "lunar-lander")])
def test_old_environment_ids_are_mapped_with_one_notice(capsys, old, new):
    assert cli.main(["config", "--task", old]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"{old} is no longer in Gymnasium; using {old[:-1]}3.\n"
    assert cli.main(["config", "--task", new]) == 0
    assert captured.out == capsys.readouterr().out


# --- The course: what reaches the notebooks


def test_course_passes_its_options_on(monkeypatch, capsys, tmp_path):
    calls = []

    def run_course(parameters, output):
        calls.append((parameters, output))
        return [{"name": "00_start_here", "digest": "0" * 64, "status": "ran", "minutes": 1.5}]

    monkeypatch.setattr(runner, "run_course", run_course)
    arguments = ["--task", "CarRacing-v3", "--budget", "smoke", "--seed", "4", "--run-dir", "mine", "--output", "out"]
    assert cli.main(["course", *arguments, "-p", "rate", "1e-3", "-p", "name", "a b", "--json", "c.json"]) == 0
    expected = {"task": "car-racing", "budget": "smoke", "seed": 4, "run_dir": str(tmp_path / "mine")}
    assert calls == [(expected | {"rate": 1e-3, "name": "a b"}, Path("out"))]
    written = json.loads((tmp_path / "c.json").read_text())
    assert set(written) == {"schema", "parameters", "notebooks"} and written["schema"] == 1
    assert written["parameters"] == calls[0][0]
    assert set(written["notebooks"][0]) == {"name", "digest", "status", "minutes"}
    assert str(Path("out") / "index.html") in capsys.readouterr().out


# --- From frames to a score, once, on LunarLander


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a run that `wm` made step by step, and what each step wrote with --json."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(
        "collect: {num_steps: 128, num_envs: 2, shard_length: 32}\n"
        "vae: {z_dim: 4, num_updates: 4, batch_size: 8}\n"
        "mdnrnn: {rnn_size: 8, num_updates: 4, sequence_length: 8, batch_size: 4}\n"
        "controller: {recent_z: 2, num_steps: 64, num_envs: 2, rollout_length: 16, hidden: [8]}\n"
    )
    for name, arguments in {
        "collect": ["collect"],
        "vae": ["train", "--component", "vae"],
        "mdn_rnn": ["train", "--component", "mdn_rnn"],
        "controller": ["train", "--component", "controller"],
        "evaluate_alone": ["train", "--component", "evaluate"],
        "all": ["train"],
    }.items():
        assert cli.main([*arguments, *options(folder), "--json", str(folder / f"{name}.json")]) == 0
    return folder


def options(folder: Path) -> list[str]:
    settings = ["--config", str(folder / "tiny.yaml"), "--budget", "smoke", "--run-dir", str(folder / "run")]
    return ["--task", "lunar-lander", *settings]


def test_train_says_what_it_made(trained):
    written = {name: checkpoints.read_json(trained / f"{name}.json") for name in ("collect", "vae", "mdn_rnn")}
    for name, facts in (
        ("collect", {"real_steps", "num_episodes", "mean_return"}),
        ("vae", {"num_params"}),
        (
            "mdn_rnn",
            {"nll", "copy_last_nll", "reward_mse", "reward_variance", "done_nll", "done_entropy", "num_steps"}
            | {"reward_calibration", "done_calibration"},
        ),
    ):
        assert set(written[name]) == {"schema", "task", "directory"} | facts
        assert written[name]["schema"] == 1 and written[name]["task"] == "lunar-lander"
        assert Path(written[name]["directory"]) == trained / "run" / "lunar-lander" / name
    assert written["collect"]["real_steps"] == 128
    assert checkpoints.read_json(trained / "controller.json")["real_steps"] == 64


def test_the_manifest_says_where_the_score_comes_from(trained):
    manifest = checkpoints.read_json(trained / "run" / "lunar-lander" / "evaluate" / "manifest.json")
    for name in ("all", "evaluate_alone"):
        assert checkpoints.read_json(trained / f"{name}.json") == manifest
    assert set(manifest) == {
        "schema", "task", "env_id", "target", "mode", "variant", "provisional", "seed", "score", "random_score",
        "real_steps", "failed_gates", "minutes", "config", "machine", "versions", "command", "commit", "weights",
        "rounds", "executor", "frames_per_decision", "num_actions",
    }  # fmt: skip
    assert (manifest["frames_per_decision"], manifest["num_actions"]) == (2, 4)
    assert (manifest["schema"], manifest["task"], manifest["env_id"]) == (1, "lunar-lander", "LunarLander-v3")
    assert (manifest["mode"], manifest["variant"], manifest["target"]) == ("full", "ppo", 200)
    assert set(manifest["score"]) == set(manifest["random_score"]) == SCORE
    assert manifest["score"]["seeds"] == [10_000, 10_001]
    assert manifest["provisional"] == (manifest["score"]["mean"] < 200)
    assert manifest["real_steps"] == {"total": 192, "collect": 128, "controller": 64}
    assert set(manifest["minutes"]) == {"collect", "vae", "latents", "mdn_rnn", "controller"}
    assert manifest["command"] == "wm train --component all " + " ".join(
        ["--task lunar-lander --budget smoke --run-dir", str(trained / "run"), "--config", str(trained / "tiny.yaml")]
    )
    run = trained / "run" / "lunar-lander"
    assert manifest["weights"] == {
        f"{name}.safetensors": checkpoints.sha256_file(run / name / f"{name}.safetensors")
        for name in ("vae", "mdn_rnn", "controller")
    }


def test_evaluate_reproduces_the_manifest(trained, capsys):
    manifest = checkpoints.read_json(trained / "all.json")
    command = ["evaluate", *options(trained), "--episodes", "2", "--json", str(trained / "evaluate.json")]
    assert cli.main(command) == 0
    result = checkpoints.read_json(trained / "evaluate.json")
    assert set(result) == {"schema", "task", "mode", "weights", "sticky", "executor"} | SCORE
    assert {name: result[name] for name in SCORE} == manifest["score"]
    assert result["weights"] == manifest["weights"]
    assert (result["schema"], result["mode"], result["sticky"]) == (1, "full", 0)
    assert f"lunar-lander: {result['mean']:.1f} [" in capsys.readouterr().out
    # --seed is the first of the seeds: the second episode alone has the return it had beside the first.
    assert cli.main([*command, "--episodes", "1", "--seed", "10001", "--random"]) == 0
    result = checkpoints.read_json(trained / "evaluate.json")
    assert result["seeds"] == [10_001] and result["weights"] == {}
    assert result["returns"] == manifest["random_score"]["returns"][1:]


def test_evaluate_refuses_altered_weights(trained, capsys, tmp_path):
    path = trained / "run" / "lunar-lander" / "vae" / "vae.safetensors"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        line = refused(capsys, "evaluate", *options(trained), "--episodes", "2", code=1)
    finally:
        path.write_bytes(whole)
    assert str(path) in line and "damaged" in line


def test_evaluate_takes_the_shipped_weights_when_no_run_is_named(trained, capsys, tmp_path):
    shipped = tmp_path / "assets" / "weights" / "lunar-lander"
    shipped.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    for name in ("vae", "mdn_rnn", "controller"):
        for suffix in (".safetensors", ".json"):
            source = trained / "run" / "lunar-lander" / name / f"{name}{suffix}"
            (shipped / source.name).write_bytes(source.read_bytes())
    assert cli.main(["evaluate", "--task", "lunar-lander", "--episodes", "1", "--json", "shipped.json"]) == 0
    assert f"using the shipped weights in {shipped}" in capsys.readouterr().out
    manifest = checkpoints.read_json(trained / "all.json")
    result = checkpoints.read_json(tmp_path / "shipped.json")
    assert result["weights"] == manifest["weights"] and result["returns"] == manifest["score"]["returns"][:1]


def test_what_is_published_is_measured_again_exactly(trained, capsys, tmp_path):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "README.md").write_text("".join(report.marks("results")))
    publish = ["report", "--publish", "--run-dir", str(trained / "run")]
    assert cli.main(publish) == 0
    published = tmp_path / "assets" / "manifests" / "lunar-lander.json"
    manifest = checkpoints.read_json(published)
    assert report.results_table([manifest]) in capsys.readouterr().out
    assert cli.main(["evaluate", "--task", "lunar-lander", "--episodes", "2", "--json", "again.json"]) == 0
    result = checkpoints.read_json(tmp_path / "again.json")
    assert {name: result[name] for name in SCORE} == manifest["score"]
    assert result["weights"] == manifest["weights"]
    assert cli.main(["evaluate", "--task", "lunar-lander", "--episodes", "3", "--publish"]) == 0
    longer = checkpoints.read_json(published)
    assert longer["score"]["returns"][:2] == manifest["score"]["returns"] and longer["score"]["episodes"] == 3
    assert longer | {"score": 0} == manifest | {"score": 0}
    assert report.results_table([longer]) in (tmp_path / "README.md").read_text()
    assert cli.main(["evaluate", "--task", "lunar-lander", "--episodes", "2", "--seed", "50000", "--publish"]) == 0
    checked = checkpoints.read_json(published)
    assert checked.pop("check_score")["seeds"] == [50_000, 50_001] and checked == longer
    longer = checkpoints.read_json(published)
    others = ["--run-dir", str(trained / "run"), "--seed", "10001"]
    for options, told in ((others, "begin with seed 10000"), (["--random", "--seed", "7"], "begin with seed 10000")):
        assert cli.main(["evaluate", "--task", "lunar-lander", "--episodes", "1", *options, "--publish"]) == 1
        assert told in capsys.readouterr().err
    assert checkpoints.read_json(published) == longer
    manifest["score"]["mean"] += 1
    checkpoints.write_json(published, manifest)
    capsys.readouterr()
    assert cli.main(publish) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("wm: not published: lunar-lander (") and line.endswith("--force publishes it all the same")
    assert cli.main([*publish, "--force"]) == 0
    assert checkpoints.read_json(published)["score"] == checkpoints.read_json(trained / "all.json")["score"]


def test_play_makes_a_film_where_there_is_no_screen(trained, capsys, tmp_path, monkeypatch):
    from wm_lib import play

    monkeypatch.setattr(play, "has_window", lambda: False)
    manifest = checkpoints.read_json(trained / "all.json")
    (tmp_path / "pyproject.toml").touch()
    command = ["play", *options(trained), "--json", "played.json"]
    assert cli.main([*command, "--episodes", "2"]) == 0
    film = tmp_path / "build" / "play" / "lunar-lander.gif"
    assert film.exists() and f"the film is {film}" in capsys.readouterr().out
    result = checkpoints.read_json(tmp_path / "played.json")
    assert set(result) == {"schema", "task", "mode", "weights", "seeds", "returns", "dream", "film"}
    assert result["weights"] == manifest["weights"] and result["returns"] == manifest["score"]["returns"]
    assert result["seeds"] == [10_000, 10_001]
    assert cli.main([*command, "--dream", "--seed", "7", "--output", "dream.mp4"]) == 0
    assert Path("dream.mp4").exists() and "seed 7: dreamt return" in capsys.readouterr().out


def test_a_failed_gate_ends_the_command_and_force_goes_on(capsys, tmp_path, monkeypatch):
    dark = Gate("frames", False, "all black", "a picture", "collect again")
    monkeypatch.setattr(pipeline, "CHECKS", {"collect": lambda run, facts: [dark]})
    (tmp_path / "stop.yaml").write_text("gates: {stop: true}\ncollect: {num_steps: 64, num_envs: 2}\n")
    command = ["--task", "pong", "--budget", "smoke", "--run-dir", str(tmp_path / "run"), "--config", "stop.yaml"]
    assert cli.main(["collect", *command]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "wm: gate 'frames' failed: measured all black; expected a picture; try: collect again; --force goes on"
    )
    assert cli.main(["collect", *command, "--force"]) == 0
    assert "128 decisions of pong" in capsys.readouterr().out
