"""Pictures as 4 x 4 patches: 48 channels of 16 x 16, on which a processor multiplies matrices at full speed."""

from __future__ import annotations

from torch import Tensor


def to_patches(pictures: Tensor) -> Tensor:
    """Cut pictures (batch, 64, 64, channels) into 4 x 4 patches: (batch, 16 * channels, 16, 16), channels last."""
    batch, channels = pictures.shape[0], pictures.shape[3]
    grid = pictures.reshape(batch, 16, 4, 16, 4, channels).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, 16, 16, 16 * channels).permute(0, 3, 1, 2)


def from_patches(patches: Tensor) -> Tensor:
    """Put pictures together again, the inverse of `to_patches`."""
    batch, channels = patches.shape[0], patches.shape[1] // 16
    grid = patches.permute(0, 2, 3, 1).reshape(batch, 16, 16, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, 64, 64, channels)
