"""What simulated worlds are made of and painted with: states, luck, colours, rectangles."""

from __future__ import annotations

import numpy as np

from wm_lib.tasks import FRAME_SIZE

State = dict[str, np.ndarray]

LUCK = 20  # uniform random numbers of an episode; a serve takes two

BLACK, WHITE, GREY = (0, 0, 0), (236, 236, 236), (110, 110, 110)
GREEN, RED, BLUE, BROWN = (92, 186, 92), (213, 80, 60), (80, 110, 210), (144, 72, 17)


def canvas(num: int, colour: tuple[int, int, int]) -> np.ndarray:
    """Frames uint8 (num, 64, 64, 3) of one colour."""
    frames = np.empty((num, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    frames[:] = colour
    return frames


def paint(
    frames: np.ndarray,
    row: np.ndarray | float,
    column: np.ndarray | float,
    half_height: float,
    half_width: float,
    colour: tuple[int, int, int],
) -> None:
    """Draw a rectangle in every frame: the pixels whose middle lies within it; row and column are (num,) or numbers."""
    num = len(frames)
    first_row = np.ceil(np.broadcast_to(row, num) - half_height - 0.5).astype(int)
    first_column = np.ceil(np.broadcast_to(column, num) - half_width - 0.5).astype(int)
    rows = (first_row[:, None] + np.arange(int(2 * half_height)))[:, :, None]
    columns = (first_column[:, None] + np.arange(int(2 * half_width)))[:, None, :]
    seen = (rows >= 0) & (rows < FRAME_SIZE) & (columns >= 0) & (columns < FRAME_SIZE)
    which = np.arange(num)[:, None, None]
    frames[tuple(np.broadcast_to(index, seen.shape)[seen] for index in (which, rows, columns))] = colour
