import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax import dynamics
from brh_jax.tokens import TokenLayout

LAYOUT = TokenLayout(1, 2, (2, 2))


def rotating(angle, depth=6, layout=LAYOUT):
    """States that turn by `angle` in a plane at every layer, while their norm grows: [depth + 1, 3, tokens, 5]."""
    turns = angle * np.arange(depth + 1)
    direction = np.zeros((depth + 1, 5))
    direction[:, 0], direction[:, 1] = np.cos(turns), np.sin(turns)
    norm = 1.0 + np.arange(depth + 1)
    return jnp.asarray((norm[:, None] * direction)[:, None, None] * np.ones((1, 3, layout.num_tokens, 1)), jnp.float32)


@pytest.mark.parametrize("angle", [1e-4, 0.1, 0.3])
def test_a_rotation_has_its_own_speed_and_convergence(angle):
    speed = dynamics.angular_speed(rotating(angle), LAYOUT)
    convergence = dynamics.directional_convergence(rotating(angle), LAYOUT)
    for tokens in speed:
        np.testing.assert_allclose(tokens, np.full(6, angle), rtol=2e-3)
    for tokens in convergence:
        np.testing.assert_allclose(tokens, np.cos(angle * np.arange(6, -1, -1)), atol=1e-6)


def test_opposite_directions_are_pi_apart():
    flip = jnp.array([1.0, -1.0, 1.0])[:, None, None, None] * jnp.ones((3, 2, 7, 4))
    np.testing.assert_allclose(dynamics.angular_speed(flip, LAYOUT).cls, [np.pi, np.pi], rtol=1e-6)


def test_patch_coherence_of_equal_and_of_balanced_patches():
    np.testing.assert_allclose(dynamics.patch_coherence(rotating(0.2), LAYOUT), np.ones(7), rtol=1e-6)
    # Two patches along x, two along y: the mean is at 45 degrees to each.
    patches = jnp.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    states = jnp.zeros((2, 3, 7, 2)).at[..., :3, 0].set(1).at[..., 3:, :].set(patches)
    np.testing.assert_allclose(dynamics.patch_coherence(states, LAYOUT), [np.sqrt(0.5)] * 2, rtol=1e-6)


def test_coherence_is_the_mean_cosine_with_the_mean_direction():
    states = jax.random.normal(jax.random.key(0), (3, 2, 7, 6))
    units = np.asarray(states[:, :, 3:])
    units = units / np.linalg.norm(units, axis=-1, keepdims=True)
    mean = units.mean(2, keepdims=True)
    cosines = (units * mean / np.linalg.norm(mean, axis=-1, keepdims=True)).sum(-1)
    np.testing.assert_allclose(dynamics.patch_coherence(states, LAYOUT), cosines.mean((1, 2)), rtol=1e-5)


def test_missing_token_types_are_empty():
    layout = TokenLayout(0, 0, (2, 2))
    states = rotating(0.1, layout=layout)
    speed = dynamics.angular_speed(states, layout)
    assert speed.cls.size == 0
    assert speed.registers.size == 0
    assert speed.patches.shape == (6,)
    only_cls = TokenLayout(1, 0, (0, 0))
    assert dynamics.patch_coherence(rotating(0.1, layout=only_cls), only_cls).size == 0


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"expected 7 tokens"):
        dynamics.angular_speed(jnp.zeros((4, 2, 5, 3)), LAYOUT)
    with pytest.raises(ValueError, match="expected a trajectory"):
        dynamics.patch_coherence(jnp.zeros((2, 7, 3)), LAYOUT)
