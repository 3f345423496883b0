"""One seed for a run, and from it a seed for everything that is made anew at a checkpoint."""

from __future__ import annotations

import zlib

import numpy as np


def derive_seed(seed: int, *labels: int | str) -> int:
    """Mix a run's seed with labels ("collect", 3) into a 31-bit seed, the same on every platform."""
    words = [zlib.crc32(label.encode()) if isinstance(label, str) else int(label) for label in labels]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0] >> 1)
