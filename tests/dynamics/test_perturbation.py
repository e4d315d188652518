import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from brh_jax.dynamics import DepthSystem
from brh_jax.dynamics.perturbation import perturbation_growth
from brh_jax.dynamics.sphere import tangential
from brh_jax.tokens import TokenLayout

LAYOUT = TokenLayout(1, 2, (2, 2))
ONE = TokenLayout(1, 0, (0, 0))
KEY = jax.random.key(3)
STATE = jnp.linspace(1, 50, 7)[:, None] * jax.random.normal(jax.random.key(1), (2, 7, 8))  # norms that differ from token to token


def linear(matrix, depth=5, layout=LAYOUT):
    """x -> A x on each token."""
    return DepthSystem(lambda state, layer: jnp.matmul(state, jnp.asarray(matrix, state.dtype).T), depth, layout)


@pytest.fixture(scope="module")
def identity():
    return DepthSystem(lambda state, layer: state, 2, LAYOUT)


@pytest.mark.parametrize("size", [1e-3, 0.3])
def test_a_rotation_keeps_angles(size):
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    growth = perturbation_growth(linear(2 * rotation), STATE, KEY, relative_size=size, num_directions=4)
    np.testing.assert_array_equal(growth.layers, np.arange(6))
    for angle, distance in zip(growth.angle, growth.distance, strict=True):
        assert angle.shape == distance.shape == (6, 2)
        np.testing.assert_allclose(angle, np.broadcast_to(angle[0], (6, 2)), rtol=2e-3)
        np.testing.assert_allclose(distance, np.full((6, 2), size), rtol=2e-3)
        assert (angle < distance).all()
    np.testing.assert_allclose(growth.recovery, np.ones(2), rtol=1e-3)


def test_double_precision_takes_sizes_that_single_precision_rounds_away():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    with jax.enable_x64(True):
        state = np.asarray(STATE, np.float64)
        growth = perturbation_growth(linear(2 * rotation), state, jax.random.key(3), relative_size=1e-9, num_directions=2)
    assert growth.angle.cls.dtype == growth.recovery.dtype == np.float64
    np.testing.assert_allclose(growth.recovery, np.ones(2), rtol=1e-6)


def test_directions_that_contract_recover_at_their_rate():
    state = jnp.zeros((3, 1, 8)).at[..., 0].set(4.0)
    growth = perturbation_growth(linear(np.diag([1.0] + [0.5] * 7), layout=ONE), state, KEY, layer=1, relative_size=1e-3)
    np.testing.assert_array_equal(growth.layers, np.arange(1, 6))
    np.testing.assert_allclose(growth.angle.cls[1:] / growth.angle.cls[:-1], np.full((4, 3), 0.5), rtol=1e-3)
    np.testing.assert_allclose(growth.recovery, np.full(3, 0.5**4), rtol=1e-3)
    away = perturbation_growth(linear(np.diag([1.0] + [1.5] * 7), layout=ONE), state, KEY, relative_size=1e-4)
    np.testing.assert_allclose(away.recovery, np.full(3, 1.5**5), rtol=1e-2)


def test_along_the_trajectory():
    # Patches stay; the others move by 2 along the second axis in layer 1, and nothing moves in layer 0.
    moves = jnp.zeros((7, 2)).at[:3, 1].set(2.0)
    system = DepthSystem(lambda state, layer: state + jnp.where(layer == 1, moves, 0), 2, LAYOUT)
    state = jnp.zeros((1, 7, 2)).at[..., 0].set(3.0)
    growth = perturbation_growth(system, state, layer=1, relative_size=0.1, kind="along")
    np.testing.assert_allclose(growth.angle.cls[0], [np.arctan(0.1)], rtol=1e-5)
    np.testing.assert_allclose(growth.angle.cls[1], [np.arctan2(2.3, 3) - np.arctan2(2, 3)], rtol=1e-5)
    np.testing.assert_allclose(growth.distance.registers[1], [0.3 / np.sqrt(13)], rtol=1e-5)
    np.testing.assert_array_equal(growth.distance.patches, np.zeros((2, 1)))
    still = perturbation_growth(system, state, layer=0, relative_size=0.1, kind="along")
    np.testing.assert_array_equal(still.distance.cls, np.zeros((3, 1)))
    assert np.isnan(still.recovery).all()


def test_towards_another_state(identity):
    state = jnp.zeros((2, 7, 2)).at[0, :, 0].set(2.0).at[1, :, 1].set(2.0)
    size = 0.1
    chord = size / np.sqrt(2)
    for towards in (None, state[::-1]):
        growth = perturbation_growth(identity, state, relative_size=size, kind="towards", towards=towards)
        for angle, distance in zip(growth.angle, growth.distance, strict=True):
            np.testing.assert_allclose(angle, np.full((3, 2), np.arctan2(chord, 1 - chord)), rtol=1e-5)
            np.testing.assert_allclose(distance, np.full((3, 2), size), rtol=1e-5)


@pytest.mark.parametrize(
    ("token", "perturbed"),
    [("cls", (1, 0, 0)), ("registers", (0, 2, 0)), ("patches", (0, 0, 4)), (5, (0, 0, 1))],
)
def test_only_the_chosen_tokens_are_perturbed(identity, token, perturbed):
    growth = perturbation_growth(identity, STATE, KEY, token=token, num_directions=2)
    for distance, count, number in zip(growth.distance, perturbed, (1, 2, 4), strict=True):
        np.testing.assert_allclose(distance, np.full((3, 2), 1e-2 * count / number), rtol=1e-3)
    np.testing.assert_allclose(growth.recovery, np.ones(2), rtol=1e-6)


def test_several_sizes_are_each_as_if_alone(identity):
    both = perturbation_growth(identity, STATE, KEY, relative_size=[1e-2, 1e-1], num_directions=2)
    assert both.angle.cls.shape == (2, 3, 2)
    assert both.recovery.shape == (2, 2)
    assert both.layers.shape == (3,)
    for index, size in enumerate((1e-2, 1e-1)):
        alone = perturbation_growth(identity, STATE, KEY, relative_size=size, num_directions=2)
        chex.assert_trees_all_close(jax.tree.map(lambda v, i=index: v[i], both[:3]), alone[:3], rtol=1e-5)


def test_directions_are_averaged(identity):
    many = perturbation_growth(identity, STATE, KEY, relative_size=1e-2, num_directions=500)
    # A unit vector drawn uniformly in 8 dimensions is turned away from any axis by a sine whose mean is this.
    sine = np.mean([np.linalg.norm(u[1:]) / np.linalg.norm(u) for u in np.random.default_rng(0).normal(size=(20000, 8))])
    np.testing.assert_allclose(many.angle.patches, np.full((3, 2), 1e-2 * sine), rtol=0.01)


def test_missing_types_are_empty():
    growth = perturbation_growth(linear(np.eye(8), layout=TokenLayout(0, 0, (1, 7))), STATE, KEY)
    assert growth.angle.cls.size == growth.distance.registers.size == 0
    assert growth.angle.patches.shape == (6, 2)


@pytest.fixture(scope="module")
def states(tiny_encoder, tiny_images):
    return tiny_encoder.trajectory(tiny_images)


def test_a_vit_follows_its_derivative(tiny_encoder, states):
    system = tiny_encoder.system()
    growth = perturbation_growth(system, states[0], layer=2, relative_size=[1e-3, 2e-3], kind="along", token="patches")
    update = (states[3] - states[2]).at[:, :3].set(0)
    norms = jnp.linalg.norm(update, axis=-1, keepdims=True)
    vector = 1e-3 * jnp.where(norms > 0, update / norms, 0) * jnp.linalg.norm(states[2], axis=-1, keepdims=True)

    @jax.jit
    def push(layer, state, vector):
        with jax.default_matmul_precision("highest"):
            return jax.jvp(lambda state: system.step(state, layer), (state,), (vector,))[1]

    for layer in (2, 3, 4, 5):
        vector = push(layer, states[layer], vector)
        reference = states[layer + 1]
        angle = jnp.linalg.norm(tangential(reference, vector), axis=-1) / jnp.linalg.norm(reference, axis=-1)
        np.testing.assert_allclose(growth.angle.patches[0, layer - 1], angle[:, 3:].mean(-1), rtol=0.01)
    # What patches hand on to the class token, and the same at twice the size.
    assert (growth.angle.cls[:, 0] == 0).all()
    assert (growth.angle.cls[:, 1:] > 0).all()
    np.testing.assert_allclose(growth.recovery[1], growth.recovery[0], rtol=0.02)


def test_images_over_a_mesh(tiny_encoder, states):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    arguments = {"key": KEY, "layer": 4, "num_directions": 2}
    alone = perturbation_growth(tiny_encoder.system(), states[0], **arguments)
    found = perturbation_growth(tiny_encoder.system(), jax.device_put(states[0], spread), **arguments)
    chex.assert_trees_all_close(found, alone, rtol=2e-3)
    assert found.recovery.sharding.is_equivalent_to(spread, 1)


def test_compiles_once(compiles_once):
    compiles_once(
        LAYOUT,
        lambda system: perturbation_growth(system, STATE, KEY, relative_size=1e-2),
        lambda system: perturbation_growth(system, 2 * STATE, jax.random.key(9), relative_size=1e-3, token="cls"),
    )


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 2}, "layer 2 is out of range"),
        ({"kind": "sideways"}, "kind 'sideways' of perturbation is unknown"),
        ({"key": None}, "give key="),
        ({"num_directions": 0}, "num_directions 0"),
        ({"relative_size": 0.0}, "relative_size 0.0 must be"),
        ({"relative_size": [1e-2, -1.0]}, "must be a positive number"),
        ({"relative_size": []}, "must be a positive number"),
        ({"token": "register"}, "'register' is no type of token"),
        ({"token": 7}, "token 7 is out of range"),
        ({"towards": STATE}, "towards is given, but kind is 'isotropic'"),
        ({"kind": "towards", "towards": STATE[:, :3]}, r"expected that of the state, \(2, 7, 8\)"),
        ({"kind": "towards", "towards": np.nan * STATE}, "not finite"),
        ({"state": STATE[:1], "kind": "towards"}, "one image has no other to point to"),
        ({"state": STATE[0]}, "expected a state"),
        ({"state": 0 * STATE}, "zero"),
    ],
)
def test_impossible_requests(identity, arguments, message):
    with pytest.raises(ValueError, match=message):
        perturbation_growth(identity, **{"state": STATE, "key": KEY} | arguments)


def test_tokens_that_the_system_lacks():
    with pytest.raises(ValueError, match="'registers' asks for tokens that the system lacks"):
        perturbation_growth(linear(np.eye(8), layout=ONE), STATE[:, :1], KEY, token="registers")
