"""Vision transformers and their recurrent surrogates."""

from brh_jax.models.encoder import Encoder, count_params, pooled_features
from brh_jax.models.raptor import Raptor, RaptorBlock, RaptorConfig
from brh_jax.models.registry import ARCHITECTURES, architecture
from brh_jax.models.vit import Block, ViT, ViTConfig

__all__ = [
    "ARCHITECTURES",
    "Block",
    "Encoder",
    "Raptor",
    "RaptorBlock",
    "RaptorConfig",
    "ViT",
    "ViTConfig",
    "architecture",
    "count_params",
    "pooled_features",
]
