"""The linear layer: between several axes as flax's own, and the same whichever way it is multiplied."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax.models import layers


def _numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("inputs", "features"), [((8,), (5,)), ((8,), (3, 2, 4)), ((2, 4), (6,))])
@pytest.mark.parametrize("bias", [True, False])
def test_as_one_product_of_matrices_or_not(inputs, features, bias):
    x, kernel, wanted = _numbers(7, *inputs), _numbers(*inputs, *features, seed=1), _numbers(7, *features, seed=2)
    added = _numbers(*features, seed=3) if bias else None

    def loss(arguments, matrices):
        return jnp.sum((layers.linear(*arguments, matrices=matrices) - wanted) ** 2)

    arguments = (x, kernel, added)
    chex.assert_trees_all_close(*(layers.linear(*arguments, matrices=way) for way in (True, False)), rtol=1e-5)
    one, other = (jax.grad(loss)(arguments, way) for way in (True, False))
    chex.assert_trees_all_close(one, other, rtol=1e-4)
    directions = jax.tree.map(lambda a: _numbers(*a.shape, seed=4), arguments)
    pushed = [jax.jvp(lambda a, way=way: layers.linear(*a, matrices=way), (arguments,), (directions,)) for way in (True, False)]
    chex.assert_trees_all_close(*pushed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("one_cpu", [True, False])
def test_it_is_flaxs(monkeypatch, one_cpu):
    monkeypatch.setattr(layers, "_on_one_cpu", lambda: one_cpu)
    x, own = _numbers(2, 3, 8), layers.Dense((3, 4), dtype=None)
    flaxs = nn.DenseGeneral((3, 4))
    params, theirs = own.init(jax.random.key(1), x)["params"], flaxs.init(jax.random.key(1), x)["params"]
    params = nn.meta.unbox(params)
    chex.assert_trees_all_equal(params, theirs)
    np.testing.assert_allclose(own.apply({"params": params}, x), flaxs.apply({"params": theirs}, x), rtol=1e-6)
    assert own.apply({"params": params}, x[:0]).shape == (0, 3, 3, 4)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_a_block_on_one_cpu_is_the_block_on_several(tiny_encoder, tiny_images, monkeypatch, mlp):
    """The tests' own devices are eight."""
    from brh_jax.distill import init_blocks
    from brh_jax.models import RaptorConfig
    from brh_jax.models.raptor import Blocks
    from brh_jax.partition import Partition

    config = RaptorConfig(tiny_encoder.config, Partition((2, 4)), mlp=mlp, layer_scale_init=0.5)
    blocks, start = init_blocks(config, tiny_encoder.layout, jax.random.key(0)), tiny_encoder.embed(tiny_images)

    def loss(blocks, start):
        return jnp.mean(Blocks(config).apply({"params": blocks}, start, method="rollout") ** 2)

    found = []
    for way in (True, False):
        monkeypatch.setattr(layers, "_on_one_cpu", lambda way=way: way)
        found.append(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(blocks, start))
    chex.assert_trees_all_close(*found, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("fused", [True, False])
def test_in_bfloat16_as_one_product_of_matrices(fused):
    """Operands are rounded to 8 bits, 0.2 % each; what is added up and comes out is float32."""
    arguments = (_numbers(7, 8), _numbers(8, 3, 4, seed=1), _numbers(3, 4, seed=3))
    wanted = _numbers(7, 3, 4, seed=2)
    rounded = jax.tree.map(lambda array: jnp.asarray(array, jnp.bfloat16), arguments)

    def loss(arguments, **how):
        return jnp.sum((layers.linear(*arguments, matrices=True, **how).astype(jnp.float32) - wanted) ** 2)

    out = layers.linear(*rounded, matrices=True, fused=fused)
    exact = layers.linear(*(np.asarray(array, np.float32) for array in rounded), matrices=True)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-5)  # only the operands were rounded
    for one, other in zip(jax.grad(loss)(rounded, fused=fused), jax.grad(loss)(arguments), strict=True):
        assert one.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(one, np.float32) - other) < 1e-2 * np.linalg.norm(other)


def test_fused_gradients_in_bfloat16_are_products_that_xla_has_a_kernel_for():
    """Rows of the one with columns of the other, into float32: it has none for matrices that are read transposed."""
    x, kernel = (jnp.asarray(_numbers(*shape), jnp.bfloat16) for shape in ((7, 8), (8, 12)))

    def products(fused):
        def loss(x, kernel):
            return jnp.sum(layers.linear(x, kernel, None, matrices=True, fused=fused) ** 2)

        program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel)
        assert str(program).count("optimization_barrier") == 2 * fused  # transposed matrices are written out
        equations = program.eqns
        equations = [inner for one in equations for inner in getattr(one.params.get("jaxpr"), "eqns", [one])]
        return [one for one in equations if one.primitive.name == "dot_general"]

    def kernels(found):
        return [
            one.params["dimension_numbers"][0] == ((1,), (0,))
            and {v.aval.dtype.name for v in one.invars} == {"bfloat16"}
            and one.outvars[0].aval.dtype == jnp.float32
            for one in found
        ]

    assert kernels(products(fused=True)) == [True] * 3
    assert not all(kernels(products(fused=False)))


@pytest.mark.parametrize("one_cpu", [True, False])
@pytest.mark.parametrize("module", [layers.Attention(2), layers.Mlp(16), layers.Mlp(16, "swiglu"), layers.Dense((3, 4))])
def test_parameters_in_bfloat16_without_a_dtype_are_multiplied_in_it(monkeypatch, module, one_cpu):
    monkeypatch.setattr(layers, "_on_one_cpu", lambda: one_cpu)
    x = jnp.asarray(_numbers(2, 5, 8), jnp.bfloat16)
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nn.meta.unbox(module.init(jax.random.key(0), x)))
    with jax.numpy_dtype_promotion("strict"):
        assert module.apply(variables, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_fused_in_bfloat16_is_near_float32(tiny_encoder, tiny_images, monkeypatch, mlp):
    """Teacher and Raptor as a training step has them, states and gradients."""
    from brh_jax.distill import init_blocks
    from brh_jax.models import RaptorConfig
    from brh_jax.models.raptor import Blocks
    from brh_jax.partition import Partition

    monkeypatch.setattr(layers, "_on_one_cpu", lambda: True)
    config = RaptorConfig(tiny_encoder.config, Partition((2, 4)), mlp=mlp, layer_scale_init=0.5)
    blocks = init_blocks(config, tiny_encoder.layout, jax.random.key(0))

    def loss(blocks, dtype):
        start, *states = tiny_encoder.config.module(dtype, fused=True).apply({"params": tiny_encoder.params}, tiny_images)
        reached = Blocks(config, dtype, fused=True).apply({"params": blocks}, start, method="rollout")
        return jnp.mean((reached[1:] - jnp.stack(states)) ** 2)

    (low, low_gradient), (high, gradient) = (
        jax.jit(jax.value_and_grad(lambda blocks, dtype=dtype: loss(blocks, dtype)))(blocks) for dtype in (jnp.bfloat16, None)
    )
    assert low != high and abs(low / high - 1) < 1e-2
    for one, other in zip(jax.tree.leaves(low_gradient), jax.tree.leaves(gradient), strict=True):
        assert np.linalg.norm(one - other) < 3e-2 * np.linalg.norm(other) + 1e-8


@pytest.mark.parametrize("one_cpu", [True, False])
def test_a_model_is_exported_for_any_number_of_images(tiny_encoder, tiny_images, monkeypatch, one_cpu):
    expected = tiny_encoder.trajectory(tiny_images[:3])
    monkeypatch.setattr(layers, "_on_one_cpu", lambda: one_cpu)
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 8, 8, 3"), jnp.float32)
    trajectory = jax.jit(lambda images: tiny_encoder.module.apply({"params": tiny_encoder.params}, images))
    np.testing.assert_allclose(jax.export.export(trajectory)(shape).call(jnp.asarray(tiny_images[:3])), expected, atol=1e-5)
