import dataclasses
import math

import jax
import numpy as np
import pytest

from brh_jax.distill import Blockwise, BlockwiseSettings, Joint, JointSettings, init_blocks, raptor_encoder
from brh_jax.distill.objectives import Target
from brh_jax.models import RaptorConfig, count_params
from brh_jax.models.cost import block_params, cost, describe, partition_bits, unshared, vit_flops
from brh_jax.models.raptor import Blocks
from brh_jax.phases import Partition


def test_levin_complexity_of_a_vit_and_its_raptor(tiny_encoder):
    config = RaptorConfig(tiny_encoder.config, Partition((4, 2)), mlp="gelu", mlp_dim=32, depth_scaling=False)
    blocks = init_blocks(config, tiny_encoder.layout, jax.random.key(0))
    raptor = raptor_encoder(config, blocks, tiny_encoder, "raptor")
    vit, found = describe(tiny_encoder), describe(raptor)
    block = 4 * 16 * 16 + 4 * 16 + 2 * 16 * 32 + 32 + 16 + 4 * 16  # attention, feed-forward and two norms, with their biases
    assert vit.block_bits == 32 * 6 * block
    assert found.block_bits == 32 * 2 * (block + 2 * 16)  # LayerScale
    assert (vit.partition_bits, found.partition_bits) == (0.0, pytest.approx(math.log2(6) + math.log2(5)))
    assert found.log2_flops == vit.log2_flops == math.log2(cost(raptor).flops_per_image)
    assert found.levin == found.block_bits + found.partition_bits + found.log2_flops
    half = raptor.replace(params=jax.tree.map(lambda leaf: leaf.astype("bfloat16"), raptor.params))
    assert describe(half).block_bits == found.block_bits // 2


def test_bits_of_a_partition_count_the_partitions_there_are():
    assert partition_bits(Partition((12,))) == math.log2(12)
    assert partition_bits(Partition((7, 3, 2))) == pytest.approx(math.log2(12) + math.log2(55))
    assert partition_bits(Partition((7, 3, 2), (0, 1, 0))) == pytest.approx(math.log2(12) + math.log2(55) + 2)


def test_unshared_layers_have_the_parameters_of_the_shared_blocks(tiny_encoder):
    shared = RaptorConfig(tiny_encoder.config, Partition((2, 2, 1, 1)), mlp_dim=64)
    blocks = init_blocks(shared, tiny_encoder.layout, jax.random.key(0))
    assert count_params(blocks) == 4 * block_params(shared)
    apart = unshared(shared)
    found = count_params(init_blocks(apart, tiny_encoder.layout, jax.random.key(0)))
    assert apart.partition.k == 6 and found == 6 * block_params(apart)
    assert 4 * block_params(shared) - 6 * (3 * 16 + 2) < found <= 4 * block_params(shared)
    assert apart.mlp_dim < shared.mlp_dim
    with pytest.raises(ValueError, match="attention alone takes more: it needs k = 3 or more"):
        unshared(dataclasses.replace(shared, partition=Partition((6,)), mlp_dim=32))


def test_blocks_applied_once_produce_the_last_state_of_their_phase(tiny_encoder, tiny_images):
    config = RaptorConfig(tiny_encoder.config, Partition((4, 2)), once=True, layer_scale_init=1.0)
    blocks = init_blocks(config, tiny_encoder.layout, jax.random.key(0))
    control = raptor_encoder(config, blocks, tiny_encoder, "control")
    states = control.trajectory(tiny_images)
    assert (config.applications, config.modelled) == (2, (False, False, False, True, False, True))
    repeated = RaptorConfig(tiny_encoder.config, Partition((4, 2)), layer_scale_init=1.0)
    block = raptor_encoder(repeated, blocks, tiny_encoder, "raptor").system()
    np.testing.assert_allclose(states[4], block.step(states[0], 3), atol=1e-5)  # phase 1's block, at the depth of layer 4
    np.testing.assert_allclose(states[6], block.step(states[4], 5), atol=1e-5)
    np.testing.assert_array_equal(states[1], states[4])
    np.testing.assert_allclose(control.system().rollout(states[0]), states, atol=1e-5)
    assert 3 * cost(control).flops_per_image == vit_flops(repeated, control.layout)
    # Only the last states of the phases are compared.
    teacher, module = tiny_encoder.trajectory(tiny_images), Blocks(config)
    errors = np.square(np.asarray(states - teacher)).mean((1, 2, 3))
    arguments = (module, blocks, Target(teacher, control.layout), 0, jax.random.key(0), True)
    loss, _ = Joint(JointSettings(token_weights=())).loss(*arguments)
    assert loss == pytest.approx((errors[4] + errors[6]) / 2, rel=1e-5)
    _, metrics = Blockwise(BlockwiseSettings(token_weights=())).loss(*arguments)
    assert metrics["loss_phase_1"] == pytest.approx(errors[4], rel=1e-5) and metrics["loss_phase_2"] > 0
    with pytest.raises(ValueError, match="phases of consecutive layers"):
        dataclasses.replace(config, partition=Partition((2, 2, 2), (0, 1, 0)))
