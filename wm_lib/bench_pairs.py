"""What `wm bench` compares: our way of doing a piece of work, and a plain one.

Weights are random and frames are noise; neither changes the work. The yardsticks, the paper's VAE and an LSTM with a
mixture loss, are what one writes first: float32, channels first, Adam as it comes. What could be done either way is
done in their favour: they too keep freed memory (`training.keep_freed_memory`), and they do not clip gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wm_lib import checkpoints, yardsticks
from wm_lib.rollouts import Rollouts, StickyRandom
from wm_lib.rollouts import collect as collect_rollouts
from wm_lib.settings import Config
from wm_lib.tasks import FRAME_SIZE, Task

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

NUM_FRAMES = 8192  # in the VAE's collection on disk, 100 MB
ENCODE_BATCH = 512  # that of `encode_frames`
LOSS_UPDATES = 300
LEARNING_RATE = 1e-5  # small, so that nothing diverges or dies out while it is timed

Work = Callable[[], int]  # does some work and returns how many units


class Pair(NamedTuple):
    """What a row compares; `detail` is asked for when all is measured."""

    unit: str
    ours: Work
    reference: Work
    detail: Callable[[], str]


def vae_encode(task: Task, config: Config, seed: int, stack: ExitStack) -> Pair:
    """Frames on disk to latents, as `encode_frames` does it."""
    import torch

    from wm_lib.models import training, vae

    precision, data = prepare(seed), _noise(config, seed, stack)
    net, plain = vae.make_vae(config.vae), yardsticks.vae(config.vae.z_dim)
    batches = cycle(np.split(np.arange(data.num_frames), range(ENCODE_BATCH, data.num_frames, ENCODE_BATCH)))
    loading, whole = [], []  # seconds

    @torch.inference_mode()
    def ours() -> int:
        start = time.perf_counter()
        frames = data.gather(next(batches))
        loading.append(time.perf_counter() - start)
        with training.fast_autocast():
            net.encode(frames)
        whole.append(time.perf_counter() - start)
        return len(frames)

    @torch.inference_mode()
    def reference() -> int:
        frames = data.gather(next(batches))
        plain["encoder"](yardsticks.pictures(frames))
        return len(frames)

    def detail() -> str:
        return f"{precision}, batch {ENCODE_BATCH}, {_sizes(net, plain)}, {_share(loading, whole)}"

    return Pair("frames/s", ours, reference, detail)


def vae_train(task: Task, config: Config, seed: int, stack: ExitStack) -> Pair:
    """Updates as `train_vae` makes them; both sides load their frames from disk."""
    import torch

    from wm_lib.models import foreground, vae

    precision, data = prepare(seed), _noise(config, seed, stack)
    settings, rng = config.vae, np.random.default_rng(seed)
    net = vae.make_vae(settings)
    plain = yardsticks.vae(settings.z_dim)
    adam = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, fused=True)
    plain_adam = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE)
    scenery, episode = torch.from_numpy(foreground.episode_scenery(data, rng)), data.episode.ravel()
    loading, whole = [], []  # seconds

    starts = np.flatnonzero(data.has_next)

    def ours() -> int:
        start = time.perf_counter()
        now = np.sort(rng.choice(starts, max(1, settings.batch_size // 2)))
        index = np.concatenate([now, now + 1])
        frames, backdrop = torch.from_numpy(data.gather(index)), scenery[episode[index]]
        later = torch.from_numpy(data.gather(now + 1)) if net.num_places else None
        loading.append(time.perf_counter() - start)
        loss, _ = vae.configured_loss(net, frames, backdrop, later, settings, settings.beta)
        _descend(loss, adam, 100.0)
        whole.append(time.perf_counter() - start)
        return len(index)

    def reference() -> int:
        pictures = yardsticks.pictures(data.gather(rng.choice(data.num_frames, settings.batch_size)))
        _descend(yardsticks.vae_loss(plain, pictures, settings.beta), plain_adam)
        return len(pictures)

    def detail() -> str:
        return f"{precision}, batch {settings.batch_size}, {_sizes(net, plain)}, {_share(loading, whole)}"

    return Pair("frames/s", ours, reference, detail)


def vae_loss(task: Task, config: Config, seed: int, stack: ExitStack) -> dict[str, Any]:
    """Not a speed: what both networks lose on held-out frames after the same few updates with the same plain loss."""
    import torch

    from wm_lib.models import foreground, training, vae

    precision, rng = prepare(seed), np.random.default_rng(seed)
    directory = Path(stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
    collect_rollouts(
        task, directory, num_steps=4096, num_envs=32, shard_length=128, seed=seed,
        make_policy=lambda seed: StickyRandom(task.num_actions, 32, seed),
    )  # fmt: skip
    data = Rollouts(directory)
    train, test = ((rows[:, None] * data.length + np.arange(data.length)).ravel() for rows in data.split())
    background = foreground.median_frame(data.gather(train[:: max(1, len(train) // 1000)]))
    net, plain = vae.VAE(config.vae.z_dim, background), yardsticks.vae(config.vae.z_dim)

    def loss(frames: np.ndarray, ours: bool) -> Tensor:
        if not ours:
            return yardsticks.vae_loss(plain, yardsticks.pictures(frames), 1.0)
        with training.fast_autocast():
            return vae.vae_loss(net, frames, None, 1.0)[0]

    losses = []
    for ours, model in ((True, net), (False, plain)):
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(LOSS_UPDATES):
            adam.param_groups[0]["lr"] = training.one_cycle(step, LOSS_UPDATES, 1e-3)
            _descend(loss(data.gather(rng.choice(train, 128)), ours), adam, 100.0)
        with torch.no_grad():
            losses.append(float(loss(data.gather(test), ours)))
    detail = f"{task.name}, {precision}, {LOSS_UPDATES} updates of 128, squared error + KL, {_sizes(net, plain)}"
    ratio = losses[1] / losses[0]
    return {"unit": "loss", "ours": losses[0], "reference": losses[1], "ratio": ratio, "spread": 0.0, "detail": detail}


def mdn_rnn_train(task: Task, config: Config, seed: int, stack: ExitStack) -> Pair:
    """Updates as `train_mdn_rnn` makes them, batching and fresh z included on both sides."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from wm_lib.models import mdn_rnn, training
    from wm_lib.models.latents import Stream

    precision, rng, sizes, z_dim = prepare(seed), np.random.default_rng(seed), config.mdnrnn, config.vae.z_dim
    shape = (config.collect.num_envs, config.collect.shard_length)
    length, num_mixtures = min(sizes.sequence_length, shape[1] - 1), sizes.num_mixtures
    mu = rng.standard_normal((*shape, z_dim), dtype=np.float32)
    latents = {"mu": mu, "log_sigma": np.full_like(mu, -2.0), **_transitions(shape, task.num_actions, rng)}
    stream = Stream(latents, np.arange(shape[0]))
    net = mdn_rnn.MDNRNN(z_dim, task.num_actions, sizes.rnn_size, num_mixtures)
    adam = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, fused=True)
    lstm = nn.LSTM(z_dim + task.num_actions, sizes.rnn_size, batch_first=True)
    head = nn.Linear(sizes.rnn_size, 3 * num_mixtures * z_dim + 2)
    plain = nn.ModuleList([lstm, head])
    plain_adam = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE)
    cached = {name: torch.from_numpy(values) for name, values in latents.items()}
    loading, whole = [], []  # seconds

    def ours() -> int:
        start = time.perf_counter()
        batch = stream.batch(stream.windows(sizes.batch_size, length, rng), rng)
        loading.append(time.perf_counter() - start)
        with training.fast_autocast():
            losses = mdn_rnn.mdn_rnn_losses(net, batch)
        _descend(mdn_rnn.total_loss(losses, z_dim), adam, mdn_rnn.MAX_GRAD_NORM)
        whole.append(time.perf_counter() - start)
        return int((~batch.border).sum())

    def reference() -> int:
        row = torch.randint(shape[0], (sizes.batch_size, 1))
        step = torch.randint(shape[1] - length, (sizes.batch_size, 1)) + torch.arange(length + 1)
        z = cached["mu"][row, step] + cached["log_sigma"][row, step].exp() * torch.randn(*step.shape, z_dim)
        now = step[:, :-1]
        h, _ = lstm(torch.cat([z[:, :-1], F.one_hot(cached["action"][row, now], task.num_actions)], dim=-1))
        raw, reward, done = head(h).split([3 * num_mixtures * z_dim, 1, 1], dim=-1)
        nll = yardsticks.mdn_nll(raw.unflatten(-1, (z_dim, 3 * num_mixtures)), z[:, 1:]).mean()
        reward_loss = F.mse_loss(reward[..., 0], cached["reward"][row, now])
        done_loss = F.binary_cross_entropy_with_logits(done[..., 0], cached["terminated"][row, now].float())
        _descend(nll / z_dim + reward_loss + done_loss, plain_adam)
        return now.numel()

    def detail() -> str:
        sizes_told = f"batch {sizes.batch_size} x {length}, {_sizes(net, plain)}"
        return f"{precision}, {sizes_told}, {_share(loading, whole)}"

    return Pair("steps/s", ours, reference, detail)


def widget_redraw(task: Task, config: Config, seed: int, stack: ExitStack) -> Pair:
    """A touch of a slider to the PNG that the page gets; a new matplotlib figure of the same two pictures."""
    import io

    from matplotlib.figure import Figure

    from wm_lib.course import widgets
    from wm_lib.models.mdn_rnn import MDNRNN
    from wm_lib.models.neural import NeuralWorldModel
    from wm_lib.models.vae import VAE
    from wm_lib.worlds.simulation import make_env, stand_in

    prepare(seed)
    frame = make_env(stand_in(task), 1, seed).reset()[0][0]  # noise would not pack as a picture does
    model = NeuralWorldModel(VAE(config.vae.z_dim, frame / 255), MDNRNN(config.vae.z_dim, task.num_actions))
    latents = np.random.default_rng(seed).standard_normal((100, config.vae.z_dim), dtype=np.float32)
    box = widgets.latent_sliders(model.decode, frame, latents[0], latents)
    slider = box.children[0].children[0]
    values = cycle(np.linspace(slider.min, slider.max, 101))
    z = latents[:1].copy()

    def ours() -> int:
        slider.value = next(values)
        return 1

    def reference() -> int:
        z[0, 0] = next(values)
        figure = Figure(figsize=(5.2, 3.0))
        axes = figure.subplots(1, 2)
        for axis, picture, title in zip(axes, (frame, model.decode(z)[0]), ("the frame", "V draws"), strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(title=title, xticks=[], yticks=[])
        figure.savefig(io.BytesIO(), format="png")
        return 1

    height, width = widgets.draw_latents(model.decode, frame, z[0]).shape[:2]
    return Pair("redraws/s", ours, reference, lambda: f"a slider of z to a PNG of {width} x {height}")


def prepare(seed: int) -> str:
    """Set torch up as a training does; says what V and M train in."""
    import torch

    from wm_lib.models import training

    training.keep_freed_memory()
    torch.manual_seed(seed)
    return f"{'bf16' if torch.cpu._is_avx512_bf16_supported() else 'fp32'}, {torch.get_num_threads()} threads"


def _noise(config: Config, seed: int, stack: ExitStack) -> Rollouts:
    """A collection on disk, of the usual shape but with at most `NUM_FRAMES` frames."""
    directory = Path(stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
    num_envs, rng = config.collect.num_envs, np.random.default_rng(seed)
    shape = (num_envs, min(config.collect.shard_length, max(1, NUM_FRAMES // num_envs)))
    frames = rng.integers(256, size=(*shape, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8)
    checkpoints.save(directory / "shard-0000.safetensors", {"frames": frames, **_transitions(shape, 3, rng)}, {})
    return Rollouts(directory)


def _transitions(shape: tuple[int, int], num_actions: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Everything but what is seen, of one episode in each row."""
    flags = {name: np.zeros(shape, bool) for name in ("terminated", "truncated", "lost", "first")}
    flags["first"][:, 0] = True
    reward = rng.standard_normal(shape, dtype=np.float32)
    return {"action": rng.integers(num_actions, size=shape), "reward": reward, **flags}


def _descend(loss: Tensor, optimizer: optim.Optimizer, max_grad_norm: float | None = None) -> None:
    from torch import nn

    optimizer.zero_grad()
    loss.backward()
    if max_grad_norm:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_grad_norm)
    optimizer.step()


def _share(loading: list[float], whole: list[float]) -> str:
    return f"{sum(loading) / sum(whole):.1%} of ours is loading data"


def _sizes(net: nn.Module, plain: nn.Module) -> str:
    ours, reference = (sum(p.numel() for p in each.parameters()) for each in (net, plain))
    return f"{ours:,} parameters to {reference:,}"
