import numpy as np
import pytest

from brh_jax.distill import fit_baselines
from brh_jax.phases import Partition
from brh_jax.tokens import TokenLayout

LAYOUT = TokenLayout(1, 0, (2, 3))
PARTITION = Partition((2, 1, 1), (0, 1, 0))


def trajectories(num_images, seed):
    """Four layers of width 5; the class token starts the same for all images, as in a ViT."""
    rng = np.random.default_rng(seed)
    states = [rng.normal(size=(num_images, LAYOUT.num_tokens, 5)) + 2.0]
    states[0][:, 0] = 0.5
    weights = np.random.default_rng(0).normal(size=(4, 5, 5)) / 2
    for w in weights:
        states.append(np.tanh(states[-1] @ w) + states[-1].mean(1, keepdims=True) + 0.1 * rng.normal(size=states[-1].shape))
    return np.stack(states).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    """Thirty images in batches of twelve, the last one padded; and ten others."""
    train, test = trajectories(30, 1), trajectories(10, 2)
    batches = [(train[:, i : i + 12], np.ones(12, bool)) for i in (0, 12)]
    batches.append((np.concatenate([train[:, 24:], 99 * train[:, :6]], axis=1), np.arange(12) < 6))
    found = fit_baselines(iter(batches), LAYOUT, partitions={"k2": PARTITION}, ridge=0.0)
    return train.astype(np.float64), test, found


def lstsq(x, y):
    """An affine map by numpy, as a function."""
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    return lambda new: np.concatenate([new, np.ones((*new.shape[:-1], 1))], axis=-1) @ solution


def test_mean_state_of_each_position(fitted):
    train, test, found = fitted
    predicted = found["mean"](test[0])
    np.testing.assert_array_equal(predicted[0], test[0])
    np.testing.assert_allclose(predicted[1:], np.broadcast_to(train[1:].mean(1)[:, None], test[1:].shape), rtol=1e-5)


def test_linear_maps_of_the_first_state_are_least_squares(fitted):
    train, test, found = fitted
    predicted = np.asarray(found["linear"](test[0]))
    for layer in range(1, 5):
        patches = lstsq(train[0, :, 1:].reshape(-1, 5), train[layer, :, 1:].reshape(-1, 5))
        np.testing.assert_allclose(predicted[layer, :, 1:], patches(test[0, :, 1:]), atol=1e-5)
        # A token that is always the same predicts the mean.
        np.testing.assert_allclose(predicted[layer, :, 0], np.tile(train[layer, :, 0].mean(0), (10, 1)), atol=1e-5)


def test_linear_blocks_are_fitted_to_all_pairs_of_their_phase_and_rolled_out(fitted):
    train, test, found = fitted
    predicted = np.asarray(found["linear_k2"](test[0]))
    labels = np.array(PARTITION.labels)
    for tokens in (slice(0, 1), slice(1, None)):
        blocks = []
        for phase in range(2):
            layers = np.flatnonzero(labels == phase)
            pairs = (train[layers + shift][:, :, tokens].reshape(-1, 5) for shift in (0, 1))
            blocks.append(lstsq(*pairs))
        state = test[0][:, tokens]
        for layer, phase in enumerate(labels, 1):
            state = blocks[phase](state)
            np.testing.assert_allclose(predicted[layer][:, tokens], state, atol=2e-4)


def test_ridge_is_that_of_the_normal_equations():
    train = trajectories(20, 3)
    found = fit_baselines([(train, np.ones(20, bool))], LAYOUT, ("linear",), ridge=0.1)
    x, y = (train[layer, :, 1:].reshape(-1, 5).astype(np.float64) for layer in (0, 4))
    centred = x - x.mean(0)
    penalty = 0.1 * np.trace(centred.T @ centred) / 5 * np.eye(5)
    weights = np.linalg.solve(centred.T @ centred + penalty, centred.T @ (y - y.mean(0)))
    expected = centred @ weights + y.mean(0)
    np.testing.assert_allclose(np.asarray(found["linear"](train[0]))[4, :, 1:].reshape(-1, 5), expected, atol=1e-5)


def test_what_cannot_be_fitted():
    assert fit_baselines(iter([]), LAYOUT, ()) == {}
    with pytest.raises(ValueError, match="unknown baseline median: expected some of mean, linear, linear_blocks"):
        fit_baselines(iter([]), LAYOUT, ("median",))
    with pytest.raises(ValueError, match="no training images"):
        fit_baselines(iter([]), LAYOUT)
