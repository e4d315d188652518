"""Patch tokens of a frozen encoder as a map over the image, for dense probes."""

import jax
import jax.numpy as jnp

from brh_jax.models.encoder import Encoder
from brh_jax.types import Array, Pixels

Amounts = tuple[tuple[int, int], tuple[int, int]]  # of pixels before and after rows, and columns


def pad_amounts(encoder: Encoder, height: int, width: int) -> Amounts:
    """Pixels to add before and after rows and columns, so that both sides are multiples of the patch; the image stays central."""
    rows, columns = (-size % encoder.config.vit.patch_size for size in (height, width))
    return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)


def pad_target(target: Array, amounts: Amounts, value: float) -> jax.Array:
    """A target `[batch, height, width]` onto the canvas of its padded image."""
    return jnp.pad(target, ((0, 0), *amounts), constant_values=value)


def unpad(values: Array, amounts: Amounts) -> Array:
    """What of `[batch, height, width]` belongs to the image itself."""
    (top, bottom), (left, right) = amounts
    return values[:, top : values.shape[1] - bottom, left : values.shape[2] - right]


def token_maps(encoder: Encoder, images: Pixels) -> tuple[jax.Array, jax.Array]:
    """Tokens after the final norm of images of any size, padded with the mean colour; called inside jit.

    Args:
        images: uint8 `[batch, height, width, 3]`.

    Returns:
        patches `[batch, rows, columns, dim]`, and cls `[batch, cls tokens, dim]`.
    """
    pixels = encoder.normalize_pixels(images)
    amounts = pad_amounts(encoder, *images.shape[1:3])
    pixels = jnp.pad(pixels, ((0, 0), *amounts, (0, 0)))
    layout = encoder.layout_for(*pixels.shape[1:3])
    by_token = layout.split(encoder.features(encoder.trajectory(pixels)[-1]))
    return by_token.patches.reshape(len(images), *layout.grid, -1), by_token.cls


def enlarge(values: Array, height: int, width: int) -> jax.Array:
    """Bilinear interpolation of `[batch, rows, columns, ...]`, as torch's interpolate(align_corners=False)."""
    return jax.image.resize(values, (len(values), height, width, *values.shape[3:]), "linear", antialias=False)
