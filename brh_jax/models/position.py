"""Position tables off their own grid, resampled as each reference implementation does it."""

import jax
import jax.numpy as jnp

from brh_jax.types import Array

# name -> what the reference calls.
RESAMPLINGS = {
    "cubic": "torch interpolate(size=..., mode='bicubic'): transformers' DINOv2 and ViT",
    "cubic-antialias": "torch interpolate(size=..., mode='bicubic', antialias=True): DINOv2 with registers",
    "linear-antialias": "torch interpolate(size=..., mode='bilinear', antialias=True): SigLIP 2 of any aspect ratio",
    "cubic-offset": "torch interpolate(scale_factor=(grid + 0.1) / table, mode='bicubic'): DINOv2's own code, no registers",
}


def resample(table: Array, grid: tuple[int, int], method: str) -> Array:
    """Resamples a position table to another patch grid, in at least float32.

    Args:
        table: `[rows, columns, dim]`.
        grid: (rows, columns) wanted.
        method: a key of RESAMPLINGS.

    Returns:
        `[grid rows, grid columns, dim]` in the table's dtype; the table itself where the grid is its own.

    Raises:
        ValueError: unknown method.
    """
    if method not in RESAMPLINGS:
        raise ValueError(f"unknown position resampling {method!r}: expected one of {', '.join(RESAMPLINGS)}")
    if table.shape[:2] == tuple(grid):
        return table
    exact = table.astype(jnp.promote_types(table.dtype, jnp.float32))
    shape = (*grid, table.shape[-1])
    if method == "cubic":
        out = jax.image.resize(exact, shape, "cubic-pytorch", antialias=False)
    elif method in ("cubic-antialias", "linear-antialias"):
        out = jax.image.resize(exact, shape, method.partition("-")[0], antialias=True)
    else:
        scale = jnp.array([(new + 0.1) / old for new, old in zip(grid, table.shape[:2], strict=True)], exact.dtype)
        out = jax.image.scale_and_translate(
            exact, shape, (0, 1), scale, jnp.zeros(2, exact.dtype), "cubic-pytorch", antialias=False
        )
    return out.astype(table.dtype)
