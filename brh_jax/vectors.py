"""Lengths, directions and angles of vectors of any size: squares of large ones overflow, and so they are scaled first.

A few channels of a ViT's states can be a thousand times and more the rest, alike in all layers. A cosine of such vectors is one
but for its rounding, which is larger than what it differs by; the chord between their directions keeps every digit. A vector that
is zero has no direction: `unit` leaves it zero, and means go over the others (`mean_where`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.types import Array, Directed


def length(x: Directed, *, axis: int | tuple[int, int] = -1, keepdims: bool = False) -> Array:
    """|x| of the last axis, or of others; over two it is the Frobenius norm."""
    scaled, scale = _scaled(x, axis)
    lengths = scale * jnp.linalg.norm(scaled, axis=axis, keepdims=True)
    return lengths if keepdims else jnp.squeeze(lengths, axis)


def unit(x: Directed) -> Array:
    """x / |x|; zero where x is."""
    scaled, _ = _scaled(x)
    lengths = jnp.linalg.norm(scaled, axis=-1, keepdims=True)
    return scaled / jnp.where(lengths == 0, jnp.ones_like(lengths), lengths)


def directed(x: Directed) -> Array:
    """Whether a vector has a direction: it is not zero. True of NaN, so that it is not hidden."""
    return jnp.any(x != 0, axis=-1)


def angle(a: Directed, b: Directed) -> Array:
    """Angle between unit vectors, in radians; by chords, exact for small angles where arccos of a rounded cosine is not."""
    half = jnp.linalg.norm(a - b, axis=-1) / 2
    other = jnp.linalg.norm(a + b, axis=-1) / 2
    return 2 * jnp.arctan2(half, other)


def cosine_distance(a: Directed, b: Directed) -> jax.Array:
    """1 - cosine of two vectors, half the square of the chord between their directions; means nothing where one is zero."""
    return jnp.sum(jnp.square(unit(a) - unit(b)), axis=-1) / 2


def mean_where(values: Array, defined: Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """Mean over what is defined; NaN where nothing is."""
    count = jnp.sum(defined, axis=axis, dtype=values.dtype)
    total = jnp.sum(jnp.where(defined, values, jnp.zeros_like(values)), axis=axis)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.asarray(np.nan, values.dtype))


def _scaled(x, axis=-1):
    """A vector whose largest entry is one, and the scale."""
    scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    return x / jnp.where(scale == 0, jnp.ones_like(scale), scale), scale
