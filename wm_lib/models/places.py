"""Places: the first numbers of z say outright where the things are that move.

An autoencoder learns where the ball is only by drawing it, and a ball of two pixels that is drawn beside the true place
is as wrong as none. Good play of Breakout makes so many walls that V never finds out. Here nothing has to be found out
by drawing.

The encoder points: each place is the mean position over the pixels, weighted by a softmax (spatial soft argmax; Finn et
al., 2016, "Deep spatial autoencoders"). What moves is seen by comparing a frame with one some decisions later, and the
place nearest to it is pulled there from anywhere. All things pull about alike (`things`), or a ball of two pixels would
count for nothing beside a paddle; and from afar hardly harder than nearby, or what no place is for, such as a brick
about to vanish, could count for more than the ball.

Pointing finds a thing and does not measure it: a softmax sharp enough to leave four thousand pixels for one takes the
brightest, so that a ball in even flight seems to move by one pixel, then by three. So whoever encodes a frame measures,
too: from where V points a place goes to the centre of mass of what is around it (mean shift; Fukunaga & Hostetler,
1975), which tells a ball that lights two pixels to a tenth of one. Measuring has no part in learning: where it leads
does not depend on exactly where V points, and taught through it V points worse.

The decoder is handed a spot of light at each place (as in Jakab et al., 2018), so that drawing is only a matter of
colour. A place is said to half a pixel from the beginning: left to itself V finds vague places cheaper, draws without
them, and M reads noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wm_lib.models.patches import from_patches, to_patches

REACH = 3.0  # z of a place runs from -REACH at the left or upper edge of the picture to REACH at the other
WIDTHS = (1.0, 3.0)  # standard deviations of the spots of light, in pixels
SIGMA = REACH / 64  # at most, of a place's Gaussian while V learns to point: half a pixel, in z
MEASURED = REACH / 256  # at most, once the place is measured: an eighth of a pixel
WINDOW = 1.5  # pixels: the standard deviation of what is around a place
NEAR = 5.0  # pixels, across or down: another place so near would draw what is measured away
CLOSER = {f"places.{name}" for name in ("close.weight", "close.bias", "behind.weight", "score.weight")}  # of V
NOTHING = 1e-3  # mass that lies at the place itself, so that it stays where there is no other
SPREAD = 1.4  # pixels: how near a place should come to what moves
PATIENCE = 2.0  # times SPREAD: from further away the pull hardly grows

PIXELS = (torch.arange(64) + 0.5) / 32 - 1  # the middles of the pixels: the picture runs from -1 to 1


def soft_argmax(score: Tensor) -> Tensor:
    """Where each map of scores is high: the mean place of the pixels, weighted by a softmax over all of them.

    Args:
        score: (batch, 64, 64, K).

    Returns:
        (batch, K, 2), x and y from -1 to 1.
    """
    weight = score.flatten(1, 2).softmax(1).unflatten(1, (64, 64))
    x = torch.einsum("bxk,x->bk", weight.sum(1), PIXELS)
    y = torch.einsum("byk,y->bk", weight.sum(2), PIXELS)
    return torch.stack([x, y], dim=2)


def centre_of_mass(places: Tensor, matter: Tensor) -> Tensor:
    """Where the mass around each place has its centre, after two steps of mean shift.

    Args:
        places: (batch, K, 2), x and y from -1 to 1.
        matter: (batch, 64, 64), at least 0: how much there is at every pixel.

    Returns:
        (batch, K, 2); where nothing is around, as before.
    """
    for _ in range(2):
        across, down = torch.exp(-0.5 * ((PIXELS - places[..., None]) * (32 / WINDOW)).square()).unbind(2)  # (b, K, 64)
        mass = torch.stack([across * (down @ matter), down * (across @ matter.mT)], dim=2)  # by column, by row
        places = ((mass * PIXELS).sum(3) + NOTHING * places) / (mass.sum(3) + NOTHING)
    return places


def measure(places: Tensor, matter: Tensor) -> Tensor:
    """`centre_of_mass`, but a place with another one within `NEAR` stays where it is.

    What is around it is then not all its own: a paddle would draw the ball to itself. Arguments and result are those of
    `centre_of_mass`.
    """
    apart = (places[:, :, None] - places[:, None]).abs().amax(3) * 32  # (batch, K, K)
    alone = (apart < NEAR).sum(2, keepdim=True) == 1  # itself
    return torch.where(alone, centre_of_mass(places, matter), places)


def spots(places: Tensor, width: float) -> Tensor:
    """Spots of light: exp(-distance^2 / (2 width^2)) at every pixel.

    Args:
        places: (batch, K, 2), x and y from -1 to 1.
        width: In pixels.

    Returns:
        (batch, 64, 64, K).
    """
    closeness = torch.exp(-0.5 * ((PIXELS - places[..., None]) * (32 / width)).square())  # (batch, K, 2, 64)
    across, down = closeness.unbind(2)
    return torch.einsum("bky,bkx->byxk", down, across)


def astray(places: Tensor, moving: Tensor) -> Tensor:
    """How badly the places cover what moves: a robust negative log-likelihood of its pixels, summed over each frame.

    The pixels are taken as drawn from K round Gaussians in equal shares, each around a place, so that every pixel asks
    for the place nearest to it and two things get two places. Its nats n, 0 at best, grow with the square of the
    distance; PATIENCE^2 (sqrt(1 + 2 n / PATIENCE^2) - 1), the pseudo-Huber loss (Charbonnier et al., 1997), is as much
    nearby and in the end grows with the distance only.

    Args:
        places: (batch, K, 2), x and y from -1 to 1.
        moving: (batch, 64, 64), 1 where something moves and 0 elsewhere.

    Returns:
        (batch,), in nats nearby.
    """
    across, down = (((PIXELS - places[..., None]) * (32 / SPREAD)).square()).unbind(2)  # (batch, K, 64)
    nats = math.log(places.shape[1]) - torch.logsumexp(-0.5 * (down[..., :, None] + across[..., None, :]), dim=1)
    robust = PATIENCE**2 * ((1 + 2 * nats / PATIENCE**2).sqrt() - 1)
    return (robust * moving).sum((1, 2))


class Places(nn.Module):
    """Finds `num_places` places in the features of a picture, and draws what is there.

    Args:
        num_features: Channels of the features, (batch, num_features, 16, 16).
        num_places: K.
    """

    def __init__(self, num_features: int, num_places: int) -> None:
        super().__init__()
        self.num_places = num_places
        self.attend = nn.Conv2d(num_features, 16 * num_places, 3, padding=1)
        self.close = nn.Conv2d(12, 16, 3, padding=1)
        self.behind = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.score = nn.Conv2d(16, 4 * num_places, 3, padding=1, bias=False)
        nn.init.zeros_(self.score.weight)  # it begins as a glance from afar
        self.colour = nn.Conv2d(16 * len(WIDTHS) * num_places, 48, 3, padding=1, bias=False)

    def find(self, features: Tensor, difference: Tensor, background: Tensor) -> Tensor:
        """Where it points: places (batch, K, 2), x and y from -1 to 1.

        Features of 4 x 4 patches say what is where, but each of a patch's pixels has to learn for itself how things
        look there. A closer look at patches of 2 x 2 learns it sooner, and tells a ball from the paddle beside it.

        Args:
            features: (batch, num_features, 16, 16).
            difference: (batch, 64, 64, 3), of the pictures from the background.
            background: (64, 64, 3).
        """
        close = self.close(to_patches(difference, 2)) + self.behind(to_patches(background[None], 2))
        close = from_patches(self.score(torch.relu(close)), 2)
        return soft_argmax((from_patches(self.attend(features)) + close).float())

    def picture(self, places: Tensor) -> Tensor:
        """What the spots of light at the places are worth, in patches (batch, 48, 16, 16)."""
        lights = torch.cat([spots(places, width) for width in WIDTHS], 3)
        return self.colour(to_patches(lights))
