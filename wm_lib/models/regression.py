"""Ridge regression and principal components from sums over the data, which is read in pieces."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class Moments:
    """Sums over pairs of rows x (n, dim_x) and y (n, dim_y), in float64, and what follows from them.

    Attributes:
        count: Rows added so far.
    """

    def __init__(self, dim_x: int, dim_y: int) -> None:
        self.count = 0
        self.xx, self.xy, self.yy = np.zeros((dim_x, dim_x)), np.zeros((dim_x, dim_y)), np.zeros(dim_y)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        self.count += len(x)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += np.square(y).sum(0)

    def ridge(self, strength: float) -> np.ndarray:
        """Weights (dim_x, dim_y) that minimise the mean of |y - x W|^2 + strength * |W|^2, the first row of W (the
        bias: x begins with a 1) free of charge."""
        penalty = np.full(len(self.xx), strength * self.count)
        penalty[0] = 0
        return np.linalg.lstsq(self.xx + np.diag(penalty), self.xy, rcond=None)[0]

    def residual_std(self, weights: np.ndarray) -> np.ndarray:
        """Standard deviation (dim_y,) of what the weights leave unexplained in the rows."""
        squares = self.yy - 2 * (weights * self.xy).sum(0) + (weights * (self.xx @ weights)).sum(0)
        return np.sqrt(np.maximum(squares / max(self.count, 1), 0))


def moments_of(chunks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean (dim,) and covariance (dim, dim), float64, of rows that come in pieces (n, dim)."""
    shift, count, total, squares = None, 0, 0.0, 0.0
    for chunk in chunks:
        if shift is None:
            shift = chunk.mean(0)
        rows = chunk - shift  # small numbers: products of a piece in float32 lose little, their sums are in float64
        count, total = count + len(rows), total + rows.sum(0, dtype=np.float64)
        squares = squares + (rows.T @ rows).astype(np.float64)
    mean = total / count
    return mean + shift, squares / count - np.outer(mean, mean)


def principal_components(covariance: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions of length 1 (num, dim), the strongest first, each with its largest entry above 0, and the variances
    along them (num,)."""
    variance, directions = np.linalg.eigh(covariance)
    directions = directions[:, ::-1][:, :num].T
    sign = np.sign(directions[np.arange(num), np.abs(directions).argmax(1)])
    return directions * sign[:, None], np.maximum(variance[::-1][:num], 0)
