"""What a model costs: parameters, floating-point operations and length as a program, counted from its shapes."""

import dataclasses
import math
from typing import NamedTuple

import jax

from brh_jax.errors import UserError
from brh_jax.models.encoder import Encoder, ModelConfig, count_params
from brh_jax.models.raptor import RaptorConfig
from brh_jax.partition import Partition
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


def vit_flops(config: ModelConfig, layout: TokenLayout) -> int:
    """Operations of the blocks for one image."""
    tokens, dim = layout.num_tokens, config.dim
    matrices = 3 if config.mlp == "swiglu" else 2
    linear = 2 * tokens * (4 * dim * dim + matrices * dim * config.mlp_dim)
    attention = 4 * tokens * tokens * dim
    return config.applications * (linear + attention)


def block_params(config: RaptorConfig) -> int:
    """Parameters of one block of a Raptor."""
    fixed, per_hidden = _block_params(config)
    return fixed + per_hidden * config.mlp_dim


def unshared(config: RaptorConfig) -> RaptorConfig:
    """A block for every layer, with as many parameters in all as the Raptor's k shared ones, their feed-forward layers narrower.

    Depth scaling is left out, as a block that runs at one depth has none to be scaled by.

    Raises:
        UserError: attention and norms alone exceed the Raptor's parameters.
    """
    depth, k = config.depth, config.partition.k
    each = dataclasses.replace(config, partition=Partition((1,) * depth), depth_scaling=False)
    fixed, per_hidden = _block_params(each)
    hidden = (k * block_params(config) / depth - fixed) // per_hidden
    if hidden < 1:
        least = math.ceil(depth * (fixed + per_hidden) / block_params(config))
        raise UserError(
            f"{depth} unshared layers of width {config.dim} cannot have the parameters of {k} shared blocks, attention alone "
            f"takes more: it needs k = {least} or more, or k unshared blocks applied once each (once=True)"
        )
    return dataclasses.replace(each, mlp_dim=int(hidden))


def rank_of_size(config: RaptorConfig, params: int) -> int:
    """The largest rank with which kernels of rank r (`distill.low_rank`) leave a model's unshared layers no more than so many
    parameters.

    Raises:
        UserError: rank 1 takes more.
    """
    dim, hidden, gates = config.dim, config.mlp_dim, 2 if config.mlp == "swiglu" else 1
    vectors = 4 * dim + 6 * dim + gates * hidden + dim  # biases of attention; norms and gains; biases of the feed-forward layer
    per_rank = 4 * 2 * dim + (gates + 1) * (dim + hidden)
    rank = (params // config.depth - vectors) // per_rank
    if rank < 1:
        raise UserError(
            f"{config.depth} unshared layers of rank 1 have {config.depth * (vectors + per_rank):,} parameters, more than the "
            f"{params:,} of the shared blocks: it needs more phases"
        )
    return min(int(rank), dim)


def _block_params(config: RaptorConfig) -> tuple[int, int]:
    """Parameters of a block whatever the hidden width of its feed-forward layer, and those that each hidden unit adds."""
    dim, gates = config.dim, 2 if config.mlp == "swiglu" else 1
    attention, norms_and_gains, out_bias = 4 * dim * dim + 4 * dim, 6 * dim, dim
    scaling = 2 * 16 + 17 * 3 * dim if config.depth_scaling else 0
    return attention + norms_and_gains + out_bias + scaling, gates * (dim + 1) + dim


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
