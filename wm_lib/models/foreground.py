"""What V should look at: the scenery of a task and of an episode, and the weights of what stands out from them.

The loss that uses them is in `wm_lib.models.vae`, where it says why.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, max_pool2d

from wm_lib.models.places import PIXELS
from wm_lib.rollouts import Rollouts

FOREGROUND_THRESHOLD = 25  # of 255
FOREGROUND_MARGIN = 3  # pixels around what differs that count as foreground too
FOVEA = 16  # pixels, the side of its window
THING = 3  # pixels, the side of the square within which pixels count as of one thing: a ball may come near a paddle


def median_frame(frames: np.ndarray) -> np.ndarray:
    """Per-pixel median, float32 (64, 64, 3) in [0, 1], of frames uint8 (n, 64, 64, 3)."""
    return (np.median(frames, axis=0) / 255).astype(np.float32)


def episode_scenery(rollouts: Rollouts, rng: np.random.Generator, frames_per_episode: int = 24) -> np.ndarray:
    """Median frame of each episode, uint8 (num_episodes, 64, 64, 3): what does not move in an episode is scenery."""
    episode = rollouts.episode.ravel()
    order = np.argsort(episode, kind="stable")
    chosen = [
        np.sort(rng.choice(flat, min(len(flat), frames_per_episode), replace=False))
        for flat in np.split(order, np.searchsorted(episode[order], np.arange(1, episode.max() + 1)))
    ]
    return np.stack([np.median(rollouts.gather(index), axis=0).astype(np.uint8) for index in chosen])


def foreground_weights(frames: Tensor, scenery: Tensor, weight: float) -> Tensor:
    """Weight of every pixel in the loss: more in and around what differs from its episode's scenery.

    Around it too, since a picture pays for a halo only there: with the weight on the ship's own pixels alone, a round
    blob that covers every attitude of the ship costs next to nothing, and z need not know the angle. The weights of a
    frame average 1, so a large foreground does not drown a frame with a small one, and beta means the same for all.

    Args:
        frames: uint8 (batch, 64, 64, 3).
        scenery: The same shape: the median frame of each frame's own episode.
        weight: How many times a pixel of the foreground weighs as much as one of the scenery.

    Returns:
        float32 (batch, 64, 64, 1).
    """
    difference = torch.maximum(frames, scenery) - torch.minimum(frames, scenery)
    different = (difference.amax(3) > FOREGROUND_THRESHOLD).float()
    foreground = max_pool2d(different, 2 * FOREGROUND_MARGIN + 1, 1, FOREGROUND_MARGIN)[..., None]
    weights = 1 + foreground * (weight - 1)
    return weights / weights.mean((1, 2, 3), keepdim=True)


def differ(pictures: Tensor, others: Tensor) -> Tensor:
    """Where two stacks of uint8 pictures (batch, 64, 64, 3) differ: bool (batch, 64, 64)."""
    return (torch.maximum(pictures, others) - torch.minimum(pictures, others)).amax(3) > FOREGROUND_THRESHOLD


def moving_foreground(frames: Tensor, scenery: Tensor, later: Tensor) -> Tensor:
    """Pixels that differ from the episode's scenery and from a frame some decisions later: what moves, and is here.

    Args:
        frames: uint8 (batch, 64, 64, 3); the second half of the batch are those that come after the first half's.
        scenery: The same shape: the median frame of each frame's own episode.
        later: (batch / 2, 64, 64, 3), a later frame of each pair's episode.

    Returns:
        bool (batch, 64, 64).
    """
    return differ(frames, scenery) & differ(frames, later.repeat(2, 1, 1, 1))


def things(pixels: Tensor) -> Tensor:
    """Each pixel's share of its thing, so that a small thing weighs about as much as a large one: 1, or a few.

    By its pixels a ball is worth little beside a paddle, and where the two are close to each other V would rather point
    twice at the paddle.

    Args:
        pixels: bool (batch, 64, 64).

    Returns:
        float32 (batch, 64, 64): 1 over how many of the pixels are around it, itself included; 0 where none is.
    """
    here = pixels.float()
    return here / (avg_pool2d(here, THING, 1, THING // 2) * THING**2).clamp(min=1)


def fovea_window(pictures: Tensor, weights: Tensor) -> Tensor:
    """The window of `FOVEA` pixels around the foreground's centre of mass, to a fraction of a pixel.

    Args:
        pictures: float32 (batch, 64, 64, 3).
        weights: What `foreground_weights` made of the same frames, (batch, 64, 64, 1).

    Returns:
        float32 (batch, 3, FOVEA, FOVEA), 0 outside of the picture; around the middle where there is no foreground.
    """
    mass = weights[..., 0] - weights.amin((1, 2, 3))[:, None, None]
    mass = mass / mass.sum((1, 2), keepdim=True).clamp(min=1e-6)
    windows = torch.zeros(len(mass), 2, 3)
    windows[:, 0, 0] = windows[:, 1, 1] = FOVEA / 64
    windows[:, 0, 2] = (mass.sum(1) * PIXELS).sum(1)  # as `grid_sample` counts, too
    windows[:, 1, 2] = (mass.sum(2) * PIXELS).sum(1)
    grid = affine_grid(windows, [len(mass), 3, FOVEA, FOVEA], align_corners=False)
    return grid_sample(pictures.permute(0, 3, 1, 2), grid, align_corners=False)
