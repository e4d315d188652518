"""Attention along depth, as pictures: where the class token looks, teacher and Raptor side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from brh_jax.errors import UserError, expect, is_whole
from brh_jax.tokens import TokenLayout
from brh_jax.types import Array, AttentionMaps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 6


def draw_attention(
    maps: Mapping[str, AttentionMaps],
    layout: TokenLayout,
    *,
    image: int = 0,
    token: int | str | None = None,
    head: int | None = None,
    layers: Sequence[int] | None = None,
    pixels: Array | None = None,
) -> "Figure":
    """Attention weights that patches have, of one image: a row for each model, a column for each layer.

    `draw_attention({"teacher": teacher.attention(images), "Raptor": raptor.attention(images)}, teacher.layout)`.

    Args:
        maps: model -> `[depth, batch, heads, tokens, tokens]`, of `Encoder.attention`.
        layout: of the tokens.
        image: its number in the batch.
        token: which looks: one by its index, or the mean of a type, "cls", "registers" or "patches"; None for the class token,
            and for the mean patch where there is none.
        head: one from 0; None for the mean of heads.
        layers: from 0; None for six or so evenly over depth.
        pixels: of the image, to be shown beside, uint8 or floats 0 ... 1 `[height, width, 3]`.

    Raises:
        UserError: maps of another layout or depth than the others, or no such image, token, head or layer.
    """
    from brh_jax.report.attention import attention_grids

    if not maps or not layout.num_patches:
        raise UserError(f"{len(maps)} models and {layout.num_patches} patches: expected one or more of both")
    depth = len(next(iter(maps.values())))
    start, stop = layout.place(token if token is not None else "cls" if layout.num_cls else "patches")
    layers = sorted({round(layer) for layer in np.linspace(0, depth - 1, _COLUMNS)}) if layers is None else layers
    grids = {}
    for name, weights in maps.items():
        _check(name, weights, layout, depth, image, head, layers)
        chosen = np.asarray(weights[np.asarray(layers), image], np.float32)
        chosen = chosen.mean(1) if head is None else chosen[:, head]
        seen = chosen[:, start:stop, layout.num_tokens - layout.num_patches :].mean(1)
        grids[name] = list(seen.reshape(len(layers), *layout.grid))
    shown = None if pixels is None else np.asarray(pixels)
    if shown is not None and shown.dtype == np.uint8:
        shown = shown / 255
    return attention_grids(grids, [layer + 1 for layer in layers], shown)


def _check(name, weights, layout: TokenLayout, depth: int, image, head, layers) -> None:
    tokens = layout.num_tokens
    if np.ndim(weights) != 5 or weights.shape[-2:] != (tokens, tokens) or len(weights) != depth:
        raise UserError(
            f"attention maps {name} of shape {np.shape(weights)}: expected [{depth}, batch, heads, {tokens}, {tokens}], as "
            "Encoder.attention gives them for images of that layout"
        )
    for what, value, count in (
        ("image", image, weights.shape[1]),
        ("head", 0 if head is None else head, weights.shape[2]),
        *(("layer", layer, depth) for layer in layers),
    ):
        expect(is_whole(value) and 0 <= value < count, what, value, f"one from 0 to {count - 1}")
