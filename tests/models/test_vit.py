import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from brh_jax.errors import UserError
from brh_jax.models import Block, ViT, layers
from brh_jax.models.position import resample
from brh_jax.models.remat import NAMES


def test_trajectory_is_every_block_applied_in_turn(tiny_encoder, tiny_images):
    states = tiny_encoder.trajectory(tiny_images)
    chex.assert_shape(states, (7, 8, 19, 16))
    chex.assert_trees_all_close(states[0], tiny_encoder.embed(tiny_images))
    block = Block(tiny_encoder.config)
    for layer in range(6):
        params = jax.tree.map(lambda p, layer=layer: p[layer], tiny_encoder.params["blocks"])
        chex.assert_trees_all_close(block.apply({"params": params}, states[layer]), states[layer + 1], atol=1e-5)


def test_blocks_are_not_shared(tiny_encoder):
    kernel = tiny_encoder.params["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape[0] == 6
    assert not np.allclose(kernel[0], kernel[1])


def test_system_steps_along_the_trajectory_also_with_a_traced_layer(tiny_encoder, tiny_images):
    states = tiny_encoder.trajectory(tiny_images)
    step = jax.jit(tiny_encoder.system().step)
    for layer in range(6):
        chex.assert_trees_all_close(step(states[layer], layer), states[layer + 1], atol=1e-5)


@pytest.mark.parametrize("policy", NAMES)
def test_rematerialisation_changes_no_gradient(tiny_encoder, tiny_images, policy):
    def loss(params, remat):
        return jnp.mean(ViT(tiny_encoder.config, remat=remat).apply({"params": params}, tiny_images) ** 2)

    expected = jax.grad(loss)(tiny_encoder.params, "none")
    chex.assert_trees_all_close(jax.grad(loss)(tiny_encoder.params, policy), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype, chosen", [(None, "dots"), ("float32", "dots"), ("bfloat16", "full"), (jnp.bfloat16, "full")])
def test_auto_keeps_products_but_on_a_cpu_in_bfloat16(tiny_encoder, tiny_images, dtype, chosen):
    def program(remat):
        module = ViT(tiny_encoder.config, dtype, remat)
        gradient = jax.grad(lambda params: module.apply({"params": params}, tiny_images).sum())
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(gradient)(tiny_encoder.params)))

    assert program("auto") == program(chosen)
    assert program("dots") != program("full")


@pytest.mark.parametrize("implementation", ["xla", "cudnn"])
def test_fused_attention_is_plain_attention(tiny_encoder, tiny_images, monkeypatch, implementation):
    """Through jax's own implementation here; cuDNN's is not there on a CPU, and the plain one takes its place."""
    real = layers.fused_attention
    used = []

    def fused(q, k, v):
        used.append(real(q, k, v, implementation))
        return used[-1]

    monkeypatch.setattr(layers, "fused_attention", fused)
    module = ViT(tiny_encoder.config, fused=True)
    states = module.apply({"params": tiny_encoder.params}, tiny_images)
    assert (used[0] is None) == (implementation == "cudnn")
    chex.assert_trees_all_close(states, tiny_encoder.trajectory(tiny_images), atol=1e-5)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    from brh_jax.models.layers import DropPath

    x = jnp.ones((4000, 2, 3))
    out = DropPath(0.25).apply({}, x, False, rngs={"drop_path": jax.random.key(0)})
    per_sample = out.reshape(4000, -1)
    assert jnp.all(per_sample == per_sample[:, :1])
    assert abs(float((per_sample[:, 0] == 0).mean()) - 0.25) < 0.03
    assert abs(float(out.mean()) - 1) < 0.03
    chex.assert_trees_all_equal(DropPath(0.25).apply({}, x), x)


def test_bfloat16_keeps_the_residual_stream_in_float32(tiny_encoder, tiny_images):
    exact = tiny_encoder.trajectory(tiny_images)
    states = tiny_encoder.replace(dtype=jnp.bfloat16).trajectory(tiny_images)
    assert states.dtype == jnp.float32
    error = jnp.linalg.norm(states - exact) / jnp.linalg.norm(exact)
    assert 1e-5 < error < 2e-2


@pytest.mark.parametrize("grid", [(16, 16), (24, 24), (40, 30), (8, 11)])
@pytest.mark.parametrize("method", ["cubic", "cubic-antialias", "cubic-offset"])
def test_position_tables_are_resampled_as_torch_does_it(method, grid):
    table = np.random.default_rng(0).normal(size=(37, 37, 5)).astype(np.float32)
    options = {
        "cubic": {"size": grid},
        "cubic-antialias": {"size": grid, "antialias": True},
        "cubic-offset": {"scale_factor": tuple((n + 0.1) / 37 for n in grid)},
    }[method]
    expected = F.interpolate(torch.tensor(table).permute(2, 0, 1)[None], mode="bicubic", **options)[0].permute(1, 2, 0)
    np.testing.assert_allclose(resample(jnp.asarray(table), grid, method), expected, atol=4e-5)


def test_image_of_a_wrong_size_or_type(tiny_encoder):
    with pytest.raises(UserError, match=r"9 x 8 is not a multiple of the patch size 2: use for example 8 x 8"):
        tiny_encoder.trajectory(np.zeros((1, 9, 8, 3), np.float32))
    with pytest.raises(UserError, match="uint8.*normalize_pixels"):
        tiny_encoder.trajectory(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"must be \[batch, height, width, 3\]"):
        tiny_encoder.trajectory(np.zeros((1, 3, 8, 8), np.float32))
