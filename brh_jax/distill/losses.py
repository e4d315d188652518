"""How far predicted states are from the teacher's (paper, section 4).

LOSSES has them by name: one function and one entry add another.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.tokens import TokenLayout
from brh_jax.types import Array


def token_weights(layout: TokenLayout, weights: tuple[float, ...] | None = None) -> np.ndarray:
    """Weight of each token in a loss, `[tokens]`, summing to one.

    Args:
        weights: of the mean squared errors of (cls, registers, patches); None or () for the plain mean over all tokens. Weights
            of types that the model lacks are shared out among the others in proportion.

    Raises:
        ValueError: no weight on any token type that is there.
    """
    if not weights:
        return np.full(layout.num_tokens, 1 / layout.num_tokens)
    present = np.array([w if n else 0.0 for w, n in zip(weights, layout.counts, strict=True)])
    if not present.sum() > 0:
        raise ValueError(f"token weights {weights} put nothing on the tokens of {layout}")
    shares = present / present.sum()
    return np.concatenate([np.full(n, s / n) for n, s in zip(layout.counts, shares, strict=True) if n])


def mean_squared_error(predicted: Array, target: Array, weights: Array, layout: TokenLayout) -> jax.Array:
    """Weighted mean squared error of each layer.

    Args:
        predicted, target: `[layers, batch, tokens, dim]`.
        weights: `[tokens]` or `[layers, tokens]`, from `token_weights`.

    Returns:
        `[layers]`.
    """
    token_errors = jnp.mean(jnp.square(predicted - target), axis=(1, 3))
    return jnp.sum(token_errors * jnp.asarray(weights, token_errors.dtype), axis=-1)


# The share of a token type's variance below which an error hardly counts in `log_error`.
NEGLIGIBLE = 1e-3


def log_error(predicted: Array, target: Array, weights: Array, layout: TokenLayout) -> jax.Array:
    """Weighted mean over token types of the logarithm of their mean squared error, of each layer.

    A layer that hardly varies, or a type of few tokens, then pulls as hard as one whose states are large: what counts is by how
    much of itself an error shrinks. Arguments and result as `mean_squared_error`; errors and variances are of the whole batch.
    """
    weights = jnp.broadcast_to(jnp.asarray(weights, predicted.dtype), (len(predicted), layout.num_tokens))
    total = jnp.zeros(len(predicted), predicted.dtype)
    for found, wanted, shares in zip(
        layout.split(predicted), layout.split(target), layout.split(weights[..., None]), strict=True
    ):
        if wanted.shape[2]:
            error = jnp.mean(jnp.square(found - wanted), axis=(1, 2, 3))
            variance = jnp.mean(jnp.var(wanted, axis=(1, 2)), axis=-1)
            total += shares.sum((1, 2)) * jnp.log(error + NEGLIGIBLE * variance + jnp.finfo(error.dtype).tiny)
    return total


# (predicted, target, weights, layout) -> `[layers]`, as `mean_squared_error`.
LOSSES: dict[str, Callable] = {"mse": mean_squared_error, "log": log_error}
