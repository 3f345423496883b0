"""The first guess of C: returns added up by hand, regressions on whole matrices, and a world whose answer is known."""

from __future__ import annotations

import numpy as np

from wm_lib.control import first_guess as guess


class Seen:
    """A world model whose features are z and the z before it."""

    z_dim, feature_dim, state_dim = 3, 6, 3

    def initial_state(self, batch: int) -> np.ndarray:
        return np.zeros((batch, 3), np.float32)

    def features(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        return np.concatenate([z, h], axis=1)

    def step(self, z: np.ndarray, action: np.ndarray, h: np.ndarray) -> np.ndarray:
        return z


RULE = np.random.default_rng(5).normal(size=(3, 4))  # the best action is argmax(z @ RULE)


def played(sequences: int, length: int) -> dict[str, np.ndarray]:
    """Random play in a world that pays an action z @ RULE, and all the same for z itself, with episodes of 25 steps."""
    rng = np.random.default_rng(0)
    mu = rng.normal(size=(sequences, length, 3)).astype(np.float32)
    action = rng.integers(4, size=(sequences, length))
    reward = np.take_along_axis(mu @ RULE, action[..., None], 2)[..., 0] + mu[..., 0]
    steps = np.arange(length) % 25
    first, terminated = (np.broadcast_to(steps == at, (sequences, length)) for at in (0, 24))
    rows = {"mu": mu, "action": action, "reward": reward.astype(np.float32), "first": first, "terminated": terminated}
    return rows | {"truncated": np.zeros_like(terminated)}


def test_returns_are_the_discounted_sums_to_the_end_of_the_episode() -> None:
    rng = np.random.default_rng(1)
    reward, done = rng.normal(size=(3, 30)), rng.random((3, 30)) < 0.1
    found = guess.discounted_returns(reward, done)
    for i in range(3):
        for t in range(30):
            ends = np.flatnonzero(done[i, t:])
            stop = t + ends[0] + 1 if len(ends) else 30
            np.testing.assert_allclose(found[i, t], sum(guess.DISCOUNT**k * r for k, r in enumerate(reward[i, t:stop])))


def test_the_weights_are_those_of_regressions_on_all_rows_at_once() -> None:
    data = played(4, 150)
    controller = guess.first_guess(Seen(), data, 4)
    returns = guess.discounted_returns(data["reward"], data["terminated"])
    usable = 150 - 60
    before = np.concatenate([np.zeros((4, 1, 3)), data["mu"][:, :-1]], axis=1) * ~data["first"][..., None]
    x = np.concatenate([np.ones((4, 150, 1)), data["mu"], before], axis=2)[:, :usable].reshape(-1, 7)
    y, action = returns[:, :usable].ravel(), data["action"][:, :usable].ravel()

    def ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        extra = np.sqrt(guess.RIDGE * len(x)) * np.eye(7)[1:]
        return np.linalg.lstsq(np.vstack([x, extra]), np.append(y, np.zeros(6)), rcond=None)[0]

    more = y - x @ ridge(x, y)
    wanted = np.stack([ridge(x[action == a], more[action == a]) for a in range(4)], axis=1)
    wanted /= np.sqrt(np.square(wanted).mean())
    np.testing.assert_allclose(controller.biases[0], wanted[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(controller.weights[0], wanted[1:], rtol=1e-4, atol=1e-5)


def test_it_finds_the_action_that_pays() -> None:
    controller = guess.first_guess(Seen(), played(128, 200), 4)
    z = np.random.default_rng(2).normal(size=(2000, 3))
    chosen = controller.act(np.concatenate([z, np.zeros((2000, 3))], axis=1))
    assert (chosen == (z @ RULE).argmax(1)).mean() > 0.85
    np.testing.assert_allclose(np.sqrt(np.square(controller.params).mean()), 1, rtol=1e-5)
