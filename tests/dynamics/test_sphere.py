import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax.dynamics.sphere import sphere_linearize, tangential

WEIGHTS = jax.random.normal(jax.random.key(0), (5, 5))
STATE = 3 * jax.random.normal(jax.random.key(1), (2, 4, 5))
TANGENT = jax.random.normal(jax.random.key(2), (2, 4, 5))


def mixing(state):
    """A map that is neither linear nor homogeneous and lets tokens act on one another."""
    with jax.default_matmul_precision("highest"):
        return state + jnp.tanh(state @ WEIGHTS + jnp.mean(state, axis=-2, keepdims=True))


def directions(f, state):
    """The map of directions itself, norms held at those of `state`."""
    norm = jnp.linalg.norm(state, axis=-1, keepdims=True)

    def of(unit):
        output = f(norm * unit / jnp.linalg.norm(unit, axis=-1, keepdims=True))
        return output / jnp.linalg.norm(output, axis=-1, keepdims=True)

    return of, state / norm


@pytest.mark.parametrize("leading", [(), (2,)])
def test_the_derivative_is_that_of_the_map_of_directions(leading):
    state, tangent = (STATE, TANGENT) if leading else (STATE[0], TANGENT[0])
    of, unit = directions(mixing, state)
    _, expected = jax.jvp(of, (unit,), (tangent,))
    output, linear = sphere_linearize(mixing, state)
    np.testing.assert_allclose(output, mixing(state), rtol=1e-6)
    np.testing.assert_allclose(linear(tangent), expected, atol=1e-5)


def test_the_transpose_is_the_transposed_matrix():
    of, unit = directions(mixing, STATE[0])
    matrix = jax.jacfwd(of)(unit).reshape(20, 20)
    _, linear = sphere_linearize(mixing, STATE[0])
    (pulled,) = jax.linear_transpose(linear, STATE[0])(TANGENT[0])
    np.testing.assert_allclose(pulled.ravel(), matrix.T @ TANGENT[0].ravel(), atol=1e-5)


def test_images_are_tangent_and_radial_parts_are_ignored():
    output, linear = sphere_linearize(mixing, STATE)
    image = linear(TANGENT)
    np.testing.assert_allclose(jnp.sum(output * image, axis=-1), np.zeros((2, 4)), atol=1e-5)
    np.testing.assert_allclose(linear(TANGENT + 0.7 * STATE), image, atol=1e-5)
    np.testing.assert_allclose(tangential(STATE, STATE), np.zeros_like(STATE), atol=1e-5)


def test_growth_of_the_norm_is_no_motion_and_a_rotation_keeps_angles():
    _, linear = sphere_linearize(lambda x: 2 * x, STATE)
    np.testing.assert_allclose(linear(TANGENT), tangential(STATE, TANGENT), atol=1e-6)
    rotation, _ = jnp.linalg.qr(WEIGHTS)
    _, linear = sphere_linearize(lambda x: 5 * jnp.matmul(x, rotation, precision="highest"), STATE)
    lengths = jnp.linalg.norm(tangential(STATE, TANGENT), axis=-1)
    np.testing.assert_allclose(jnp.linalg.norm(linear(TANGENT), axis=-1), lengths, rtol=1e-5)
