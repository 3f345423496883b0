"""C, the hand: from what the world model offers to an action; a linear map, or a small tanh network.

Section 2.3 of Ha & Schmidhuber (2018): C is kept as small as possible, so that evolution can find its weights
and the knowledge of the world has to live in V and M. Plain NumPy, whichever optimiser found the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from wm_lib import checkpoints
from wm_lib.errors import StageError

# In standard deviations. A feature further out comes from a world model gone astray and must not decide.
FEATURE_LIMIT = 10.0


@dataclass(eq=False)
class Controller:
    """A network with tanh hidden layers over normalised features; linear when it has one layer.

    Attributes:
        weights: float32 (in, out) of each layer; the last `out` is the number of actions.
        biases: float32 (out,) of each layer.
        feature_mean: float32 (feature_dim,), taken off the features; zeros by default.
        feature_std: float32 (feature_dim,), above 0, the features are divided by it; ones by default.
        meta: What is worth knowing about it (recent_z, real_steps, ...); JSON values, saved with it.

    Raises:
        ValueError: The layers do not fit together, or a feature_std is not above 0.
    """

    weights: list[np.ndarray]
    biases: list[np.ndarray]
    feature_mean: np.ndarray | None = None
    feature_std: np.ndarray | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = [np.asarray(weight, np.float32) for weight in self.weights]
        self.biases = [np.asarray(bias, np.float32) for bias in self.biases]
        dim = self.weights[0].shape[0]
        mean, std = self.feature_mean, self.feature_std
        self.feature_mean = np.zeros(dim, np.float32) if mean is None else np.asarray(mean, np.float32)
        self.feature_std = np.ones(dim, np.float32) if std is None else np.asarray(std, np.float32)
        if self.feature_mean.shape != (dim,) or self.feature_std.shape != (dim,):
            raise ValueError(f"feature_mean and feature_std must be ({dim},), like the first layer's input")
        if not (self.feature_std > 0).all():
            raise ValueError("every feature_std must be above 0")
        for weight, bias in zip(self.weights, self.biases, strict=True):
            if weight.shape != (dim, len(bias)):
                raise ValueError(f"a layer of shape {weight.shape} does not fit {dim} inputs and {len(bias)} biases")
            dim = len(bias)

    @property
    def feature_dim(self) -> int:
        """Number of values it reads."""
        return self.weights[0].shape[0]

    @property
    def num_actions(self) -> int:
        """Number of actions it chooses from."""
        return self.weights[-1].shape[1]

    @classmethod
    def linear(cls, params: np.ndarray, feature_dim: int, num_actions: int) -> Self:
        """The paper's C, logits = x W + b, from one vector: W (feature_dim, num_actions) by rows, then b."""
        wanted = num_params(feature_dim, num_actions)
        if params.shape != (wanted,):
            raise ValueError(f"{wanted} parameters wanted, got shape {params.shape}")
        cut = feature_dim * num_actions
        return cls([params[:cut].reshape(feature_dim, num_actions)], [params[cut:]])

    @property
    def params(self) -> np.ndarray:
        """The vector that `linear` makes a linear controller from."""
        return np.concatenate([self.weights[0].ravel(), self.biases[0]])

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Unnormalised log-probabilities, float32 (batch, num_actions), of features (batch, feature_dim)."""
        x = normalise(features, self.feature_mean, self.feature_std)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.tanh(x @ weight + bias)
        return x @ self.weights[-1] + self.biases[-1]

    def act(self, features: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> np.ndarray:
        """Actions, int64 (batch,), for features (batch, feature_dim); see `choose` for `rngs`."""
        return choose(self.logits(features), rngs)

    def save(self, path: Path, meta: dict[str, Any] | None = None) -> str:
        """Write it with its meta and `meta` on top; returns the file's sha256."""
        tensors = {"feature_mean": self.feature_mean, "feature_std": self.feature_std}
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors |= {f"weight.{layer}": weight, f"bias.{layer}": bias}
        return checkpoints.save(path, tensors, self.meta | (meta or {}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            StageError: The file is missing, damaged, or not a controller.
        """
        tensors, meta = checkpoints.load(path)
        num_layers = sum(name.startswith("weight.") for name in tensors)
        try:
            return cls(
                [tensors[f"weight.{layer}"] for layer in range(num_layers)],
                [tensors[f"bias.{layer}"] for layer in range(num_layers)],
                tensors["feature_mean"],
                tensors["feature_std"],
                meta,
            )
        except (KeyError, IndexError, ValueError) as error:
            raise StageError(f"{path} is not a controller ({error}); delete it and train C again") from error


@dataclass(eq=False)
class Population:
    """Many linear controllers at once: what an agent plays with while a generation is measured.

    Row i of the features belongs to candidate i // rollouts.

    Attributes:
        params: float32 (num_candidates, num_params), each row as in `Controller.linear`.
        feature_dim: Number of values each of them reads.
    """

    params: np.ndarray
    feature_dim: int

    def act(self, features: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> np.ndarray:
        """Actions, int64 (num_candidates * rollouts,), for features of as many rows."""
        grouped = features.reshape(len(self.params), -1, self.feature_dim)
        logits = population_logits(self.params, grouped)
        return choose(logits.reshape(len(features), -1), rngs)


def normalise(features: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Features (batch, feature_dim) in standard deviations from their mean, float32, within +-`FEATURE_LIMIT`."""
    return np.clip((np.asarray(features, np.float32) - mean) / std, -FEATURE_LIMIT, FEATURE_LIMIT)


def num_params(feature_dim: int, num_actions: int) -> int:
    """Number of weights and biases of a linear controller."""
    return (feature_dim + 1) * num_actions


def population_logits(params: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Logits of a whole population of linear controllers in one batched product.

    Args:
        params: float32 (num_candidates, num_params), each row as in `Controller.linear`.
        features: float32 (num_candidates, rollouts, feature_dim).

    Returns:
        float32 (num_candidates, rollouts, num_actions), what each controller's own `logits` would say.
    """
    num_candidates, _, feature_dim = features.shape
    num_actions = params.shape[1] // (feature_dim + 1)
    if params.shape != (num_candidates, num_params(feature_dim, num_actions)):
        raise ValueError(f"parameters {params.shape} do not fit features {features.shape}")
    cut = feature_dim * num_actions
    weights = params[:, :cut].reshape(num_candidates, feature_dim, num_actions)
    return np.clip(features, -FEATURE_LIMIT, FEATURE_LIMIT) @ weights + params[:, None, cut:]


def choose(logits: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> np.ndarray:
    """Actions, int64 (batch,), from logits (batch, num_actions).

    Args:
        rngs: None for the most likely action, the lowest index among equals. Otherwise one generator a row:
            actions are sampled from the softmax with a single uniform number of the row's own generator, so
            that an episode depends on its own seed and not on its neighbours in the batch.
    """
    if rngs is None:
        return logits.argmax(axis=1)
    logits = logits.astype(np.float64)
    cumulative = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
    uniform = np.array([rng.random() for rng in rngs])
    # Inverse CDF: how many of the bounds between actions lie at or below the drawn point.
    return (uniform[:, None] * cumulative[:, -1:] >= cumulative[:, :-1]).sum(axis=1)
