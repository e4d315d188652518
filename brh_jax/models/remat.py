"""What the backward pass keeps of a block and what it computes again."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from brh_jax.errors import UserError

# Outputs of matrix products with parameters are worth keeping; everything else is cheap to compute again, and writing it to
# memory costs more.
POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


# "auto" is the fastest that was measured: dots, but full where a CPU multiplies in bfloat16, which takes less time than to write
# the products down and read them again.
NAMES = ("auto", *POLICIES)


def rematerialize(body: Callable, policy: str, dtype: Any = None) -> Callable:
    """A scan body `(module, carry, xs) -> (carry, ys)` whose backward pass keeps what the named policy says.

    Args:
        policy: one of NAMES.
        dtype: precision of the body's products, for auto to choose by.

    Raises:
        UserError: unknown policy.
    """
    if policy not in NAMES:
        raise UserError(f"unknown remat policy {policy!r}: expected one of {', '.join(NAMES)}")
    if policy == "auto":
        policy = "full" if jax.default_backend() == "cpu" and dtype == jnp.bfloat16 else "dots"
    if policy == "none":
        return body
    # Inside a scan nothing can be merged across iterations, so XLA needs no barrier against it.
    return nn.remat(body, prevent_cse=False, policy=POLICIES[policy])
