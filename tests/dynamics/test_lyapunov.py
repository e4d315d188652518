import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from brh_jax.dynamics import DepthSystem
from brh_jax.dynamics.lyapunov import exponents_by_phase, lyapunov_exponents
from brh_jax.partition import Partition
from brh_jax.tokens import TokenLayout

ONE = TokenLayout(1, 0, (0, 0))


def linear(matrix, depth):
    """x -> A x on each token."""
    return DepthSystem(lambda state, layer: state @ jnp.asarray(matrix, state.dtype).T, depth, ONE)


def starts(dim, batch=2):
    return jax.random.uniform(jax.random.key(7), (batch, 1, dim), minval=0.1, maxval=0.4)


def test_a_diagonal_map_has_the_logarithms_of_its_entries():
    found = lyapunov_exponents(linear(np.diag([1.5, 0.9, -0.5, 0.2]), 60), starts(4), 4)
    assert found.exponents.shape == (2, 4)
    assert found.growth.shape == (60, 2, 4)
    expected = np.log([1.5, 0.9, 0.5, 0.2])
    np.testing.assert_allclose(found.growth[30:], np.broadcast_to(expected, (30, 2, 4)), atol=1e-4)
    np.testing.assert_allclose(found.exponents, found.growth.mean(0), atol=1e-6)
    # The transient of the first layers is what keeps a mean over all of them from the limit.
    np.testing.assert_allclose(found.exponents, np.broadcast_to(expected, (2, 4)), atol=0.1)
    np.testing.assert_allclose(found.exponents.sum(-1), np.full(2, expected.sum()), atol=1e-4)


def test_double_precision():
    with jax.enable_x64(True):
        found = lyapunov_exponents(linear(np.diag([1.5, 0.9, -0.5]), 60), np.asarray(starts(3), np.float64), 3)
    assert found.exponents.dtype == np.float64
    np.testing.assert_allclose(found.growth[-1], np.broadcast_to(np.log([1.5, 0.9, 0.5]), (2, 3)), atol=1e-11)


def test_a_singular_layer_has_an_exponent_of_minus_infinity():
    found = lyapunov_exponents(linear(np.diag([2.0, 0.0]), 5), starts(2), 2)
    np.testing.assert_allclose(found.growth[1:, :, 0], np.full((4, 2), np.log(2)), atol=1e-5)
    assert (found.growth[1:, :, 1] == -np.inf).all()


def test_a_non_normal_map_has_those_of_its_eigenvalues():
    found = lyapunov_exponents(linear([[1.2, 30.0, 5.0], [0, 0.8, -20.0], [0, 0, 0.3]], 120), starts(3), 3)
    np.testing.assert_allclose(found.growth[60:].mean(0), np.broadcast_to(np.log([1.2, 0.8, 0.3]), (2, 3)), atol=1e-4)


def test_arnolds_cat_map():
    cat = DepthSystem(lambda x, layer: jnp.mod(x @ jnp.array([[2.0, 1.0], [1.0, 1.0]]), 1.0), 400, ONE)
    exponent = np.log((3 + np.sqrt(5)) / 2)
    np.testing.assert_allclose(lyapunov_exponents(cat, starts(2), 2).exponents, [[exponent, -exponent]] * 2, atol=5e-3)


def test_the_henon_map():
    def henon(state, layer):
        x, y = state[..., 0], state[..., 1]
        return jnp.stack([1 - 1.4 * x**2 + y, 0.3 * x], axis=-1)

    found = lyapunov_exponents(DepthSystem(henon, 4000, ONE), starts(2, batch=16) / 4, 2)
    np.testing.assert_allclose(found.exponents.sum(-1), np.full(16, np.log(0.3)), atol=1e-4)
    np.testing.assert_allclose(found.exponents[:, 0].mean(), 0.419, rtol=0.01)


def test_exponents_of_directions():
    """At the leading eigenvector the derivative on the sphere has the eigenvalues' ratios to the leading one."""
    state = jnp.array([[[2.0, 0, 0]]])
    system = linear(np.diag([1.5, 0.9, -0.5]), 60)
    found = lyapunov_exponents(system, state, 2, sphere=True)
    np.testing.assert_allclose(found.growth[30:].mean(0), [np.log([0.9 / 1.5, 0.5 / 1.5])], atol=1e-4)
    with pytest.raises(ValueError, match=r"num_exponents 3 must be from 1 to 2.*tokens \* \(dim - 1\)"):
        lyapunov_exponents(system, state, 3, sphere=True)


def test_growth_of_the_norm_is_left_out_on_the_sphere():
    layout = TokenLayout(1, 1, (1, 1))
    system = DepthSystem(lambda state, layer: 2 * state, 5, layout)
    state = jax.random.normal(jax.random.key(0), (2, 3, 4))
    np.testing.assert_allclose(lyapunov_exponents(system, state, 12).exponents, np.full((2, 12), np.log(2)), atol=1e-5)
    np.testing.assert_allclose(lyapunov_exponents(system, state, 9, sphere=True).exponents, np.zeros((2, 9)), atol=1e-5)


def test_a_rotation_moves_directions_without_parting_them():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    np.testing.assert_allclose(lyapunov_exponents(linear(rotation, 20), starts(4), 4).exponents, np.zeros((2, 4)), atol=1e-5)
    found = lyapunov_exponents(linear(3 * rotation, 20), starts(4), 3, sphere=True)
    np.testing.assert_allclose(found.exponents, np.zeros((2, 3)), atol=1e-5)


@pytest.fixture(scope="module")
def embedded(tiny_encoder, tiny_images):
    return tiny_encoder.embed(tiny_images)[:, :3]


@pytest.fixture(scope="module")
def small(tiny_encoder):
    """The tiny ViT on cls and registers alone: 48 dimensions."""
    return DepthSystem(tiny_encoder.system().step, 6, TokenLayout(1, 2, (0, 0)))


@pytest.fixture(scope="module")
def sphere_growth(small, embedded):
    return lyapunov_exponents(small, embedded, 45, sphere=True).growth


def test_a_vit_against_its_dense_jacobians(small, embedded, sphere_growth):
    with jax.default_matmul_precision("highest"):
        states = small.rollout(embedded[:2])

        @jax.jit
        def dense(state, layer):
            return jax.vmap(jax.jacfwd(lambda x: small.step(x[None], layer)[0]))(state).reshape(2, 48, 48)

        jacobians = np.stack([dense(states[layer], layer) for layer in range(6)]).astype(np.float64)
    found = lyapunov_exponents(small, embedded[:2], 48)
    np.testing.assert_allclose(found.growth.sum(-1), np.linalg.slogdet(jacobians)[1], atol=1e-3)

    # The same vectors pushed by the dense matrices, all layers at once and orthonormalised only at the end.
    vectors = np.linalg.qr(np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), 1), (48, 48))).T)[0][:, :3]
    for image in range(2):
        product = np.linalg.multi_dot(jacobians[::-1, image])
        _, triangle = np.linalg.qr(product @ vectors)
        np.testing.assert_allclose(found.exponents[image, :3], np.log(np.abs(np.diag(triangle))) / 6, atol=1e-4)
        largest = np.log(np.linalg.norm(product, 2)) / 6
        assert largest - 0.5 < found.exponents[image, 0] <= largest + 1e-5

    # On the sphere: volumes in the tangent spaces, so three singular values (one for each token) are zero.
    x = np.asarray(states, np.float64)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    tangent = np.eye(16) - np.einsum("...i,...j->...ij", x / norm, x / norm)
    before, after = tangent[:-1] * norm[:-1, ..., None], tangent[1:] / norm[1:, ..., None]
    blocks = np.einsum("lbtij,lbtjsk,lbskm->lbtism", after, jacobians.reshape(6, 2, 3, 16, 3, 16), before)
    volumes = np.linalg.svd(blocks.reshape(6, 2, 48, 48), compute_uv=False)
    np.testing.assert_allclose(volumes[..., 45:], np.zeros((6, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(sphere_growth[:, :2].sum(-1), np.log(volumes[..., :45]).sum(-1), atol=1e-3)

    few = lyapunov_exponents(small, embedded[:2], 48, start=2, stop=4)
    np.testing.assert_allclose(few.growth.sum(-1), np.linalg.slogdet(jacobians[2:4])[1], atol=1e-3)


def test_half_layers_make_up_the_whole(tiny_encoder, small, embedded):
    halves = DepthSystem(tiny_encoder.system(sublayers=True).step, 12, small.layout)
    found = lyapunov_exponents(halves, embedded[:2], 2)
    whole = lyapunov_exponents(small, embedded[:2], 2)
    np.testing.assert_allclose(found.growth.reshape(6, 2, 2, 2).sum(1), whole.growth, atol=1e-4)


def test_images_over_a_mesh(small, embedded, sphere_growth):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    found = lyapunov_exponents(small, jax.device_put(embedded, spread), 45, sphere=True)
    np.testing.assert_allclose(found.growth, sphere_growth, atol=1e-3)
    assert found.exponents.sharding.is_equivalent_to(spread, 2)


def test_compiles_once(compiles_once):
    compiles_once(
        ONE,
        lambda system: lyapunov_exponents(system, starts(3), 2),
        lambda system: lyapunov_exponents(system, 2 * starts(3), 2, key=jax.random.key(5)),
    )


def test_phases_have_the_mean_growth_of_their_layers():
    def step(state, layer):
        return state * jnp.where(layer < 2, 3.0, 0.5)

    found = lyapunov_exponents(DepthSystem(step, 5, ONE), starts(3), 3)
    expected = np.log([3.0, 0.5])[:, None, None] * np.ones((2, 2, 3))
    np.testing.assert_allclose(exponents_by_phase(found, (2, 3)), expected, atol=1e-5)
    np.testing.assert_allclose(exponents_by_phase(found, Partition((2, 3))), expected, atol=1e-5)
    fragmented = exponents_by_phase(found, Partition((1, 3, 1), phases=(0, 1, 0)))
    np.testing.assert_allclose(fragmented[0], np.full((2, 3), np.log(1.5) / 2), atol=1e-5)
    with pytest.raises(ValueError, match="of 4 layers, but growth was measured over 5"):
        exponents_by_phase(found, (2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_exponents": 4}, "num_exponents 4 must be from 1 to 3"),
        ({"num_exponents": 0}, "num_exponents 0 must be"),
        ({"num_exponents": 1, "start": 5}, "start 5 and stop 5"),
        ({"num_exponents": 1, "stop": 6}, "stop 6 must be"),
    ],
)
def test_impossible_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        lyapunov_exponents(linear(np.eye(3), 5), starts(3), **arguments)


@pytest.mark.wrong_types
def test_bad_states():
    for state in (jnp.zeros((1, 1, 3)), jnp.ones((1, 2, 3)), jnp.ones((1, 3))):
        with pytest.raises(ValueError, match="state|tokens"):
            lyapunov_exponents(linear(np.eye(3), 5), state, 1)
