"""Notebook 02: frames that show nothing, how long actions are held, and a split that does not leak."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wm_lib.course.exercises import check, compare, tried, wrong


def is_blank(frames: np.ndarray, tolerance: int = 10) -> np.ndarray:
    """Whether each frame, uint8 (n, height, width, 3), is of a single colour, give or take `tolerance` of 255."""
    darkest, brightest = frames.min(axis=(1, 2)).astype(int), frames.max(axis=(1, 2))
    return (brightest - darkest).max(axis=1) <= tolerance


@check
def check_is_blank(attempt: Callable) -> None:
    """On black, grey, red, nearly grey and nearly black frames, a ball of one pixel, and a picture."""
    rng = np.random.default_rng(0)
    frames = np.zeros((8, 64, 64, 3), np.uint8)
    frames[1] = 90
    frames[2] = (200, 30, 30)
    frames[3] = 90 + rng.integers(0, 9, frames[3].shape)
    frames[4, 30, 30] = 255  # a ball on black
    frames[5] = rng.integers(0, 256, frames[5].shape)
    frames[6] = 60
    frames[6, 30, 30, 2] = 120  # of one colour only
    frames[7] = rng.integers(0, 5, frames[7].shape)
    spread = frames.max((1, 2)).astype(int) - frames.min((1, 2))
    wanted = spread.max(1) <= 10
    whole = frames.reshape(8, -1)
    mistakes = {
        "black frames are found, and those of another single colour are missed": frames.max((1, 2, 3)) <= 10,
        "only frames that are exactly black are found": frames.max((1, 2, 3)) == 0,
        "frames of another single colour than black are found, and black ones are missed": wanted
        & (frames.max((1, 2, 3)) > 10),
        "a frame all red is of a single colour too: look at each colour for itself": np.ptp(whole.astype(int), 1) <= 10,
        "a red frame is missed, and so is what differs by no more than the tolerance": np.ptp(whole, 1) == 0,
        "what differs by no more than the tolerance counts as a single colour too": spread.max(1) == 0,
        "a ball of one pixel is something to see; a mean or a deviation overlooks it": frames.std((1, 2)).max(1) <= 10,
        "a pixel that differs in one of the colours is enough to see something": spread.min(1) <= 10,
        "it is turned round: True is for the blank ones": ~wanted,
        "give one answer for each frame": wanted.any(),
        "give one answer for each frame, not for each of its colours": spread <= 10,
    }
    found = tried(attempt, frames)
    compare(found, wanted, mistakes, "eight frames")


def same_after(action: np.ndarray, first: np.ndarray, k: int) -> float:
    """Share of pairs of decisions, k apart and of the same episode, that have the same action.

    Args:
        action: Integers (sequences, time).
        first: bool (sequences, time), true at the first decision of an episode.
        k: At least 1, less than `time`.
    """
    episode = first.cumsum(axis=1)
    within = episode[:, k:] == episode[:, :-k]
    return float((action[:, k:] == action[:, :-k])[within].mean())


@check
def check_same_after(attempt: Callable) -> None:
    """On sticky actions with many short episodes."""
    rng = np.random.default_rng(1)
    shape = (40, 60)
    first = rng.random(shape) < 0.1
    first[:, 0] = True
    action = np.zeros(shape, int)
    for t in range(shape[1]):
        new = first[:, t] | (rng.random(shape[0]) < 0.2)
        action[:, t] = np.where(new, rng.integers(3, size=shape[0]), action[:, t - 1])
    for k in (1, 4):
        same = action[:, k:] == action[:, :-k]
        passed = np.diff(first.cumsum(axis=1), prepend=0)
        starts = sum(passed[:, i : shape[1] - k + i] for i in range(1, k + 1))
        within = starts == 0
        wanted = same[within].mean()
        mistakes = {
            "pairs across the border of two episodes count too; leave them out": same.mean(),
            "it compares sequences, not moments: time is the second axis": (action[k:] == action[:-k]).mean(),
            "a pair across a border counts as different; leave it out of the denominator too": (same & within).mean(),
            "a border between the two is overlooked: an episode may begin at any of the k decisions": same[
                ~first[:, k:]
            ].mean(),
            "the wrong end is looked at: what matters is whether an episode began after the earlier decision": same[
                ~first[:, :-k]
            ].mean(),
            "that is the share of different actions": 1 - wanted,
            "the pairs within an episode are left out, and the others are kept": same[~within].mean(),
            "that counts them; give their share": same[within].sum(),
        }
        if k > 1:
            mistakes["k is not used: these are neighbours"] = (action[:, 1:] == action[:, :-1])[~first[:, 1:]].mean()
        compare(tried(attempt, action, first, k), wanted, mistakes, f"k = {k}")


def hold_out(num_sequences: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames s * length + t to train on and to test with: every tenth sequence is held out, at least one."""
    index = np.arange(num_sequences * length)
    held = index // length % 10 == min(5, num_sequences - 1)
    return index[~held], index[held]


@check
def check_hold_out(attempt: Callable) -> None:
    """Any sequences may be held out, but whole ones and about a tenth."""
    for num_sequences, length in ((41, 12), (16, 100), (3, 8), (2, 5)):
        case = f"{num_sequences} sequences of {length}"
        found = tried(attempt, num_sequences, length)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise wrong("two arrays are asked for: the frames to train on and those to test with")
        if any(np.asarray(part).dtype.kind == "b" for part in found):
            raise wrong("these are masks; numbers of frames are asked for, np.flatnonzero makes them")
        try:
            train, test = (np.asarray(part, np.int64).ravel() for part in found)
        except (TypeError, ValueError) as error:
            raise wrong("two arrays of integers are asked for") from error
        both, everything = np.concatenate([train, test]), np.arange(num_sequences * length)
        if not len(test) or not len(train):
            raise wrong(f"nothing is left to {'train on' if not len(train) else 'test with'}, for {case}")
        if len(both) == num_sequences and np.array_equal(np.sort(both), np.arange(num_sequences)):
            raise wrong("these are sequences; frames are asked for, s · length + t for all t")
        if np.intersect1d(train, test).size:
            raise wrong("some frames are on both sides")
        if not np.array_equal(np.sort(both), everything):
            raise wrong(f"the frames from 0 to {len(everything) - 1} should all be used, once, for {case}")
        shared = np.intersect1d(train // length, test // length).size
        if shared and np.intersect1d(train % num_sequences, test % num_sequences).size == 0:
            raise wrong("sequence and time are swapped: frame t of sequence s has the index s · length + t")
        if shared:
            raise wrong(
                "it leaks: a sequence is on both sides, so that frames are tested whose neighbours were learned"
            )
        held = len(test) // length
        if held > max(1, round(0.2 * num_sequences)):
            raise wrong(f"{held} of {num_sequences} sequences are held out; about a tenth is asked for")
        if held < num_sequences // 20:
            raise wrong(f"only {held} of {num_sequences} sequences are held out; about a tenth is asked for")
