"""Places against brute force, closed forms, and balls whose places are planted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from wm_lib import checkpoints
from wm_lib.errors import StageError
from wm_lib.models.foreground import moving_foreground, things
from wm_lib.models.mdn_rnn import MDNRNN
from wm_lib.models.neural import NeuralWorldModel
from wm_lib.models.patches import from_patches
from wm_lib.models.places import (
    CLOSER,
    NEAR,
    PATIENCE,
    SPREAD,
    Places,
    astray,
    centre_of_mass,
    measure,
    soft_argmax,
    spots,
)
from wm_lib.models.vae import ASTRAY, VAE, load_vae, make_vae, save_vae, vae_loss
from wm_lib.settings import VAEConfig


def pixel(column: float, row: float) -> tuple[float, float]:
    """The place, from -1 to 1, of the middle of a pixel."""
    return (column + 0.5) / 32 - 1, (row + 0.5) / 32 - 1


def test_a_spot_is_a_gaussian_around_its_place() -> None:
    places = torch.tensor([[pixel(10, 20), pixel(40.5, 3)], [pixel(63, 63), pixel(-9, 30)]])
    lights = spots(places, 3.0)
    assert lights.shape == (2, 64, 64, 2)
    rows, columns = np.mgrid[:64, :64]
    for batch, place, column, row in [(0, 0, 10, 20), (0, 1, 40.5, 3), (1, 0, 63, 63), (1, 1, -9, 30)]:
        expected = np.exp(-((columns - column) ** 2 + (rows - row) ** 2) / (2 * 3.0**2))
        np.testing.assert_allclose(lights[batch, :, :, place].numpy(), expected, atol=1e-5)


def test_astray_is_the_robust_log_likelihood_of_the_moving_pixels() -> None:
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 63, (2, 3, 2))
    places = torch.tensor([[pixel(*centre) for centre in frame] for frame in centres], dtype=torch.float32)
    moving = rng.random((2, 64, 64)) < 0.01

    def nats(frame: np.ndarray, column: int, row: int) -> float:
        gaussians = [math.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * SPREAD**2)) for x, y in frame]
        return -math.log(sum(gaussians) / len(frame) + 1e-300)

    expected = [
        sum(
            PATIENCE * math.sqrt(PATIENCE**2 + 2 * nats(frame, c, r)) - PATIENCE**2
            for r, c in zip(*np.nonzero(pixels), strict=True)
        )
        for frame, pixels in zip(centres, moving, strict=True)
    ]
    near = torch.from_numpy(moving)
    np.testing.assert_allclose(astray(places, near).numpy(), expected, rtol=2e-3)


def test_a_place_far_from_what_moves_is_pulled_there_as_a_near_one_is_not() -> None:
    """What drawing alone cannot do: the pull reaches everywhere. It grows with the distance, but no further than to
    PATIENCE / SPREAD a pixel, so that what no place is for does not pull harder than anything else."""
    moving = torch.zeros(1, 64, 64)
    moving[0, 50, 8] = 1
    pulls = []
    for column, row in [(8.5, 50), (20, 40), (60, 2)]:
        place = torch.tensor([[pixel(column, row)]], requires_grad=True)
        astray(place, moving).sum().backward()
        towards = torch.tensor(pixel(8, 50)) - place.detach()[0, 0]
        assert torch.dot(-place.grad[0, 0], towards) == pytest.approx(
            float(place.grad.norm() * towards.norm()), rel=1e-3
        )
        pulls.append(float(place.grad.norm()))
    assert pulls[0] < pulls[1] < pulls[2]
    limit = 32 * PATIENCE / SPREAD  # of a gradient by places from -1 to 1
    assert 0.95 * limit < pulls[1] and pulls[2] < limit


def test_nothing_that_moves_pulls_nothing() -> None:
    places = torch.zeros(2, 2, 2, requires_grad=True)
    astray(places, torch.zeros(2, 64, 64)).sum().backward()
    assert not places.grad.any()


def test_a_place_is_the_mean_of_the_pixels_looked_at() -> None:
    """Features that are bright at one patch; of its pixels each place is made to look at its own two."""
    finder = Places(1, 2)
    with torch.no_grad():
        finder.attend.weight.zero_()
        finder.attend.bias.zero_()
        for place, pixels in enumerate(
            [(0, 15), (3, 2)]
        ):  # of a patch's 16, row by row: opposite corners; a pair above
            for one in pixels:
                finder.attend.weight[2 * one + place, 0, 1, 1] = 100.0
    features = torch.zeros(3, 1, 16, 16)
    for batch, (row, column) in enumerate([(0, 0), (7, 3), (15, 15)]):
        features[batch, 0, row, column] = 1
        first, second = finder.find(features, torch.zeros(3, 64, 64, 3), torch.zeros(64, 64, 3))[batch].tolist()
        assert first == pytest.approx(pixel(4 * column + 1.5, 4 * row + 1.5), abs=1e-4)
        assert second == pytest.approx(pixel(4 * column + 2.5, 4 * row), abs=1e-4)


def picture(*things: tuple[float, float, float]) -> torch.Tensor:
    """Blocks of two by two pixels, each (column, row, brightness) of its upper left corner, drawn by area: (64, 64)."""
    found = np.zeros((64, 64))
    for column, row, brightness in things:
        overlap = [np.clip(np.minimum(at + 2, np.arange(64) + 1) - np.maximum(at, np.arange(64)), 0, 1)
                   for at in (row, column)]  # fmt: skip
        found += brightness * np.outer(*overlap)
    return torch.tensor(found, dtype=torch.float32)


@pytest.mark.parametrize("missed", [(0.0, 0.0), (0.6, -0.4), (-1.5, 1.5)])
def test_the_centre_of_mass_measures_to_a_fraction_of_a_pixel_what_was_pointed_at_roughly(
    missed: tuple[float, float],
) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(8, 50, (20, 2))
    matter = torch.stack([picture((x, y, 0.7), (3, 58, 1.0)) for x, y in corners])
    truth = torch.tensor(np.array([pixel(x + 0.5, y + 0.5) for x, y in corners]), dtype=torch.float32)[:, None]
    found = centre_of_mass(truth + torch.tensor(missed) / 32, matter)
    assert float((found - truth).abs().max() * 32) < 0.15


def test_where_there_is_no_mass_a_place_stays() -> None:
    places = torch.tensor([[pixel(20, 30), pixel(5.3, 44.8), pixel(0, 63)]])
    for matter in (torch.zeros(1, 64, 64), picture((50, 8, 1.0))[None]):
        torch.testing.assert_close(centre_of_mass(places, matter), places, atol=2e-3, rtol=0)


def test_an_even_flight_is_measured_as_even() -> None:
    """The pointer takes the brightest pixel, so it jumps; what is said of the place does not."""
    frames = torch.stack([picture((x, 33.0, 1.0)) for x in 20 + 0.4 * np.arange(30)])
    pointed = soft_argmax(60 * frames[..., None])
    steps = [np.diff(places[:, 0, 0].numpy() * 32) for places in (pointed, centre_of_mass(pointed, frames))]
    assert np.abs(steps[1] - 0.4).max() < 0.1 < 0.2 < np.abs(steps[0] - 0.4).max()


def test_a_place_beside_another_is_not_measured() -> None:
    ball, paddle = pixel(20, 54), pixel(22.5, 58.5)
    places = torch.tensor([[ball, paddle, pixel(20, 20)], [ball, pixel(20.5, 54 + NEAR + 0.1), pixel(50, 54)]])
    matter = torch.stack([picture((21.0, 54.5, 1.0), (23.0, 58.0, 1.0), (19.5, 20.2, 0.5))] * 2)
    found, all_measured = measure(places, matter), centre_of_mass(places, matter)
    assert torch.equal(found[0, :2], places[0, :2])
    assert torch.equal(found[0, 2], all_measured[0, 2]) and torch.equal(found[1], all_measured[1])
    assert not torch.allclose(all_measured[:, 0], places[:, 0], atol=0.01)


def test_encoding_measures_what_v_points_at_and_leaves_the_rest_of_z() -> None:
    torch.manual_seed(0)
    model, frames = VAE(12, np.full((64, 64, 3), 0.2), num_places=1), balls(5, np.random.default_rng(0))[0]
    with torch.no_grad():
        pointed, mu = model.posterior(model.centre(frames))[0], model.encode(frames)[0]
    matter = 4 * (frames.float() / 255 - 0.2).abs().sum(3)
    torch.testing.assert_close(model.places_in(mu), measure(model.places_in(pointed), matter))
    assert torch.equal(mu[:, 2:], pointed[:, 2:]) and not torch.allclose(mu[:, :2], pointed[:, :2], atol=0.01)


def test_moving_foreground_is_the_ball_here_and_neither_where_it_was_nor_a_gap_that_rests() -> None:
    scenery = np.full((4, 64, 64, 3), 90, np.uint8)
    frames, later = scenery.copy(), scenery[:2].copy()
    frames[:, 6, 40:44] = later[:, 6, 40:44] = 200  # a gap, then and later
    frames[0, 30, 20], frames[2, 33, 24], later[0, 60, 9] = 255, 255, 255  # a ball, before, after and later
    frames[1, 50, 50] = frames[3, 50, 50] = 255  # a ball that rests for a while
    frames[1, 20, 7] = frames[3, 20, 7] = later[1, 20, 7] = 255  # and one that stays
    expected = np.zeros((4, 64, 64), bool)
    expected[0, 30, 20] = expected[2, 33, 24] = expected[1, 50, 50] = expected[3, 50, 50] = True
    found = moving_foreground(*(torch.from_numpy(pictures) for pictures in (frames, scenery, later)))
    np.testing.assert_array_equal(found.numpy(), expected)


def test_a_small_thing_counts_about_as_much_as_a_large_one() -> None:
    pixels = torch.zeros(2, 64, 64, dtype=torch.bool)
    pixels[0, 10, 10] = pixels[0, 30, 20] = pixels[0, 31, 20] = True  # of one pixel, of two
    pixels[0, 58:60, 40:46] = True  # of twelve
    share = things(pixels)
    assert torch.equal(share > 0, pixels)
    assert float(share[0, 10, 10]) == 1 and float(share[0, 30:32, 20].sum()) == 1
    # Its four corners have four pixels around them, the others six.
    assert float(share[0, 58:60, 40:46].sum()) == pytest.approx(4 / 4 + 8 / 6, rel=1e-5)
    for row, column in zip(*np.nonzero(pixels[0].numpy()), strict=True):
        around = pixels[0, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].sum()
        assert float(share[0, row, column]) == pytest.approx(1 / float(around), rel=1e-5)


def test_a_ball_just_above_the_paddle_counts_as_far_from_it() -> None:
    pixels = torch.zeros(1, 64, 64, dtype=torch.bool)
    pixels[0, 56, 42] = pixels[0, 58:60, 40:46] = True
    assert float(things(pixels)[0, 56, 42]) == 1


def balls(num_pairs: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Pairs of frames of a ball of one pixel that flies and a wall at random; scenery; columns and rows of the ball."""
    wall = np.kron(rng.integers(0, 2, (num_pairs, 4, 16)), np.ones((2, 4)))[..., None].astype(np.uint8) * 120
    frames = np.zeros((2, num_pairs, 64, 64, 3), np.uint8)
    frames[:, :, 8:16] = wall
    place = rng.integers(2, 62, (num_pairs, 2))
    place[:, 1] = rng.integers(20, 60, num_pairs)
    both = np.stack([place, place + rng.choice([-2, 2], (num_pairs, 2))])
    for half in range(2):
        frames[half, np.arange(num_pairs), both[half, :, 1], both[half, :, 0]] = 255
    scenery = np.zeros_like(frames)
    scenery[:, :, 8:16] = wall
    flat = [torch.from_numpy(pictures.reshape(-1, 64, 64, 3)) for pictures in (frames, scenery)]
    return flat[0], flat[1], both.reshape(-1, 2)


def test_v_learns_in_seconds_to_name_the_place_of_a_single_pixel_before_walls_it_never_saw() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = VAE(8, num_places=1)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    for _ in range(250):
        frames, scenery, _ = balls(16, rng)
        moving = moving_foreground(frames, scenery, frames[:16].flip(0))
        loss, parts = vae_loss(model, frames, None, 0.0, moving=moving)
        adam.zero_grad()
        loss.backward()
        adam.step()
    frames, _, truth = balls(100, rng)
    with torch.no_grad():
        found = model.places_in(model.encode(frames)[0])[:, 0].numpy()
    missed = np.abs((found + 1) * 32 - 0.5 - truth)
    assert np.median(missed) < 0.7 and float(parts["astray"]) < 5


def test_what_z_says_of_a_place_is_drawn_there() -> None:
    """The decoder of the rest silenced: a spot moves over the picture as its two numbers do, and nothing else does."""
    model = VAE(6, num_places=1)
    with torch.no_grad():
        model.decoder[-1].weight.zero_()
        model.decoder[-1].bias.zero_()
        model.places.colour.weight.zero_()
        for at in range(16):
            model.places.colour.weight[3 * at : 3 * at + 3, 2 * at, 1, 1] = 1.0  # each pixel its own narrow light
        z = torch.randn(5, 6)
        z[:, :2] = torch.tensor([pixel(5, 60), pixel(5, 60), pixel(33, 2), pixel(40, 40), pixel(0, 0)]) * 3
        drawn = model.decode(z)
    brightest = drawn.sum(1).flatten(1).argmax(1).tolist()
    assert brightest == [60 * 64 + 5, 60 * 64 + 5, 2 * 64 + 33, 40 * 64 + 40, 0]
    assert torch.equal(drawn[0], drawn[1])


def test_a_place_is_vague_by_half_a_pixel_at_most_and_measured_by_an_eighth() -> None:
    model, frames = VAE(6, num_places=2), balls(3, np.random.default_rng(0))[0]
    with torch.no_grad():
        model.encoder[-1].weight.zero_()
        for bias, pointed, measured in [(-5.0, -5.0, -5.0), (1.0, math.log(0.5 * 3 / 32), math.log(0.125 * 3 / 32))]:
            model.encoder[-1].bias.fill_(bias)
            ways = {pointed: model.posterior(model.centre(frames)), measured: model.encode(frames)}
            for expected, (_, log_sigma) in ways.items():
                assert log_sigma[:, :4].unique().tolist() == pytest.approx([expected])
                assert log_sigma[:, 4:].unique().tolist() == pytest.approx([bias])


def test_places_count_in_the_loss_at_their_weight() -> None:
    torch.manual_seed(0)
    model, (frames, scenery, _) = VAE(6, num_places=2), balls(3, np.random.default_rng(0))
    moving = moving_foreground(frames, scenery, scenery[:3])
    torch.manual_seed(1)
    without, _ = vae_loss(model, frames, None, 0.5)
    torch.manual_seed(1)
    loss, parts = vae_loss(model, frames, None, 0.5, moving=moving)
    pointed = model.places_in(model.posterior(model.centre(frames))[0])
    away = astray(pointed, moving).mean().detach()
    assert float(parts["astray"]) == pytest.approx(float(away), rel=1e-5)
    assert float((loss - without).detach()) == pytest.approx(ASTRAY * float(away), rel=1e-3)


def test_saved_and_loaded_with_its_places(tmp_path: Path) -> None:
    model = make_vae(VAEConfig(z_dim=12, num_places=3))
    save_vae(tmp_path / "vae.safetensors", model, {})
    loaded = load_vae(tmp_path / "vae.safetensors")
    assert loaded.num_places == loaded.measured_places == 3
    frames = balls(2, np.random.default_rng(0))[0]
    torch.testing.assert_close(loaded.encode(frames)[0], model.encode(frames)[0], atol=0.02, rtol=0.02)
    assert make_vae(VAEConfig(z_dim=12, num_places=3, centred=False)).num_places == 0


def test_a_v_of_before_places_were_measured_only_points(tmp_path: Path) -> None:
    path, model = tmp_path / "vae.safetensors", VAE(12, num_places=3)
    save_vae(path, model, {})
    tensors, meta = checkpoints.load(path)
    checkpoints.save(path, tensors, {name: value for name, value in meta.items() if name != "measures"})
    old, frames = load_vae(path), balls(2, np.random.default_rng(0))[0]
    assert (old.num_places, old.measured_places) == (3, 0)
    with torch.no_grad():
        for found, expected in zip(old.encode(frames), old.posterior(old.centre(frames)), strict=True):
            assert torch.equal(found, expected)
    memory = MDNRNN(12, 3, rnn_size=4)
    assert NeuralWorldModel(old, memory, recent_z=4).feature_dim == 4 * 12 + 4
    assert NeuralWorldModel(model, memory, recent_z=4).feature_dim == 12 + 2 * 3 * 6 + 4 + 4


def test_a_v_of_before_it_looked_closely_points_as_it_did(tmp_path: Path) -> None:
    path, model = tmp_path / "vae.safetensors", VAE(12, num_places=2)
    torch.nn.init.normal_(model.places.score.weight)
    save_vae(path, model, {})
    tensors, meta = checkpoints.load(path)
    checkpoints.save(path, {name: value for name, value in tensors.items() if name not in CLOSER}, meta)
    old, frames = load_vae(path), balls(2, np.random.default_rng(0))[0]
    with torch.no_grad():
        centred = old.centre(frames)
        glance = soft_argmax(from_patches(old.places.attend(old.encoder[:2](centred))).float())
        torch.testing.assert_close(old.places_in(old.posterior(centred)[0]), glance)
        assert not torch.allclose(model.places_in(model.posterior(centred)[0]), glance, atol=0.01)


@pytest.mark.parametrize("number", [-1, 5, "two", None, 1.5])
def test_a_file_with_an_impossible_number_of_places_is_refused(number: object, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_vae(path, VAE(8), {})
    tensors, meta = checkpoints.load(path)
    checkpoints.save(path, tensors, meta | {"num_places": number})
    with pytest.raises(StageError, match="train V again"):
        load_vae(path)


def test_a_small_z_keeps_half_of_itself_for_what_is_no_place() -> None:
    made = {z_dim: make_vae(VAEConfig(z_dim=z_dim, num_places=3)).num_places for z_dim in (1, 3, 4, 8, 11, 12, 32)}
    assert made == {1: 0, 3: 0, 4: 1, 8: 2, 11: 2, 12: 3, 32: 3}
