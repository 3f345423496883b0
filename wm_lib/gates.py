"""Checks between the stages: is what we have good enough to build on?

Every gate measures one thing and compares it with what is expected; it neither prints nor raises. `report` shows
them as a table, and `require` stops a training at the first that failed and says what to try. The thresholds
tell the broken from the usable and are no targets: they are meant to fire on a stage on which no later one can
stand, whatever the budget, short of trainings of a few updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from wm_lib.drift import HORIZONS, open_loop_error
from wm_lib.errors import StageError
from wm_lib.models.world_model import WorldModel
from wm_lib.report import aligned
from wm_lib.rollouts import Rollouts

VERSION = 4  # raise it when a check measures something else for the same settings
COLUMNS = ("gate", "", "measured", "expected")


@dataclass(frozen=True)
class Gate:
    """One check and its outcome.

    Attributes:
        name: What was checked.
        passed: Whether it is good enough.
        measured: What was found, for people.
        expected: What is good enough, for people.
        advice: What to try when it is not.
        values: The numbers behind `measured` and `expected`; None where one is not finite (JSON has no infinity).
    """

    name: str
    passed: bool
    measured: str
    expected: str
    advice: str
    values: dict[str, float | None] = field(default_factory=dict)


def frames_are_alive(
    rollouts: Rollouts,
    *,
    num_frames: int = 256,
    max_blank: float = 0.1,
    min_moving: float = 0.25,
    min_distinct: float = 0.1,
) -> Gate:
    """The frames show something, and it moves.

    Args:
        rollouts: The data.
        num_frames: How many to look at, spread evenly; each together with the frame that follows.
        max_blank: Largest share of frames of a single colour, black included. None of the tasks shows such a frame;
            a renderer that failed shows nothing else, and one that fails now and then is not to be trusted.
        min_moving: Smallest share of frames that differ from the next of their episode. Nearly all do. Ours may
            rest between two balls of Pong; a quarter is far below any play and far above a picture that hangs.
        min_distinct: Smallest share of different frames in the sample. Starts are alike, games are not.
    """
    flat = np.arange(rollouts.num_frames).reshape(rollouts.num_sequences, rollouts.length)
    same_episode = ~rollouts.first[:, 1:]
    pairs = flat[:, :-1][same_episode]
    if not len(pairs):  # episodes of one frame
        pairs = flat.ravel()[:-1]
    chosen = pairs[np.unique(np.linspace(0, len(pairs) - 1, num_frames).astype(int))]
    now, following = rollouts.gather(chosen), rollouts.gather(chosen + 1)
    pixels = now.reshape(len(now), -1, 3)
    plain = (pixels.max(1).astype(int) - pixels.min(1)).max(1) <= 10  # of 255, what compression may leave
    black = pixels.max((1, 2)) <= 10
    values = {
        "black": float(black.mean()),
        "single_colour": float(plain.mean()),
        "moving": float((now != following).any((1, 2, 3)).mean()),
        "distinct": len({frame.tobytes() for frame in now}) / len(now),
    }
    blank_text = f"{values['black']:.0%} of the frames black, {values['single_colour']:.0%} of a single colour"
    return Gate(
        "frames",
        values["single_colour"] <= max_blank and values["moving"] >= min_moving and values["distinct"] >= min_distinct,
        f"{blank_text}, {values['moving']:.0%} differ from the next, {values['distinct']:.0%} distinct",
        f"at most {max_blank:.0%} of a single colour, {min_moving:.0%} differing, {min_distinct:.0%} distinct",
        "look at the frames (notebook 02), try the other backend of the environment and collect again",
        values | {"max_blank": max_blank, "min_moving": min_moving, "min_distinct": min_distinct},
    )


def enough_episodes(rollouts: Rollouts, *, minimum: int = 8) -> Gate:
    """The data is of several episodes.

    Args:
        rollouts: The data.
        minimum: Fewest episodes begun. A tenth of the data is held out, and probes are tested on a quarter of the
            episodes: with fewer than eight that is a single one, and what holds for it may be chance.
    """
    begun = int(rollouts.first.sum())
    finished = int((rollouts.terminated | rollouts.truncated).sum())
    return Gate(
        "episodes",
        begun >= minimum,
        f"{begun} episodes begun, {finished} finished",
        f"at least {minimum} begun",
        "raise collect.num_envs or collect.num_steps and collect again",
        {"begun": begun, "finished": finished, "minimum": minimum},
    )


def active_units(mu: np.ndarray, *, min_share: float = 0.25, threshold: float = 0.01) -> Gate:
    """V uses its latents: the posterior has not collapsed onto the prior.

    Args:
        mu: Means of V's posterior, (..., z_dim).
        min_share: Smallest share of the dimensions that must vary. The positions of two things are four numbers, and
            networks do not code tidily: with fewer than a quarter of 32, something in the frame is not in z.
        threshold: Variance over the data above which a dimension counts as active (Burda et al., 2016).
    """
    z_dim = mu.shape[-1]
    variance = mu.reshape(-1, z_dim).var(axis=0, dtype=np.float64)
    active = int((variance > threshold).sum())
    minimum = max(1, math.ceil(min_share * z_dim))
    return Gate(
        "active_units",
        active >= minimum,
        f"{active} of {z_dim} latent units active",
        f"at least {minimum}",
        "lower vae.beta or raise vae.num_updates",
        {"active": active, "z_dim": z_dim, "minimum": minimum},
    )


def probe_error(
    results: Mapping[str, Mapping[str, float | None]],
    *,
    max_ratio: float = 0.5,
    limits: Mapping[str, float] | None = None,
    only: Sequence[str] | None = None,
) -> Gate:
    """What matters in the frame can be read from z.

    Args:
        results: What `wm_lib.probes.probe` returns.
        max_ratio: Largest median error, as a share of that of always answering the mean. A V that lost a thing stands
            near 1, one that sees it below 0.2; agents whose V stood above a half played without a ball.
        limits: Largest median error of single quantities in their own units, in place of the ratio.
        only: The quantities to judge, all if None. For z: `wm_lib.worlds.truth.frame_names`.
    """
    limits = limits or {}
    values: dict[str, float | None] = {}
    texts, lost, unseen = [], [], []
    for name in results if only is None else only:
        error, baseline = results[name]["median_error"], results[name]["mean_baseline_error"]
        if error is None or baseline is None:
            unseen.append(name)
            continue
        limit = limits.get(name, max_ratio * baseline)
        values |= {name: _finite(error), f"{name}_mean": _finite(baseline), f"{name}_limit": _finite(limit)}
        texts.append(f"{name} {error:.2f} (mean {baseline:.2f})")
        if not error <= limit:
            lost.append(name)
    absolute = "".join(f", {name} {limit:g}" for name, limit in limits.items() if name in values)
    return Gate(
        "probe",
        not lost and not unseen,
        "; ".join([*(["median error: " + ", ".join(texts)] if texts else []),
                   *([f"{', '.join(unseen)} not in sight often enough to be probed"] if unseen else [])]),
        f"at most {max_ratio:g} x the error of the mean{absolute}",
        f"V does not see {', '.join(lost)}: raise vae.num_updates or vae.foreground_weight" if lost
        else "look at the frames (notebook 02), or raise gates.probe_decisions",
        values,
    )  # fmt: skip


def nll_beats_copy_last(facts: Mapping[str, float], *, margin: float = 0.0) -> Gate:
    """M predicts better than "nothing changes".

    Args:
        facts: What `evaluate_mdn_rnn` returns: `nll` and `copy_last_nll`, of held-out data.
        margin: Nats per step by which it must be better. None are asked for: copying is what M could do without
            any memory, so whatever does not beat it has learnt nothing.
    """
    nll, copy = float(facts["nll"]), float(facts["copy_last_nll"])
    return Gate(
        "nll",
        math.isfinite(nll) and nll < copy - margin,
        f"NLL {nll:.2f} nats per step",
        f"below copying the last z, {copy:.2f}" + (f", by {margin:g}" if margin else ""),
        "raise mdnrnn.num_updates, or lower mdnrnn.learning_rate if the loss was unsteady",
        {"nll": _finite(nll), "copy_last_nll": _finite(copy), "margin": margin},
    )


def prediction_beats_copy_last(facts: Mapping[str, float], *, max_ratio: float = 0.95) -> Gate:
    """The reservoir predicts the next z better than "nothing changes".

    Args:
        facts: What `wm_lib.models.reservoir.measure` returns of held-out data: `z_mse` and `copy_mse`.
        max_ratio: Largest share of the copy's squared error. A head that learnt nothing stands at 1.
    """
    error, copy = float(facts["z_mse"]), float(facts["copy_mse"])
    return Gate(
        "prediction",
        math.isfinite(error) and error <= max_ratio * copy,
        f"squared error {error:.3g} of the next z",
        f"at most {max_ratio:g} x that of copying the last z, {copy:.3g}",
        "raise collect.num_steps, or raise reservoir.ridge if the error was above copying's",
        {"z_mse": _finite(error), "copy_mse": _finite(copy), "max_ratio": max_ratio},
    )


def drift_bounded(
    world_model: WorldModel,
    latents: Mapping[str, np.ndarray],
    *,
    sequences: np.ndarray | None = None,
    horizons: Sequence[int] = HORIZONS,
    max_ratio: float = 1.5,
) -> Gate:
    """A dream stays where real data lies, however little it still knows of what will happen.

    Args:
        world_model, latents, sequences, horizons: See `open_loop_error`.
        max_ratio: Largest error, as a multiple of the data's spread. Answering the mean has a ratio of 1 and another
            real moment one of 1.41 (the root of 2): a dream beyond 1.5 has left for places where V never was.
    """
    found = open_loop_error(world_model, latents, sequences=sequences, horizons=horizons)
    spread, steps = found["spread"], [k for k in horizons if f"error_{k}" in found]
    texts = [f"k={k} {found[f'error_{k}']:.3g} (copying {found[f'copy_{k}']:.3g})" for k in steps]
    return Gate(
        "drift",
        bool(steps) and all(found[f"error_{k}"] <= max_ratio * spread for k in steps),
        f"root of the mean squared error of z after k dreamt steps: {', '.join(texts)}"
        if texts
        else "no episode is long enough to dream along",
        f"at most {max_ratio * spread:.3g} = {max_ratio:g} x the data's spread",
        "raise mdnrnn.num_updates or mdnrnn.sequence_length, or lower mdnrnn.learning_rate",
        {name: _finite(value) for name, value in found.items()} | {"max_ratio": max_ratio},
    )


def report(gates: Sequence[Gate]) -> str:
    """The gates as a Markdown table, aligned so that it reads well as plain text too, with the advice under it."""
    rows = [COLUMNS] + [(g.name, "ok" if g.passed else "FAILED", g.measured, g.expected) for g in gates]
    return "\n".join([aligned(rows), *(f"{gate.name}: {gate.advice}" for gate in gates if not gate.passed)])


def require(gates: Sequence[Gate]) -> None:
    """Go on only if all gates passed.

    Raises:
        StageError: One did not; one line about the first: what was measured, what was expected and what to try.
    """
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        gate = failed[0]
        others = f" (failed too: {', '.join(other.name for other in failed[1:])})" if failed[1:] else ""
        raise StageError(
            f"gate '{gate.name}' failed: measured {gate.measured}; expected {gate.expected}{others}; "
            f"try: {gate.advice}; --force goes on"
        )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
