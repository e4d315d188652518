"""What a model costs: parameters and floating-point operations, counted from its shapes."""

from typing import NamedTuple

from brh_jax.models.encoder import Encoder, count_params
from brh_jax.models.raptor import RaptorConfig
from brh_jax.models.vit import ViTConfig
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
