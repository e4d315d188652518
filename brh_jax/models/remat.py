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


# "auto" is the fastest on the CPUs that were measured: dots, but full in bfloat16, in which products take less time than to write
# them down and read them again. Accelerators have dots, and were not measured.
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
        halved = dtype is not None and jnp.dtype(dtype) == jnp.bfloat16
        policy = "full" if halved and jax.default_backend() == "cpu" else "dots"
    if policy == "none":
        return body
    # Inside a scan nothing can be merged across iterations, so XLA needs no barrier against it.
    return nn.remat(body, prevent_cse=False, policy=POLICIES[policy])
