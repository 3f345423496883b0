import difflib
import json
from pathlib import Path

import pytest
import yaml

import wm_lib
from wm_lib.config import BUDGETS, load_config, resolve_budget
from wm_lib.errors import UsageError
from wm_lib.settings import Config, VAEConfig
from wm_lib.tasks import TASKS

PRESETS = Path(wm_lib.__file__).parent / "presets"


@pytest.fixture
def user_file(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def message(file, budget="laptop", task="pong"):
    with pytest.raises(UsageError) as caught:
        load_config(budget, task, file)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(file.name))
    return text


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("task", [None, *TASKS])
def test_every_preset_is_valid(budget, task):
    config = load_config(budget, task)
    assert isinstance(config, Config)
    assert Config.model_validate(config.to_dict()) == config


def test_laptop_names_every_key():
    # Otherwise a default in the code would silently be a number of a run.
    values = yaml.safe_load((PRESETS / "laptop.yaml").read_text())
    for section, field in Config.model_fields.items():
        assert set(values[section]) == set(field.annotation.model_fields)


def test_budgets_grow():
    smoke, laptop, full = (load_config(budget, "pong") for budget in BUDGETS)
    for section, name in [
        ("collect", "num_steps"),
        ("mdnrnn", "num_updates"),
        ("controller", "num_generations"),
        ("evaluation", "episodes"),
    ]:
        small, middle, large = (getattr(getattr(config, section), name) for config in (smoke, laptop, full))
        assert small < middle < large
    for first, later in (("controller.num_steps", "controller_steps"), ("vae.num_updates", "vae_updates")):
        totals = []
        for config in (smoke, laptop, full):
            section, name = first.split(".")
            further = (config.rounds.num_rounds - 1) * getattr(config.rounds, later)
            totals.append(getattr(getattr(config, section), name) + further)
        assert totals == sorted(set(totals))


def test_later_rounds_train_m_as_long_as_the_first_unless_they_say_otherwise(user_file):
    file = user_file("mdnrnn: {num_updates: 5}\ntasks: {pong: {rounds: {mdnrnn_updates: 9}}}")
    for task, later in (("pong", 9), ("lunar-lander", 5)):
        config = load_config("smoke", task, file)
        assert [config.for_round(number).mdnrnn.num_updates for number in (1, 2)] == [5, later]


def test_layers_are_merged_key_by_key(user_file):
    file = user_file("vae: {z_dim: 8}\ncontroller: {gamma: 0.9}\ntasks: {pong: {controller: {gamma: 0.5}}}")
    pong, breakout = load_config("smoke", "pong", file), load_config("smoke", "breakout", file)
    assert pong.vae.z_dim == breakout.vae.z_dim == 8
    assert pong.vae.num_updates == load_config("smoke", "pong").vae.num_updates
    assert (pong.controller.gamma, breakout.controller.gamma) == (0.5, 0.9)
    assert load_config("smoke", None, file).controller.gamma == 0.9
    assert pong.controller.clip_reward and not load_config("full", "car-racing").controller.clip_reward


def test_users_value_for_all_tasks_beats_a_presets_value_for_one(user_file):
    assert load_config("laptop", "car-racing").controller.reward_scale != 7
    file = user_file("controller: {reward_scale: 7}")
    assert load_config("laptop", "car-racing", file).controller.reward_scale == 7


def test_environment_id_names_a_task():
    assert load_config("laptop", "CarRacing-v3") == load_config("laptop", "car-racing")


def test_numbers_as_people_write_them(user_file):
    file = user_file("controller: {num_steps: 2e6, learning_rate: 3e-4, block_steps: 100_000, gamma: 1}")
    controller = load_config("laptop", "pong", file).controller
    assert (controller.num_steps, controller.learning_rate) == (2_000_000, 3e-4)
    assert (controller.block_steps, controller.gamma) == (100_000, 1.0)
    assert isinstance(controller.num_steps, int)


def test_empty_sections_and_an_empty_file_change_nothing(user_file):
    assert load_config("laptop", "pong", user_file("vae:\ntasks:\n")) == load_config("laptop", "pong")
    assert load_config("laptop", "pong", user_file("")) == load_config("laptop", "pong")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("vae: {z_dimm: 3}", ["vae.z_dimm", "3", "did you mean vae.z_dim?"]),
        ("vea: {z_dim: 3}", ["vea", "did you mean vae?"]),
        ("z_dim: 3", ["z_dim", "did you mean vae.z_dim?"]),
        ("vae: {gamma: 0.5}", ["vae.gamma", "did you mean controller.gamma?"]),
        ("vae: {quux: 1}", ["vae.quux", "choose one of", "z_dim"]),
        ("vae: {z_dim: 0}", ["vae.z_dim", "found 0", "from 1 to 1024"]),
        ("vae: {learning_rate: 0}", ["vae.learning_rate", "found 0", "above 0 and at most 1"]),
        ("vae: {learning_rate: .nan}", ["vae.learning_rate", "NaN"]),
        ("vae: {z_dim: '32'}", ["vae.z_dim", "whole number", 'found "32"']),
        ("vae: {z_dim: 3.5}", ["vae.z_dim", "whole number", "found 3.5"]),
        ("vae: {z_dim: true}", ["vae.z_dim", "whole number", "found true"]),
        ("vae: {centred: 1}", ["vae.centred", "true or false", "found 1"]),
        ("vae: 3", ["vae", "found 3"]),
        ("controller: {type: pppo}", ["controller.type", "pppo", "did you mean ppo?", "original, cpu"]),
        ("controller: {hidden: 64}", ["controller.hidden", "needs a list", "found 64"]),
        ("controller: {hidden: [64, 0]}", ["controller.hidden", "[64, 0]", "from 1 to 8192"]),
        ("curriculum: {stages: [pong, chess]}", ["curriculum.stages", "chess", "lunar-lander"]),
        ("curriculum: {stages: []}", ["curriculum.stages", "at least one"]),
        ("curriculum: {stages: [pong, pong]}", ["curriculum.stages", "at most once"]),
        ("curriculum: {targets: 5}", ["curriculum.targets", "keys with values", "found 5"]),
        ("curriculum: {targets: {chess: 5}}", ["curriculum.targets", "chess", "lunar-lander"]),
        ("curriculum: {targets: {pong: high}}", ["curriculum.targets.pong", "a number", '"high"']),
        ("mdnrnn: {sequence_length: 700}", ["mdnrnn.sequence_length", "700", "collect.shard_length", "640"]),
        ("tasks: {pnog: {}}", ["tasks.pnog", "did you mean pong?"]),
        ("tasks: {breakout: {vae: {betta: 1}}}", ["tasks.breakout.vae.betta", "did you mean vae.beta?"]),
        ("tasks: {breakout: {vae: {z_dim: 0}}}", ["tasks.breakout.vae.z_dim", "from 1 to 1024"]),
        ("vae: {z_dim: 0}\ntasks: {pong: {vae: {beta: 1}}}", ["mine.yaml: vae.z_dim"]),
        ("vae: {z_dim: 0, beta: -1}", ["vae.z_dim", "(and 1 more)"]),
        ("[1, 2]", ["found [1, 2]"]),
    ],
)
def test_mistakes_are_explained_on_one_line(user_file, text, parts):
    text = message(user_file(text))
    for part in parts:
        assert part in text


@pytest.mark.parametrize("section", Config.model_fields)
def test_every_misspelt_key_is_told_its_nearest(user_file, section):
    names = list(Config.model_fields[section].annotation.model_fields)
    for name in names:
        misspelt = name[:-1] + "q" + name[-1]
        nearest = difflib.get_close_matches(misspelt, names, 1)[0]
        assert f"did you mean {section}.{nearest}?" in message(user_file(f"{section}: {{{misspelt}: 1}}"))


def test_every_number_has_a_range_that_its_error_names(user_file):
    for section, field in Config.model_fields.items():
        for name, inner in field.annotation.model_fields.items():
            if inner.annotation in (int, float):
                assert "found -1" in message(user_file(f"{section}: {{{name}: -1}}"))
                assert " to " in message(user_file(f"{section}: {{{name}: 1e30}}")).replace("at most", "to")


def test_unreadable_files(tmp_path, user_file):
    with pytest.raises(UsageError, match="No such file"):
        load_config("laptop", file=tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="line 2 is not YAML"):
        load_config("laptop", file=user_file("vae:\n\tz_dim: 3\n"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        load_config("laptop", file=tmp_path / "binary.yaml")


def test_budget_comes_from_the_argument_then_the_environment_then_laptop(monkeypatch):
    monkeypatch.delenv("WM_BUDGET", raising=False)
    assert resolve_budget() == "laptop"
    monkeypatch.setenv("WM_BUDGET", "smoke")
    assert resolve_budget("auto") == "smoke" and resolve_budget("full") == "full"
    assert load_config() == load_config("smoke")
    monkeypatch.setenv("WM_BUDGET", "smok")
    with pytest.raises(UsageError, match=r"\$WM_BUDGET 'smok'; did you mean smoke\?"):
        resolve_budget()
    with pytest.raises(UsageError, match="did you mean laptop"):
        resolve_budget("labtop")


def test_dump_is_canonical_and_complete():
    config = load_config("laptop", "pong")
    assert json.loads(config.to_json()) == config.to_dict()
    changed = config.model_copy(update={"vae": VAEConfig(beta=config.vae.beta + 1)})
    assert changed.to_json() != config.to_json()
    assert list(json.loads(config.to_json())) == sorted(Config.model_fields)


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_config("smoke").vae.z_dim = 3
