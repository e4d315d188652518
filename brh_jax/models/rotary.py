"""Rotary position embedding of patches (DINOv3): queries and keys turn by angles that their place in the grid gives."""

import math

import jax.numpy as jnp
import numpy as np

from brh_jax.types import HeadTokens, Rotations


def periods(head_dim: int, theta: float) -> tuple[float, ...]:
    """theta^(4 i / head_dim) for i = 0 ... head_dim / 4 - 1."""
    return tuple(float(p) for p in theta ** np.arange(0, 1, 4 / head_dim))


def rotations(periods: tuple[float, ...], grid: tuple[int, int]) -> Rotations:
    """Cosines and sines of the angles 2 pi y / period, 2 pi x / period of every patch.

    Places are the centres of the patches, from -1 to 1 along each side of the grid.

    Args:
        periods: head_dim / 4 of them.
        grid: (rows, columns) of patches.

    Returns:
        Two arrays `[rows * columns, head_dim]` in float32, as the reference computes them.
    """
    rows, columns = ((np.arange(0.5, n, dtype=np.float32) / np.float32(n)) * 2 - 1 for n in grid)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2, 1)
    angles = np.float32(2 * math.pi) * places / np.asarray(periods, np.float32)
    angles = np.tile(angles.reshape(len(places), -1), 2)
    return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))


def rotate(x: HeadTokens, rotations: Rotations) -> HeadTokens:
    """Turns the patches' queries or keys, `[..., tokens, head_dim]`; the tokens before them carry no place."""
    cos, sin = rotations
    first = x.shape[-2] - cos.shape[0]
    patches = x[..., first:, :].astype(jnp.promote_types(x.dtype, jnp.float32))
    low, high = jnp.split(patches, 2, axis=-1)
    turned = patches * cos + jnp.concatenate([-high, low], axis=-1) * sin
    return jnp.concatenate([x[..., :first, :], turned.astype(x.dtype)], axis=-2)
