"""What a model costs: parameters, floating-point operations and length as a program, counted from its shapes."""

import math
from typing import NamedTuple

import jax

from brh_jax.models.encoder import Encoder, count_params
from brh_jax.models.raptor import RaptorConfig
from brh_jax.models.vit import ViTConfig
from brh_jax.phases.partition import Partition
from brh_jax.tokens import TokenLayout


class Cost(NamedTuple):
    """Attributes: params of the whole model, params of its blocks alone, and operations of one image's blocks (a
    multiply-add counts as two; matrix products only)."""

    params: int
    block_params: int
    flops_per_image: int


def cost(encoder: Encoder) -> Cost:
    """The cost of an encoder at its own image size. A shared block runs once per layer but is stored once."""
    return Cost(
        params=count_params(encoder.params),
        block_params=count_params(encoder.params["blocks"]),
        flops_per_image=vit_flops(encoder.config, encoder.layout),
    )


def vit_flops(config: ViTConfig | RaptorConfig, layout: TokenLayout) -> int:
    """Operations of the blocks for one image."""
    tokens, dim = layout.num_tokens, config.dim
    matrices = 3 if config.mlp == "swiglu" else 2
    linear = 2 * tokens * (4 * dim * dim + matrices * dim * config.mlp_dim)
    attention = 4 * tokens * tokens * dim
    return config.depth * (linear + attention)


class Description(NamedTuple):
    """A model as a program, in Levin's sense (paper, section 1).

    Attributes:
        parameter_bits: all parameters at the precision that they are stored in.
        block_bits: of those, the blocks'; embedding and norm are the same for a teacher and its Raptors.
        partition_bits: which layer has which block; zero for a ViT, whose layers each have their own.
        log2_flops: log2 of the operations of one image's blocks.
        levin: Kt = block_bits + partition_bits + log2_flops, program length plus the logarithm of its running time.
    """

    parameter_bits: int
    block_bits: int
    partition_bits: float
    log2_flops: float
    levin: float


def describe(encoder: Encoder) -> Description:
    """The description length and Levin complexity of an encoder's blocks, at its own image size.

    An upper bound: nothing is compressed, and programs that are this long agree with the teacher only up to their e.
    """
    partition = getattr(encoder.config, "partition", None)
    block_bits, log2_flops = _bits(encoder.params["blocks"]), math.log2(cost(encoder).flops_per_image)
    extra = partition_bits(partition) if partition else 0.0
    return Description(_bits(encoder.params), block_bits, extra, log2_flops, block_bits + extra + log2_flops)


def partition_bits(partition: Partition) -> float:
    """Bits that tell a partition from all others of the same depth: the number of runs, where they end, and their phases.

    log2(depth) + log2 C(depth - 1, runs - 1), and (runs - 1) log2(k) where phases come back.
    """
    runs = len(partition.lengths)
    ends = math.log2(partition.depth) + math.log2(math.comb(partition.depth - 1, runs - 1))
    return ends if partition.contiguous else ends + (runs - 1) * math.log2(partition.k)


def _bits(params) -> int:
    return sum(8 * leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
