import itertools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from brh_jax.dynamics.dmd import _products, dmd, dmd_horizon, dmd_predict
from brh_jax.tokens import TokenLayout

LAYOUT = TokenLayout(1, 2, (2, 2))
DIM, DEPTH = 10, 6
SPECTRUM = np.array([0.95, 0.8 + 0.3j, 0.8 - 0.3j, 0.7, 0.2 + 0.6j, 0.2 - 0.6j, 0.5, -0.4, 0.25, 0.1])


def linear_map(spectrum, seed=0):
    """A real matrix of given spectrum (conjugate pairs side by side), in a random basis that is not orthogonal."""
    blocks = np.zeros((len(spectrum), len(spectrum)))
    for i, value in enumerate(spectrum):
        blocks[i, i] = value.real
        if value.imag:
            blocks[i, i + (1 if value.imag > 0 else -1)] = value.imag
    basis = np.eye(len(spectrum)) + 0.3 * np.random.default_rng(seed).normal(size=blocks.shape) / np.sqrt(len(spectrum))
    return basis @ blocks @ np.linalg.inv(basis)


def trajectory(operator, batch=4, layout=LAYOUT, seed=1, depth=DEPTH, shift=0.0):
    """States of a_{l+1} = operator a_l + shift from random first states, float64."""
    states = [np.random.default_rng(seed).normal(size=(batch, layout.num_tokens, len(operator)))]
    for _ in range(depth):
        states.append(states[-1] @ operator.T + shift)
    return np.stack(states)


def modulus_first(values):
    return values[np.lexsort((-values.imag, -np.abs(values)))]


def pydmd(x, y, rank, **options):
    """The reference implementation on snapshots `[n, dim]`; eigenvalues by falling modulus, and the modes in that order."""
    reference = pytest.importorskip("pydmd").DMD(svd_rank=rank, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a condition number that is no trouble here
        reference.fit(x.T, y.T)
    order = np.lexsort((-reference.eigs.imag, -np.abs(reference.eigs)))
    return reference.eigs[order], reference.modes[:, order]


def assert_same_directions(modes, reference, tolerance=1e-6):
    assert modes.shape == reference.shape
    np.testing.assert_allclose(np.linalg.norm(modes, axis=0), 1, rtol=1e-9)
    cosines = np.abs(np.sum(modes.conj() * reference, axis=0)) / np.linalg.norm(reference, axis=0)
    np.testing.assert_allclose(cosines, 1, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_linear_map_gives_back_its_spectrum_and_itself(dtype):
    operator = linear_map(SPECTRUM)
    model = dmd(trajectory(operator).astype(dtype), (1, DEPTH), DIM)
    tolerance = 1e-10 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(model.eigenvalues, modulus_first(SPECTRUM), atol=tolerance)
    np.testing.assert_allclose(model.operator, operator, atol=tolerance)
    np.testing.assert_allclose(operator @ model.modes, model.modes * model.eigenvalues, atol=tolerance)
    assert model.residual < 1e-6
    assert model.span == (1, DEPTH)
    assert model.rank == DIM


def test_a_system_of_low_rank_is_seen_through_its_subspace():
    inner = linear_map(SPECTRUM[:6])
    embedding = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, 6)))[0]
    states = trajectory(inner) @ embedding.T
    for projected in (True, False):
        model = dmd(states, (1, DEPTH), 6, projected=projected)
        np.testing.assert_allclose(model.eigenvalues, modulus_first(SPECTRUM[:6]), atol=1e-9)
        np.testing.assert_allclose(model.operator, embedding @ inner @ embedding.T, atol=1e-9)
        np.testing.assert_allclose(model.basis.T @ model.basis, np.eye(6), atol=1e-12)
    assert np.sum(model.singular_values > 1e-6) == 6
    with pytest.raises(ValueError, match="rank 7 is above the 6 dimensions that the snapshots span"):
        dmd(states, (1, DEPTH), 7)


def snapshots(states, first, last):
    dim = states.shape[-1]
    return np.float64(states[first - 1 : last]).reshape(-1, dim), np.float64(states[first : last + 1]).reshape(-1, dim)


@pytest.fixture(scope="module")
def vit_states(tiny_encoder, tiny_images):
    return tiny_encoder.trajectory(tiny_images)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", ["random", "vit"])
def test_agrees_with_pydmd(kind, exact, vit_states):
    states = np.random.default_rng(5).normal(size=(7, 3, 7, DIM)) if kind == "random" else vit_states
    x, y = snapshots(states, 2, 5)
    eigenvalues, modes = pydmd(x, y, 6, exact=exact)
    model = dmd(states, (2, 5), 6, projected=not exact)
    np.testing.assert_allclose(model.eigenvalues, eigenvalues, atol=1e-6)
    assert_same_directions(model.modes, modes)
    np.testing.assert_allclose(model.operator @ model.modes, model.modes * model.eigenvalues, atol=1e-6)
    np.testing.assert_allclose(model.residual, np.linalg.norm(y - x @ model.operator.T) / np.linalg.norm(y), rtol=1e-6)
    np.testing.assert_allclose(model.singular_values, np.linalg.svd(x)[1] / np.sqrt(len(x)), rtol=1e-6)


def test_a_ridge_is_pydmds_in_units_of_the_mean_square(vit_states):
    x, y = snapshots(vit_states, 1, 6)
    ridge = 0.1
    eigenvalues, _ = pydmd(x, y, 8, tikhonov_regularization=ridge * np.linalg.norm(x) / x.shape[1])
    np.testing.assert_allclose(dmd(vit_states, (1, 6), 8, ridge=ridge).eigenvalues, eigenvalues, atol=1e-6)
    # The same ridge means the same for states of another scale and for more of them.
    other = jnp.concatenate([3 * vit_states] * 2, axis=1)
    np.testing.assert_allclose(dmd(other, (1, 6), 8, ridge=ridge).eigenvalues, eigenvalues, atol=1e-5)


def test_a_ridge_shrinks():
    states = trajectory(linear_map(SPECTRUM))
    sizes = [np.linalg.norm(dmd(states, (1, 6), DIM, ridge=ridge).operator) for ridge in (0, 0.1, 1, 10, 1e6)]
    assert all(a > b for a, b in itertools.pairwise(sizes))
    assert sizes[-1] < 1e-4


def test_the_layers_of_a_span_count_from_one():
    # Three maps, one layer each: the span (2, 2) is the second layer alone, a_1 -> a_2.
    maps = [linear_map(SPECTRUM * factor) for factor in (1.0, 0.5, 2.0)]
    states = [np.random.default_rng(0).normal(size=(4, 7, DIM))]
    for operator in maps:
        states.append(states[-1] @ operator.T)
    for layer, operator in enumerate(maps, start=1):
        np.testing.assert_allclose(dmd(np.stack(states), (layer, layer), DIM).operator, operator, atol=1e-8)


def test_a_stride_takes_one_of_two_kinds_of_layers():
    # Attention and MLP steps in turn: each kind alone gives back its own map.
    rng = np.random.default_rng(0)
    kinds = [np.linalg.qr(rng.normal(size=(10, 10)))[0] * scale for scale in (0.9, 1.2)]
    states = [rng.normal(size=(6, 7, 10))]
    for layer in range(6):
        states.append(states[-1] @ kinds[layer % 2].T)
    for first, expected in zip((1, 2), kinds, strict=True):
        model = dmd(np.stack(states), (first, 6), 10, stride=2)
        np.testing.assert_allclose(model.operator, expected, atol=1e-10)
    assert dmd(np.stack(states), (1, 6), 10).residual > 0.1
    with pytest.raises(ValueError, match="stride must be one or more, got 0"):
        dmd(np.stack(states), (1, 6), 10, stride=0)


def test_each_type_has_its_own_map():
    states = trajectory(linear_map(SPECTRUM))
    other = linear_map(0.5 * SPECTRUM, seed=2)
    states[:, :, 1:3] = trajectory(other)[:, :, 1:3]
    registers = dmd(states, (1, DEPTH), DIM, layout=LAYOUT, token="registers")
    np.testing.assert_allclose(registers.operator, other, atol=1e-6)
    for token in ("cls", "patches"):
        np.testing.assert_allclose(
            dmd(states, (1, DEPTH), DIM, layout=LAYOUT, token=token).eigenvalues, modulus_first(SPECTRUM), atol=1e-6
        )
    assert dmd(states, (1, DEPTH), DIM).residual > 0.1


def test_an_affine_map_wants_centring():
    operator, shift = linear_map(SPECTRUM), 3 * np.ones(DIM)
    states = trajectory(operator, shift=shift)
    assert dmd(states, (1, DEPTH), DIM).residual > 0.01
    model = dmd(states, (1, DEPTH), DIM, center=True)
    assert model.residual < 1e-6
    np.testing.assert_allclose(model.operator, operator, atol=1e-8)
    np.testing.assert_allclose(model.mean[1] - operator @ model.mean[0], shift, atol=1e-8)
    np.testing.assert_allclose(dmd_predict(model, states[0], DEPTH), states, rtol=1e-4, atol=1e-4)


def test_whole_and_streamed_are_the_same(vit_states):
    batches = [vit_states[:, :3], vit_states[:, 3:4], vit_states[:, 4:]]
    for options in ({}, {"center": True, "ridge": 0.1, "projected": False}):
        whole = dmd(vit_states, (2, 5), 6, **options)
        for stream in (batches, iter(batches)):
            streamed = dmd(stream, (2, 5), 6, **options)
            np.testing.assert_allclose(streamed.eigenvalues, whole.eigenvalues, rtol=1e-8)
            np.testing.assert_allclose(streamed.operator, whole.operator, atol=1e-8)
            np.testing.assert_allclose(streamed.residual, whole.residual, rtol=1e-8)
    options = {"span": (2, 5), "rank": 6, "steps": (1, 3), "ridge": 0.01}
    horizon = dmd_horizon(vit_states, vit_states, **options)
    chex.assert_trees_all_close(dmd_horizon(batches, iter(batches), **options), horizon, rtol=1e-5)


def test_the_batch_may_be_sharded(vit_states):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(vit_states, NamedSharding(mesh, PartitionSpec(None, "data")))
    whole, split = dmd(vit_states, (1, 6), 8), dmd(sharded, (1, 6), 8)
    np.testing.assert_allclose(split.eigenvalues, whole.eigenvalues, atol=1e-9)
    predicted = dmd_predict(whole, sharded[0], 3)
    np.testing.assert_allclose(predicted, dmd_predict(whole, vit_states[0], 3), rtol=1e-5, atol=1e-6)
    assert predicted.sharding.is_equivalent_to(sharded.sharding, 4)
    options = {"span": (1, 6), "rank": 8, "ridge": 0.01, "steps": (1, 6)}
    chex.assert_trees_all_close(
        dmd_horizon(sharded, sharded, **options), dmd_horizon(vit_states, vit_states, **options), rtol=1e-4, atol=1e-6
    )


def test_products_compile_once_for_all_layers_and_values():
    states = trajectory(linear_map(SPECTRUM), batch=5, depth=9)
    dmd(states, (1, 2), 3)
    compiled = _products._cache_size()
    dmd(states + 1, (4, 9), 5, ridge=0.1)
    assert _products._cache_size() == compiled


def test_predictions_and_horizons_compile_once(traces):
    states = trajectory(linear_map(SPECTRUM), batch=5, depth=9)
    for shift in (0, 1):
        traces.clear()
        dmd_predict(dmd(states + shift, (2, 8), 3), states[0] + shift, 4)
        dmd_horizon(states + shift, states + shift, (2, 8), 3, steps=(1, 2))
    assert not traces


@pytest.mark.parametrize("projected", [True, False])
def test_predictions_are_powers_of_the_operator(vit_states, projected):
    model = dmd(vit_states, (1, 6), 8, projected=projected)
    predicted = dmd_predict(model, vit_states[0], 3)
    assert predicted.shape == (4, *vit_states[0].shape)
    assert predicted.dtype == vit_states.dtype
    for p in range(4):
        power = np.linalg.matrix_power(model.operator, p)
        np.testing.assert_allclose(predicted[p], np.float64(vit_states[0]) @ power.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(modulus_first(np.linalg.eigvals(model.reduced)), model.eigenvalues, atol=1e-9)


def test_predictions_in_double_precision():
    operator = linear_map(SPECTRUM)
    with jax.enable_x64(True):
        states = jnp.asarray(trajectory(operator))
        predicted = dmd_predict(dmd(states, (1, 3), DIM), states[0], DEPTH)
    assert predicted.dtype == np.float64
    np.testing.assert_allclose(predicted, trajectory(operator), atol=1e-9)


def test_a_linear_system_is_predicted_at_any_step():
    operator = linear_map(SPECTRUM)
    train, test = (trajectory(operator, batch, seed=seed).astype(np.float32) for batch, seed in ((8, 1), (3, 2)))
    horizon = dmd_horizon(train, test, (1, DEPTH), DIM, steps=(1, 2, 4, 6))
    np.testing.assert_array_equal(horizon.steps, [1, 2, 4, 6])
    for fidelity in (horizon.dmd, horizon.linear):
        np.testing.assert_allclose(fidelity.cosine, 1, atol=1e-5)
        np.testing.assert_allclose(fidelity.relative_error, 0, atol=1e-3)
    assert horizon.rollout.cosine.shape == (DEPTH,)
    np.testing.assert_allclose(horizon.rollout.cosine, 1, atol=1e-5)
    assert np.all(horizon.identity.cosine < 0.95)
    # By the definition, at the longest step: one starting state, a_0.
    first, final = test[0], test[-1]
    cosine = np.sum(first * final, -1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(final, axis=-1)
    np.testing.assert_allclose(horizon.identity.cosine[-1], cosine.mean(), rtol=1e-5)
    error = np.linalg.norm(first - final, axis=(1, 2)) / np.linalg.norm(final, axis=(1, 2))
    np.testing.assert_allclose(horizon.identity.relative_error[-1], error.mean(), rtol=1e-5)


def test_fidelity_is_the_mean_over_all_starts_of_a_type(vit_states):
    train, test = vit_states[:, :5], np.asarray(vit_states[:, 5:])
    options = {"layout": TokenLayout(1, 2, (4, 4)), "token": "patches"}
    horizon = dmd_horizon(train, test, (2, 5), 6, steps=(3, 1), **options)
    model = dmd(train, (2, 5), 6, **options)
    patches = np.float64(test[:, :, 3:])
    for i, p in enumerate((3, 1)):
        cosines = []
        for start in range(1, 6 - p):
            predicted = patches[start] @ np.linalg.matrix_power(model.operator, p).T
            actual = patches[start + p]
            norms = np.linalg.norm(predicted, axis=-1) * np.linalg.norm(actual, axis=-1)
            cosines.append(np.mean(np.sum(predicted * actual, -1) / norms))
        np.testing.assert_allclose(horizon.dmd.cosine[i], np.mean(cosines), rtol=1e-5)
    rollout = np.asarray(dmd_predict(model, jnp.asarray(test[1, :, 3:]), 4))[1:]
    error = np.linalg.norm(rollout - patches[2:6], axis=(2, 3)) / np.linalg.norm(patches[2:6], axis=(2, 3))
    np.testing.assert_allclose(horizon.rollout.relative_error, error.mean(1), rtol=1e-4)


def test_the_pairwise_map_is_least_squares(vit_states):
    # On the images that it was fitted to, no linear map of the states does better than the one of each pair.
    horizon = dmd_horizon(vit_states, vit_states, (1, 6), 16, steps=(1, 2, 3, 4))
    assert np.all(horizon.linear.relative_error < horizon.dmd.relative_error)
    assert np.all(horizon.linear.relative_error < horizon.identity.relative_error)
    last = dmd_horizon(vit_states, vit_states, (6, 6), 16, steps=(1,))
    np.testing.assert_allclose(last.dmd.relative_error, last.linear.relative_error, rtol=1e-4)
    x, y = snapshots(vit_states, 6, 6)
    fitted = (x @ np.linalg.lstsq(x, y)[0] - y).reshape(8, -1)
    error = np.linalg.norm(fitted, axis=1) / np.linalg.norm(y.reshape(8, -1), axis=1)
    np.testing.assert_allclose(last.linear.relative_error, error.mean(), rtol=1e-4)


def test_states_that_stay_are_the_identitys():
    states = np.repeat(trajectory(linear_map(SPECTRUM))[:1], DEPTH + 1, axis=0).astype(np.float32)
    horizon = dmd_horizon(states, states, (1, DEPTH), 4, steps=(1, 5))
    np.testing.assert_allclose(horizon.identity.cosine, 1, atol=1e-6)
    np.testing.assert_allclose(horizon.identity.relative_error, 0, atol=1e-6)
    assert np.all(horizon.dmd.relative_error > 0.1)  # what lies outside of four directions is lost
    np.testing.assert_allclose(dmd(states, (1, DEPTH), 4).eigenvalues, 1, atol=1e-6)


def test_fewer_snapshots_than_dimensions():
    # The cls token of two images: the map of a pair is that of least norm, exact on the images it was fitted to.
    states = trajectory(linear_map(SPECTRUM), batch=2).astype(np.float32)
    horizon = dmd_horizon(states, states, (1, DEPTH), 8, steps=(1, 3), layout=LAYOUT, token="cls")
    np.testing.assert_allclose(horizon.linear.relative_error, 0, atol=1e-4)
    # A first state that is the same for all images says nothing but where it goes.
    states[0] = states[0, :1]
    horizon = dmd_horizon(states, states, (1, 1), 1, steps=(1,), layout=LAYOUT, token="cls")
    mean = states[1, :, :1].mean(0)
    error = np.linalg.norm(states[1, :, :1] - mean, axis=(1, 2)) / np.linalg.norm(states[1, :, :1], axis=(1, 2))
    np.testing.assert_allclose(horizon.linear.relative_error, error.mean(), rtol=1e-5)


GOOD = trajectory(linear_map(SPECTRUM))
BROKEN = GOOD.copy()
BROKEN[3, 1, 2, 4] = np.nan
NO_REGISTERS = TokenLayout(1, 0, (2, 3))


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("states", "arguments", "message"),
    [
        (GOOD, {"rank": 4}, r"span \(1, 7\) is out of range: .* the trajectory has 6"),
        (GOOD, {"span": (0, 3)}, r"1 <= first <= last, got \(0, 3\)"),
        (GOOD, {"span": (4, 3)}, r"1 <= first <= last, got \(4, 3\)"),
        (GOOD, {"span": (3,)}, r"span must be \(first, last\).*got \(3,\)"),
        (GOOD, {"rank": 0}, "rank must be one or more, got 0"),
        (GOOD, {"rank": 11}, "rank 11 is above the width of the states, 10"),
        (GOOD[:, :1, :1], {"span": (1, 3), "rank": 4}, "rank 4 is above the number of snapshot pairs, 3"),
        (GOOD[:, :0], {}, "rank 4 is above the number of snapshot pairs, 0"),
        (GOOD[0], {}, r"expected a trajectory \[depth \+ 1, batch, tokens, dim\], got an array of shape \(4, 7, 10\)"),
        (list(GOOD), {}, "expected a trajectory"),
        ([], {}, "no trajectories"),
        ([GOOD, GOOD[..., :8]], {}, "one width, got 10 and 8"),
        (BROKEN, {}, "not finite"),
        (0 * GOOD, {}, "zero throughout"),
        (GOOD, {"ridge": -1.0}, "ridge must be zero or more, got -1.0"),
        (GOOD, {"token": "cls"}, "token='cls' needs layout="),
        (GOOD, {"token": "class", "layout": LAYOUT}, "must be one of cls, registers, patches.*'class'"),
        (GOOD, {"token": "registers", "layout": NO_REGISTERS}, "token='registers', but the layout has none"),
        (GOOD, {"layout": TokenLayout(1, 0, (2, 2))}, "expected 5 tokens"),
    ],
)
def test_bad_arguments(states, arguments, message):
    options = {"span": (1, DEPTH), "rank": 4} | arguments
    if message.startswith(r"span \(1, 7\)"):
        del options["span"]
    with pytest.raises(ValueError, match=message):
        dmd(states, **options)


def test_bad_values_outside_the_span_are_not_asked_for():
    np.testing.assert_allclose(dmd(BROKEN, (5, 6), 4).eigenvalues, dmd(GOOD, (5, 6), 4).eigenvalues)


@pytest.mark.parametrize("steps", [(0,), (1, 4), ()])
def test_bad_steps(steps):
    with pytest.raises(ValueError, match=r"steps must lie in 1 ... 3, the number of layers of span \(2, 4\)"):
        dmd_horizon(GOOD, GOOD, (2, 4), 4, steps=steps)


@pytest.mark.wrong_types
def test_bad_test_states():
    with pytest.raises(ValueError, match="one width, got 10 and 8"):
        dmd_horizon(GOOD, GOOD[..., :8], (1, 6), 4)
    with pytest.raises(ValueError, match="no test images"):
        dmd_horizon(GOOD, [], (1, 6), 4)
    with pytest.raises(ValueError, match="not finite"):
        dmd_horizon(GOOD, BROKEN, (1, 6), 4)


def test_bad_predictions():
    model = dmd(GOOD, (1, DEPTH), 4)
    with pytest.raises(ValueError, match="do not fit a model of width 10"):
        dmd_predict(model, GOOD[0, ..., :8], 1)
    with pytest.raises(ValueError, match="num_steps must be zero or more, got -1"):
        dmd_predict(model, GOOD[0], -1)


def test_a_rank_that_is_clipped_is_what_the_snapshots_span():
    rng = np.random.default_rng(0)
    states = np.zeros((4, 5, 3, 6))
    states[0, ..., :2] = rng.normal(size=(5, 3, 2))
    for layer in range(3):
        states[layer + 1] = 0.9 * states[layer]
    with pytest.raises(ValueError, match="rank 4 is above the 2 dimensions"):
        dmd(states, (1, 3), 4)
    model = dmd(states, (1, 3), 4, clip_rank=True)
    assert model.rank == 2
    np.testing.assert_allclose(model.eigenvalues, [0.9, 0.9], rtol=1e-6)
