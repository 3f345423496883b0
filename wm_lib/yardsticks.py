"""What `wm bench` measures V and M against: the paper's VAE and a mixture loss as one writes them first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn


def pictures(frames: np.ndarray) -> Tensor:
    """What the paper's VAE reads: float32 (batch, 3, 64, 64), channels first in memory too."""
    import torch

    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().float() / 255


def vae(z_dim: int = 32) -> nn.ModuleDict:
    """The paper's VAE (appendix A.1), pictures (batch, 3, 64, 64) in [0, 1]; `encoder` gives mu and log sigma."""
    from torch import nn

    encoder: list[nn.Module] = []
    for channels, wider in ((3, 32), (32, 64), (64, 128), (128, 256)):
        encoder += [nn.Conv2d(channels, wider, 4, stride=2), nn.ReLU()]
    encoder += [nn.Flatten(), nn.Linear(1024, 2 * z_dim)]
    decoder: list[nn.Module] = [nn.Linear(z_dim, 1024), nn.Unflatten(1, (1024, 1, 1))]
    for channels, narrower, size in ((1024, 128, 5), (128, 64, 5), (64, 32, 6), (32, 3, 6)):
        decoder += [nn.ConvTranspose2d(channels, narrower, size, stride=2), nn.ReLU()]
    decoder[-1] = nn.Sigmoid()
    return nn.ModuleDict({"encoder": nn.Sequential(*encoder), "decoder": nn.Sequential(*decoder)})


def vae_loss(net: nn.ModuleDict, pictures: Tensor, beta: float) -> Tensor:
    """Squared error + beta * KL for each of the pictures (batch, 3, 64, 64), averaged."""
    import torch

    mu, log_sigma = net["encoder"](pictures).chunk(2, dim=1)
    z = mu + log_sigma.exp() * torch.randn_like(mu)
    kl = 0.5 * (mu**2 + (2 * log_sigma).exp() - 1) - log_sigma
    return (((net["decoder"](z) - pictures) ** 2).sum() + beta * kl.sum()) / len(pictures)


def mdn_nll(raw: Tensor, z_next: Tensor) -> Tensor:
    """Nats per step (batch, time); the last axis of raw (batch, time, z_dim, 3K) is logits, means, log sigmas."""
    logits, mu, log_sigma = raw.chunk(3, dim=-1)
    log_density = -0.5 * ((z_next[..., None] - mu) / log_sigma.exp()) ** 2 - log_sigma - 0.5 * np.log(2 * np.pi)
    return -(logits.log_softmax(-1) + log_density).logsumexp(-1).sum(-1)
