"""Layers one by one are the model's own, and models of one shape are one program."""

import dataclasses

import chex
import jax
import pytest

from brh_jax.models import Encoder, Raptor, RaptorConfig, ViT
from brh_jax.models.encoder import init_params
from brh_jax.models.stack import stack_layers
from brh_jax.phases import Partition
from brh_jax.train.parallel import make_mesh


def noisy(module, images):
    """Parameters far from their start: fresh ones are nearly the identity and would hide mistakes."""
    leaves, tree = jax.tree.flatten(init_params(module, jax.random.key(0), images))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)])


def check_steps(module, images):
    """Layers of every phase, and their halves, against the model's own; what the program is told apart by."""
    params = noisy(module, images)
    stack, stacked = stack_layers(module.config, params["blocks"])
    state = module.apply({"params": params}, images, method="embed")
    grid = module.config.layout(*images.shape[1:3]).grid
    for layer in (1, 2, 3, 5):
        for part in ("attention", "mlp", None):
            after = stack.apply({"params": stacked}, state, layer, grid, part, method="step")
            expected = module.apply({"params": params}, state, layer, grid, part, method="step")
            chex.assert_trees_all_close(after, expected, atol=1e-5, rtol=1e-5)
        state = after
    return stack, jax.tree.structure(stacked), tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(stacked))


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_scale": True},
        {"layer_scale": False, "qkv_bias": False, "layer_norm_eps": 1e-2},
        {"rope_periods": (1.0, 10.0), "mlp": "swiglu"},
        {"mlp": "quick_gelu", "pre_norm": True},
    ],
    ids=str,
)
def test_the_layers_of_a_vit(tiny_config, tiny_images, changes):
    check_steps(ViT(dataclasses.replace(tiny_config, depth=6, **changes)), tiny_images)


@pytest.mark.parametrize("teacher", [{"layer_scale": True}, {"layer_scale": False, "qkv_bias": False}], ids=str)
def test_a_vit_and_its_raptors_of_any_number_of_blocks_are_one_program(tiny_config, tiny_images, teacher):
    vit = dataclasses.replace(tiny_config, depth=6, **teacher)
    programs = {check_steps(ViT(vit), tiny_images)}
    for partition in (Partition((6,)), Partition((3, 2, 1)), Partition((2, 1, 3), (0, 1, 0)), Partition((1,) * 6)):
        for scaled in (True, False) if partition.k < 6 else (True,):
            config = RaptorConfig(vit, partition, vit.mlp, vit.mlp_dim, depth_scaling=scaled, layer_norm_eps=1e-3)
            programs.add(check_steps(Raptor(config), tiny_images))
    assert len(programs) == 1


def test_raptors_of_another_feed_forward_layer_are_one_program_of_their_own(tiny_config, tiny_images):
    vit = dataclasses.replace(tiny_config, depth=6)
    raptors = [RaptorConfig(vit, Partition(lengths), "swiglu") for lengths in ((6,), (2, 4))]
    assert len({check_steps(Raptor(config), tiny_images) for config in raptors}) == 1


def test_they_are_one_program_on_a_mesh_too(tiny_encoder, tiny_config, tiny_images):
    vit, mesh = dataclasses.replace(tiny_config, qkv_bias=False), make_mesh(2, 2, 2)
    found = []
    for module in (ViT(vit), Raptor(RaptorConfig(vit, Partition((2, 4)), vit.mlp, vit.mlp_dim))):
        encoder = Encoder(module.config, noisy(module, tiny_images), tiny_encoder.preprocessing).on(mesh)
        found.append([leaf.sharding for leaf in jax.tree.leaves(encoder.system())])
    assert found[0] == found[1]


def test_in_bfloat16_depth_scales_as_the_model_has_it(tiny_config, tiny_images):
    module = Raptor(RaptorConfig(tiny_config, Partition((2, 4))))
    params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), noisy(module, tiny_images))
    stack, stacked = stack_layers(module.config, params["blocks"])
    state = jax.random.normal(jax.random.key(2), (2, 19, 16))
    after, expected = (m.apply({"params": p}, state, 3, method="step") for m, p in ((stack, stacked), (module, params)))
    chex.assert_trees_all_close(after, expected, atol=1e-4, rtol=1e-4)
