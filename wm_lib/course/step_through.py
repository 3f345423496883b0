"""An episode, decision by decision: the frame, what V keeps of it, what M expects next, and what the agent did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wm_lib.course.films import Recording
from wm_lib.course.widgets import assemble, panes, stepper
from wm_lib.tasks import ACTION_NAMES, Task

if TYPE_CHECKING:
    from ipywidgets import VBox

    from wm_lib.models.neural import NeuralWorldModel

NUM_FUTURES = 3


def memories(world_model: NeuralWorldModel, z: np.ndarray, action: np.ndarray, first: np.ndarray) -> np.ndarray:
    """M's memory before each decision (time, state_dim), of z (time, z_dim), action (time,) and first bool (time,)."""
    h, found = world_model.initial_state(1), []
    for t in range(len(z)):
        if first[t]:
            h = world_model.initial_state(1)
        found.append(h[0])
        h = world_model.step(z[t : t + 1], action[t : t + 1], h)
    return np.array(found)


def futures(
    log_pi: np.ndarray, mu: np.ndarray, log_sigma: np.ndarray, num: int = NUM_FUTURES
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable futures that can be told apart.

    A future takes one component of the mixture for every number of z, and z is their means. A component that lies
    within its own width, or within that of the likeliest one, of the likeliest is not another future.

    Args:
        log_pi, mu, log_sigma: One mixture for each number of z, (z_dim, num_mixtures).
        num: Futures, at most.

    Returns:
        z float32 (n, z_dim) and the log probability (n,) of the choice, the likeliest first; n is at least 1.
    """
    best = log_pi.argmax(1)[:, None]
    width = np.maximum(np.exp(log_sigma), np.take_along_axis(np.exp(log_sigma), best, 1))
    apart = np.abs(mu - np.take_along_axis(mu, best, 1)) > width
    np.put_along_axis(apart, best, True, 1)
    open_ = np.where(apart, log_pi.astype(np.float64), -np.inf)
    # The dimensions are independent: what is among the best choices of all begins as one of the best of the first few.
    total, z = np.zeros(1), np.zeros((1, 0), np.float32)
    for values, means in zip(open_, mu, strict=True):
        joint = total[:, None] + values
        order = np.argsort(-joint, axis=None, kind="stable")[:num]
        row, component = np.unravel_index(order, joint.shape)
        total, z = joint[row, component], np.column_stack([z[row], means[component].astype(np.float32)])
    possible = np.isfinite(total)
    return z[possible], total[possible]


def draw_moment(world_model: NeuralWorldModel, frame: np.ndarray, following: np.ndarray, z: np.ndarray) -> np.ndarray:
    """A frame, V's drawing of it and the frame that came, and below M's futures: uint8 (height, width, 3).

    Args:
        world_model: V.
        frame, following: uint8 (64, 64, 3).
        z: (1 + n, z_dim), of the frame, then of the futures.
    """
    drawn = world_model.decode(z)
    names = [f"M expects, {n}." for n in range(1, len(drawn))]
    return panes(
        [
            {"the frame": frame, "V draws": drawn[0], "what came": following},
            dict(zip(names, drawn[1:], strict=True)),
        ],
        zoom=3,
    )


def widget(task: Task, world_model: NeuralWorldModel, recording: Recording) -> VBox:
    """An episode to go through with buttons and a slider.

    Args:
        task: What is played.
        world_model: V and M.
        recording: Of one environment, at least two decisions; `films.record` makes it.
    """
    import ipywidgets

    frames, action, reward, done = (column[:, 0] for column in recording)
    z, first = world_model.encode(frames), np.concatenate([[True], done[:-1]])
    h, names = memories(world_model, z, action, first), ACTION_NAMES[task.name]
    slider = ipywidgets.IntSlider(0, min=0, max=len(frames) - 2, description="decision")

    def draw() -> tuple[np.ndarray, str]:
        t = slider.value
        log_pi, mu, log_sigma, paid, end = world_model.predict(z[t : t + 1], action[t : t + 1], h[t : t + 1])
        ahead, log_p = futures(log_pi[0], mu[0], log_sigma[0])
        odds = ", ".join(f"{ratio:.2g}" for ratio in np.exp(log_p - log_p[0])[1:])
        others = f"; the other futures are {odds} times as likely as the first" if odds else "; no other future"
        words = (
            f"decision {t}: the agent chose {names[action[t]]}, was paid {reward[t]:.2f} (M expected {paid[0]:.2f})"
            f"{' and the episode ended' if done[t] else ''}; M held the end for {100 * end[0]:.1f} % likely{others}"
        )
        return draw_moment(world_model, frames[t], frames[t + 1], np.concatenate([z[t : t + 1], ahead])), words

    description = f"The agent in {task.name}: a frame, what V draws of it, what came next, and what M expected"
    return assemble("step-through", draw, [slider], description, stepper(slider))
