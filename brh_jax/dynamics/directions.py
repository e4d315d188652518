"""Directions of states along depth, on the unit sphere x^ = x / |x| (paper, section 8)."""

import jax.numpy as jnp

from brh_jax.tokens import ByToken, TokenLayout, check_trajectory


def directional_convergence(states, layout: TokenLayout) -> ByToken:
    """gamma_l = <x^_l, x^_L>: cosine of each state with the last one, mean over tokens and images.

    Args:
        states: trajectory `[depth + 1, batch, tokens, dim]`.

    Returns:
        per token type `[depth + 1]`, empty for a type that the model lacks.

    Raises:
        ValueError: not a trajectory of that layout.
    """
    return _mean_over_images(directional_convergence_per_image(states, layout))


def directional_convergence_per_image(states, layout: TokenLayout) -> ByToken:
    """`directional_convergence` of each image: per token type `[depth + 1, batch]`."""
    return _per_type(states, layout, lambda unit: jnp.mean(jnp.sum(unit * unit[-1], axis=-1), axis=-1))


def angular_speed(states, layout: TokenLayout) -> ByToken:
    """s_l = arccos <x^_{l+1}, x^_l>: angle that a token turns in each layer, mean over tokens and images, in radians.

    Args:
        states: trajectory `[depth + 1, batch, tokens, dim]`.

    Returns:
        per token type `[depth]`, empty for a type that the model lacks.

    Raises:
        ValueError: not a trajectory of that layout.
    """
    return _mean_over_images(angular_speed_per_image(states, layout))


def angular_speed_per_image(states, layout: TokenLayout) -> ByToken:
    """`angular_speed` of each image: per token type `[depth, batch]`."""
    return _per_type(states, layout, lambda unit: jnp.mean(angle(unit[1:], unit[:-1]), axis=-1))


def patch_coherence(states, layout: TokenLayout):
    """kappa_l: mean cosine of the patch tokens with their mean direction, mean over images.

    Args:
        states: trajectory `[depth + 1, batch, tokens, dim]`.

    Returns:
        `[depth + 1]`, or `[0]` for a model without patches.

    Raises:
        ValueError: not a trajectory of that layout.
    """
    return _mean_over_images(ByToken(None, None, patch_coherence_per_image(states, layout))).patches


def patch_coherence_per_image(states, layout: TokenLayout):
    """`patch_coherence` of each image: `[depth + 1, batch]`."""

    def coherence(unit):
        mean = jnp.mean(unit, axis=-2)
        # The mean cosine with the mean direction is the length of the mean of the unit vectors.
        return jnp.linalg.norm(mean, axis=-1)

    return _per_type(states, layout, coherence).patches


def angle(a, b):
    """Angle between unit vectors, in radians; by chords, exact for small angles where arccos of a rounded cosine is not."""
    half = jnp.linalg.norm(a - b, axis=-1) / 2
    other = jnp.linalg.norm(a + b, axis=-1) / 2
    return 2 * jnp.arctan2(half, other)


def _per_type(states, layout, measure) -> ByToken:
    check_trajectory(states, layout)

    def of(tokens):
        if not tokens.shape[-2]:
            return jnp.zeros((0, states.shape[1]), states.dtype)
        return measure(tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True))

    return ByToken(*(of(tokens) for tokens in layout.split(states)))


def _mean_over_images(values: ByToken) -> ByToken:
    return ByToken(*(None if v is None else jnp.mean(v, axis=-1) for v in values))
