import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax.dynamics import DepthSystem
from brh_jax.errors import UserError
from brh_jax.models import Encoder, Raptor, RaptorConfig
from brh_jax.models.encoder import init_params
from brh_jax.phases import Partition
from brh_jax.tokens import TokenLayout

ONE = TokenLayout(1, 0, (0, 0))


@pytest.fixture(scope="module")
def raptor(tiny_config, tiny_encoder, tiny_images) -> Encoder:
    config = RaptorConfig(tiny_config, Partition((2, 4)), layer_scale_init=0.5)
    params = init_params(Raptor(config), jax.random.key(3), tiny_images)
    return Encoder(config, params, tiny_encoder.preprocessing, name="raptor")


@pytest.fixture(params=["tiny_encoder", "raptor"])
def encoder(request) -> Encoder:
    return request.getfixturevalue(request.param)


def test_a_system_can_be_made_inside_jit_and_is_made_once(encoder, tiny_images):
    """What is made inside is no value of the jitted function, and what is made of an argument is not kept."""
    fresh, start = encoder.replace(name="fresh"), encoder.embed(tiny_images)
    expected = encoder.system().rollout(start)
    inside = jax.jit(lambda state: fresh.system().rollout(state))(start)
    argument = jax.jit(lambda encoder, state: encoder.system().rollout(state))(fresh, start)
    for found in (inside, argument, fresh.system().rollout(start)):
        chex.assert_trees_all_close(found, expected, atol=1e-5)
    whole, halves = (jax.tree.leaves(fresh.system(sublayers=sublayers)) for sublayers in (False, True))
    assert all(one is other for one, other in zip(whole, halves, strict=True))


def test_rollout_is_the_trajectory(encoder, tiny_images):
    chex.assert_trees_all_close(
        encoder.system().rollout(encoder.embed(tiny_images)), encoder.trajectory(tiny_images), atol=1e-5, rtol=1e-5
    )


def test_two_sublayers_are_a_layer(encoder, tiny_images):
    halves = encoder.system(sublayers=True)
    assert halves.depth == 2 * encoder.depth
    states = halves.rollout(encoder.embed(tiny_images))
    whole = encoder.trajectory(tiny_images)
    chex.assert_trees_all_close(states[::2], whole, atol=1e-5, rtol=1e-5)
    assert not np.allclose(states[1], whole[0])
    assert not np.allclose(states[1], whole[1])


def test_the_feed_forward_half_keeps_tokens_apart(encoder, tiny_images):
    states = encoder.trajectory(tiny_images)
    other = states[2].at[:, 5, 0].add(1.0)  # of all channels alike a LayerNorm would leave rounding errors
    for half, apart in ((4, False), (5, True)):
        step = encoder.system(sublayers=True).step
        change = np.abs(step(other, half) - step(states[2], half)).sum((0, 2))
        assert change[:5].max() == 0 if apart else change[:5].min() > 1e-4


def test_parameters_are_arguments_and_equal_models_compile_once(encoder):
    traces = []

    @jax.jit
    def first(system, state):
        traces.append(1)
        return system.step(state, 0)

    state = jnp.ones((1, encoder.layout.num_tokens, encoder.dim))
    before = first(encoder.system(), state)
    other = encoder.replace(params=jax.tree.map(lambda p: p + 0.1, encoder.params))
    assert not np.allclose(before, first(other.system(), state))
    assert len(traces) == 1


def test_rollouts_compile_once(compiles_once):
    state = np.ones((2, 1, 4), np.float32)
    compiles_once(ONE, lambda system: system.rollout(state), lambda system: system.rollout(2 * state))


def test_any_function_is_a_system():
    system = DepthSystem(lambda state, layer: (layer + 2.0) * state, 3, ONE)
    states = system.rollout(jnp.ones((2, 1, 4)))
    np.testing.assert_allclose(states[:, 0, 0, 0], [1, 2, 6, 24])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (jnp.ones((1, 4)), r"expected a state \[batch, tokens, dim\], got an array of shape \(1, 4\)"),
        (jnp.ones((1, 2, 4)), "expected 1 tokens"),
        (jnp.zeros((1, 1, 4)), "zero throughout"),
        (jnp.full((1, 1, 4), jnp.nan), "not finite"),
        (jnp.full((1, 1, 4), jnp.inf), "not finite"),
    ],
)
def test_bad_states(state, message):
    with pytest.raises(ValueError, match=message):
        DepthSystem(lambda state, layer: state, 3, ONE).rollout(state)


@pytest.mark.parametrize("layer", [-1, 3])
def test_bad_layers(layer):
    with pytest.raises(ValueError, match=f"layer {layer} is out of range.*the system has 3"):
        DepthSystem(lambda state, layer: state, 3, ONE).check_layer(layer)


@pytest.mark.wrong_types
@pytest.mark.parametrize("layer", [-1, 6, 1.5, np.int64(7), jnp.asarray(-2)])
@pytest.mark.parametrize("sublayers", [False, True])
def test_a_model_refuses_layers_that_are_not_there(encoder, layer, sublayers):
    system = encoder.system(sublayers=sublayers)
    state = jnp.ones((1, encoder.layout.num_tokens, encoder.dim))
    layer = 2 * layer if sublayers and layer != 1.5 else layer
    with pytest.raises(ValueError, match=f"layer {layer} is out of range.*has {system.depth}"):
        system.step(state, layer)
    with pytest.raises(ValueError, match=f"layer {layer} is out of range"):
        jax.jit(lambda system, state: system.step(state, layer))(system, state)
    if not sublayers:
        with pytest.raises(ValueError, match=f"layer {layer} is out of range"):
            encoder.module.apply({"params": encoder.params}, state, layer, method="step")


def test_a_traced_layer_is_not_checked(encoder):
    """It cannot be: jax takes the nearest that there is."""
    state = jnp.ones((1, encoder.layout.num_tokens, encoder.dim))
    step = jax.jit(lambda system, layer: system.step(state, layer))
    assert step(encoder.system(), encoder.depth).shape == state.shape


def test_a_replaced_token_is_what_later_layers_go_on_from(encoder, tiny_images):
    """By hand: layers up to the change, the change, the layers after it."""
    first, system, layer = encoder.embed(tiny_images), encoder.system(), 3
    clean = system.rollout(first)
    other = clean[layer + 1][::-1]  # of other images
    expected = clean[layer + 1].at[:, :1].set(other[:, :1])
    patched = system.replace(layer, "cls", other[:, :1]).rollout(first)
    chex.assert_trees_all_close(patched[: layer + 1], clean[: layer + 1], atol=1e-6)
    chex.assert_trees_all_close(patched[layer + 1], expected, atol=1e-6)
    for later in range(layer + 1, encoder.depth):
        expected = system.step(expected, later)
        chex.assert_trees_all_close(patched[later + 1], expected, atol=1e-5, rtol=1e-5)
    assert np.abs(patched[-1] - clean[-1]).max() > 1e-3


def test_what_a_replaced_token_may_be():
    layout = TokenLayout(1, 2, (1, 2))
    system, first = DepthSystem(lambda state, layer: 2 * state, 3, layout), jnp.ones((2, 5, 4))
    for token, places in (("cls", [0]), ("registers", [1, 2]), ("patches", [3, 4]), (4, [4]), (np.int64(1), [1])):
        states = system.replace(1, token, 7.0).rollout(first)
        expected = np.full((5,), 4.0)
        expected[places] = 7.0
        np.testing.assert_array_equal(states[2, 0, :, 0], expected)
        np.testing.assert_array_equal(states[3, 0, :, 0], 2 * expected)
    steered = system.replace(0, "cls", lambda cls: cls + jnp.arange(4.0)).replace(2, "cls", lambda cls: -cls).rollout(first)
    np.testing.assert_array_equal(steered[1, 0, 0], 2 + np.arange(4))
    np.testing.assert_array_equal(steered[3, 0, 0], -4 * (2 + np.arange(4)))


def test_patched_systems_of_equal_shape_compile_once(traces):
    system = DepthSystem(lambda state, layer: 2 * state, 3, ONE)
    system.replace(1, "cls", np.ones(4)).rollout(jnp.ones((1, 1, 4)))
    before = traces.count("_rollout")
    system.replace(1, "cls", np.full(4, 2.0)).rollout(jnp.ones((1, 1, 4)))
    assert traces.count("_rollout") == before


def test_replace_says_what_is_wrong():
    system, first = DepthSystem(lambda state, layer: state, 3, ONE), jnp.ones((2, 1, 4))
    for layer, token, value, message in (
        (3, "cls", 0.0, "layer is 3: expected one from 0 to 2"),
        (-1, "cls", 0.0, "layer is -1"),
        (0, "patches", 0.0, "there are no tokens 'patches'"),
        (0, "class", 0.0, "token is 'class': expected one of cls, registers, patches, or an index"),
        (0, 1, 0.0, "token is 1: expected one of cls, registers, patches, or an index from 0 to 0"),
        (0, 0, np.nan, "not finite"),
    ):
        with pytest.raises(UserError, match=message):
            system.replace(layer, token, value)
    with pytest.raises(UserError, match=r"a value of shape \(5,\) does not fit the tokens that it is for, \(2, 1, 4\)"):
        system.replace(0, 0, np.ones(5)).rollout(first)
