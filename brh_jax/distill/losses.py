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


def mean_squared_error(predicted: Array, target: Array, weights: Array) -> jax.Array:
    """Weighted mean squared error of each layer.

    Args:
        predicted, target: `[layers, batch, tokens, dim]`.
        weights: `[tokens]` or `[layers, tokens]`, from `token_weights`.

    Returns:
        `[layers]`.
    """
    token_errors = jnp.mean(jnp.square(predicted - target), axis=(1, 3))
    return jnp.sum(token_errors * jnp.asarray(weights, token_errors.dtype), axis=-1)


# (predicted, target, weights) -> `[layers]`, as `mean_squared_error`.
LOSSES: dict[str, Callable] = {"mse": mean_squared_error}
