import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from brh_jax.dynamics import DepthSystem
from brh_jax.dynamics.extrapolation import FATES, extrapolated_depth
from brh_jax.tokens import TokenLayout

ONE = TokenLayout(1, 0, (0, 0))
STATE = jax.random.uniform(jax.random.key(0), (2, 1, 2), minval=0.1, maxval=0.4)


def rotation(angle, factor=1.0):
    turn = factor * jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    return lambda state, layer: jnp.matmul(state, turn.T, precision="highest")


def logistic(rate):
    """x -> rate x (1 - x), beside a constant that gives it a direction."""

    def step(state, layer):
        x = state[..., :1]
        return jnp.concatenate([rate * x * (1 - x), jnp.ones_like(x)], axis=-1)

    return step


def fates(step, **arguments):
    """(fate, period, fate of directions, their period), the same for both images."""
    found = extrapolated_depth(DepthSystem(step, 3, ONE), STATE, 1, **arguments)
    columns = np.stack([found.fate, found.period, found.direction_fate, found.direction_period])
    np.testing.assert_array_equal(columns[:, 0], columns[:, 1])
    fate, period, direction, direction_period = columns[:, 0].tolist()
    return found, (FATES[fate], period, FATES[direction], direction_period)


def test_a_contraction_comes_to_rest():
    found, fate = fates(lambda state, layer: 0.5 * state + jnp.array([1.0, 0]))
    assert fate == ("fixed point", 1, "fixed point", 1)
    np.testing.assert_allclose(found.norm.cls[-1], [2, 2], rtol=1e-6)
    np.testing.assert_allclose(found.norm_growth, [1, 1], rtol=1e-6)
    np.testing.assert_allclose(found.speed.cls[-1], [0, 0], atol=1e-6)


@pytest.mark.parametrize("period", [2, 5, 16])
def test_a_rational_rotation_cycles(period):
    found, fate = fates(rotation(2 * np.pi / period))
    assert fate == ("cycle", period, "cycle", period)
    np.testing.assert_allclose(found.speed.cls, np.full((200, 2), 2 * np.pi / period), rtol=1e-4)
    np.testing.assert_allclose(found.norm.cls, np.broadcast_to(found.norm.cls[0], (201, 2)), rtol=1e-4)


def test_norms_may_leave_where_directions_do_not():
    found, fate = fates(lambda state, layer: 1.1 * state)
    assert fate == ("leaves", 0, "fixed point", 1)
    np.testing.assert_allclose(found.norm_growth, [1.1, 1.1], rtol=1e-4)
    _, fate = fates(rotation(2 * np.pi / 5, 1.02))
    assert fate == ("leaves", 0, "cycle", 5)
    # Growth by as much in every step is slow at last, and has no end.
    found, fate = fates(lambda state, layer: state + jnp.array([1.0, 0]), num_steps=3000)
    assert fate == ("leaves", 0, "fixed point", 1)
    assert (found.norm_growth < 1.001).all()
    _, fate = fates(lambda state, layer: 1e20 * state)
    assert fate == ("leaves", 0, "wanders", 0)


def test_norms_may_vanish():
    found, fate = fates(lambda state, layer: 0.9 * state)
    assert fate == ("vanishes", 0, "fixed point", 1)
    np.testing.assert_allclose(found.norm_growth, [0.9, 0.9], rtol=1e-4)
    assert fates(lambda state, layer: 0 * state)[1] == ("vanishes", 0, "wanders", 0)


def test_slow_ends_are_neither_growth_nor_decay():
    """Norms that go to a limit from below and from above, not there after 200 steps."""
    for limit in (0.1, 5.0):
        _, fate = fates(lambda state, layer, limit=limit: state + 0.01 * (jnp.array([limit, 0]) - state))
        assert fate[0] == "wanders"
        _, fate = fates(lambda state, layer, limit=limit: state + 0.01 * (jnp.array([limit, 0]) - state), num_steps=1500)
        assert fate == ("fixed point", 1, "fixed point", 1)


def test_quasi_periodic_and_chaotic_states_wander():
    golden = np.pi * (3 - np.sqrt(5))
    assert fates(rotation(golden))[1] == ("wanders", 0, "wanders", 0)
    cat = jnp.array([[2.0, 1], [1, 1]])
    for num_steps in (100, 200, 300):
        found, fate = fates(lambda state, layer: jnp.mod(state @ cat, 1.0), num_steps=num_steps)
        assert fate == ("wanders", 0, "wanders", 0)
        assert (found.norm.cls <= np.sqrt(2)).all()
    assert fates(logistic(3.9))[1] == ("wanders", 0, "wanders", 0)
    assert fates(logistic(3.5))[1] == ("cycle", 4, "cycle", 4)


def test_a_slow_drift_is_no_rest():
    assert fates(rotation(3e-4))[1] == ("wanders", 0, "wanders", 0)
    assert fates(rotation(3e-4), tolerance=1e-2)[1] == ("fixed point", 1, "fixed point", 1)


def test_one_token_that_cycles_among_many_at_rest():
    flip = jnp.ones((101, 1)).at[0].set(-1)
    system = DepthSystem(lambda state, layer: flip * state, 1, TokenLayout(1, 0, (10, 10)))
    found = extrapolated_depth(system, jax.random.normal(jax.random.key(0), (1, 101, 4)), 0, num_steps=20)
    assert FATES[found.fate[0]] == "cycle"
    np.testing.assert_array_equal(found.period, [2])
    np.testing.assert_allclose(found.speed.cls, np.full((20, 1), np.pi), rtol=1e-5)
    np.testing.assert_allclose(found.speed.patches, np.zeros((20, 1)), atol=1e-5)
    assert found.speed.registers.size == found.norm.registers.size == 0


def test_images_are_judged_one_by_one():
    factors = jnp.array([1.1, 0.5, 1.0])
    # The last entry, which the map keeps for itself, is each image's own factor.
    system = DepthSystem(lambda state, layer: jnp.concatenate([state[..., :1] * state[..., 1:], state[..., 1:]], axis=-1), 1, ONE)
    found = extrapolated_depth(system, jnp.stack([jnp.ones(3), factors], axis=-1)[:, None], 0)
    assert [FATES[fate] for fate in found.fate] == ["leaves", "fixed point", "fixed point"]


def test_the_layer_is_the_one_asked_for(tiny_encoder, tiny_images):
    state = tiny_encoder.trajectory(tiny_images)[4]
    system = tiny_encoder.system()
    found = extrapolated_depth(system, state, 4, num_steps=12, max_period=2)
    step = jax.jit(lambda state: system.step(state, 4))
    norms = [jnp.linalg.norm(state, axis=-1)]
    for _ in range(12):
        state = step(state)
        norms.append(jnp.linalg.norm(state, axis=-1))
    norms = np.stack(norms)
    np.testing.assert_allclose(found.norm.cls, norms[:, :, 0], rtol=1e-4)
    np.testing.assert_allclose(found.norm.patches, norms[:, :, 3:].mean(-1), rtol=1e-4)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    start = jax.device_put(tiny_encoder.trajectory(tiny_images)[4], NamedSharding(mesh, PartitionSpec("data")))
    chex.assert_trees_all_close(extrapolated_depth(system, start, 4, num_steps=12, max_period=2), found, rtol=1e-3, atol=1e-5)


def test_compiles_once():
    traces = []

    def step(state, layer):
        traces.append(1)
        return state + layer

    system = DepthSystem(step, 3, ONE)
    extrapolated_depth(system, STATE, 0)
    before = len(traces)
    extrapolated_depth(system, 2 * STATE, 2, tolerance=1e-2)
    assert len(traces) == before > 0


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 3}, "layer 3 is out of range"),
        ({"layer": 0, "num_steps": 3, "max_period": 1}, "num_steps 3 must be at least 4"),
        ({"layer": 0, "num_steps": 10}, "num_steps 10 must be at least 16"),
        ({"layer": 0, "max_period": 0}, "max_period 0"),
        ({"layer": 0, "tolerance": 0.0}, "tolerance 0.0"),
        ({"layer": 0, "state": STATE[0]}, "expected a state"),
        ({"layer": 0, "state": jnp.nan * STATE}, "not finite"),
    ],
)
def test_impossible_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        extrapolated_depth(DepthSystem(lambda state, layer: state, 3, ONE), **{"state": STATE} | arguments)


def test_what_follows_an_overflow_is_not_shown():
    """At 1e19 squares overflow, those of a LayerNorm too: a system that then falls back to one has not come back."""

    def step(state, layer):
        return jnp.where(jnp.abs(state) > 3e19, jnp.ones_like(state), 100 * state)

    found = extrapolated_depth(DepthSystem(step, 1, TokenLayout(1, 0, (1, 1))), jnp.ones((1, 2, 3)), 0, 40)
    assert FATES[int(found.fate[0])] == "leaves" and FATES[int(found.direction_fate[0])] == "wanders"
    assert np.isfinite(found.norm.cls[:9]).all() and np.isinf(found.norm.cls[11:]).all() and np.isnan(found.speed.cls[11:]).all()
