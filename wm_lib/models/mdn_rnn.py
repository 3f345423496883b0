"""M, the memory: an LSTM that predicts the next z as mixtures of Gaussians, the reward and the end.

Section 2.2 and appendix A.2 of Ha & Schmidhuber (2018); mixture density outputs after Bishop (1994) and
Graves (2013).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wm_lib import checkpoints
from wm_lib.errors import StageError, UsageError
from wm_lib.models import training
from wm_lib.models.latents import Batch, Latents, Stream, check_latents, follows
from wm_lib.rollouts import split_sequences
from wm_lib.seeding import derive_seed
from wm_lib.settings import MDNRNNConfig

MIN_LOG_SIGMA = -5.0
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
HELD_OUT_WINDOWS = 64  # windows on which the held-out loss is measured during training
MAX_GRAD_NORM = 1.0
CHANGE_SCALE = 4.0  # how much a change of z counts beside z itself
SIZES = ("z_dim", "num_actions", "rnn_size", "num_mixtures")


class MDNOutput(NamedTuple):
    """One mixture of Gaussians for every dimension of the next z; each (batch, time, z_dim, num_mixtures).

    Attributes:
        log_pi: Log weights; exp(log_pi) sums to 1 over the last axis.
        mu: Means.
        log_sigma: Logs of the standard deviations, above `MIN_LOG_SIGMA`.
    """

    log_pi: Tensor
    mu: Tensor
    log_sigma: Tensor


State = tuple[Tensor, Tensor, Tensor]


class MDNRNN(nn.Module):
    """LSTM over (z_t, a_t), with heads for z_{t+1}, r_t and whether the episode terminates after a_t.

    Where numbers of z are `steady`, the mixture's means are added to them, so that what stays need not be learnt, and
    the LSTM reads how they changed since the decision before, since it learns to subtract but slowly. With none of
    them steady this is the paper's M.

    Args:
        z_dim: Size of the latent vector.
        num_actions: Number of discrete actions; they enter one-hot.
        rnn_size: Size of the LSTM's h (and c).
        num_mixtures: Gaussians per dimension of z.
    """

    def __init__(self, z_dim: int, num_actions: int, rnn_size: int = 256, num_mixtures: int = 5) -> None:
        super().__init__()
        self.z_dim, self.num_actions = z_dim, num_actions
        self.rnn_size, self.num_mixtures = rnn_size, num_mixtures
        self.lstm = nn.LSTM(2 * z_dim + num_actions + 1, rnn_size, batch_first=True)
        self.mixture = nn.Linear(rnn_size, 3 * num_mixtures * z_dim)
        self.reward = nn.Linear(rnn_size, 1)
        self.done = nn.Linear(rnn_size, 1)
        self.register_buffer("reward_scale", torch.ones(()))
        self.register_buffer("steady", torch.zeros(z_dim))  # 1 or 0 for each number of z, see `steady_numbers`
        # The last input marks a border: the empty row between two episodes. Its weights shut the input and
        # forget gates (the first half of the rows), so c, and with it h, becomes exactly 0. Shut gates pass
        # no gradient, so training never changes these weights. Thus one fast call of the LSTM reads a whole
        # window and still forgets wherever an episode begins; a loop over steps takes twice as long.
        with torch.no_grad():
            self.lstm.weight_ih_l0[:, -1] = 0.0
            self.lstm.weight_ih_l0[: 2 * rnn_size, -1] = -1e4

    def forward(
        self,
        z: Tensor,
        action: Tensor,
        state: State | None = None,
        border: Tensor | None = None,
    ) -> tuple[MDNOutput, Tensor, Tensor, State]:
        """Read (z_t, a_t) for a stretch of time; row t of every output knows rows 0..t of the input.

        Args:
            z: (batch, time, z_dim).
            action: int64 (batch, time), a_t chosen at z_t.
            state: (h, c, z) after the row before: each (batch, rnn_size), and (batch, z_dim), of zeros where an
                episode begins; zeros if None.
            border: bool (batch, time), true at empty rows after which the memory is zero; none if None.

        Returns:
            The mixture for z_{t+1}; the expected reward r_t (batch, time), in the units of the data; the
            logit (batch, time) of the episode terminating after a_t; and the state after the last row.
        """
        h, state = self.remember(z, action, state, border)
        return *self.heads(h, z), state

    def remember(
        self, z: Tensor, action: Tensor, state: State | None = None, border: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """`forward` without its heads: h (batch, time, rnn_size) at every row, and the last state."""
        marks = z.new_zeros(z.shape[:2]) if border is None else border.to(z.dtype)
        first = z.new_zeros(len(z), 1, self.z_dim) if state is None else state[2][:, None]
        before = torch.cat([first, z[:, :-1]], dim=1)
        change = CHANGE_SCALE * (z - before) * self.steady * before.any(-1, keepdim=True)
        x = torch.cat([z, change, F.one_hot(action, self.num_actions).to(z.dtype), marks[..., None]], dim=-1)
        h, (h_last, c_last) = self.lstm(x, None if state is None else (state[0][None], state[1][None]))
        return h, (h_last[0], c_last[0], z[:, -1])

    def heads(self, h: Tensor, z: Tensor) -> tuple[MDNOutput, Tensor, Tensor]:
        """Mixture, reward and done logit, read from the LSTM's output h (..., rnn_size) after z (..., z_dim)."""
        # One product for all three: a matrix with a single column is slow to multiply with.
        layers = (self.mixture, self.reward, self.done)
        weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
        raw, reward, done = F.linear(h, weight, bias).split([layer.out_features for layer in layers], dim=-1)
        # The mixtures lie on the last axis for the reader and on the last but one in memory, because summing
        # five neighbouring numbers is slower than summing five rows.
        logits, mu, raw_sigma = raw.unflatten(-1, (3, self.num_mixtures, self.z_dim)).float().unbind(-3)
        mu = mu + (z * self.steady).float()[..., None, :]
        log_pi = torch.log_softmax(logits, dim=-2)
        # A bound keeps the density of a dimension that never changes finite. It is smooth because a clamped
        # component would have no gradient that could ever widen it again.
        log_sigma = MIN_LOG_SIGMA + F.softplus(raw_sigma - MIN_LOG_SIGMA)
        mixture = MDNOutput(*(part.transpose(-1, -2) for part in (log_pi, mu, log_sigma)))
        return mixture, reward.squeeze(-1).float() * self.reward_scale, done.squeeze(-1).float()


def mdn_nll(log_pi: Tensor, mu: Tensor, log_sigma: Tensor, z_next: Tensor) -> Tensor:
    """Negative log-likelihood of z_next under one mixture per dimension; may be negative, as of any density.

    -sum_i log sum_k pi_ik N(z_i; mu_ik, sigma_ik), Bishop (1994), eq. 29, over independent dimensions i.

    Args:
        log_pi: Normalised log weights (batch, time, z_dim, num_mixtures).
        mu: Means, the same shape.
        log_sigma: Logs of the standard deviations, the same shape.
        z_next: (batch, time, z_dim).

    Returns:
        Nats per step (batch, time), summed over the dimensions of z.
    """
    standardised = (z_next[..., None] - mu) * torch.exp(-log_sigma)
    log_density = log_pi - log_sigma - 0.5 * standardised.square()
    return (HALF_LOG_2PI - torch.logsumexp(log_density, dim=-1)).sum(dim=-1)


def sample_mdn(log_pi: Tensor, mu: Tensor, log_sigma: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw z from the mixture: weights softmax(log_pi / temperature), deviations sigma * sqrt(temperature).

    Sections 2.2 and 4 of the paper. As the temperature goes to 0 the sample becomes the mean of the
    heaviest component, which is what 0 itself returns.

    Args:
        log_pi: Log weights (..., z_dim, num_mixtures).
        mu: Means, the same shape.
        log_sigma: Logs of the standard deviations, the same shape.
        temperature: At least 0.
        generator: Source of randomness.

    Returns:
        z (..., z_dim).

    Raises:
        UsageError: The temperature is negative or not a finite number.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UsageError(f"temperature must be a finite number >= 0, found {temperature}")
    if temperature == 0:
        return mu.gather(-1, log_pi.argmax(-1, keepdim=True)).squeeze(-1)
    # Subtracting the maximum first keeps the quotient finite for the smallest temperature.
    pi = torch.softmax((log_pi - log_pi.amax(-1, keepdim=True)) / temperature, dim=-1)
    uniform = torch.rand(mu.shape[:-1], generator=generator)
    # The component whose stretch of the cumulative weights holds the uniform number.
    component = (uniform[..., None] > pi.cumsum(-1)[..., :-1]).sum(-1, keepdim=True)
    noise = torch.randn(mu.shape[:-1], generator=generator)
    mu = mu.gather(-1, component).squeeze(-1)
    log_sigma = log_sigma.gather(-1, component).squeeze(-1)
    return mu + log_sigma.exp() * math.sqrt(temperature) * noise


def mdn_rnn_losses(model: MDNRNN, batch: Batch) -> dict[str, Tensor]:
    """Means over the steps of a batch.

    Returns:
        `nll` in nats per step; `reward`, the squared error over the squared reward scale; `done`, the
        cross-entropy in nats.
    """
    output, reward, done_logit, _ = model(batch.z, batch.action, border=batch.border)
    step = (~batch.border).float()
    num_steps = step.sum().clamp(min=1)
    error = ((reward - batch.reward) / model.reward_scale).square()
    entropy = F.binary_cross_entropy_with_logits(done_logit, batch.terminated, reduction="none")
    return {
        "nll": (mdn_nll(*output, batch.z_next) * batch.has_next).sum() / batch.has_next.sum().clamp(min=1),
        "reward": (error * step).sum() / num_steps,
        "done": (entropy * step).sum() / num_steps,
    }


def total_loss(losses: dict[str, Tensor], z_dim: int) -> Tensor:
    """nll / z_dim + reward + done: each part then weighs about as much as one dimension of z."""
    return losses["nll"] / z_dim + losses["reward"] + losses["done"]


def steady_numbers(latents: Latents, sequences: np.ndarray) -> np.ndarray:
    """Which numbers of z the z before predicts better than their mean does, V's doubts included: 1 or 0 (z_dim,)."""
    mu = latents["mu"][sequences].astype(np.float32)
    doubt = np.exp(2 * latents["log_sigma"][sequences].astype(np.float32))
    change = np.square(mu[:, 1:] - mu[:, :-1])[follows(latents, sequences)].mean(0) + 2 * doubt.mean((0, 1))
    return (change < mu.var((0, 1)) + doubt.mean((0, 1))).astype(np.float32)


def train_mdn_rnn(
    latents: Latents,
    config: MDNRNNConfig,
    *,
    num_actions: int,
    seed: int,
    directory: Path,
    start: MDNRNN | None = None,
) -> MDNRNN:
    """Train M; resumes from `directory` and logs there. A tenth of the sequences is held out (`split_sequences`).

    Args:
        latents: Arrays (sequences, time): `mu` and `log_sigma` (with a z_dim axis) of V's posterior at each
            step, `action` chosen there, `reward`, `terminated`, `truncated` that followed, and `first`.
        num_actions: Number of discrete actions.
        start: An M to go on from; a new one if None.

    Raises:
        StageError: The latents hold NaN, there are fewer than two sequences, or the loss diverged.
    """
    check_latents(latents)
    num_sequences, _, z_dim = latents["mu"].shape
    train_sequences, test_sequences = split_sequences(num_sequences)
    train, test = Stream(latents, train_sequences), Stream(latents, test_sequences)
    torch.manual_seed(derive_seed(seed, "mdn_rnn", "init"))
    model = MDNRNN(z_dim, num_actions, config.rnn_size, config.num_mixtures)
    model.steady.copy_(torch.from_numpy(steady_numbers(latents, train_sequences)))
    if start is not None:
        model.load_state_dict(start.state_dict())
    rewards = latents["reward"][train_sequences].astype(np.float64)
    scale = float(np.sqrt(np.square(rewards).mean())) or 1.0
    with torch.no_grad():  # other rewards are the unit now, and M expects what it expected
        for values in model.reward.parameters():
            values.mul_(float(model.reward_scale) / scale if start is not None else 1.0)
    model.reward_scale.fill_(scale)

    def update(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        batch = train.batch(train.windows(config.batch_size, config.sequence_length, rng), rng)
        with training.fast_autocast():
            losses = mdn_rnn_losses(model, batch)
        loss = total_loss(losses, z_dim)
        if not torch.isfinite(loss):
            raise StageError(f"M's loss became {loss.item()} at update {step}; lower mdnrnn.learning_rate")
        return loss, {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def held_out(_: np.random.Generator) -> dict[str, float]:
        # The same windows and noise every time, so that the curve shows M and not the draw.
        rng = np.random.default_rng(derive_seed(seed, "mdn_rnn", "held_out"))
        batch = test.batch(test.windows(HELD_OUT_WINDOWS, config.sequence_length, rng), rng)
        return {f"held_out_{name}": float(value) for name, value in mdn_rnn_losses(model, batch).items()}

    training.run(
        model,
        update,
        held_out,
        num_updates=config.num_updates,
        learning_rate=config.learning_rate,
        seed=seed,
        directory=directory,
        name="mdn_rnn",
        max_grad_norm=MAX_GRAD_NORM,
    )
    return model.eval()


def save_mdn_rnn(path: Path, model: MDNRNN, meta: dict) -> str:
    """Write the weights in half precision; returns the sha256."""
    tensors = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    sizes = {name: getattr(model, name) for name in SIZES}
    return checkpoints.save(path, checkpoints.half(tensors), {"kind": "mdn_rnn", **sizes, **meta})


def load_mdn_rnn(path: Path) -> MDNRNN:
    """Read what `save_mdn_rnn` wrote, as float32; a file in single precision is rounded as it would have been then.

    Raises:
        StageError: The file is missing, damaged or not of an MDN-RNN like ours.
    """
    tensors, meta = checkpoints.load(path)
    if meta.get("kind") != "mdn_rnn":
        found = meta.get("kind", "something else")
        raise StageError(f"{path} holds {found}, not an MDN-RNN; give the path of M")
    if not all(isinstance(meta.get(name), int) and meta[name] > 0 for name in SIZES):
        raise StageError(f"{path} does not say the sizes of M ({', '.join(SIZES)}); train M again")
    model = MDNRNN(**{name: meta[name] for name in SIZES})
    if "steady" not in tensors:  # of before this was: the paper's M, which reads no changes
        tensors["steady"] = np.zeros(model.z_dim, np.float32)
        weight = tensors["lstm.weight_ih_l0"]
        tensors["lstm.weight_ih_l0"] = np.insert(weight, [model.z_dim] * model.z_dim, 0, axis=1)
    training.fill(model, checkpoints.half(tensors), path)
    return model.eval()
