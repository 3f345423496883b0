"""What `wm_lib.examine` measured, as tables for people; and what of it is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wm_lib import checkpoints
from wm_lib.errors import UsageError
from wm_lib.folders import project_root
from wm_lib.report import aligned
from wm_lib.worlds.truth import unit


def tables(found: dict[str, Any]) -> str:
    """What `examine` returned, as Markdown tables that read well as plain text too."""
    return "\n\n".join(part(found) for part in (eyes_table, memory_table, dream_table))


def eyes_table(found: dict[str, Any]) -> str:
    """V: what can be read from z, and of velocities from what C sees and from h; a line beside a small network."""
    seen = found["eyes"]
    text = (
        f"V of {_origin(found)}: {seen['num_params']:,} weights, {seen['num_frames']:,} frames; "
        f"{seen['active_units']} of {seen['z_dim']} latent units active"
    )
    kinds = {
        "z": ("linear", "mlp"),
        "z and h": ("velocity", "velocity mlp"),
        "h": ("velocity from h", "velocity from h mlp"),
    }
    rows = []
    for who, results in seen["probes"].items():
        for read_from, (line, network) in kinds.items():
            for name, by_line in results.get(line, {}).items():
                by_network = results.get(network, {}).get(name, {})
                moving = read_from != "z" and not name.endswith("_speed")
                counted = unit(name) + ("/decision" if moving else "")
                rows.append(
                    (who, f"change of {name}" if moving else name, read_from, counted,
                     *(_number(by_line.get(key)) for key in ("mean_baseline_error", "median_error", "p90_error")),
                     *(_number(by_network.get(key)) for key in ("median_error", "p90_error")),
                     _number(by_line.get("r2")), _number(by_network.get("r2")))
                )  # fmt: skip
    head = ("play", "quantity", "read from", "counted in", "error of the mean", "of a line", "nine of ten below",
            "of a network", "nine of ten below", "R² of the line", "of the network")  # fmt: skip
    return text if not rows else f"{text}\n\n{aligned([head, *rows])}"


def memory_table(found: dict[str, Any]) -> str:
    """M: surprise beside its rivals', reward and end, and how far it strays when it dreams on alone."""
    kept = found["memory"]
    rivals = {"copy the last z": "copy_last", "linear": "linear", "one Gaussian": "single_gaussian"}
    surprise = [("M", _number(kept["nll"])), *((name, _number(kept[f"{key}_nll"])) for name, key in rivals.items())]
    parts = [
        f"M of {_origin(found)}: {kept['num_steps']:,} held-out steps; "
        f"reward: squared error {kept['reward_mse']:.4g}, of the mean {kept['reward_variance']:.4g}; "
        f"end: {kept['done_nll']:.5f} nats a step, of the usual share {kept['done_entropy']:.5f}",
        aligned([("prediction of the next z", "nats a step"), *surprise]),
    ]
    for name in ("reward", "done"):
        groups = [(str(n), _number(said), _number(came)) for said, came, n in kept[f"{name}_calibration"]]
        parts.append(aligned([("steps", f"{name}: M said", "what came"), *groups]))
    figures = ("z", "z_copy", "pixels", "pixels_copy", "pixels_seen")
    rows = [(k, *(_number(row[name]) for name in figures)) for k, row in kept["drift"].items()]
    head = ("steps alone", "z (root mean square)", "copying", "moving pixels, of 255", "copying", "V of the real frame")
    parts.append(aligned([head, *rows]))
    for who, by_steps in kept["position_drift"].items():
        rows = [
            (k, name, unit(name), *(_number(row.get(name + suffix)) for suffix in ("", "_copy", "_seen")))
            for k, row in by_steps.items()
            for name in row
            if not name.endswith(("_copy", "_seen"))
        ]
        head = (f"steps alone ({who})", "where", "counted in", "the dream", "copying", "V of the real frame")
        parts.append(aligned([head, *rows]))
    return "\n\n".join(parts)


def dream_table(found: dict[str, Any]) -> str:
    """What the agent earns asleep and awake."""
    if not found["dream"]:
        return f"no agent of {found['task']} yet to dream with"
    return f"Dreams of {_origin(found)}\n\n{returns_table(found['dream'])}"


def returns_table(asleep: dict[str, Any]) -> str:
    """What `dreams.dream_against_reality` returned; returns with their standard errors."""

    def earned(result: dict[str, float]) -> str:
        return f"{_number(result['mean'])} ± {_number(result['standard_error'])}"

    ceiling = _number(asleep.get("rank_ceiling"))  # examinations before version 3 did not ask
    rows = [("awake", earned(asleep["real"]), earned(asleep["real_random"]), ceiling)]
    for temperature, result in asleep["dream"].items():
        correlation = _number(asleep["rank_correlation"][temperature])
        random = asleep["dream_random"][temperature]
        rows.append((f"asleep, temperature {temperature}", earned(result), earned(random), correlation))
    return aligned([(f"first {asleep['horizon']} decisions", "agent", "random play", "rank correlation"), *rows])


def _origin(found: dict[str, Any]) -> str:
    """Of which run the figures are, for a table's head."""
    failed = f"; FAILED: {', '.join(found['failed_gates'])}" if found.get("failed_gates") else ""
    return f"{found['task']} (rounds: {found['rounds']}, commit {found['commit'][:7]}{failed})"


def shipped(task: str) -> dict[str, Any] | None:
    """What a `full` run of this task showed, from `assets/manifests`; None if there is none."""
    path = shipped_path(project_root(), task)
    return checkpoints.read_json(path) if path.exists() else None


def publish(found: dict[str, Any], root: Path) -> None:
    """Put what `examine` returned to `assets/manifests`.

    Raises:
        UsageError: It is not of a run of budget full that has its C.
    """
    if "--budget full" not in found.get("command", "") or not found["dream"]:
        raise UsageError(
            f"only a full run with its controller is published, this one is of: {found.get('command', 'before')}; "
            f"type: wm train --component controller --task {found['task']} --budget full"
        )
    checkpoints.write_json(shipped_path(root, found["task"]), found)


def shipped_path(root: Path, task: str) -> Path:
    """Where `wm report --task ... --publish` puts it."""
    return root / "assets" / "manifests" / "world-models" / f"{task}.json"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
