"""The gradient loop that V and M share: Adam, a one-cycle rate, checkpoints from which it resumes bit for bit."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wm_lib import checkpoints
from wm_lib.errors import StageError
from wm_lib.events import Progress
from wm_lib.seeding import derive_seed

BLOCK = 250  # updates between checkpoints

Update = Callable[[int, np.random.Generator], tuple[Tensor, dict[str, Tensor]]]


def fast_autocast() -> torch.autocast:
    """bfloat16 where the processor multiplies it natively, float32 elsewhere."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())


# Channels last is what bfloat16 is fast with; without it the plain order is faster.
MEMORY_FORMAT = torch.channels_last if torch.cpu._is_avx512_bf16_supported() else torch.contiguous_format


def keep_freed_memory() -> None:
    """Tell glibc to keep the memory of freed tensors for the next ones.

    By default it goes back to the kernel and is asked for, and zeroed, again at every step, which slows
    V's training. Nothing happens where there is no glibc.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, the largest allowed


def one_cycle(step: int, num_updates: int, peak: float) -> float:
    """Learning rate that rises over the first tenth and falls to zero as a cosine (after Smith & Topin, 2018)."""
    progress = (step + 0.5) / num_updates  # in the middle of the step: never 0
    if progress < 0.1:
        return peak * progress / 0.1
    return peak * 0.5 * (1 + float(np.cos(np.pi * (progress - 0.1) / 0.9)))


def run(
    model: nn.Module,
    update: Update,
    held_out: Callable[[np.random.Generator], dict[str, float]],
    *,
    num_updates: int,
    learning_rate: float,
    seed: int,
    directory: Path,
    name: str,
    max_grad_norm: float = 100.0,
) -> None:
    """Train `model` in place for `num_updates` steps of Adam; resumes from `directory`.

    Randomness is drawn anew from (seed, block) at every checkpoint, so a killed run ends where an undisturbed
    one does.

    Args:
        update: (step, rng) -> (loss, parts to log).
        held_out: rng -> figures to log at every checkpoint.
        learning_rate: Peak of the one-cycle schedule.
        max_grad_norm: Gradients longer than this are clipped.
    """
    keep_freed_memory()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    path = directory / "checkpoint.safetensors"
    step = restore(path, model, optimizer)
    with Progress(name, num_updates, "update", directory, start=step) as progress:
        while step < num_updates:
            block_seed = derive_seed(seed, name, step)
            torch.manual_seed(block_seed)
            rng = np.random.default_rng(block_seed)
            end = min(num_updates, (step // BLOCK + 1) * BLOCK)
            while step < end:
                for group in optimizer.param_groups:
                    group["lr"] = one_cycle(step, num_updates, learning_rate)
                loss, parts = update(step, rng)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
                optimizer.step()
                step += 1
                logged = {key: float(value) for key, value in parts.items()} if step % 25 == 0 else {}
                if step == end:
                    logged |= held_out(rng)
                progress.update(1, **logged)
            save(path, model, optimizer, step)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Adam, step: int) -> None:
    """Write model, Adam moments and the number of updates made."""
    tensors = {f"model.{key}": value.detach().numpy() for key, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value.numpy() for key, value in state.items()}
    checkpoints.save(path, tensors, {"step": step})


def saved_step(path: Path) -> int:
    """Updates that a checkpoint holds; 0 where there is none, or one whose writing was cut short by a kill."""
    try:
        return int(checkpoints.verify(path)["step"])
    except StageError:
        return 0


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Adam) -> int:
    """Read what `save` wrote; returns the number of updates made, see `saved_step`."""
    step = saved_step(path)
    if step == 0:
        return 0
    tensors = {key: torch.from_numpy(value) for key, value in checkpoints.load(path)[0].items()}
    model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, moment = key.split(".")
            # Fused Adam walks through memory: a moment must lie there as its weight does, channels last or not.
            like = torch.empty_like(weights[int(index)]).copy_(value) if value.ndim else value
            state.setdefault(int(index), {})[moment] = like
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def fill(model: nn.Module, tensors: dict[str, np.ndarray], path: Path) -> None:
    """Put weights read from `path` into a model.

    Raises:
        StageError: They are of a network of another shape.
    """
    try:
        model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    except RuntimeError:
        raise StageError(
            f"{path} holds a {type(model).__name__} of another shape, made by another version; train it again"
        ) from None
