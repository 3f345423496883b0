"""Rounds: the agent collects, the data grows, and V, M and C go on from where they were."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import TINY, write_config

from wm_lib import checkpoints, pipeline, report, stages
from wm_lib.control import ppo
from wm_lib.control.agent import Agent
from wm_lib.errors import StageError, UsageError
from wm_lib.evaluation import agent_maker, evaluate
from wm_lib.pipeline import STAGES, Pipeline
from wm_lib.rollouts import Rollouts, split_sequences
from wm_lib.seeding import derive_seed
from wm_lib.worlds import envs

ROUNDS = {"vae_updates": 4, "controller_steps": 32}
ONE_GAME = {"evaluation": {"episodes": 1, "random_episodes": 1}}


def open_round(run_dir: Path, number: int | None, config: dict | None = None, **rounds: float) -> Pipeline:
    sections = TINY | ONE_GAME | {"rounds": ROUNDS | rounds} | (config or {})
    return Pipeline.open(
        "pong", "smoke", run_dir, 0, write_config(run_dir.with_suffix(".yaml"), **sections), rounds=number
    )


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Stages that only write down that they ran."""
    log: list[tuple[int, str]] = []

    def step(stage: str):
        def run(self: Pipeline, directory: Path) -> dict:
            log.append((self.round, stage))
            checkpoints.save(directory / f"{stage}.safetensors", {"value": np.ones(1)}, {})
            return {}

        return run

    monkeypatch.setattr(pipeline, "STEPS", {stage: step(stage) for stage in STAGES})
    monkeypatch.setattr(pipeline, "CHECKS", {})
    return log


def test_a_round_follows_the_controller_of_the_one_before(ran, tmp_path):
    directory = open_round(tmp_path / "run", 3).build("evaluate")
    assert directory == tmp_path / "run" / "pong" / "round-3" / "evaluate"
    unmeasured = STAGES[:-1]
    assert ran == [(1, s) for s in unmeasured] + [(2, s) for s in unmeasured] + [(3, s) for s in STAGES]
    ran.clear()
    open_round(tmp_path / "run", 3).build("evaluate")
    assert ran == []


def test_another_round_keeps_what_is_there(ran, tmp_path):
    open_round(tmp_path / "run", 1).build("controller")
    ran.clear()
    open_round(tmp_path / "run", 2).build("controller")
    assert ran == [(2, stage) for stage in STAGES[:-1]]


def test_the_number_of_rounds_comes_from_the_settings_unless_it_is_named(tmp_path):
    run = open_round(tmp_path / "run", None, num_rounds=2)
    assert run.round == 2 and [each.round for each in run.rounds] == [1, 2]
    assert run.command("vae").endswith(run.arguments)  # without --rounds, as it was opened
    assert run.previous.command("vae").endswith("--rounds 1")
    assert open_round(tmp_path / "run", 1, num_rounds=2).previous is None
    for number in (0, 101):
        with pytest.raises(UsageError, match="--rounds must be from 1 to 100"):
            open_round(tmp_path / "run", number)


def test_later_rounds_may_be_played_on_the_other_path_and_explore_less(tmp_path):
    second = open_round(tmp_path / "run", 2)
    first = second.previous.config
    assert (second.config.collect, second.config.controller.entropy) == (first.collect, first.controller.entropy)
    other = open_round(tmp_path / "run", 2, gymnasium_fraction=1.0, entropy=0.0)
    assert other.previous.config.collect == first.collect and other.previous.config.controller == first.controller
    assert other.config.collect == first.collect.model_copy(update={"gymnasium_fraction": 1.0})
    assert other.config.controller.entropy == 0 and other.config.controller.num_steps == ROUNDS["controller_steps"]


def test_no_round_draws_what_another_drew(tmp_path):
    third = open_round(tmp_path / "run", 3)
    seeds = [run.round_seed for run in third.rounds]
    assert seeds[0] == third.seed and len(set(seeds)) == 3


@pytest.mark.parametrize(
    ("section", "told"),
    [({"end_at_lost_life": True}, "lunar-lander has no lives"), ({"tile_price": 1.0}, "needs Gymnasium's CarRacing")],
)
def test_rewards_that_a_task_does_not_have_are_refused(tmp_path, section, told):
    sections = {"controller": TINY["controller"] | section, "collect": TINY["collect"] | {"gymnasium_fraction": 1.0}}
    config = write_config(tmp_path / "c.yaml", **TINY | sections)
    run = Pipeline.open("lunar-lander", "smoke", tmp_path / "run", 0, config)
    with pytest.raises(UsageError, match=told):
        stages.train_controller(run, None, tmp_path)


def test_settings_of_later_rounds_touch_later_rounds_only(ran, tmp_path):
    open_round(tmp_path / "run", 2).build("controller")
    ran.clear()
    open_round(tmp_path / "run", 2, controller_steps=64).build("controller")
    assert ran == [(2, "controller")]
    ran.clear()
    changed = {"controller": TINY["controller"] | {"num_steps": 96}}
    open_round(tmp_path / "run", 2, changed).build("controller")  # another agent collects other data
    assert ran == [(1, "controller"), *((2, stage) for stage in STAGES[:-1])]


def test_without_the_round_before_nothing_begins(tmp_path):
    with pytest.raises(StageError, match="collect, vae, .*controller of pong not made yet"):
        open_round(tmp_path / "run", 2).run_stage("collect")


def test_the_table_shows_the_last_round(tmp_path):
    for place, mean in {"": 1.0, "round-2": 2.0, "round-10": 10.0}.items():
        checkpoints.write_json(tmp_path / "pong" / place / "evaluate" / "manifest.json", {"mean": mean})
    assert report.find_manifests(tmp_path) == [{"mean": 10.0}]


# --- The real stages


@pytest.fixture(scope="module")
def first_round(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("rounds") / "run"
    open_round(run_dir, 1).build("controller")
    return run_dir


@pytest.fixture
def second(first_round, tmp_path):
    """A function: round 2, its stages not made yet, after a copy of round 1."""

    def after(**rounds: float) -> Pipeline:
        shutil.copytree(first_round, tmp_path / "run")
        return open_round(tmp_path / "run", 2, **rounds)

    return after


def weights(run: Pipeline, stage: str) -> dict[str, np.ndarray]:
    return checkpoints.load(run.directory / stage / f"{stage}.safetensors")[0]


def test_the_agent_collects_and_old_data_stays(second, tmp_path):
    run = second()
    run.run_stage("collect")
    old, new, both = (
        Rollouts(*(each.directory / "collect" for each in rounds)) for rounds in ([run.previous], [run], run.rounds)
    )
    np.testing.assert_array_equal(run.rollouts().action, both.action)
    np.testing.assert_array_equal(both.action, np.concatenate([old.action, new.action]))
    index = np.arange(both.num_frames)
    np.testing.assert_array_equal(both.gather(index)[: old.num_frames], old.gather(index[: old.num_frames]))
    assert both.episode.max() == old.episode.max() + new.episode.max() + 1
    # The actions are those that the agent of round 1 samples at these frames.
    seed = derive_seed(derive_seed(run.round_seed, "collect", 0), "policy")
    rngs = np.random.default_rng(seed).spawn(2)
    agent = Agent(run.previous.world_model(bf16=True), run.previous.controller(), 2, rngs)
    shard = checkpoints.load(run.directory / "collect" / "shard-0000.safetensors")[0]
    for t in range(16):
        np.testing.assert_array_equal(agent(shard["frames"][:, t], shard["first"][:, t]), shard["action"][:, t])


def test_a_v_that_stays_keeps_the_latents_of_old_data(second):
    run = second(vae_updates=0)
    run.build("latents")
    before, after = run.previous.latents(), run.latents()
    old = len(before["mu"])
    assert all((weights(run, "vae")[name] == value).all() for name, value in weights(run.previous, "vae").items())
    for name in before:
        np.testing.assert_array_equal(after[name][:old], before[name])
    assert run.facts("latents")["facts"]["encoded"] == len(after["mu"]) - old == old
    assert np.isfinite(after["mu"]).all() and after["mu"][old:].any()


def test_v_m_and_c_go_on_from_the_round_before(second):
    run = second()
    # Nearly nothing is learnt: what is there must be what was there before.
    slow = {
        "vae": TINY["vae"] | {"learning_rate": 1e-7},  # enough that V's file is another one, though hardly its numbers
        "mdnrnn": TINY["mdnrnn"] | {"learning_rate": 1e-9},
        "controller": TINY["controller"] | {"learning_rate": 1e-9},
    }
    loaded = open_round(run.directory.parents[1], 2, slow).loaded
    for stage in STAGES[:-1]:  # the first round is left as it was made, so its keys are not asked for
        run.run_stage(stage) if stage in ("collect", "latents") else _with(run, loaded, stage)
    for stage in ("vae", "mdn_rnn", "controller"):
        before, after = weights(run.previous, stage), weights(run, stage)
        for name in before:
            if name != "reward_scale":  # of the data, measured anew
                np.testing.assert_allclose(after[name], before[name], atol=1e-6, err_msg=f"{stage}: {name}")
    assert run.facts("latents")["facts"]["encoded"] == len(run.latents()["mu"])


def _with(run: Pipeline, loaded, stage: str) -> None:
    pipeline.STEPS[stage](slowed := pipeline.replace(run, loaded=loaded), slowed.directory / stage)
    shutil.copy(run.previous.directory / stage / "stage.json", run.directory / stage / "stage.json")


@pytest.mark.parametrize(("fraction", "backend"), [(1.0, "gymnasium"), (0.5, "auto"), (0.0, "auto")])
def test_where_all_data_is_of_gymnasium_ppo_plays_there_too(first_round, tmp_path, monkeypatch, fraction, backend):
    chosen = []

    class Stop(Exception):
        pass

    def train_ppo(*args, make_env, **options):
        make_env(2, 0)
        raise Stop

    monkeypatch.setattr(ppo, "train_ppo", train_ppo)
    monkeypatch.setattr(envs, "make_env", lambda task, num_envs, seed, backend: chosen.append(backend))
    shutil.copytree(first_round, tmp_path / "run")
    run = open_round(tmp_path / "run", 1, {"collect": TINY["collect"] | {"gymnasium_fraction": fraction}})
    with pytest.raises(Stop):
        stages.train_controller(run, run.world_model(), tmp_path)
    assert chosen == [backend]


def test_held_out_sequences_were_never_trained_on():
    first, second = (set(split_sequences(num)[1]) for num in (40, 80))
    assert first == {sequence for sequence in second if sequence < 40}


def test_the_manifest_counts_all_rounds(second):
    run = second()
    run.build("evaluate")
    manifest = run.manifest()
    assert manifest["rounds"] == 2
    sticky = manifest["sticky_score"]
    assert sticky["seeds"] == [10_000] and sticky["real_steps"] > 0
    assert sticky["returns"] == run_sticky(run)["returns"] != manifest["score"]["returns"][:1]
    assert manifest["real_steps"] == {"total": 128 + 64 + 32, "collect": 128, "controller": 64 + 32}
    total = sum(each.facts("vae")["minutes"] for each in run.rounds)
    assert manifest["minutes"]["vae"] == pytest.approx(total)


def run_sticky(run: Pipeline) -> dict:
    """What `wm evaluate --sticky 0.25 --episodes 1` measures."""
    return evaluate(run.task, agent_maker(run.task, run.world_model(), run.controller()), 1, 10_000, sticky=0.25)


def test_evolution_goes_on_from_its_last_mean(first_round, tmp_path):
    from wm_lib.control.evolution import train_evolution

    run = Pipeline.open("pong", "smoke", first_round, 0, first_round.with_suffix(".yaml"))
    world_model = run.world_model()
    config = run.config.controller.model_copy(
        update={"type": "original", "num_generations": 1, "population_size": 2, "max_decisions": 2, "sigma": 1e-9}
    )
    from wm_lib.control.controller import Controller, num_params

    params = np.random.default_rng(0).standard_normal(num_params(world_model.feature_dim, 3)).astype(np.float32)
    start = Controller.linear(params, world_model.feature_dim, 3)
    np.testing.assert_array_equal(start.params, params)
    made = train_evolution(world_model, run.task, config, seed=0, directory=tmp_path, start=start)
    np.testing.assert_allclose(made.params, params, atol=1e-6)
