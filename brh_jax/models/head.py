"""A linear classifier on features: {"kernel": [features, outputs], "bias": [outputs]}."""

from typing import Any

import jax
import jax.numpy as jnp

from brh_jax.types import Array


def zero_head(num_features: int, num_outputs: int) -> dict[str, jax.Array]:
    """A linear head that gives zeros."""
    return {"kernel": jnp.zeros((num_features, num_outputs)), "bias": jnp.zeros(num_outputs)}


def apply_head(head: dict[str, Any], features: Array) -> jax.Array:
    """`[..., features] -> [..., outputs]`."""
    return features @ head["kernel"] + head["bias"]
