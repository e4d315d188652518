import math

import jax
import pytest

from brh_jax.distill import init_blocks, raptor_encoder
from brh_jax.models import RaptorConfig
from brh_jax.models.cost import cost, describe, partition_bits
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
