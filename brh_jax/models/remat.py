"""What the backward pass keeps of a block and what it computes again."""

from collections.abc import Callable

import flax.linen as nn
import jax

from brh_jax.errors import UserError

# Outputs of matrix products with parameters are worth keeping; everything else is cheap to compute again, and writing it to
# memory costs more: on two CPU cores "dots" is also the fastest.
POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialize(body: Callable, policy: str) -> Callable:
    """A scan body `(module, carry, xs) -> (carry, ys)` whose backward pass keeps what the named policy says.

    Raises:
        UserError: unknown policy.
    """
    if policy not in POLICIES:
        raise UserError(f"unknown remat policy {policy!r}: expected one of {', '.join(POLICIES)}")
    if policy == "none":
        return body
    # Inside a scan nothing can be merged across iterations, so XLA needs no barrier against it.
    return nn.remat(body, prevent_cse=False, policy=POLICIES[policy])
