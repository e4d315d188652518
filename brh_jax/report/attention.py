"""Figure of attention: where tokens look, models side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from brh_jax.report.style import styled


@styled
def attention_grids(grids: Mapping[str, Sequence[np.ndarray]], layers: Sequence[int], image: np.ndarray | None) -> Figure:
    """A row for each model and a column for each layer: how much weight each patch has, each panel on its own scale from zero.

    Args:
        grids: model -> for each layer `[rows, columns]`.
        layers: counted from 1.
        image: `[height, width, 3]` in 0 ... 1, shown before each row; None for none.
    """
    first = image is not None
    lines, columns = len(grids), len(layers) + first
    figure = Figure(figsize=(1.55 * columns + 0.9, 1.6 * lines + 0.55), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for number, (line, (name, of_model)) in enumerate(zip(axes, grids.items(), strict=True)):
        if first:
            line[0].imshow(image)
        for axis, layer, weights in zip(line[first:], layers, of_model, strict=True):
            picture = axis.imshow(weights, cmap="magma", vmin=0, interpolation="nearest")
            if not number:
                axis.set_title(f"layer {layer}")
            axis.set_xlabel(f"max {weights.max():.2g}", fontsize=7, labelpad=2)
        line[0].set_ylabel(name)
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
    shades = figure.colorbar(picture, ax=axes, label="attention weight", shrink=0.8, aspect=30)
    shades.set_ticks([picture.norm.vmin, picture.norm.vmax], labels=["0", "panel's\nmax"])
    return figure
