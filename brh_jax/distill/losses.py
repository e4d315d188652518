"""How far predicted states are from the teacher's (paper, section 4)."""

import jax.numpy as jnp
import numpy as np

from brh_jax.tokens import TokenLayout


def token_weights(layout: TokenLayout, weights: tuple[float, float, float] | None = None) -> np.ndarray:
    """Weight of each token in a loss, `[tokens]`, summing to one.

    Args:
        weights: of the mean squared errors of (cls, registers, patches); None for the plain mean over all tokens. Weights of
            types that the model lacks are shared out among the others in proportion.

    Raises:
        ValueError: no weight on any token type that is there.
    """
    if weights is None:
        return np.full(layout.num_tokens, 1 / layout.num_tokens)
    present = np.array([w if n else 0.0 for w, n in zip(weights, layout.counts, strict=True)])
    if not present.sum() > 0:
        raise ValueError(f"token weights {weights} put nothing on the tokens of {layout}")
    shares = present / present.sum()
    return np.concatenate([np.full(n, s / n) for n, s in zip(layout.counts, shares, strict=True) if n])


def layer_losses(predicted, target, weights):
    """Weighted mean squared error of each layer.

    Args:
        predicted, target: `[layers, batch, tokens, dim]`.
        weights: `[tokens]` or `[layers, tokens]`, from `token_weights`.

    Returns:
        `[layers]`.
    """
    token_errors = jnp.mean(jnp.square(predicted - target), axis=(1, 3))
    return jnp.sum(token_errors * jnp.asarray(weights, token_errors.dtype), axis=-1)
