"""Pictures as patches, 4 x 4: 48 channels of 16 x 16, on which a processor multiplies matrices at full speed."""

from __future__ import annotations

from torch import Tensor


def to_patches(pictures: Tensor, side: int = 4) -> Tensor:
    """Cut pictures (batch, 64, 64, channels) into patches: (batch, side^2 * channels, 64 / side, 64 / side), channels
    last."""
    batch, channels, num = pictures.shape[0], pictures.shape[3], 64 // side
    grid = pictures.reshape(batch, num, side, num, side, channels).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, num, num, side**2 * channels).permute(0, 3, 1, 2)


def from_patches(patches: Tensor, side: int = 4) -> Tensor:
    """Put pictures together again, the inverse of `to_patches`."""
    batch, channels, num = patches.shape[0], patches.shape[1] // side**2, 64 // side
    grid = patches.permute(0, 2, 3, 1).reshape(batch, num, num, side, side, channels).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, 64, 64, channels)
