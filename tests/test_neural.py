"""The two networks as one world model: layout, alignment, imagination, files."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wm_lib.errors import StageError, UsageError
from wm_lib.models.mdn_rnn import MDNRNN, save_mdn_rnn, train_mdn_rnn
from wm_lib.models.neural import NeuralWorldModel
from wm_lib.models.vae import VAE, save_vae
from wm_lib.settings import MDNRNNConfig

Z, A, H = 4, 3, 16


@pytest.fixture(scope="module")
def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(Z, np.full((64, 64, 3), 0.5, np.float32)).eval()


@pytest.fixture(scope="module")
def mdn_rnn() -> MDNRNN:
    torch.manual_seed(1)
    model = MDNRNN(Z, A, rnn_size=H).eval()
    model.reward_scale.fill_(3.0)
    model.steady[::2] = 1.0
    return model


def some_rows(world_model: NeuralWorldModel, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(batch, world_model.state_dim)).astype(np.float32)
    return rng.normal(size=(batch, Z)).astype(np.float32), rng.integers(A, size=batch), h


# Memory and features


@pytest.mark.parametrize("recent_z", [1, 3])
def test_steps_equal_the_whole_sequence_and_keep_the_latest_z(recent_z: int, vae: VAE, mdn_rnn: MDNRNN) -> None:
    world_model = NeuralWorldModel(vae, mdn_rnn, recent_z)
    assert world_model.feature_dim == recent_z * Z + H
    rng = np.random.default_rng(0)
    z = rng.normal(size=(5, 8, Z)).astype(np.float32)
    action = rng.integers(A, size=(5, 8))
    with torch.inference_mode():
        lstm_h = mdn_rnn.remember(torch.from_numpy(z), torch.from_numpy(action))[0].numpy()
    h = world_model.initial_state(5)
    assert h.shape == (5, world_model.state_dim) and h.dtype == np.float32 and not h.any()
    for t in range(8):
        x = world_model.features(z[:, t], h)
        assert x.shape == (5, world_model.feature_dim) and x.dtype == np.float32
        for age in range(recent_z):  # z_t, z_{t-1}, ...; zeros before the episode began
            expected = z[:, t - age] if age <= t else np.zeros((5, Z))
            np.testing.assert_array_equal(x[:, age * Z : (age + 1) * Z], expected)
        # At z_t the controller sees a memory of rows 0..t-1 only.
        expected = lstm_h[:, t - 1] if t else np.zeros((5, H))
        np.testing.assert_allclose(x[:, -H:], expected, atol=1e-6)
        h = world_model.step(z[:, t], action[:, t], h)
        assert h.dtype == np.float32


def test_where_v_says_places_c_sees_how_they_moved_and_what_is_between_them(mdn_rnn: MDNRNN) -> None:
    world_model = NeuralWorldModel(VAE(Z, num_places=2), mdn_rnn, recent_z=3)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(5, 6, Z)).astype(np.float32)
    h = world_model.initial_state(5)
    for t in range(6):
        x = world_model.features(z[:, t], h)
        assert x.shape == (5, world_model.feature_dim)
        then = [z[:, t - age, :4] if age <= t else None for age in range(3)]
        expected = [z[:, t]]
        expected += [np.zeros((5, 4)) if there is None else there for there in then[1:]]
        for after, before in itertools.pairwise(then):
            expected.append(np.zeros((5, 4)) if before is None else after - before)
        expected.append(z[:, t, 2:4] - z[:, t, :2])
        np.testing.assert_allclose(x[:, :-H], np.concatenate(expected, axis=1), atol=1e-6)
        np.testing.assert_array_equal(x[:, -H:], h[:, :H])
        h = world_model.step(z[:, t], rng.integers(A, size=5), h)
    spread = rng.uniform(0.1, 3, world_model.feature_dim).astype(np.float32)
    units, place = world_model.units(spread), np.ones(len(spread), bool)
    place[4:Z] = place[-H:] = False
    np.testing.assert_array_equal(units[place], 0.375)  # four pixels, whatever is seen of them in the data
    np.testing.assert_array_equal(units[~place], 32 * spread[~place])


def test_without_places_every_feature_is_seen_in_its_own_spread(vae: VAE, mdn_rnn: MDNRNN) -> None:
    spread = np.linspace(0.1, 3, 3 * Z + H)
    np.testing.assert_array_equal(NeuralWorldModel(vae, mdn_rnn, recent_z=3).units(spread), spread)


def test_step_leaves_its_arguments_alone_and_rows_do_not_mix(vae: VAE, mdn_rnn: MDNRNN) -> None:
    world_model = NeuralWorldModel(vae, mdn_rnn, recent_z=2)
    z, action, h = some_rows(world_model, 6)
    before = z.copy(), action.copy(), h.copy()
    together = world_model.step(z, action, h)
    for old, new in zip(before, (z, action, h), strict=True):
        np.testing.assert_array_equal(old, new)
    alone = np.concatenate([world_model.step(z[i : i + 1], action[i : i + 1], h[i : i + 1]) for i in range(6)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_small_integer_actions_are_understood(vae: VAE, mdn_rnn: MDNRNN) -> None:
    world_model = NeuralWorldModel(vae, mdn_rnn)
    z, action, h = some_rows(world_model, 3)
    np.testing.assert_array_equal(world_model.step(z, action.astype(np.uint8), h), world_model.step(z, action, h))


# Imagination


def test_imagination_remembers_what_a_real_step_does(vae: VAE, mdn_rnn: MDNRNN) -> None:
    world_model = NeuralWorldModel(vae, mdn_rnn, recent_z=3)
    z, action, h = some_rows(world_model, 7)
    next_z, reward, terminated, next_h = world_model.imagine(z, action, h, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(next_h, world_model.step(z, action, h))
    assert next_z.shape == (7, Z) and next_z.dtype == np.float32
    assert reward.shape == (7,) and reward.dtype == np.float32
    assert terminated.shape == (7,) and terminated.dtype == bool


def test_imagined_step_is_drawn_from_the_predicted_mixture(vae: VAE, mdn_rnn: MDNRNN) -> None:
    world_model = NeuralWorldModel(vae, mdn_rnn)
    one = some_rows(world_model, 1)
    z, action, h = (np.repeat(x, 40_000, axis=0) for x in one)
    with torch.inference_mode():
        state = tuple(torch.from_numpy(x) for x in (one[2][:, :H], one[2][:, H : 2 * H], one[2][:, 2 * H :]))
        output, reward, logit, _ = mdn_rnn(torch.from_numpy(one[0])[None], torch.from_numpy(one[1])[None], state)
    pi, mu, sigma = (x[0, 0].double().numpy() for x in (output.log_pi.exp(), output.mu, output.log_sigma.exp()))
    mean = (pi * mu).sum(-1)
    variance = (pi * (sigma**2 + mu**2)).sum(-1) - mean**2
    dreamt_z, dreamt_reward, terminated, _ = world_model.imagine(z, action, h, 1.0, np.random.default_rng(3))
    # 40,000 draws: deviations of about sigma / 200, 0.7 % of a variance and 0.0025 of a frequency.
    np.testing.assert_allclose(dreamt_z.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(dreamt_z.var(0), variance, rtol=0.05)
    np.testing.assert_allclose(dreamt_reward, float(reward), rtol=1e-4)
    assert terminated.mean() == pytest.approx(float(torch.sigmoid(logit)), abs=0.01)


def test_imagination_repeats_itself_for_a_seed_and_at_temperature_zero(vae: VAE, mdn_rnn: MDNRNN) -> None:
    world_model = NeuralWorldModel(vae, mdn_rnn)
    rows = some_rows(world_model, 50)

    def dream(temperature: float, seed: int) -> np.ndarray:
        return world_model.imagine(*rows, temperature, np.random.default_rng(seed))[0]

    np.testing.assert_array_equal(dream(1.0, 0), dream(1.0, 0))
    assert (dream(1.0, 0) != dream(1.0, 1)).all()
    np.testing.assert_array_equal(dream(0.0, 0), dream(0.0, 1))
    rng = np.random.default_rng(0)
    first, second = (world_model.imagine(*rows, 1.0, rng)[0] for _ in range(2))
    assert (first != second).all()  # the generator moves on
    with pytest.raises(UsageError, match="temperature"):
        dream(-1.0, 0)


def test_at_temperature_zero_a_dream_ends_when_that_is_likelier(vae: VAE, mdn_rnn: MDNRNN) -> None:
    world_model = NeuralWorldModel(vae, mdn_rnn)
    rows = some_rows(world_model, 200)
    logit = np.asarray(nn.functional.linear(
        torch.from_numpy(world_model.step(*rows)[:, :H]), mdn_rnn.done.weight, mdn_rnn.done.bias
    ).detach())[:, 0]  # fmt: skip
    terminated = world_model.imagine(*rows, 0.0, np.random.default_rng(0))[2]
    np.testing.assert_array_equal(terminated, logit > 0)


def test_action_enters_at_the_z_where_it_was_chosen(tmp_path: Path) -> None:
    # z_{t+1} says a_t and nothing else does: the dreamt z must say the action given to that very call.
    says = np.array([-1.0, 0.0, 1.0])
    rng = np.random.default_rng(0)
    action = rng.integers(A, size=(10, 120))
    mu = np.zeros((10, 120, Z), np.float32)
    mu[:, 1:] = says[action[:, :-1], None]
    nothing = np.zeros((10, 120), bool)
    latents = {
        "mu": mu, "log_sigma": np.full_like(mu, -3), "action": action.astype(np.uint8),
        "reward": action.astype(np.float32), "terminated": nothing, "truncated": nothing, "first": nothing,
    }  # fmt: skip
    config = MDNRNNConfig(
        rnn_size=H, num_mixtures=2, sequence_length=16, batch_size=16, num_updates=150, learning_rate=0.03
    )
    model = train_mdn_rnn(latents, config, num_actions=A, seed=0, directory=tmp_path)
    world_model = NeuralWorldModel(VAE(Z), model, recent_z=2)
    z, h = mu[:, 0], world_model.initial_state(10)
    for t in range(10):
        if t < 5:  # in the world, then from the same memory in the dream
            h = world_model.step(mu[:, t], action[:, t], h)
            z = mu[:, t + 1]
            continue
        z, reward, terminated, h = world_model.imagine(z, action[:, t], h, 0.0, rng)
        np.testing.assert_allclose(z, np.repeat(says[action[:, t], None], Z, 1), atol=0.2)
        np.testing.assert_allclose(reward, action[:, t], atol=0.3)
        assert not terminated.any()


# V, files, refusals


def test_encode_is_the_posterior_mean_and_decode_a_picture(vae: VAE, mdn_rnn: MDNRNN) -> None:
    world_model = NeuralWorldModel(vae, mdn_rnn)
    frames = np.random.default_rng(0).integers(256, size=(3, 64, 64, 3), dtype=np.uint8)
    z = world_model.encode(frames)
    assert z.shape == (3, Z) and z.dtype == np.float32
    np.testing.assert_array_equal(z, vae.encode(frames)[0].detach())
    rough = NeuralWorldModel(vae, mdn_rnn, bf16=True).encode(frames)
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, z, atol=0.05 * np.abs(z).max())

    pictures = world_model.decode(z)
    assert pictures.shape == (3, 64, 64, 3) and pictures.dtype == np.uint8
    pixels = vae.decode(torch.from_numpy(z)).detach().numpy()
    np.testing.assert_allclose(pictures / 255, pixels.transpose(0, 2, 3, 1), atol=0.5 / 255 + 1e-6)


def test_files_make_the_same_world_model(vae: VAE, mdn_rnn: MDNRNN, tmp_path: Path) -> None:
    paths = tmp_path / "vae.safetensors", tmp_path / "mdn_rnn.safetensors"
    save_vae(paths[0], vae, {})
    save_mdn_rnn(paths[1], mdn_rnn, {})
    halves = VAE(Z), MDNRNN(Z, A, H, mdn_rnn.num_mixtures)
    for net, trained in zip(halves, (vae, mdn_rnn), strict=True):
        net.load_state_dict({name: value.half() for name, value in trained.state_dict().items()})
    loaded, original = NeuralWorldModel.load(*paths, recent_z=2), NeuralWorldModel(*halves, 2)
    rows = some_rows(original, 4)
    for a, b in zip(
        loaded.imagine(*rows, 1.0, np.random.default_rng(0)),
        original.imagine(*rows, 1.0, np.random.default_rng(0)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(loaded.decode(rows[0]), original.decode(rows[0]))
    with pytest.raises(StageError, match="none.safetensors"):
        NeuralWorldModel.load(paths[0], tmp_path / "none.safetensors", 1)


def test_parts_that_do_not_fit_are_refused(vae: VAE, mdn_rnn: MDNRNN) -> None:
    with pytest.raises(UsageError, match="z_dim 4, M has 5"):
        NeuralWorldModel(vae, MDNRNN(5, A, H))
    with pytest.raises(UsageError, match="recent_z"):
        NeuralWorldModel(vae, mdn_rnn, recent_z=0)
