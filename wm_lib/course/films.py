"""What an agent saw and did, kept, and shown as a small animated GIF. Frames are uint8 (..., 64, 64, 3)."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

GAP = 2  # white pixels between the pictures of a film


class Recording(NamedTuple):
    """What was seen and done, time first: T decisions in N environments.

    Attributes:
        frames: uint8 (T, N, 64, 64, 3), frame t.
        action: int64 (T, N), chosen at frame t.
        reward: float64 (T, N), that followed.
        done: bool (T, N), whether the episode ended; the frame after it is the first of the next episode.
    """

    frames: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    done: np.ndarray


def record(
    env: VectorEnv,
    act: Callable[[np.ndarray, np.ndarray], np.ndarray],
    num_decisions: int,
    look: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Recording:
    """Play, keep what happened, and close the environments.

    Args:
        env: A vector environment with explicit resets: real (`make_env`) or dreamt (`DreamVectorEnv`).
        act: (obs, first) -> action int64 (N,), as in `rollouts.Policy`.
        num_decisions: T.
        look: Makes frames of an observation; None where the observation is a frame.
    """
    rows: list[tuple[np.ndarray, ...]] = []
    try:
        obs, _ = env.reset()
        first = np.ones(env.num_envs, bool)
        for _ in range(num_decisions):
            frame = obs if look is None else look(obs)
            action = act(obs, first)
            obs, reward, terminated, truncated, _ = env.step(action)
            first = terminated | truncated
            rows.append((frame, action, reward, first))
            if first.any():
                obs, _ = env.reset(options={"reset_mask": first})
    finally:
        env.close()
    return Recording(*(np.stack(column) for column in zip(*rows, strict=True)))


@dataclass(frozen=True)
class Film:
    """An animated GIF that a notebook shows; in text it is its description."""

    gif: bytes
    description: str
    width: int

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.gif).decode()
        return (
            f'<img src="data:image/gif;base64,{data}" alt="{html.escape(self.description, quote=True)}" '
            f'width="{self.width}" style="image-rendering: pixelated">'
        )

    def __repr__(self) -> str:
        return f"Film: {self.description}"


def film(frames: np.ndarray, description: str, *, fps: int = 12, max_frames: int = 48, zoom: int = 3) -> Film:
    """An animated GIF of frames, kept small: of more than `max_frames` every second, third, ... is shown.

    Args:
        frames: (T, 64, 64, 3), or (T, N, 64, 64, 3) for N pictures side by side.
        description: What it shows, for those who cannot see it.
        fps: Pictures a second.
        max_frames: Most pictures in the film.
        zoom: Screen pixels for each of its pixels.
    """
    if frames.ndim == 4:
        frames = frames[:, None]
    frames = frames[:: -(-len(frames) // max_frames)]
    gaps = np.full((len(frames), frames.shape[2], GAP, 3), 255, np.uint8)
    parts = [part for n in range(frames.shape[1]) for part in (gaps, frames[:, n])][1:]
    pictures = np.concatenate(parts, axis=2)
    height, width = pictures.shape[1:3]
    figure = Figure(figsize=(width, height), dpi=1)
    image = figure.figimage(pictures[0])
    writer = PillowWriter(fps=fps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.gif"
        with writer.saving(figure, str(path), dpi=1):
            for picture in pictures:
                image.set_data(picture)
                writer.grab_frame()
        return Film(path.read_bytes(), description, zoom * width)
