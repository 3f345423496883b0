"""The reservoir world model against linear algebra done all at once, and the promises of the protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wm_lib import checkpoints, rollouts
from wm_lib.control.agent import Agent
from wm_lib.control.controller import Controller, num_params
from wm_lib.drift import open_loop_error
from wm_lib.errors import StageError
from wm_lib.models import regression
from wm_lib.models import reservoir as res
from wm_lib.settings import ReservoirConfig
from wm_lib.tasks import TASKS
from wm_lib.worlds.simulation import stand_in

TASK = stand_in(TASKS["pong"])
CONFIG = ReservoirConfig(z_dim=12, size=40, foresight=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> rollouts.Rollouts:
    directory = tmp_path_factory.mktemp("collect")
    rollouts.collect(
        TASK,
        directory,
        num_steps=3200,
        num_envs=10,
        shard_length=160,
        seed=0,
        make_policy=lambda seed: rollouts.StickyRandom(3, 10, seed),
    )
    return rollouts.Rollouts(directory)


@pytest.fixture(scope="module")
def fitted(data: rollouts.Rollouts) -> tuple[res.Reservoir, dict[str, np.ndarray], dict[str, float]]:
    return res.fit_reservoir(data, CONFIG, num_actions=3, seed=0)


def in_pieces(rows: np.ndarray) -> list[np.ndarray]:
    return np.split(rows, [1, 7, 50, 51])


def test_ridge_from_sums_is_least_squares_on_the_whole_matrix() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(200), rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))])
    y = x @ rng.normal(size=(7, 3)) + 5 + rng.normal(size=(200, 3))
    moments = regression.Moments(7, 3)
    for piece in zip(in_pieces(x), in_pieces(y), strict=True):
        moments.add(*piece)
    for strength in (0.0, 0.3):
        # Ridge as plain least squares: one more row for each weight but the bias's, which says that it should be 0.
        extra = np.sqrt(strength * len(x)) * np.eye(7)[1:]
        wanted = np.linalg.lstsq(np.vstack([x, extra]), np.vstack([y, np.zeros((6, 3))]), rcond=None)[0]
        weights = moments.ridge(strength)
        np.testing.assert_allclose(weights, wanted, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(moments.residual_std(weights), np.sqrt(np.square(y - x @ weights).mean(0)))


def test_principal_components_from_sums_are_those_of_the_svd() -> None:
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(300, 8)) * np.array([5, 4, 3, 2, 1, 0.5, 0.2, 0.1])) @ rng.normal(size=(8, 8)) + 3
    mean, covariance = regression.moments_of(in_pieces(rows.astype(np.float32)))
    directions, variance = regression.principal_components(covariance, 4)
    _, singular, right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, singular[:4] ** 2 / len(rows), rtol=1e-4)
    np.testing.assert_allclose(np.abs((directions * right[:4]).sum(1)), 1, rtol=1e-4)
    assert (directions[np.arange(4), np.abs(directions).argmax(1)] > 0).all()


def test_patches_are_averages_and_z_the_components_of_the_blurred_ones(data, fitted) -> None:
    model, latents, _ = fitted
    index = np.arange(0, data.num_frames, 97)
    frames = data.gather(index)
    patches = np.array([[[f[4 * r : 4 * r + 4, 4 * c : 4 * c + 4].mean((0, 1)) for c in range(16)] for r in range(16)]
                        for f in frames]) / 255  # fmt: skip
    np.testing.assert_allclose(res.patches(frames).reshape(patches.shape), patches, rtol=1e-5)
    # Blurred by hand: [1 2 1] / 4 three times along both axes, nothing outside of the frame.
    for axis in (1, 2):
        for _ in range(3):
            wide = np.pad(patches, [(int(a == axis),) * 2 for a in range(4)])
            parts = [np.take(wide, range(k, k + 16), axis=axis) for k in range(3)]
            patches = (parts[0] + 2 * parts[1] + parts[2]) / 4
    blurred = patches.reshape(len(frames), -1)
    z = model.encode(frames)
    assert z.shape == (len(frames), 12) and z.dtype == np.float32
    np.testing.assert_allclose(z, latents["mu"].reshape(-1, 12)[index], rtol=1e-3, atol=1e-4)
    # Whatever their sizes, they span what the strongest directions of all the blurred training frames span.
    train = np.concatenate([res.patches(data.gather(s * data.length + np.arange(data.length)))
                            for s in data.split()[0]]).astype(float) @ res.blur()  # fmt: skip
    _, _, right = np.linalg.svd(train - train.mean(0), full_matrices=False)
    scores = (blurred - train.mean(0)) @ right[:12].T
    sizes = (scores * z).sum(0) / np.square(scores).sum(0)
    np.testing.assert_allclose(z, scores * sizes, atol=0.01)
    assert (np.diff(latents["mu"].std((0, 1))) < 0.05).all()


def test_a_drawing_is_the_best_that_z_can_say_of_the_patches(data, fitted) -> None:
    model, latents, _ = fitted
    train = (data.split()[0][:, None] * data.length + np.arange(data.length)).ravel()
    z = latents["mu"].reshape(-1, 12)[train]
    patches = res.patches(data.gather(train)).astype(float)
    wanted = np.linalg.lstsq(z - z.mean(0), patches - patches.mean(0), rcond=None)[0]
    np.testing.assert_allclose(model.decoder, wanted, atol=2e-3 * np.abs(wanted).max())
    frames = data.gather(train[::97])
    drawn = model.decode(model.encode(frames))
    assert drawn.shape == frames.shape and drawn.dtype == np.uint8
    difference = ((z - z.mean(0)) @ wanted)[::97].reshape(-1, 16, 16, 3)
    expected = np.kron(difference, np.ones((1, 4, 4, 1))) + data.gather(train).mean(0) / 255
    np.testing.assert_allclose(drawn / 255, expected.clip(0, 1), atol=0.01)
    assert np.square((frames - drawn.astype(float)) / 255).mean() < np.square(frames / 255 - model.mean).mean()


def test_the_heads_are_those_of_all_the_data_at_once(data, fitted) -> None:
    """The memory and the regressions again, sequence by sequence, everything in one matrix."""
    model, latents, facts = fitted
    train, held_out = data.split()

    def rows(sequences: np.ndarray) -> tuple[np.ndarray, ...]:
        x, seen, change, far, paid = [], [], [], [], []
        for s in sequences:
            h = np.zeros(40)
            mu, action = latents["mu"][s].astype(float), latents["action"][s]
            last = [next((u for u in range(t + 1, data.length) if data.first[s, u]), data.length) for t in range(160)]
            for t in range(data.length):
                h = np.zeros(40) if data.first[s, t] else h
                seen.append(np.concatenate([[1], mu[t], h]))
                drive = np.concatenate([mu[t], np.eye(3)[action[t]]]) @ model.inputs + h @ model.recurrent
                h = 0.5 * h + 0.5 * np.tanh(drive)
                x.append(np.concatenate([[1], mu[t], np.eye(3)[action[t]], h]))
                change.append(mu[t + 1] - mu[t] if t + 1 < last[t] else np.full(12, np.nan))
                far.append(mu[t + 3] - mu[t] if t + 3 < last[t] else np.full(12, np.nan))
                paid.append([data.reward[s, t], data.terminated[s, t]])
        return tuple(map(np.array, (x, seen, change, far, paid)))

    def ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        within = np.isfinite(y).all(1)
        x, y = x[within], y[within]
        extra = np.sqrt(CONFIG.ridge * len(x)) * np.eye(x.shape[1])[1:]
        return np.linalg.lstsq(np.vstack([x, extra]), np.vstack([y, np.zeros((len(extra), y.shape[1]))]), rcond=None)[0]

    x, seen, change, far, paid = rows(train)
    heads = np.column_stack([ridge(x, change), ridge(x, paid)])
    np.testing.assert_allclose(model.heads, heads, rtol=0.01, atol=2e-3)
    foresight = ridge(seen, far)
    size = np.sqrt(np.nanmean(np.square(far), axis=0)).mean()
    np.testing.assert_allclose(model.foresight, foresight / size, rtol=0.01, atol=2e-3)
    x, _, change, _, paid = rows(held_out)
    within = np.isfinite(change).all(1)
    np.testing.assert_allclose(facts["copy_mse"], np.square(change[within]).mean(), rtol=1e-4)
    np.testing.assert_allclose(facts["z_mse"], np.square(change - x @ heads[:, :12])[within].mean(), rtol=0.01)
    np.testing.assert_allclose(facts["reward_mse"], np.square(paid[:, 0] - x @ heads[:, 12]).mean(), rtol=0.01)
    assert facts["num_steps"] == within.sum()


def test_reading_in_other_pieces_gives_the_same(data, fitted, monkeypatch) -> None:
    monkeypatch.setattr(res, "FRAMES_AT_ONCE", 77)
    monkeypatch.setattr(res, "STEPS_AT_ONCE", 7)
    model, latents, _ = res.fit_reservoir(data, CONFIG, num_actions=3, seed=0)
    np.testing.assert_allclose(latents["mu"], fitted[1]["mu"], atol=1e-3)
    np.testing.assert_allclose(model.heads, fitted[0].heads, atol=5e-3)


def test_it_predicts_better_than_copying_and_its_dreams_stay_in_the_world(fitted) -> None:
    model, latents, facts = fitted
    assert facts["z_mse"] < 0.9 * facts["copy_mse"]
    found = open_loop_error(model, latents, horizons=(1, 15), num_starts=64)
    assert found["error_1"] < found["copy_1"] and found["error_15"] < 2 * found["spread"]


def test_the_memory_forgets_where_it_started() -> None:
    recurrent, inputs = res.echo_state(100, 5, 0.8, seed=0)
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(recurrent)).max(), 0.8, rtol=1e-5)
    assert 0.05 < (recurrent != 0).mean() < 0.2
    zeros = np.zeros((1, 1), np.float32)
    model = res.Reservoir(
        np.zeros((64, 64, 3), np.float32),
        np.zeros((res.NUM_PATCHES, 3), np.float32),
        *(zeros,) * 1,
        recurrent,
        inputs,
        np.float32(0.5),
        *(zeros,) * 5,
    )
    rng = np.random.default_rng(1)
    h = rng.uniform(-1, 1, size=(2, 100)).astype(np.float32)
    start = np.abs(h[0] - h[1]).max()
    for _ in range(150):
        z, action = rng.normal(size=(1, 3)).astype(np.float32).repeat(2, 0), np.full(2, rng.integers(2))
        h = model.step(z, action, h)
    assert np.abs(h[0] - h[1]).max() < 1e-3 * start
    other = model.step(z, 1 - action, h)
    assert np.abs(other - h).max() > 0.01  # and yet it hears what is said


def test_the_protocol(fitted) -> None:
    model, _, _ = fitted
    rng = np.random.default_rng(0)
    z, h, action = rng.normal(size=(5, 12)).astype(np.float32), model.initial_state(5), np.arange(5) % 3
    assert h.shape == (5, model.state_dim) and not h.any()
    after = model.step(z, action, h)
    features = model.features(z, after)
    assert features.shape == (5, model.feature_dim) and np.array_equal(features[:, :12], z)
    for temperature in (0.0, 1.0):
        next_z, reward, terminated, next_h = model.imagine(z, action, after, temperature, np.random.default_rng(1))
        assert (next_z.shape, reward.shape, terminated.shape) == ((5, 12), (5,), (5,))
        assert (next_z.dtype, reward.dtype, terminated.dtype) == (np.float32, np.float32, bool)
        assert np.array_equal(next_h, model.step(z, action, after))
    assert model.imagine(z, action, h, 1.0, rng, done_threshold=1.0)[2].sum() == 0


def test_at_temperature_0_a_dream_is_the_prediction_and_above_it_as_unsure_as_the_data_say(fitted) -> None:
    model, latents, _ = fitted
    z, action = latents["mu"][0, 40:41].repeat(4000, 0), np.full(4000, 2)
    h = model.step(z, np.zeros(4000, int), model.initial_state(4000))
    x = np.concatenate([[1], z[0], [0, 0, 1], model.step(z, action, h)[0]])
    said = x @ model.heads
    rng = np.random.default_rng(0)
    calm, reward, terminated, _ = model.imagine(z, action, h, 0.0, rng)
    np.testing.assert_allclose(calm, z + said[:12], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(reward, said[12], rtol=1e-3, atol=1e-5)
    # Not row against row: some processors sum the last rows of a block otherwise. Other luck must change no bit.
    assert (calm == model.imagine(z, action, h, 0.0, np.random.default_rng(1))[0]).all()
    assert (terminated == (said[13] > 0.5)).all()
    bold = model.imagine(z, action, h, 0.25, rng)[0]
    free = ((bold > model.low) & (bold < model.high)).all(0)
    assert free.any()
    np.testing.assert_allclose(bold.std(0)[free], 0.5 * model.noise[free], rtol=0.1)
    assert (bold >= model.low).all() and (bold <= model.high).all()


def test_it_comes_back_from_disk_as_it_was_and_plays(data, fitted, tmp_path: Path) -> None:
    model = fitted[0]
    path = tmp_path / "reservoir.safetensors"
    model.save(path, {"task": "pong"})
    assert checkpoints.read_meta(path)["kind"] == "reservoir"
    again = res.Reservoir.load(path)
    params = np.random.default_rng(0).normal(size=num_params(model.feature_dim, 3))
    controller = Controller.linear(params, model.feature_dim, 3)
    frames, first = data.gather(np.arange(40)).reshape(10, 4, 64, 64, 3), np.ones(4, bool)
    ours, theirs = Agent(model, controller, 4), Agent(again, controller, 4)
    for obs in frames:
        assert np.array_equal(ours(obs, first), theirs(obs, first))
        first = np.zeros(4, bool)
    assert np.array_equal(ours.h, theirs.h)
    checkpoints.save(path, {"mean": model.mean}, {})
    with pytest.raises(StageError, match="is not a reservoir"):
        res.Reservoir.load(path)


def test_another_seed_is_another_reservoir_and_the_same_one_the_same(data, fitted) -> None:
    same, other = (res.fit_reservoir(data, CONFIG, num_actions=3, seed=seed)[0] for seed in (0, 1))
    assert np.array_equal(same.heads, fitted[0].heads) and np.array_equal(same.recurrent, fitted[0].recurrent)
    assert not np.array_equal(other.recurrent, same.recurrent)
