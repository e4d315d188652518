import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax.dynamics import directions
from brh_jax.tokens import TokenLayout
from brh_jax.train.parallel import make_mesh

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
    speed = directions.angular_speed(rotating(angle), LAYOUT)
    convergence = directions.directional_convergence(rotating(angle), LAYOUT)
    for tokens in speed:
        np.testing.assert_allclose(tokens, np.full(6, angle), rtol=2e-3)
    for tokens in convergence:
        np.testing.assert_allclose(tokens, np.cos(angle * np.arange(6, -1, -1)), atol=1e-6)


def test_opposite_directions_are_pi_apart():
    flip = jnp.array([1.0, -1.0, 1.0])[:, None, None, None] * jnp.ones((3, 2, 7, 4))
    np.testing.assert_allclose(directions.angular_speed(flip, LAYOUT).cls, [np.pi, np.pi], rtol=1e-6)


def test_patch_coherence_of_equal_and_of_balanced_patches():
    np.testing.assert_allclose(directions.patch_coherence(rotating(0.2), LAYOUT), np.ones(7), rtol=1e-6)
    # Two patches along x, two along y: the mean is at 45 degrees to each.
    patches = jnp.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    states = jnp.zeros((2, 3, 7, 2)).at[..., :3, 0].set(1).at[..., 3:, :].set(patches)
    np.testing.assert_allclose(directions.patch_coherence(states, LAYOUT), [np.sqrt(0.5)] * 2, rtol=1e-6)


def test_coherence_is_the_mean_cosine_with_the_mean_direction():
    states = jax.random.normal(jax.random.key(0), (3, 2, 7, 6))
    units = np.asarray(states[:, :, 3:])
    units = units / np.linalg.norm(units, axis=-1, keepdims=True)
    mean = units.mean(2, keepdims=True)
    cosines = (units * mean / np.linalg.norm(mean, axis=-1, keepdims=True)).sum(-1)
    np.testing.assert_allclose(directions.patch_coherence(states, LAYOUT), cosines.mean((1, 2)), rtol=1e-5)


def test_missing_token_types_are_empty():
    layout = TokenLayout(0, 0, (2, 2))
    states = rotating(0.1, layout=layout)
    speed = directions.angular_speed(states, layout)
    assert speed.cls.size == 0
    assert speed.registers.size == 0
    assert speed.patches.shape == (6,)
    only_cls = TokenLayout(1, 0, (0, 0))
    assert directions.patch_coherence(rotating(0.1, layout=only_cls), only_cls).size == 0


def test_speed_and_norm_have_their_rates():
    angles = np.array([0.0, 0.1, 0.3, 0.6, 1.0])  # turns by 0.1, 0.2, 0.3, 0.4
    plane = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * np.exp(np.arange(5.0))[:, None]
    states = jnp.asarray(np.broadcast_to(plane[:, None, None], (5, 2, 7, 2)), jnp.float32)
    np.testing.assert_allclose(directions.angular_acceleration(states, LAYOUT).cls, [0.1] * 3, atol=1e-6)
    np.testing.assert_allclose(directions.token_norm(states, LAYOUT).patches, np.exp(np.arange(5.0)), rtol=1e-6)


def test_measures_of_a_stream_are_those_of_the_whole(tiny_encoder, tiny_images):
    states, layout = tiny_encoder.trajectory(tiny_images), tiny_encoder.layout
    streamed = directions.direction_measures((states[:, a:b] for a, b in ((0, 3), (3, 6), (6, 8))), layout)
    whole = directions.Directions(
        directions.directional_convergence(states, layout, per_image=True),
        directions.angular_speed(states, layout, per_image=True),
        directions.angular_acceleration(states, layout, per_image=True),
        directions.token_norm(states, layout, per_image=True),
        directions.patch_coherence(states, layout, per_image=True),
    )
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(streamed))
    chex.assert_trees_all_close(streamed, whole, atol=1e-5, rtol=1e-5)
    units = np.asarray(states, np.float64)
    norms = np.linalg.norm(units, axis=-1)
    units /= norms[..., None]
    turned = np.arccos((units[1:] * units[:-1]).sum(-1))
    np.testing.assert_allclose(streamed.speed.registers, turned[..., 1:3].mean(-1), rtol=1e-5)
    np.testing.assert_allclose(streamed.convergence.patches, (units * units[-1]).sum(-1)[..., 3:].mean(-1), rtol=1e-5)
    np.testing.assert_allclose(streamed.norm.cls, norms[..., 0], rtol=1e-5)


def test_equal_shapes_compile_once():
    layout = TokenLayout(1, 0, (1, 2))
    before = directions._measures._cache_size()
    directions.direction_measures([jnp.full((3, 2, 3, 4), value) for value in (1.0, 2.0, 3.0)], layout)
    assert directions._measures._cache_size() == before + 1


def test_measures_can_be_part_of_a_jitted_function():
    def measured(states):
        return directions.angular_speed(states, LAYOUT, per_image=True), directions.patch_coherence(states, LAYOUT)

    states = rotating(0.1)
    chex.assert_trees_all_close(jax.jit(measured)(states), measured(states), rtol=1e-6)


def test_a_batch_over_eight_devices_has_the_same_measures():
    states = jax.random.normal(jax.random.key(1), (4, 8, 7, 6))
    mesh = make_mesh()
    sharded = jax.device_put(states, jax.NamedSharding(mesh, jax.P(None, ("data", "fsdp"))))
    values = directions._measures(sharded, LAYOUT)
    assert len(values.coherence.sharding.device_set) == 8
    assert not values.coherence.sharding.is_fully_replicated
    chex.assert_trees_all_close(values, directions._measures(states, LAYOUT), atol=1e-6)


def test_float64_stays():
    with jax.enable_x64(True):
        flip = jnp.full((3, 1, 7, 4), 1.0).at[1, ..., 0].add(1e-9)
        speed = directions.angular_speed(flip, LAYOUT).patches
        assert speed.dtype == jnp.float64
        np.testing.assert_allclose(speed, [1e-9 * np.sqrt(3) / 4] * 2, rtol=1e-5)


@pytest.mark.wrong_types
def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"expected 7 tokens"):
        directions.angular_speed(jnp.zeros((4, 2, 5, 3)), LAYOUT)
    with pytest.raises(ValueError, match="expected a trajectory"):
        directions.patch_coherence(jnp.zeros((2, 7, 3)), LAYOUT)
    with pytest.raises(ValueError, match="no batches"):
        directions.direction_measures([], LAYOUT)
    with pytest.raises(ValueError, match="batch 1 is 4 layers deep, those before it 6"):
        directions.direction_measures([rotating(0.1), rotating(0.1)[:5]], LAYOUT)


def test_tokens_that_are_zero_are_left_out_and_said():
    states = rotating(0.1)
    whole = directions.direction_measures([states], LAYOUT)
    some = states.at[0, :, 1:3].set(0).at[2, 1, 4].set(0)  # registers before the first layer, and a patch
    with pytest.warns(UserWarning, match="tokens that are zero"):
        found = directions.direction_measures([some], LAYOUT)
    for name in ("convergence", "speed"):
        ours, expected = getattr(found, name), getattr(whole, name)
        assert np.isnan(ours.registers[0]).all()
        np.testing.assert_allclose(ours.registers[1:], expected.registers[1:], atol=1e-6)
        np.testing.assert_allclose(ours.cls, expected.cls, atol=1e-6)
    np.testing.assert_allclose(found.speed.patches, whole.speed.patches, atol=1e-6)
    np.testing.assert_allclose(found.coherence, whole.coherence, atol=1e-6)
    assert np.isnan(directions.angular_speed(some, LAYOUT).registers[0])


def test_directions_do_not_depend_on_the_size_of_states():
    states = rotating(0.1)
    for size in (3e19, 1e-30, 1e36):
        found = directions._measures(size * states, LAYOUT)
        for name in ("convergence", "speed", "coherence"):
            chex.assert_trees_all_close(getattr(found, name), getattr(directions._measures(states, LAYOUT), name), atol=1e-6)
        np.testing.assert_allclose(found.norm.cls, size * directions.token_norm(states, LAYOUT, per_image=True).cls, rtol=1e-5)


def test_states_without_a_direction():
    with pytest.raises(ValueError, match="not finite"):
        directions.direction_measures([rotating(0.1), rotating(0.1).at[0, 0, 0, 0].set(jnp.nan)], LAYOUT)
    assert directions.token_norm(jnp.zeros((2, 1, 7, 3)), LAYOUT).cls.tolist() == [0, 0]
