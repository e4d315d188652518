"""A linear classifier on features: {"kernel": [features, outputs], "bias": [outputs]}, and which features it reads."""

from typing import Any

import jax
import jax.numpy as jnp

from brh_jax.tokens import TokenLayout
from brh_jax.types import Array

READS = ("cls", "patches", "cls+patches")  # of the normalised last state: the class token, the mean patch, or both side by side


def zero_head(num_features: int, num_outputs: int) -> dict[str, jax.Array]:
    """A linear head that gives zeros."""
    return {"kernel": jnp.zeros((num_features, num_outputs)), "bias": jnp.zeros(num_outputs)}


def apply_head(head: dict[str, Any], features: Array) -> Array:
    """`[..., features] -> [..., outputs]`."""
    return features @ head["kernel"] + head["bias"]


def on_pooled(head: dict[str, Any], dim: int, layout: TokenLayout, reads: str = "") -> dict[str, Any] | None:
    """A classifier as one on [cls, mean patch] (`pooled_features`): what it does not read has weights of zero.

    Args:
        dim: width of a token.
        layout: of the tokens.
        reads: one of READS; empty for what its width says: both where it is that of both, the class token where it is that of one
            token, as supervised ViTs' are.

    Returns:
        None where it reads something else: one of several class tokens, or features of another width.
    """
    kernel, types = jnp.asarray(head["kernel"]), [bool(layout.num_cls), bool(layout.num_patches)]
    width = len(kernel)
    if reads in ("", "cls+patches") and width == dim * sum(types):
        return head
    reads = reads or "cls"
    if width != dim or reads == "cls+patches" or not types[READS.index(reads)] or (reads == "cls" and layout.num_cls > 1):
        return None
    nothing = jnp.zeros_like(kernel)
    parts = {"cls": [kernel, nothing], "patches": [nothing, kernel]}[reads]
    return {"kernel": jnp.concatenate([part for part, there in zip(parts, types, strict=True) if there]), "bias": head["bias"]}
