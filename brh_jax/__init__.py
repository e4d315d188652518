"""Block-recurrent dynamics in vision transformers, in JAX (after arXiv 2512.19941)."""

from brh_jax.errors import UserError
from brh_jax.fitting import fit_raptor
from brh_jax.loading import load
from brh_jax.models import Encoder, Raptor, RaptorConfig, ViT, ViTConfig
from brh_jax.models.store import save
from brh_jax.partition import Partition
from brh_jax.tokens import TokenLayout
from brh_jax.train.hardware import avoid_wrong_fusions

__all__ = [
    "Encoder",
    "Partition",
    "Raptor",
    "RaptorConfig",
    "TokenLayout",
    "UserError",
    "ViT",
    "ViTConfig",
    "fit_raptor",
    "load",
    "save",
]
__version__ = "0.1.0"  # pyproject.toml reads it here

avoid_wrong_fusions()
