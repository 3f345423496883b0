"""CMA-ES on a valley that one can see: two numbers, a hill drawn as a map, a generation at a time."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from wm_lib.control.evolution import CMAES
from wm_lib.course.plots import BLUE, ORANGE, RED
from wm_lib.course.widgets import assemble, stepper

if TYPE_CHECKING:
    from ipywidgets import VBox

START, SIGMA = (-1.0, 1.5), 0.5
POPULATION, GENERATIONS = 12, 40
VIEW = (-2.0, 2.0, -1.0, 3.0)  # left, right, bottom, top
GRID = 200


class Generation(NamedTuple):
    """A generation, before it is learned from.

    Attributes:
        mean: Of the distribution, (2,).
        covariance: Of the distribution, (2, 2).
        candidates: Drawn from it, (n, 2).
        fitness: Of the candidates, (n,); more is better.
    """

    mean: np.ndarray
    covariance: np.ndarray
    candidates: np.ndarray
    fitness: np.ndarray


def fitness(x: np.ndarray) -> np.ndarray:
    """Minus Rosenbrock's valley, (...,), of x (..., 2): curved and narrow, 0 at its best point (1, 1)."""
    return -((1 - x[..., 0]) ** 2 + 100 * (x[..., 1] - x[..., 0] ** 2) ** 2)


def evolve(sigma: float = SIGMA, seed: int = 0, num_generations: int = GENERATIONS) -> list[Generation]:
    """The generations of a search that begins at `START` with the standard deviation `sigma`."""
    search, found = CMAES(np.array(START), POPULATION, sigma, seed), []
    for _ in range(num_generations):
        mean, covariance, candidates = search.mean, search.covariance, search.ask()
        found.append(Generation(mean, covariance, candidates, fitness(candidates)))
        search.tell(found[-1].fitness)
    return found


def ellipse(covariance: np.ndarray) -> tuple[float, float, float]:
    """Width, height and angle in degrees of the ellipse at one standard deviation, of a covariance (2, 2)."""
    variance, directions = np.linalg.eigh(covariance)
    width, height = 2 * np.sqrt(np.maximum(variance, 0))
    return float(width), float(height), float(np.degrees(np.arctan2(directions[1, 0], directions[0, 0])))


@lru_cache(maxsize=1)
def _valley() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = np.linspace(*VIEW[:2], GRID), np.linspace(*VIEW[2:], GRID)
    return x, y, np.log10(1e-3 - fitness(np.stack(np.meshgrid(x, y), axis=-1)))


def draw_generation(generations: list[Generation], number: int) -> np.ndarray:
    """The map with one generation and the way of the means to it: uint8 (height, width, 3).

    The better half of the candidates is full, the others are hollow; ellipses are at one and two standard deviations.
    """
    now = generations[number]
    figure = Figure(figsize=(6.4, 5), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    axes.contourf(*_valley(), levels=14, cmap="Greys_r", alpha=0.6)
    better = np.argsort(-now.fitness)[: len(now.fitness) // 2]
    filled = np.isin(np.arange(len(now.fitness)), better)
    axes.scatter(*now.candidates[filled].T, s=28, color=BLUE, label="better half", zorder=3)
    axes.scatter(*now.candidates[~filled].T, s=28, facecolors="white", edgecolors=BLUE, label="the others", zorder=3)
    axes.plot(*np.array([g.mean for g in generations[: number + 1]]).T, color=RED, marker="+", label="mean, so far")
    width, height, angle = ellipse(now.covariance)
    drawn = {"angle": angle, "fill": False, "color": ORANGE, "linewidth": 2, "zorder": 4}
    axes.add_patch(Ellipse(now.mean, width, height, label="one sigma", **drawn))
    axes.add_patch(Ellipse(now.mean, 2 * width, 2 * height, linestyle="--", **drawn))
    axes.plot(1, 1, marker="*", markersize=14, color="black", linestyle="none", label="best point")
    axes.set(
        xlim=VIEW[:2], ylim=VIEW[2:], xlabel="first number", ylabel="second number", title=f"generation {number + 1}"
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def widget(seed: int = 0) -> VBox:
    """The search, generation by generation, from a first standard deviation of your choice."""
    import ipywidgets

    number = ipywidgets.IntSlider(1, min=1, max=GENERATIONS, description="generation")
    sigma = ipywidgets.FloatSlider(SIGMA, min=0.02, max=2.0, step=0.02, description="first sigma")
    found = {"generations": evolve(sigma.value, seed)}

    def draw() -> tuple[np.ndarray, str]:
        now = found["generations"][number.value - 1]
        words = (
            f"generation {number.value}: mean ({now.mean[0]:.3f}, {now.mean[1]:.3f}), its best candidate "
            f"{-now.fitness.max():.2g} above the bottom of the valley"
        )
        return draw_generation(found["generations"], number.value - 1), words

    # Before `assemble` observes, so that the search is a new one when it is drawn.
    sigma.observe(lambda change: found.update(generations=evolve(change.new, seed)), "value")
    description = "A curved valley from above, the candidates of a generation, their ellipse and the way of the mean"
    return assemble("cma-2d", draw, [number, sigma], description, ipywidgets.VBox([stepper(number), sigma]))
