"""Where C begins its evolution in the modes without torch: least squares on what random play has earned.

For each action a linear function of the features says how much more than usual was earned after it was chosen; taking
the largest is one step of policy improvement over random play (Sutton & Barto, 2018, section 4.2), in closed form. It
costs no further decision, and evolution, which would have to find this direction among all others, goes on from there.
"""

from __future__ import annotations

import numpy as np

from wm_lib.control.controller import Controller
from wm_lib.models.regression import Moments
from wm_lib.models.world_model import WorldModel

DISCOUNT = 0.95  # of what comes a decision later
RIDGE = 0.03


def discounted_returns(reward: np.ndarray, done: np.ndarray) -> np.ndarray:
    """What was earned from each step on, float64 (sequences, time); episodes that go on end with the sequence.

    Args:
        reward: (sequences, time).
        done: bool (sequences, time), whether the episode ended there.
    """
    returns = np.zeros(reward.shape)
    later = np.zeros(len(reward))
    for t in reversed(range(reward.shape[1])):
        later = returns[:, t] = reward[:, t] + DISCOUNT * np.where(done[:, t], 0, later)
    return returns


def first_guess(world_model: WorldModel, latents: dict[str, np.ndarray], num_actions: int) -> Controller:
    """A linear controller by ridge regression of returns on features, with weights of root mean square 1.

    Args:
        world_model: What the features come from.
        latents: `mu`, `action`, `reward`, `terminated`, `truncated`, `first`, see `wm_lib.models.latents`.
        num_actions: Number of actions.
    """
    returns = discounted_returns(latents["reward"], latents["terminated"] | latents["truncated"])
    # Steps whose returns the end of the data cuts short would teach that late is bad.
    usable = returns.shape[1] - min(round(3 / (1 - DISCOUNT)), returns.shape[1] // 2)
    dim = 1 + world_model.feature_dim
    usual, after = Moments(dim, 1), [Moments(dim, 1) for _ in range(num_actions)]
    h = world_model.initial_state(len(returns))
    for t in range(usable):
        h = np.where(latents["first"][:, t, None], np.float32(0), h)
        z, action = latents["mu"][:, t], latents["action"][:, t]
        x = np.concatenate([np.ones((len(z), 1)), world_model.features(z, h)], axis=1)
        usual.add(x, returns[:, t, None])
        for a, moments in enumerate(after):
            moments.add(x[action == a], returns[action == a, t, None])
        h = world_model.step(z, action, h)
    value = usual.ridge(RIDGE)
    for moments in after:
        moments.xy -= moments.xx @ value  # from here on: more than usual
    weights = np.concatenate([moments.ridge(RIDGE) for moments in after], axis=1)
    weights /= max(np.sqrt(np.square(weights).mean()), 1e-12)
    return Controller([weights[1:]], [weights[0]])
