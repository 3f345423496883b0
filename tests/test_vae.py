"""V against closed forms, Monte Carlo, brute force, and frames whose contents are planted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wm_lib import checkpoints
from wm_lib.errors import StageError
from wm_lib.events import read_scalars
from wm_lib.models import training, vae
from wm_lib.models.foreground import (
    FOVEA,
    episode_scenery,
    foreground_weights,
    fovea_window,
    median_frame,
    moving_foreground,
)
from wm_lib.models.latents import encode_frames
from wm_lib.models.patches import from_patches, to_patches
from wm_lib.models.vae import (
    CONTRAST,
    VAE,
    active_units,
    kl_divergence,
    load_vae,
    save_vae,
    train_vae,
    vae_loss,
)
from wm_lib.rollouts import Rollouts
from wm_lib.settings import VAEConfig

COURT = (144, 72, 17)  # Pong's brown
BALL = 236


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def court() -> np.ndarray:
    """Walls above and below, nothing in between: uint8 (64, 64, 3)."""
    frame = np.full((64, 64, 3), COURT, np.uint8)
    frame[[0, 1, 62, 63]] = BALL
    return frame


def pong(rng: np.random.Generator, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A paddle four pixels high and a ball of one pixel, anywhere: frames, and the ball's (row, column)."""
    frames = np.repeat(court()[None], num_frames, axis=0)
    ball = np.stack([rng.integers(4, 60, num_frames), rng.permutation(52)[:num_frames] + 6], axis=1)
    for frame, (row, column), paddle in zip(frames, ball, rng.integers(4, 56, num_frames), strict=True):
        frame[paddle : paddle + 4, 60] = (92, 186, 92)
        frame[row, column] = BALL
    return frames, ball


def write_rollouts(
    directory: Path, frames: np.ndarray, first: np.ndarray | None = None, num_shards: int = 2
) -> Rollouts:
    """Shards in the format of `collect`, from frames (sequences, time, 64, 64, 3)."""
    shape = frames.shape[:2]
    if first is None:
        first = np.zeros(shape, bool)
        first[:, 0] = True
    ends = np.zeros(shape, bool)
    ends[:, :-1] = first[:, 1:]
    arrays = {
        "frames": frames,
        "action": np.zeros(shape, np.uint8),
        "reward": np.zeros(shape, np.float32),
        "terminated": ends,
        "truncated": np.zeros(shape, bool),
        "lost": np.zeros(shape, bool),
        "first": first,
    }
    for k, rows in enumerate(np.split(np.arange(shape[0]), num_shards)):
        checkpoints.save(
            directory / f"shard-{k:04d}.safetensors", {name: array[rows] for name, array in arrays.items()}, {}
        )
    return Rollouts(directory)


def planted_frames() -> np.ndarray:
    """A square whose colour changes from frame to frame, uint8 (10, 12, 64, 64, 3)."""
    frames = np.repeat(court()[None], 120, axis=0)
    colours = np.random.default_rng(5).integers(256, size=(120, 1, 1, 3), dtype=np.uint8)
    frames[:, 20:36, 8:24] = colours
    return frames.reshape(10, 12, 64, 64, 3)


def tiny(**changes: float) -> VAEConfig:
    sizes = {"z_dim": 8, "learning_rate": 3e-3, "beta": 0.01, "batch_size": 16, "num_updates": 10}
    return VAEConfig(**(sizes | changes))


def same_weights(a: VAE, b: VAE) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def say(model: VAE, mu: list[float], sigma: list[float]) -> None:
    """Make the encoder answer every frame with the same posterior."""
    with torch.no_grad():
        model.encoder[-1].weight.zero_()
        model.encoder[-1].bias.copy_(torch.tensor([*mu, *(math.log(s) for s in sigma)]))


def draw_background(model: VAE) -> None:
    """Make the decoder draw no difference from the background."""
    nn.init.zeros_(model.decoder[-1].weight)
    nn.init.zeros_(model.decoder[-1].bias)


# The loss


@pytest.mark.parametrize("mu, sigma", [(0.0, 1.0), (1.5, 1.0), (0.0, 0.1), (-2.0, 0.5), (0.7, 3.0)])
def test_kl_is_the_mean_log_ratio_over_samples_of_the_posterior(mu: float, sigma: float) -> None:
    noise = np.random.default_rng(0).standard_normal(400_000)
    z = mu + sigma * noise
    log_q = -0.5 * noise**2 - math.log(sigma)
    log_ratio = log_q + 0.5 * z**2
    standard_error = log_ratio.std() / math.sqrt(len(z))
    kl = kl_divergence(torch.tensor([mu]), torch.tensor([math.log(sigma)]))
    assert float(kl) == pytest.approx(log_ratio.mean(), abs=5 * standard_error + 1e-6)


def test_kl_special_cases() -> None:
    mu = torch.tensor([[0.0, 3.0, 0.0, 0.0]])
    log_sigma = torch.tensor([[0.0, 0.0, 1.0, -2.0]])
    expected = [0, 3**2 / 2, (math.e**2 - 1) / 2 - 1, (math.e**-4 - 1) / 2 + 2]
    np.testing.assert_allclose(kl_divergence(mu, log_sigma)[0], expected, rtol=1e-6)


def test_the_loss_by_hand() -> None:
    """A decoder that draws the background whatever z is, and an encoder that always says the same."""
    rng = np.random.default_rng(0)
    background = rng.random((64, 64, 3), np.float32)
    model = VAE(2, background)
    say(model, [0.5, -3.0], [1.0, 0.25])
    draw_background(model)
    frames = rng.integers(256, size=(3, 64, 64, 3), dtype=np.uint8)
    weights = rng.integers(1, 30, (3, 64, 64, 1)).astype(np.float32)
    loss, parts = vae_loss(model, frames, torch.from_numpy(weights), 0.1)

    error = 0.0
    for frame, weight in zip(frames / 255, weights, strict=True):
        for channel in range(3):
            error += (weight[:, :, 0] * (frame[:, :, channel] - background[:, :, channel]) ** 2).sum() / 3
    kl = 0.5**2 / 2 + (9 + 1 / 16 - 1) / 2 - math.log(1 / 4)
    assert float(parts["error"]) == pytest.approx(error, rel=1e-5)
    assert float(parts["kl"]) == pytest.approx(kl, rel=1e-5)
    assert loss.item() == pytest.approx(error + 0.1 * kl, rel=1e-5)
    assert not parts["error"].requires_grad and not parts["kl"].requires_grad
    plain, _ = vae_loss(model, frames, None, 0.0)
    assert plain.item() == pytest.approx(((frames / 255 - background) ** 2).sum() / 3, rel=1e-5)


def test_without_doubt_the_error_is_that_of_the_mean_and_doubt_adds_its_variance() -> None:
    """With a linear decoder E|A (mu + sigma eps)|^2 = |A mu|^2 + sum_i sigma_i^2 |A_i|^2."""
    torch.manual_seed(0)
    model, num_frames = VAE(2), 400
    matrix = torch.randn(2, 48 * 16 * 16)
    linear = nn.Linear(2, 48 * 16 * 16, bias=False)
    linear.weight.data = matrix.T.clone()
    model.decoder = nn.Sequential(linear, nn.Unflatten(1, (48, 16, 16)))
    black, mu = np.zeros((num_frames, 64, 64, 3), np.uint8), torch.tensor([1.0, -1.0])
    at_mean = float((mu @ matrix / vae.CONTRAST).square().sum())
    for sigma, tolerance in (([1e-3, 1e-3], 0.01), ([0.5, 2.0], 0.15)):  # over three standard errors of the mean
        say(model, mu.tolist(), sigma)
        with torch.inference_mode():
            _, parts = vae_loss(model, black, None, 0.0)
        added = sum(s**2 * float((row / vae.CONTRAST).square().sum()) for s, row in zip(sigma, matrix, strict=True))
        assert float(parts["error"]) == pytest.approx(at_mean + added, rel=tolerance)


def test_the_loss_teaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = VAE(4)
    loss, _ = vae_loss(model, np.random.default_rng(0).integers(256, size=(2, 64, 64, 3), dtype=np.uint8), None, 0.01)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


# What counts as foreground


def weights_of(changed: np.ndarray, weight: float = 30.0, contrast: int = 50) -> np.ndarray:
    """Weights (batch, 64, 64) of grey frames of which the pixels `changed` (batch, 64, 64) differ in green."""
    scenery = np.full((*changed.shape, 3), 128, np.uint8)
    frames = scenery.copy()
    frames[..., 1] += (contrast * changed).astype(np.int8).view(np.uint8)
    weights = foreground_weights(torch.from_numpy(frames), torch.from_numpy(scenery), weight)
    assert weights.shape == (*changed.shape, 1) and weights.dtype == torch.float32
    return weights[..., 0].numpy()


def around(changed: np.ndarray) -> np.ndarray:
    """The pixels `changed` (batch, 64, 64) and their neighbours up to three rows and columns away, one by one."""
    near = np.zeros_like(changed)
    for i, row, column in np.argwhere(changed):
        near[i, max(0, row - 3) : row + 4, max(0, column - 3) : column + 4] = True
    return near


@pytest.mark.parametrize("contrast", [26, -26, 120, -120])
def test_a_ball_of_one_pixel_and_what_is_around_it_have_the_foregrounds_weight_and_all_else_weighs_one(
    contrast: int,
) -> None:
    changed = np.zeros((2, 64, 64), bool)
    changed[0, 10, 20] = changed[0, 12, 25] = changed[1, 63, 0] = True
    near = around(changed)
    assert near[0].sum() == 49 + 49 - 2 * 5 and near[1].sum() == 16
    for weight in (30, 7.5, 1):
        expected = np.where(near, weight, 1) / np.where(near, weight, 1).mean((1, 2), keepdims=True)
        np.testing.assert_allclose(weights_of(changed, weight=weight, contrast=contrast), expected, rtol=1e-5)


@pytest.mark.parametrize("contrast", [25, -25])
def test_small_differences_are_not_foreground(contrast: int) -> None:
    np.testing.assert_array_equal(weights_of(np.ones((1, 64, 64), bool), contrast=contrast), 1)


@pytest.mark.parametrize("size", [0, 1, 20, 1000, 4096])
def test_a_frame_counts_the_same_however_large_its_foreground(size: int) -> None:
    changed = np.zeros((2, 64 * 64), bool)
    changed[0, np.random.default_rng(size).permutation(64 * 64)[:size]] = True
    changed[1, 7] = True
    weights = weights_of(changed.reshape(2, 64, 64))
    np.testing.assert_allclose(weights.mean((1, 2)), 1, rtol=1e-5)
    assert weights[1].max() == pytest.approx(30 * weights[1].min(), rel=1e-5)


def test_a_halo_costs_more_than_a_sharp_edge() -> None:
    """Why the margin: of two pictures of a ship of unknown tilt, the one that guesses a tilt right must win clearly."""
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    frame[0, 30:34, 30:38] = 200
    scenery = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    weights = foreground_weights(torch.from_numpy(frame), scenery, 30.0)[0, :, :, 0].numpy()
    halo = frame[0, :, :, 0] / 255
    halo[28:36, 30:38] = 200 / 255  # covers the ship lying and the ship standing
    error = (weights * np.square(halo - frame[0, :, :, 0] / 255)).sum()
    assert error > 0.9 * 30 * weights.min() * (4 * 8) * (200 / 255) ** 2


# The fovea


def test_the_fovea_is_centred_on_the_foreground_to_a_fraction_of_a_pixel() -> None:
    """On a plane whose colours are the columns and rows themselves, the window must read off its own place."""
    rows, columns = np.mgrid[:64, :64].astype(np.float32)
    plane = torch.from_numpy(np.stack([columns, rows, np.ones_like(rows)], 2)).expand(3, -1, -1, -1)
    changed = np.zeros((3, 64, 64), bool)
    changed[0, 20:25, 40:43] = True  # centre: row 22, column 41
    changed[1, 30:34, 20] = changed[1, 30:34, 25] = True  # two things: row 31.5, column 22.5
    window = fovea_window(plane, torch.from_numpy(weights_of(changed))[..., None]).numpy()
    assert window.shape == (3, 3, FOVEA, FOVEA)
    # The third frame has no foreground: the middle of the picture, between its pixels 31 and 32.
    for i, (row, column) in enumerate([(22, 41), (31.5, 22.5), (31.5, 31.5)]):
        offsets = np.arange(FOVEA) - (FOVEA - 1) / 2
        np.testing.assert_allclose(window[i, 0, 0], column + offsets, atol=1e-3)
        np.testing.assert_allclose(window[i, 1, :, 0], row + offsets, atol=1e-3)
        np.testing.assert_allclose(window[i, 2], 1, atol=1e-5)


def test_the_fovea_sees_nothing_outside_of_the_picture() -> None:
    changed = np.zeros((1, 64, 64), bool)
    changed[0, 0, 0] = True  # with its margin: rows and columns 0 to 3, the centre at 1.5
    window = fovea_window(torch.ones(1, 64, 64, 3), torch.from_numpy(weights_of(changed))[..., None]).numpy()[0, 0]
    outside = 6  # 1.5 - 7.5 = -6: six rows and columns above and left of the picture
    np.testing.assert_allclose(window[outside:, outside:], 1, atol=1e-3)
    assert np.abs(window[: outside - 1]).max() < 1e-3 and np.abs(window[:, : outside - 1]).max() < 1e-3


def test_the_fovea_counts_in_the_loss_as_the_squared_error_of_its_window() -> None:
    torch.manual_seed(0)
    model, rng = VAE(4, fovea=True), np.random.default_rng(0)
    frames = rng.integers(256, size=(6, 64, 64, 3), dtype=np.uint8)
    changed = np.zeros((6, 64, 64), bool)
    changed[:, 20:30, 24:36] = True
    weights = torch.from_numpy(weights_of(changed))[..., None]
    with torch.no_grad():
        torch.manual_seed(1)
        without, parts = vae_loss(model, frames, weights, 0.1)
        torch.manual_seed(1)
        mu, log_sigma = model.encode(frames)
        drawn = model.look(mu + log_sigma.exp() * torch.randn_like(mu)) / CONTRAST
        torch.manual_seed(1)
        loss, more = vae_loss(model, frames, weights, 0.1, 0.0, 3.0)
    # rows 17 to 32 and columns 22 to 37 exactly: the centre of mass is at 24.5, 29.5
    missed = (drawn.permute(0, 2, 3, 1) - torch.from_numpy(frames[:, 17:33, 22:38]) / 255).square().sum() / 6
    assert "fovea" not in parts and float(more["fovea"]) == pytest.approx(float(missed), rel=1e-4)
    assert float(loss) == pytest.approx(float(without) + 3 * float(missed), rel=1e-5)


def test_what_the_second_path_tells_does_not_depend_on_the_place() -> None:
    torch.manual_seed(0)
    model = VAE(4, fovea=True)
    here, there = torch.zeros(2, 1, 64, 64, 3, dtype=torch.uint8)
    ship = torch.from_numpy(np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8))
    here[0, 12:20, 12:20], there[0, 40:48, 32:40] = ship, ship
    with torch.no_grad():
        what = [model.what(model.encoder[:2](model.centre(frame))) for frame in (here, there)]
        where = [model.encoder(model.centre(frame)) for frame in (here, there)]
    torch.testing.assert_close(*what)
    assert (where[0] - where[1]).abs().max() > 1e-3


def test_a_vae_with_a_fovea_is_trained_resumed_and_saved_with_it(data: Rollouts, tmp_path: Path) -> None:
    model = train_vae(data, tiny(num_updates=30, fovea=10.0, learning_rate=3e-3), seed=0, directory=tmp_path)
    scalars = read_scalars(tmp_path)
    assert scalars["held_out_fovea"][1][-1] < scalars["fovea"][1][0]
    save_vae(tmp_path / "vae.safetensors", model, {})
    loaded = load_vae(tmp_path / "vae.safetensors")
    assert loaded.has_fovea and same_weights(load_vae(tmp_path / "vae.safetensors"), loaded)
    plain = train_vae(data, tiny(num_updates=1, fovea=10.0, centred=False), seed=0, directory=tmp_path / "plain")
    assert not plain.has_fovea


def test_median_frame() -> None:
    frames = np.zeros((5, 64, 64, 3), np.uint8)
    frames[:, 3, 4, 2] = [0, 255, 51, 255, 0]
    frames[0, 9, 9] = 255  # passes by once
    median = median_frame(frames)
    assert median.dtype == np.float32 and median[3, 4, 2] == pytest.approx(0.2)
    assert np.count_nonzero(median) == 1


@pytest.mark.parametrize("frames_per_episode", [5, 24])
def test_scenery_is_the_median_of_each_episode(frames_per_episode: int, tmp_path: Path) -> None:
    """Episodes of all lengths, each with scenery of its own through which one bright pixel moves."""
    rng = np.random.default_rng(1)
    frames = np.empty((4, 15, 64, 64, 3), np.uint8)
    first = rng.random((4, 15)) < 0.2
    first[:, 0] = True
    episodes: list[list[tuple[int, int]]] = []
    for s in range(4):
        for t in range(15):
            if first[s, t]:
                episodes.append([])
                scenery = rng.integers(0, 200, (64, 64, 3), dtype=np.uint8)
            frames[s, t] = scenery
            frames[s, t, t, s] = 255
            episodes[-1].append((s, t))
    rollouts = write_rollouts(tmp_path, frames, first)
    found = episode_scenery(rollouts, np.random.default_rng(0), frames_per_episode)
    assert found.dtype == np.uint8 and found.shape == (len(episodes), 64, 64, 3)
    assert {1, 2, 15} & {len(rows) for rows in episodes}  # very short ones are among them
    for number, rows in enumerate(episodes):
        assert all(rollouts.episode[s, t] == number for s, t in rows)
        if len(rows) <= frames_per_episode:  # then the median is over all frames
            brute = np.median(np.stack([frames[s, t] for s, t in rows]), axis=0)
            assert np.abs(brute - found[number]).max() <= 0.5  # rounded somehow
        elif len(rows) > 2:
            s, t = rows[0]
            still = frames[s, t].copy()
            other = frames[rows[1]]
            still[t, s] = other[t, s]  # where the pixel is not
            np.testing.assert_array_equal(found[number], still)


# The network


def test_patches_are_cut_and_put_together_like_a_mosaic() -> None:
    pictures = torch.from_numpy(np.random.default_rng(0).integers(256, size=(2, 64, 64, 3), dtype=np.uint8))
    patches = to_patches(pictures)
    assert patches.shape == (2, 48, 16, 16) and patches.is_contiguous(memory_format=torch.channels_last)
    for row, column in ((0, 0), (3, 11), (15, 2)):
        square = pictures[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert torch.equal(patches[:, :, row, column], square.reshape(2, 48))
    assert torch.equal(from_patches(patches), pictures)
    assert torch.equal(from_patches(to_patches(pictures[..., :1])), pictures[..., :1])
    small = to_patches(pictures, 2)
    assert torch.equal(small[0, :, 9, 4], pictures[0, 18:20, 8:10].flatten())
    assert torch.equal(from_patches(small, 2), pictures)


def test_frames_keep_their_orientation() -> None:
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    frame[0, 5, 40, 2] = 255
    model = VAE(4, frame[0] / np.float32(255))
    draw_background(model)
    pixels = model.decode(torch.randn(1, 4))
    assert pixels.shape == (1, 3, 64, 64) and pixels.dtype == torch.float32
    assert pixels[0, 2, 5, 40] == 1 and pixels.sum() == 1
    centred = VAE(4).centre(frame)
    assert centred[0, 3 * (4 * 1 + 0) + 2, 1, 10] == vae.CONTRAST and centred.sum() == vae.CONTRAST


def test_the_centred_encoder_sees_the_difference_from_the_background() -> None:
    torch.manual_seed(0)
    model, background = VAE(4), court() / np.float32(255)
    centred = VAE(4, background)
    centred.load_state_dict(model.state_dict() | {"background": centred.background})
    black = np.zeros((1, 64, 64, 3), np.uint8)
    with torch.inference_mode():
        for ours, theirs in zip(centred.encode(court()[None]), model.encode(black), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_decode_stays_within_brightness() -> None:
    model = VAE(4, np.full((64, 64, 3), 0.5, np.float32))
    draw_background(model)
    with torch.no_grad():
        model.decoder[-1].bias.copy_(vae.CONTRAST * torch.linspace(-2, 2, 48))
        decoded = model.decode(torch.randn(2, 4))
    assert decoded.shape == (2, 3, 64, 64) and decoded.min() == 0 and decoded.max() == 1
    expected = (0.5 + torch.linspace(-2, 2, 48)).clamp(0, 1)
    torch.testing.assert_close(to_patches(decoded.permute(0, 2, 3, 1)), expected[:, None, None].expand(2, 48, 16, 16))


def fit(model: VAE, frames: np.ndarray, weights: Tensor | None, num_updates: int, peak: float) -> np.ndarray:
    """Adam on one batch; returns the reconstructions of its means, float32 (batch, 64, 64, 3)."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for step in range(num_updates):
        optimizer.param_groups[0]["lr"] = training.one_cycle(step, num_updates, peak)
        with training.fast_autocast():
            loss, _ = vae_loss(model, frames, weights, 1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        return model.decode(model.encode(frames)[0]).permute(0, 2, 3, 1).numpy()


def test_the_centred_vae_overfits_eight_frames_and_draws_the_ball() -> None:
    torch.manual_seed(0)
    frames, ball = pong(np.random.default_rng(0), 8)
    model = VAE(8, court() / np.float32(255))
    scenery = np.repeat(court()[None], 8, axis=0)
    weights = foreground_weights(torch.from_numpy(frames), torch.from_numpy(scenery), 30.0)
    drawn = fit(model, frames, weights, 160, 3e-3)
    assert np.abs(drawn - frames / 255).mean() < 5e-3
    blue = drawn[:, :, :, 2] * 255  # the court has 17, the ball 236
    for i, (row, column) in enumerate(ball):
        assert blue[i, row, column] > 180  # here it is, and not where it is in another frame
        assert max(blue[i, r, c] for j, (r, c) in enumerate(ball) if j != i) < 125


def test_the_plain_vae_overfits_eight_frames_of_large_squares() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    frames = np.zeros((8, 64, 64, 3), np.uint8)
    for frame in frames:
        row, column = rng.integers(0, 44, 2)
        frame[row : row + 20, column : column + 20] = rng.integers(100, 256, 3)
    drawn = fit(VAE(8), frames, None, 120, 4e-3)
    assert np.square(drawn - frames / 255).mean() < 0.25 * (frames / 255).var(axis=0).mean()


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Rollouts:
    return write_rollouts(tmp_path_factory.mktemp("planted"), planted_frames())


@pytest.fixture(scope="module")
def trained(data: Rollouts, tmp_path_factory: pytest.TempPathFactory) -> tuple[VAE, Path]:
    directory = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "BLOCK", 20)
        # The colours jump from frame to frame: slowness would be wrong of this world.
        config = tiny(num_updates=60, beta=0.3, learning_rate=5e-3, slowness=0.0)
        return train_vae(data, config, seed=1, directory=directory), directory


def test_training_lowers_the_loss_on_frames_it_does_not_see(trained: tuple[VAE, Path]) -> None:
    model, directory = trained
    scalars = read_scalars(directory)
    for name in ("held_out_error", "held_out_kl"):
        steps, values = scalars[name]
        assert steps.tolist() == [20, 40, 60] and np.isfinite(values).all()
    assert scalars["held_out_error"][1][-1] < 0.75 * scalars["held_out_error"][1][0]
    squares = torch.from_numpy(planted_frames()[:, :, 20:36, 8:24].reshape(120, 16, 16, 3) / 255)
    with torch.no_grad():
        drawn = model.decode(model.encode(planted_frames().reshape(120, 64, 64, 3))[0]).permute(0, 2, 3, 1)
    background = model.background[20:36, 8:24]
    assert (drawn[:, 20:36, 8:24] - squares).square().mean() < 0.8 * (background - squares).square().mean()
    np.testing.assert_allclose(model.background, np.median(planted_frames(), axis=(0, 1)) / 255, rtol=1e-6)


def test_the_plain_vae_is_trained_without_background_and_weights(
    data: Rollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(
        model: VAE, frames: Tensor, weights: Tensor | None, beta: float, slowness: float, fovea: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append((weights, slowness, fovea))
        return vae_loss(model, frames, weights, beta, slowness, fovea)

    monkeypatch.setattr(vae, "vae_loss", spy)
    model = train_vae(data, tiny(num_updates=2, centred=False, fovea=1.0), seed=0, directory=tmp_path)
    assert seen == [(None, 0.0, 0.0)] * 3 and not model.background.any()


def test_the_second_half_of_a_batch_follows_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every frame wears its number; episodes of 5 frames cut the sequences of 12.
    frames = np.zeros((10, 12, 64, 64, 3), np.uint8)
    frames += np.arange(120, dtype=np.uint8).reshape(10, 12, 1, 1, 1)
    first = np.zeros((10, 12), bool)
    first[:, ::5] = True
    pairs = []

    def spy(model: VAE, frames: Tensor, *rest: object) -> tuple[Tensor, dict[str, Tensor]]:
        pairs.extend(zip(*frames[:, 0, 0, 0].reshape(2, -1).tolist(), strict=True))
        return vae_loss(model, frames, *rest)

    monkeypatch.setattr(vae, "vae_loss", spy)
    train_vae(write_rollouts(tmp_path / "data", frames, first), tiny(num_updates=9), seed=0, directory=tmp_path)
    expected = {(i, i + 1) for i in range(119) if (i + 1) % 12 and (i % 12 + 1) % 5}
    assert set(pairs) <= expected and len(set(pairs)) > 0.5 * len(expected)


def test_what_moves_is_told_by_a_frame_of_the_same_episode_up_to_ten_decisions_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.zeros((10, 24, 64, 64, 3), np.uint8)
    frames += np.arange(240, dtype=np.uint8).reshape(10, 24, 1, 1, 1)
    first = np.zeros((10, 24), bool)
    first[:, [0, 15]] = True
    seen = set()

    def spy(pictures: Tensor, scenery: Tensor, later: Tensor) -> Tensor:
        seen.update(zip(*(stack[:, 0, 0, 0].tolist() for stack in (pictures.chunk(2)[0], later)), strict=True))
        return moving_foreground(pictures, scenery, later)

    monkeypatch.setattr(vae, "moving_foreground", spy)
    data = write_rollouts(tmp_path / "data", frames, first)
    train_vae(data, tiny(num_updates=30, num_places=1, batch_size=32), seed=0, directory=tmp_path)
    ends = [24 * sequence + end for sequence in range(10) for end in (14, 23)]
    expected = {(i, min(i + 10, min(end for end in ends if end >= i))) for i in range(240) if i not in ends}
    assert seen <= expected and len(seen) > 0.7 * len(expected)


def test_slowness_is_the_distance_between_the_halves_of_the_batch() -> None:
    torch.manual_seed(0)
    model = VAE(4)
    frames = np.random.default_rng(0).integers(256, size=(6, 64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        mu = model.encode(frames)[0]
        torch.manual_seed(1)
        without, parts = vae_loss(model, frames, None, 0.1)
        torch.manual_seed(1)
        slow, more = vae_loss(model, frames, None, 0.1, 0.5)
    change = sum(float(((mu[i + 3] - mu[i]) ** 2).sum()) for i in range(3)) / 3
    assert "change" not in parts and float(more["change"]) == pytest.approx(change, rel=1e-4)
    assert float(slow) == pytest.approx(float(without) + 0.5 * change, rel=1e-5)


def test_beta_warms_up_and_stays(data: Rollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(
        model: VAE, frames: Tensor, weights: Tensor | None, beta: float, *rest: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(beta)
        return vae_loss(model, frames, weights, beta, *rest)

    monkeypatch.setattr(vae, "vae_loss", spy)
    train_vae(data, tiny(num_updates=20, beta=2.0, batch_size=1), seed=0, directory=tmp_path)
    assert seen == pytest.approx([0, 0.5, 1, 1.5] + [2] * 17)  # a fifth of the updates; the last is held out


def test_frames_held_out_are_not_trained_on(data: Rollouts, tmp_path: Path) -> None:
    """Noise in their place changes what is measured and nothing else; in the place of others it does."""
    _, test = data.split()
    held_out_error = {}
    models = {}
    for name, sequence in (("none", None), ("test", test[0]), ("train", (test[0] + 1) % 10)):
        # One background for all of them, which noise in a tenth of the frames does not move.
        frames = pong(np.random.default_rng(5), 48)[0][np.arange(120) % 48].reshape(10, 12, 64, 64, 3)
        if sequence is not None:
            frames[sequence] = np.random.default_rng(0).integers(256, size=frames[sequence].shape)
        rollouts = write_rollouts(tmp_path / name, frames)
        models[name] = train_vae(rollouts, tiny(num_updates=4), seed=1, directory=tmp_path / name / "vae")
        held_out_error[name] = read_scalars(tmp_path / name / "vae")["held_out_error"][1][-1]
    assert same_weights(models["none"], models["test"])
    assert not same_weights(models["none"], models["train"])
    assert held_out_error["test"] > 2 * held_out_error["none"]


@pytest.mark.parametrize("killed_at", [1, 4, 6])
def test_killed_and_resumed_training_is_bit_equal(
    killed_at: int, data: Rollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "BLOCK", 4)
    config = tiny(num_updates=7, batch_size=4)
    whole = train_vae(data, config, seed=7, directory=tmp_path / "whole")
    calls = 0

    def killed(*args: object) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        if calls == killed_at + 1 + (killed_at >= 4):  # the held-out measurement calls it too
            raise KeyboardInterrupt
        return vae_loss(*args)

    with monkeypatch.context() as patch:
        patch.setattr(vae, "vae_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            train_vae(data, config, seed=7, directory=tmp_path / "killed")
    resumed = train_vae(data, config, seed=7, directory=tmp_path / "killed")
    assert same_weights(whole, resumed)
    digests = [save_vae(tmp_path / f"{name}.safetensors", model, {}) for name, model in (("a", whole), ("b", resumed))]
    assert digests[0] == digests[1]
    logs = [(tmp_path / name / "scalars.jsonl").read_text() for name in ("whole", "killed")]
    assert logs[0] == logs[1]


def test_another_seed_is_another_vae(data: Rollouts, tmp_path: Path) -> None:
    a, b = (train_vae(data, tiny(num_updates=1), seed=seed, directory=tmp_path / str(seed)) for seed in (1, 2))
    assert not same_weights(a, b)


# Latents


@torch.inference_mode()
def test_the_batch_does_not_change_a_frames_latent(trained: tuple[VAE, Path], data: Rollouts) -> None:
    model, _ = trained
    frames = data.gather(np.arange(13))
    mu, log_sigma = model.encode(frames)
    for size in (1, 5):
        parts = [model.encode(frames[start : start + size]) for start in range(0, 13, size)]
        torch.testing.assert_close(torch.cat([part[0] for part in parts]), mu, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]), log_sigma, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_bfloat16_moves_the_mean_by_little_of_the_posteriors_width(trained: tuple[VAE, Path], data: Rollouts) -> None:
    """The tolerance of the fast path: a tenth of the posterior's standard deviation and a hundredth of the data's.

    It is a matter of V too: bfloat16 resolves 1/256 of what it stores, a tiny beta makes posteriors narrower yet.
    """
    model, _ = trained
    frames = data.gather(np.arange(data.num_frames))
    mu, log_sigma = model.encode(frames)
    with torch.autocast("cpu", torch.bfloat16):
        fast_mu, fast_log_sigma = model.encode(frames)
    assert fast_mu.dtype == fast_log_sigma.dtype == torch.float32
    difference = float(((fast_mu - mu).abs() / log_sigma.exp()).mean())
    assert 0 < difference < 0.1
    assert float((fast_log_sigma - log_sigma).abs().mean()) < 0.02
    assert float((fast_mu - mu).abs().mean()) < 0.01 * float(mu.std(0).mean())


def test_latents_stand_where_their_frames_do(trained: tuple[VAE, Path], data: Rollouts) -> None:
    model, _ = trained
    mu, log_sigma = encode_frames(model, data, batch_size=7)  # 120 frames: the last batch is a rest
    assert mu.shape == log_sigma.shape == (10, 12, 8) and mu.dtype == log_sigma.dtype == np.float32
    spread = mu.std(axis=(0, 1))
    for s, t in ((0, 0), (0, 11), (4, 11), (5, 0), (9, 11)):
        with torch.inference_mode():
            alone = [x[0].numpy() for x in model.encode(planted_frames()[s, t][None])]
        np.testing.assert_allclose((mu[s, t] - alone[0]) / spread, 0, atol=0.05)
        np.testing.assert_allclose(log_sigma[s, t], alone[1], atol=0.05)
        distance = np.abs((mu - alone[0]) / spread).sum(axis=-1)
        assert np.unravel_index(distance.argmin(), distance.shape) == (s, t)


def test_active_units_vary_over_the_data() -> None:
    rng = np.random.default_rng(0)
    deviation = np.sqrt([1.0, 0.02, 0.005, 0.0])
    offset = np.array([0.0, 0.0, 3.0, 5.0])  # a mean that never changes tells nothing, however large
    mu = (offset + deviation * rng.standard_normal((20, 50, 4))).astype(np.float32)
    assert active_units(mu) == 2
    assert active_units(mu.reshape(-1, 4), threshold=0.001) == 3
    assert active_units(np.zeros((5, 5, 3))) == 0


# Storage


def test_a_saved_vae_is_the_same_to_the_last_bit(trained: tuple[VAE, Path], data: Rollouts, tmp_path: Path) -> None:
    model = VAE(8)  # as it is loaded: every weight is a half
    model.load_state_dict({name: value.half() for name, value in trained[0].state_dict().items()})
    path = tmp_path / "vae.safetensors"
    digest = save_vae(path, model, {"task": "pong"})
    assert digest == checkpoints.sha256_file(path)
    assert checkpoints.read_meta(path)["task"] == "pong"
    loaded = load_vae(path)
    assert loaded.z_dim == 8 and not loaded.training and same_weights(loaded, model)
    frames = data.gather(np.arange(4))
    with torch.inference_mode():
        for ours, theirs in zip(loaded.encode(frames), model.encode(frames), strict=True):
            assert torch.equal(ours, theirs)
    assert save_vae(tmp_path / "again.safetensors", loaded, {}) == digest
    # Trained weights are saved as that, and so is a file in single precision read.
    assert save_vae(tmp_path / "single.safetensors", trained[0], {}) == digest
    tensors = {name: value.numpy() for name, value in trained[0].state_dict().items()}
    assert checkpoints.save(tmp_path / "single.safetensors", tensors, {"kind": "vae", "z_dim": 8}) != digest
    assert same_weights(load_vae(tmp_path / "single.safetensors"), loaded)


@torch.inference_mode()
def test_half_precision_costs_v_nothing(trained: tuple[VAE, Path], data: Rollouts, tmp_path: Path) -> None:
    save_vae(tmp_path / "vae.safetensors", trained[0], {})
    frames = data.gather(np.arange(64))
    target = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    models = trained[0], load_vae(tmp_path / "vae.safetensors")
    before, after = ((model.decode(model.encode(frames)[0]) - target).square().mean().item() for model in models)
    assert after == pytest.approx(before, rel=0.01)


def test_other_files_are_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "m.safetensors", {"x": np.zeros(1)}, {"kind": "mdn_rnn"})
    with pytest.raises(StageError, match="m.safetensors holds mdn_rnn, not a VAE"):
        load_vae(tmp_path / "m.safetensors")
    checkpoints.save(tmp_path / "c.safetensors", {"x": np.zeros(1)}, {})
    with pytest.raises(StageError, match="c.safetensors holds something else"):
        load_vae(tmp_path / "c.safetensors")
    with pytest.raises(StageError, match="none.safetensors is missing"):
        load_vae(tmp_path / "none.safetensors")
    for meta in ({}, {"z_dim": "32"}, {"z_dim": 0}):
        checkpoints.save(tmp_path / "v.safetensors", {"x": np.zeros(1)}, {"kind": "vae"} | meta)
        with pytest.raises(StageError, match="v.safetensors does not say the size of its z"):
            load_vae(tmp_path / "v.safetensors")


@pytest.mark.parametrize("how", ["flipped", "cut off"])
def test_a_damaged_file_is_refused_by_name(how: str, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    save_vae(path, VAE(2), {})
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data if how == "flipped" else data[:-1000])
    with pytest.raises(StageError, match="vae.safetensors is damaged"):
        load_vae(path)


def test_a_training_that_diverges_is_stopped_by_name(
    data: Rollouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(*_: object) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.tensor(float("nan"), requires_grad=True), {}

    monkeypatch.setattr(vae, "vae_loss", diverged)
    with pytest.raises(StageError, match=r"V's loss became nan at update 0; lower vae.learning_rate"):
        train_vae(data, tiny(num_updates=2), seed=0, directory=tmp_path)
