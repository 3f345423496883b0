"""One seed for a run, and from it a seed for everything that is made anew at a checkpoint."""

from __future__ import annotations

import zlib

import numpy as np

from wm_lib.errors import UsageError


def derive_seed(seed: int, *labels: int | str) -> int:
    """Mix a run's seed with labels ("collect", 3) into a 31-bit seed, the same on every platform."""
    words = [zlib.crc32(label.encode()) if isinstance(label, str) else int(label) for label in labels]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0] >> 1)


def check_seed(seed: int) -> None:
    """Raise UsageError unless 0 <= seed < 2**31, what every generator here takes."""
    if not 0 <= seed < 2**31:
        raise UsageError(f"seed must be from 0 to {2**31 - 1}, got {seed}")
