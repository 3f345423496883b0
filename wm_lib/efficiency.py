"""What a comparison says: from measurements made while agents learned to ratios of decisions, tables and a picture.

Every figure here is computed from rows of one CSV, which `wm_lib.compare` writes and nobody edits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wm_lib.errors import StageError
from wm_lib.evaluation import summarise as interval_of_mean
from wm_lib.report import aligned, interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AGENTS = {"ours": "world model", "ppo": "PPO from pixels"}
LEVELS = (0.25, 0.5, 0.75, 1.0)
SMALL = 100_000  # decisions: the budget of the "Atari 100k" benchmark
AS_OURS = f"our score at {SMALL:,}"
RESAMPLES = 20_000


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        agent: "ours", "ppo" or "random".
        seed: Of the training.
        kind: "curve" while it learns, "final" at its end, with more episodes and other seeds.
        decisions: Real decisions made until then, the data of V and M included.
        score: Mean return.
        ci_low, ci_high: Its 95 % interval, over episodes.
        episodes: How many.
        cpu_seconds, wall_seconds: Spent on training until then, measurements excluded.
        interruptions: How often the training had been stopped and resumed; above 0 the seconds are approximate.
    """

    agent: str
    seed: int
    kind: str
    decisions: int
    score: float
    ci_low: float
    ci_high: float
    episodes: int
    cpu_seconds: float
    wall_seconds: float
    interruptions: int


@dataclass(frozen=True)
class Curve:
    """How one training went: numbers (n,) by measurement; it begins with random play, before any decision."""

    decisions: np.ndarray
    score: np.ndarray
    cpu_seconds: np.ndarray

    def crossing(self, level: float) -> float | None:
        """Decisions at which the score first reached `level`, on the line between two measurements; None: never."""
        reached = np.flatnonzero(self.score >= level)
        if not len(reached):
            return None
        i = reached[0]
        if i == 0:
            return float(self.decisions[0])
        share = (level - self.score[i - 1]) / (self.score[i] - self.score[i - 1])
        return float(self.decisions[i - 1] + share * (self.decisions[i] - self.decisions[i - 1]))

    def at(self, decisions: float) -> float | None:
        """The score after so many decisions, on the line between two measurements; None: it did not learn so long."""
        return None if decisions > self.decisions[-1] else float(np.interp(decisions, self.decisions, self.score))


def curves_of(rows: Sequence[Row], agent: str, collected: int = 0) -> dict[int, Curve]:
    """The curve of each seed.

    It is random play until the `collected` decisions of random play are made from which V and M learn.
    """
    start = _random(rows).score
    begin = [(at, start, 0.0) for at in sorted({0, collected})]
    found = {}
    for seed in sorted({row.seed for row in rows if row.agent == agent}):
        own = [row for row in rows if (row.agent, row.seed, row.kind) == (agent, seed, "curve")]
        own.sort(key=lambda row: row.decisions)
        points = [*begin, *((row.decisions, row.score, row.cpu_seconds) for row in own)]
        found[seed] = Curve(*np.array(points, float).T)
    return found


def summarise(rows: Sequence[Row], target: float, collected: int = 0) -> dict[str, Any]:
    """All figures of a comparison, of the seeds for which both agents are through.

    Args:
        rows: What was measured.
        target: Mean return that is wanted.
        collected: Decisions of random play with which each of our trainings began.

    Returns:
        `seeds`; `random_score`; `levels`, by the share of the way from random play to the target; `at_100k` and
        `final`, by agent; `as_ours`, how long PPO takes to our score at 100,000 decisions; `curves`, by agent, of all
        seeds. docs/formats.md says what each holds.

    Raises:
        StageError: No seed is through.
    """
    random = _random(rows)
    last = {(row.agent, row.seed): row for row in rows if row.kind == "final" and row.agent in AGENTS}
    seeds = sorted({seed for _, seed in last if all((agent, seed) in last for agent in AGENTS)})
    if not seeds:
        raise StageError("no seed of the comparison is through yet; go on with the same wm compare command")
    curves = {"ours": curves_of(rows, "ours", collected), "ppo": curves_of(rows, "ppo")}
    through = {agent: [curves[agent][seed] for seed in seeds] for agent in AGENTS}
    small = {agent: _small(rows, agent, through[agent], seeds) for agent in AGENTS}
    return {
        "seeds": seeds,
        "random_score": {"mean": random.score, "ci95": [random.ci_low, random.ci_high], "episodes": random.episodes},
        "levels": {
            str(share): _level(through, random.score + share * (target - random.score)) for share in LEVELS
        },
        "at_100k": small,
        "as_ours": _as_ours(through["ppo"], min(small["ours"]["mean"], target)) if small["ours"] else None,
        "final": {agent: _final([last[agent, seed] for seed in seeds]) for agent in AGENTS},
        "curves": {
            agent: [{"seed": seed} | {name: values.tolist() for name, values in vars(curve).items()}
                    for seed, curve in curves[agent].items()]
            for agent in AGENTS
        },
    }  # fmt: skip


def _random(rows: Sequence[Row]) -> Row:
    found = [row for row in rows if row.agent == "random"]
    if not found:
        raise StageError("random play was not measured yet; go on with the same wm compare command")
    return found[0]


def _level(through: Mapping[str, Sequence[Curve]], score: float) -> dict[str, Any]:
    """Decisions to a score, and their ratio."""
    steps, reached = {}, {}
    for agent, curves in through.items():
        steps[agent], reached[agent] = _steps_to(score, curves)
    return _ratio_of(steps, reached) | {"score": score}


def _as_ours(ppo: Sequence[Curve], score: float) -> dict[str, Any]:
    """As `_level`, for the score that ours has after `SMALL` decisions: how many PPO takes to it."""
    steps, reached = _steps_to(score, ppo)
    return _ratio_of({"ours": [SMALL] * len(ppo), "ppo": steps}, {"ours": len(ppo), "ppo": reached}) | {"score": score}


def _steps_to(score: float, curves: Sequence[Curve]) -> tuple[list[float], int]:
    """Decisions of each curve to a score, all that it played where it did not get there; and how many did."""
    crossings = [curve.crossing(score) for curve in curves]
    steps = [curve.decisions[-1] if at is None else at for curve, at in zip(curves, crossings, strict=True)]
    return steps, sum(at is not None for at in crossings)


def _ratio_of(steps: Mapping[str, Sequence[float]], reached: Mapping[str, int]) -> dict[str, Any]:
    missed = {agent: reached[agent] < len(steps[agent]) for agent in steps}
    both = missed["ours"] and missed["ppo"]  # then nothing can be said
    ours, ppo = (float(np.mean(steps[agent])) for agent in ("ours", "ppo"))
    bound = missed["ours"] or missed["ppo"]  # of which an interval of seeds that stopped says nothing
    return {
        "ours_steps": ours,
        "ppo_steps": ppo,
        "ours_reached": reached["ours"],
        "ppo_reached": reached["ppo"],
        "ratio": None if both else ppo / ours,
        "ci95": [None, None] if bound else ratio_interval(steps["ppo"], steps["ours"]),
        "lower_bound": missed["ppo"] and not both,
        "upper_bound": missed["ours"] and not both,
    }


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> list[float | None]:
    """95 % interval of mean(above) / mean(below): the percentile bootstrap over the seeds of each (Efron, 1979).

    With three seeds there are only ten different means of each, so it is coarse; with one it is [None, None].
    """
    if len(above) < 2 or len(below) < 2:
        return [None, None]
    rng = np.random.default_rng(0)
    means = [rng.choice(np.asarray(values, float), (RESAMPLES, len(values))).mean(1) for values in (above, below)]
    low, high = np.percentile(means[0] / means[1], (2.5, 97.5))
    return [float(low), float(high)]


def _small(rows: Sequence[Row], agent: str, curves: Sequence[Curve], seeds: Sequence[int]) -> dict[str, Any] | None:
    """Score after `SMALL` decisions, over seeds; of a single one over the episodes of the nearest measurement."""
    found = _over_seeds([curve.at(SMALL) for curve in curves], seeds)
    if found and len(seeds) == 1:
        own = [row for row in rows if (row.agent, row.seed, row.kind) == (agent, seeds[0], "curve")]
        nearest = min(own, key=lambda row: abs(row.decisions - SMALL))
        found["ci95"] = [found["mean"] + bound - nearest.score for bound in (nearest.ci_low, nearest.ci_high)]
    return found


def _over_seeds(values: Sequence[float | None], seeds: Sequence[int]) -> dict[str, Any] | None:
    """Mean over seeds with its interval; None if one of them has no value."""
    if any(value is None for value in values):
        return None
    found = interval_of_mean(values, seeds)
    return {"mean": found["mean"], "ci95": found["ci95"], "by_seed": found["returns"]}


def _final(rows: Sequence[Row]) -> dict[str, Any]:
    """Score at the end, over seeds (of a single one over its episodes), and what it took."""
    found = _over_seeds([row.score for row in rows], [row.seed for row in rows])
    if len(rows) == 1:
        found["ci95"] = [rows[0].ci_low, rows[0].ci_high]
    for name in ("decisions", "cpu_seconds", "wall_seconds"):
        found[name] = float(np.mean([getattr(row, name) for row in rows]))
    return found | {"interruptions": sum(row.interruptions for row in rows)}


def tables(found: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()) -> str:
    """The comparison as two Markdown tables; `others` are entries of `report.published`, labelled as such."""
    seeds = len(found["seeds"])
    steps = [("way to the target", "score", "seeds", *(f"{name}, decisions" for name in AGENTS.values()), "PPO / ours")]
    levels = {f"{float(share):.0%}": level for share, level in found["levels"].items()}
    if found["as_ours"]:
        levels |= {AS_OURS: found["as_ours"]}
    for name, level in levels.items():
        cells = []
        for agent in AGENTS:
            missing = seeds - level[f"{agent}_reached"]
            not_all = f" ({missing} of {seeds} seeds never)" if missing else ""
            cells.append(f"{level[f'{agent}_steps']:,.0f}{not_all}")
        steps.append((name, f"{level['score']:.1f}", str(seeds), *cells, _ratio(level)))
    scores = [_SCORES, *_score_rows(found)]
    return f"{aligned(steps)}\n\n{aligned([*scores, *_published_rows(others)])}"


def published_table(others: Sequence[Mapping[str, Any]]) -> str:
    """What others report, entries of `report.published`, where there is nothing of our own yet."""
    return aligned([_SCORES, *_published_rows(others)])


def overview(results: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]] = ()) -> str:
    """Several tasks' comparisons as Markdown tables: the ratios of decisions, the scores, and what others report of as
    few decisions, see `report.published`."""
    if not results:
        return "No task has been compared yet; to do it (hours): `wm compare --task pong --publish`"
    ratios = [("PPO / ours, decisions", "seeds", AS_OURS, *(f"{share:.0%} of the way" for share in LEVELS))]
    scores = [("task", *_SCORES)]
    for found in results:
        levels = [found["as_ours"], *(found["levels"][str(share)] for share in LEVELS)]
        ratios.append((found["task"], str(len(found["seeds"])), *map(_ratio, levels)))
        scores += [(found["task"], *cells) for cells in _score_rows(found)]
    small = {}
    for entry in others:
        if entry["decisions"] == SMALL:
            told = f"{entry['agent']} (seeds: {_seeds(entry)})"
            small.setdefault(told, {})[entry["task"]] = f"{entry['score']:.1f}"
    tasks = [found["task"] for found in results if any(found["task"] in scores for scores in small.values())]
    rows = [(task, *(scores.get(task, "-") for scores in small.values())) for task in tasks]
    parts = [ratios, scores]
    if rows:
        parts.append([(f"published, at {SMALL:,} decisions", *small), *rows])
    return "\n\n".join(map(aligned, parts))


_SCORES = ("agent", "seeds", "at 100,000 decisions", "final score", "decisions", "hours", "CPU hours")


def _score_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for agent, name in AGENTS.items():
        small, final = found["at_100k"][agent], found["final"][agent]
        hours = (f"{final[clock] / 3600:.2f}" for clock in ("wall_seconds", "cpu_seconds"))
        early = "-" if small is None else interval(small)
        yield name, str(len(found["seeds"])), early, interval(final), f"{final['decisions']:,.0f}", *hours


def _published_rows(others: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for entry in others:
        score, seeds = f"{entry['score']:.1f}", _seeds(entry)
        early, final = (score, "-") if entry["decisions"] == SMALL else ("-", score)
        yield f"{entry['agent']} (published)", seeds, early, final, f"{entry['decisions']:,}", "-", "-"


def _seeds(entry: Mapping[str, Any]) -> str:
    """Of how many trainings a published score is the mean, "-" where its source does not say."""
    return str(entry.get("seeds", len(entry.get("by_seed", ())) or "-"))


def _ratio(level: Mapping[str, Any] | None) -> str:
    if level is None:
        return "-"
    if level["ratio"] is None:
        return "neither" if not level["ours_reached"] + level["ppo_reached"] else "-"
    sign = "at least " if level["lower_bound"] else "at most " if level["upper_bound"] else ""
    low, high = level["ci95"]
    return f"{sign}{level['ratio']:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def figure(found: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """Score against decisions and against CPU hours: every seed thin, their mean with its 95 % interval thick.

    The mean goes as far as the shortest curve. Published scores of PPO stand as lines, labelled with their budget.
    """
    from wm_lib.course import plots

    panels = {}
    for title, column, unit in (("real decisions", "decisions", 1), ("CPU hours", "cpu_seconds", 3600)):
        panels[title] = {
            f"{AGENTS[agent]} (seeds: {len(curves)})": [
                (np.array(curve[column]) / unit, np.array(curve["score"])) for curve in curves
            ]
            for agent, curves in found["curves"].items()
        }
    lines = {"target": found["target"], "random play": found["random_score"]["mean"]}
    for entry in others:
        if entry["agent"].startswith("PPO") and entry["decisions"] != SMALL:
            lines[f"{entry['agent']}, {entry['decisions'] / 1e6:g} M decisions (published)"] = entry["score"]
    return plots.bands(panels, "score", lines, found["task"])
