"""V, the eyes: a variational autoencoder from a 64 x 64 frame to 32 numbers and back.

Section 2.1 and appendix A.1 of Ha & Schmidhuber (2018), with layers that suit a CPU (see `VAE`) and two changes that
let it see small things. A plain VAE spends its 32 numbers on what fills the frame and drops the ball of Pong
altogether, since the ball is one pixel in two thousand. Here the network sees and draws only the difference from the
*background* (the per-pixel median of the data), and the reconstruction loss gives extra weight to the *foreground*:
pixels that differ from the median of their own episode, and those around them. A third change makes z easy to read:
frames that follow each other should have nearby z (*slowness*, after Wiskott & Sejnowski, 2002). Without it the ball
is in z, but folded up: a network reads its place, a line through z does not, and C learns far more slowly.
`centred=False` is the plain VAE, with none of the three, kept as the negative example of notebook 03.

Where one small thing and its attitude are all that matters, the ship of LunarLander, V also gets a *fovea*: it draws,
from the same z, the window around the foreground once more, always in the middle. A picture in which nothing shifts
is easy to draw, so what is learnt there is how the thing looks, and the attitude is in z long before the decoder of the
whole frame could have asked for it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wm_lib import checkpoints
from wm_lib.errors import StageError
from wm_lib.models import training
from wm_lib.models.foreground import (
    FOVEA,
    episode_scenery,
    foreground_weights,
    fovea_window,
    median_frame,
    moving_foreground,
    things,
)
from wm_lib.models.patches import from_patches, to_patches
from wm_lib.models.places import CLOSER, MEASURED, REACH, SIGMA, Places, astray, measure
from wm_lib.rollouts import Rollouts
from wm_lib.settings import VAEConfig

CONTRAST = 4.0  # differences from the background are small numbers; this brings them to the scale of 1
ASTRAY = 10.0  # weight of the nats by which places miss what moves; with little, drawing has its own way with them
LATER = 10  # decisions: what is elsewhere after them moves; after one, a paddle at rest would be nobody's place
WARM_UP = 0.2  # share of the updates over which beta grows from 0


class Bridge(nn.Module):
    """A linear map and a small network side by side, added: the map learns at once, the network what is not linear."""

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int = 768) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        self.network = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.network(x)


class VAE(nn.Module):
    """Encoder and decoder around a diagonal Gaussian over z.

    Both work on 4 x 4 patches: the same picture as 48 channels of 16 x 16, on which a processor multiplies
    matrices at full speed.

    Args:
        z_dim: Size of the latent vector.
        background: float32 (64, 64, 3) in [0, 1], what the frame is compared with; zeros if None.
        fovea: With a fovea: `look` draws what it shows, and the encoder has a second path, *what* beside where: its
            features' maxima over the frame, which tell how a thing looks wherever it is.
        num_places: How many things' places are z's first numbers, x and y of each; at most half of z.
        measures: Whether it measures its places when it encodes; a V of before only points, and its C is used to that.
    """

    def __init__(
        self,
        z_dim: int = 32,
        background: np.ndarray | None = None,
        fovea: bool = False,
        num_places: int = 0,
        measures: bool = True,
    ) -> None:
        super().__init__()
        self.z_dim, self.measures = z_dim, measures
        rest_dim = z_dim - 2 * num_places  # of z, what says no place
        self.encoder = nn.Sequential(
            nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 128, 2, stride=2), nn.ReLU(),
            nn.Conv2d(128, 256, 2, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(256 * 4 * 4, rest_dim + z_dim),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            Bridge(rest_dim, 256 * 4 * 4), nn.Unflatten(1, (256, 4, 4)), nn.ReLU(),
            nn.Conv2d(256, 64 * 4, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(),
            nn.Conv2d(64, 64 * 4, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(),
            nn.Conv2d(64, 48, 3, padding=1),
        )  # fmt: skip
        if fovea:
            self.what = nn.Sequential(
                nn.Conv2d(64, 64, 3, padding=1), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.ReLU(),
                nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, rest_dim + z_dim),
            )  # fmt: skip
            self.look = nn.Sequential(
                nn.Linear(z_dim, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3 * FOVEA * FOVEA),
                nn.Unflatten(1, (3, FOVEA, FOVEA)),
            )  # fmt: skip
        if num_places:
            self.places = Places(64, num_places)
        if background is None:
            background = np.zeros((64, 64, 3), np.float32)
        self.register_buffer("background", torch.tensor(background, dtype=torch.float32))
        self.to(memory_format=training.MEMORY_FORMAT)

    @property
    def has_fovea(self) -> bool:
        """Whether it was made with one."""
        return hasattr(self, "look")

    @property
    def num_places(self) -> int:
        """How many it was made with."""
        return self.places.num_places if hasattr(self, "places") else 0

    @property
    def measured_places(self) -> int:
        """How many of them it measures: all or none."""
        return self.num_places if self.measures else 0

    def centre(self, frames: Tensor | np.ndarray) -> Tensor:
        """Difference of frames uint8 (batch, 64, 64, 3) from the background, in patches (batch, 48, 16, 16)."""
        patches = to_patches(torch.as_tensor(frames)) - to_patches(self.background[None] * 255)
        return patches.mul_(CONTRAST / 255)

    def posterior(self, centred: Tensor) -> tuple[Tensor, Tensor]:
        """q(z | frame): `mu` and `log_sigma`, each (batch, z_dim), from what `centre` makes."""
        features = self.encoder[:2](centred)
        out = self.encoder[2:](features)
        if self.has_fovea:
            out = out + self.what(features)
        mu, log_sigma = out.float().split([self.z_dim - 2 * self.num_places, self.z_dim], dim=1)
        log_sigma = log_sigma.clamp(-7, 3)
        if self.num_places:
            places = self.places.find(features, from_patches(centred), CONTRAST * self.background)
            mu = torch.cat([REACH * places.flatten(1), mu], dim=1)
            vague, rest = log_sigma.tensor_split([2 * self.num_places], dim=1)
            log_sigma = torch.cat([vague.clamp(max=math.log(SIGMA)), rest], dim=1)
        return mu, log_sigma

    def encode(self, frames: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
        """`mu` and `log_sigma`, each float32 (batch, z_dim), of frames uint8 (batch, 64, 64, 3), places measured."""
        centred = self.centre(frames)
        mu, log_sigma = self.posterior(centred)
        if self.measured_places:
            vague, rest = log_sigma.tensor_split([2 * self.num_places], dim=1)
            log_sigma = torch.cat([vague.clamp(max=math.log(MEASURED)), rest], dim=1)
            matter = from_patches(centred).abs().sum(3)
            measured = REACH * measure(self.places_in(mu), matter).flatten(1)
            mu = torch.cat([measured, mu[:, 2 * self.num_places :]], dim=1)
        return mu, log_sigma

    def places_in(self, z: Tensor) -> Tensor:
        """The places that z (batch, z_dim) says: (batch, num_places, 2), x and y from -1 to 1."""
        return z[:, : 2 * self.num_places].unflatten(1, (-1, 2)) / REACH

    def draw(self, z: Tensor) -> Tensor:
        """What `centre` should have made of the frame, of z (batch, z_dim): patches (batch, 48, 16, 16)."""
        drawn = self.decoder(z[:, 2 * self.num_places :])
        return drawn + self.places.picture(self.places_in(z)) if self.num_places else drawn

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(frame | z), pixels (batch, 3, 64, 64) in [0, 1], of z (batch, z_dim)."""
        difference = from_patches(self.draw(z).float()) / CONTRAST
        return (self.background + difference).clamp(0, 1).permute(0, 3, 1, 2)


def kl_divergence(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) per latent dimension, in nats; shape of `mu`. Kingma & Welling (2014), eq. 10."""
    return 0.5 * (mu.square() + (2 * log_sigma).exp() - 1) - log_sigma


def vae_loss(
    vae: VAE,
    frames: Tensor | np.ndarray,
    weights: Tensor | None,
    beta: float,
    slowness: float = 0.0,
    fovea: float = 0.0,
    moving: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative evidence lower bound with weighted squared error: error + beta * KL, summed over pixels and latents.

    Args:
        frames: uint8 (batch, 64, 64, 3); their error is counted in units of full brightness.
        weights: (batch, 64, 64, 1), or None for 1 everywhere.
        beta: Weight of the KL term (Higgins et al., 2017).
        slowness: Weight of the squared distance between the `mu` of frames that follow each other; unless it is 0,
            the second half of the batch must be the frames that come after those of the first.
        fovea: Weight of the squared error in the fovea's window; unless it is 0, V must have a fovea.
        moving: (batch, 64, 64), how much moves there; V's places, if it has any, are to be near.

    Returns:
        The loss per frame, and its parts `error`, `kl` and, where they count, `change` (per pair), `fovea`, `astray`.
    """
    centred = vae.centre(frames)
    mu, log_sigma = vae.posterior(centred)
    z = mu + log_sigma.exp() * torch.randn_like(mu)
    error = (vae.draw(z).float() - centred).square()
    if weights is not None:
        error = error * to_patches(weights.expand(-1, -1, -1, 3))
    error = error.sum() / (CONTRAST**2 * len(centred))
    kl = kl_divergence(mu, log_sigma).sum(1).mean()
    loss, parts = error + beta * kl, {"error": error.detach(), "kl": kl.detach()}
    if slowness:
        now, after = mu.chunk(2)
        change = (after - now).square().sum(1).mean()
        loss, parts = loss + slowness * change, parts | {"change": change.detach()}
    if fovea:
        window = fovea_window(from_patches(centred), weights)
        missed = (vae.look(z).float() - window).square().sum() / (CONTRAST**2 * len(centred))
        loss, parts = loss + fovea * missed, parts | {"fovea": missed.detach()}
    if moving is not None and vae.num_places:
        away = astray(vae.places_in(mu), moving).mean()
        loss, parts = loss + ASTRAY * away, parts | {"astray": away.detach()}
    return loss, parts


def configured_loss(
    vae: VAE, frames: Tensor, scenery: Tensor, later: Tensor | None, config: VAEConfig, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """`vae_loss` with the weights of the settings, none where V is the plain one.

    Frames, scenery and `later` are as for `moving_foreground`; a V without places needs nothing of later.
    """
    with training.fast_autocast():
        if not config.centred:
            return vae_loss(vae, frames, None, beta, slowness=0.0, fovea=0.0)
        weights = foreground_weights(frames, scenery, config.foreground_weight)
        moving = things(moving_foreground(frames, scenery, later)) if vae.num_places else None
        return vae_loss(vae, frames, weights, beta, config.slowness, config.fovea, moving)


def make_vae(config: VAEConfig, background: np.ndarray | None = None) -> VAE:
    """An untrained V as the settings want it; the plain one has neither fovea nor places."""
    places = min(config.num_places, config.z_dim // 4)  # two numbers each; the other half of z is for what is no place
    extras = {"fovea": config.fovea > 0, "num_places": places} if config.centred else {}
    return VAE(config.z_dim, background, **extras)


def train_vae(rollouts: Rollouts, config: VAEConfig, *, seed: int, directory: Path, start: VAE | None = None) -> VAE:
    """Train V on the frames of `rollouts`; resumes from `directory` and logs there.

    A tenth of the sequences is held out; `scalars.jsonl` has its loss too. With `start`, training goes on from its
    weights, against its background.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    sample = rng.choice(rollouts.num_frames, min(1000, rollouts.num_frames), replace=False)
    background = median_frame(rollouts.gather(np.sort(sample))) if config.centred else None
    scenery = torch.from_numpy(episode_scenery(rollouts, rng))
    episode = rollouts.episode.ravel()
    vae = make_vae(config, background)
    if start is not None:
        vae.load_state_dict(start.state_dict())
    flat, followed = np.arange(rollouts.num_frames).reshape(rollouts.first.shape), rollouts.has_next
    train, test = (flat[sequences][followed[sequences]] for sequences in rollouts.split())
    ahead = flat.ravel()
    for _ in range(LATER):
        ahead = ahead + followed.ravel()[ahead]  # an episode's end is as late as it gets

    def batch_loss(
        num_frames: int, among: np.ndarray, rng: np.random.Generator, beta: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of frames and those that follow them, now and `LATER`."""
        now = np.sort(rng.choice(among, max(1, num_frames // 2)))
        index = np.concatenate([now, now + 1])
        frames = torch.from_numpy(rollouts.gather(index))
        later = torch.from_numpy(rollouts.gather(ahead[now])) if vae.num_places else None
        return configured_loss(vae, frames, scenery[episode[index]], later, config, beta)

    def update(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        beta = config.beta * (1.0 if start is not None else min(1.0, step / (WARM_UP * config.num_updates)))
        loss, parts = batch_loss(config.batch_size, train, rng, beta)
        if not torch.isfinite(loss):
            raise StageError(f"V's loss became {loss.item()} at update {step}; lower vae.learning_rate")
        return loss, parts

    def held_out(rng: np.random.Generator) -> dict[str, float]:
        with torch.no_grad():
            _, parts = batch_loss(4 * config.batch_size, test, rng, config.beta)
        return {f"held_out_{name}": float(value) for name, value in parts.items()}

    training.run(
        vae,
        update,
        held_out,
        num_updates=config.num_updates,
        learning_rate=config.learning_rate,
        seed=seed,
        directory=directory,
        name="vae",
    )
    return vae


def active_units(mu: np.ndarray, threshold: float = 0.01) -> int:
    """Latent dimensions whose posterior mean varies over the data (variance above `threshold`; Burda et al., 2016).

    Args:
        mu: (..., z_dim).
    """
    return int((mu.reshape(-1, mu.shape[-1]).var(axis=0) > threshold).sum())


def save_vae(path: Path, vae: VAE, meta: dict) -> str:
    """Write weights and background in half precision; returns the sha256."""
    tensors = {name: value.detach().numpy() for name, value in vae.state_dict().items()}
    kind = {"kind": "vae", "z_dim": vae.z_dim, "fovea": vae.has_fovea, "num_places": vae.num_places}
    return checkpoints.save(path, checkpoints.half(tensors), kind | {"measures": vae.measures} | meta)


def load_vae(path: Path) -> VAE:
    """Read what `save_vae` wrote, as float32; a file in single precision is rounded as it would have been then.

    Raises:
        StageError: The file is missing, damaged or not of a VAE like ours.
    """
    tensors, meta = checkpoints.load(path)
    if meta.get("kind") != "vae":
        raise StageError(f"{path} holds {meta.get('kind', 'something else')}, not a VAE; give the path of V")
    z_dim = meta.get("z_dim")
    if not isinstance(z_dim, int) or z_dim < 1:
        raise StageError(f"{path} does not say the size of its z; train V again")
    num_places = meta.get("num_places", 0)
    if not isinstance(num_places, int) or not 0 <= 2 * num_places <= z_dim:
        raise StageError(f"{path} has {num_places!r} places in {z_dim} numbers of z; train V again")
    fovea, measures = (meta.get(name) is True for name in ("fovea", "measures"))
    vae = VAE(z_dim, fovea=fovea, num_places=num_places, measures=measures)
    for name in vae.state_dict().keys() & CLOSER:  # a V of before does not look closely
        tensors.setdefault(name, np.zeros(vae.get_parameter(name).shape, np.float32))
    training.fill(vae, checkpoints.half(tensors), path)
    return vae.eval()
