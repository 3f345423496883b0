import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wm_lib import checkpoints
from wm_lib.control.controller import Controller, Population, choose, num_params, population_logits
from wm_lib.errors import StageError


def generators(seeds):
    return [np.random.default_rng(seed) for seed in seeds]


def test_linear_reads_the_flat_vector_as_weights_by_rows_then_biases():
    params = np.array([1, 2, 3, 4, 5, 6, 10, 20], np.float32)
    controller = Controller.linear(params, feature_dim=3, num_actions=2)
    assert (controller.feature_dim, controller.num_actions) == (3, 2)
    logits = controller.logits(np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1]], np.float32))
    assert logits.tolist() == [[11, 22], [13, 24], [19, 32]]
    assert logits.dtype == np.float32


def test_hidden_layers_are_tanh_of_clipped_normalised_features():
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(4, 5)), rng.normal(size=(5, 6)), rng.normal(size=(6, 3))]
    biases = [rng.normal(size=5), rng.normal(size=6), rng.normal(size=3)]
    mean, std = np.array([1.0, -2.0, 0.0, 5.0]), np.array([1.0, 0.5, 0.001, 3.0])
    features = rng.normal(size=(7, 4))  # the third one is beyond 10 standard deviations
    expected = []
    for row in features:
        x = [max(-10.0, min(10.0, (row[i] - mean[i]) / std[i])) for i in range(4)]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = [np.tanh(sum(x[i] * weight[i, j] for i in range(len(x))) + bias[j]) for j in range(len(bias))]
        expected.append([sum(x[i] * weights[-1][i, j] for i in range(6)) + biases[-1][j] for j in range(3)])
    logits = Controller(weights, biases, mean, std).logits(features)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"weights": [np.zeros((3, 4)), np.zeros((5, 2))], "biases": [np.zeros(4), np.zeros(2)]},
        {"weights": [np.zeros((3, 2))], "biases": [np.zeros(3)]},
        {"weights": [np.zeros((3, 2))], "biases": [np.zeros(2)], "feature_mean": np.zeros(4)},
        {"weights": [np.zeros((3, 2))], "biases": [np.zeros(2)], "feature_std": np.zeros(3)},
    ],
)
def test_layers_that_do_not_fit_are_refused(kwargs):
    with pytest.raises(ValueError):
        Controller(**kwargs)


def test_linear_refuses_a_vector_of_the_wrong_length():
    with pytest.raises(ValueError, match="8 parameters"):
        Controller.linear(np.zeros(9), 3, 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 60), st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_population_logits_equal_the_loop(candidates, rollouts, feature_dim, num_actions, seed):
    rng = np.random.default_rng(seed)
    params = rng.normal(size=(candidates, num_params(feature_dim, num_actions))).astype(np.float32)
    features = (4 * rng.normal(size=(candidates, rollouts, feature_dim))).astype(np.float32)
    loop = [Controller.linear(row, feature_dim, num_actions).logits(x) for row, x in zip(params, features, strict=True)]
    together = population_logits(params, features)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, np.stack(loop), rtol=1e-6, atol=1e-4)


def test_population_acts_like_each_of_its_candidates():
    rng = np.random.default_rng(3)
    params = rng.normal(size=(5, num_params(6, 3))).astype(np.float32)
    features = rng.normal(size=(10, 6)).astype(np.float32)
    population = Population(params, 6)
    for seeds in (None, range(10)):
        rngs = None if seeds is None else generators(seeds)
        together = population.act(features, rngs)
        for candidate in range(5):
            rows = slice(2 * candidate, 2 * candidate + 2)
            own = None if seeds is None else generators(seeds[rows])
            alone = Controller.linear(params[candidate], 6, 3).act(features[rows], own)
            assert (together[rows] == alone).all()


def test_population_logits_refuse_parameters_of_another_size():
    with pytest.raises(ValueError, match="do not fit"):
        population_logits(np.zeros((2, 13), np.float32), np.zeros((2, 1, 5), np.float32))


def test_greedy_takes_the_largest_logit():
    assert choose(np.array([[0.0, 2.0, 1.0], [5.0, 5.0, 1.0]], np.float32)).tolist() == [1, 0]


def test_sampled_actions_follow_the_softmax():
    logits = np.array([0.5, -1.0, 2.0, 0.0])
    expected = np.exp(logits) / np.exp(logits).sum()
    num = 20_000
    rngs = [np.random.default_rng(1)] * num  # one stream of uniforms, one for each row
    counts = np.bincount(choose(np.tile(logits, (num, 1)), rngs), minlength=4)
    chi_square = ((counts - num * expected) ** 2 / (num * expected)).sum()
    assert chi_square < 16.27  # 99.9 % quantile for 3 degrees of freedom


def test_sampling_takes_one_uniform_a_row_and_no_more():
    rngs, twins = generators(range(6)), generators(range(6))
    choose(np.zeros((6, 3)), rngs)
    for rng, twin in zip(rngs, twins, strict=True):
        twin.random()
        assert rng.random() == twin.random()


def test_sampled_actions_depend_on_the_rows_own_generator_alone():
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(8, 40, 4))  # 8 rows, 40 decisions
    together = generators(range(8))
    actions = np.array([choose(logits[:, t], together) for t in range(40)])
    order = rng.permutation(8)
    permuted = generators(order)
    again = np.array([choose(logits[order, t], permuted) for t in range(40)])
    assert (again == actions[:, order]).all()
    alone = generators([3])
    assert [choose(logits[3:4, t], alone)[0] for t in range(40)] == actions[:, 3].tolist()


def test_huge_logits_neither_overflow_nor_pick_the_impossible():
    logits = np.tile(np.array([1e4, -1e4, 0.0], np.float32), (200, 1))
    assert (choose(logits, generators(range(200))) == 0).all()


def test_save_and_load(tmp_path):
    rng = np.random.default_rng(0)
    controller = Controller(
        [rng.normal(size=(6, 5)), rng.normal(size=(5, 3))],
        [rng.normal(size=5), rng.normal(size=3)],
        rng.normal(size=6),
        rng.uniform(0.5, 2, size=6),
        {"recent_z": 4, "real_steps": 10},
    )
    path = tmp_path / "controller.safetensors"
    sha256 = controller.save(path, {"real_steps": 12})
    loaded = Controller.load(path)
    features = rng.normal(size=(9, 6))
    assert (loaded.logits(features) == controller.logits(features)).all()
    assert (loaded.meta["recent_z"], loaded.meta["real_steps"]) == (4, 12)
    assert loaded.meta["sha256"] == sha256
    again = tmp_path / "again.safetensors"
    assert loaded.save(again) == sha256  # what came from the file can be written again


def test_a_file_that_is_no_controller_is_named(tmp_path):
    path = tmp_path / "vae.safetensors"
    checkpoints.save(path, {"encoder": np.zeros(3)}, {})
    with pytest.raises(StageError, match="vae.safetensors is not a controller"):
        Controller.load(path)
    with pytest.raises(StageError, match="missing"):
        Controller.load(tmp_path / "none.safetensors")
