"""Figure of agreement with a teacher, layer by layer. Layers are counted from 1."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from brh_jax.report.style import TOKEN_NAMES, legend, styled, ticks
from brh_jax.report.values import GUIDE


@styled
def per_layer(
    values: Mapping[str, Mapping[str, ArrayLike]], styles: Mapping[str, dict[str, Any]], label: str, floor: float | None = None
) -> Figure:
    """A measure per layer, one panel per token type, a line for each prediction.

    Args:
        values: prediction -> token type -> `[depth]`; the first says which types there are.
        styles: prediction -> options of its line, its `label` among them.
        label: of the measure.
        floor: the axis ends here; lower values are marked by triangles on it.
    """
    types = [t for t in TOKEN_NAMES if t in next(iter(values.values()))]
    figure = Figure(figsize=(3.2 * len(types) + 1.2, 2.9), layout="constrained")
    axes = figure.subplots(1, len(types), squeeze=False, sharey=True)[0]
    for axis, token in zip(axes, types, strict=True):
        draw_lines(axis, token, values, styles, floor)
    axes[0].set_ylabel(label)
    legend(figure, axes[0])
    return figure


def draw_lines(
    axis: Axes,
    token: str,
    values: Mapping[str, Mapping[str, ArrayLike]],
    styles: Mapping[str, dict[str, Any]],
    floor: float | None = None,
) -> None:
    """One panel of `per_layer`, of a token type."""
    for name, style in ((name, style) for name, style in styles.items() if token in values[name]):
        found = np.asarray(values[name][token])
        layers = np.arange(1, len(found) + 1)
        axis.plot(layers, found, **style)
        below = layers[found < (-np.inf if floor is None else floor)]
        if len(below):
            axis.plot(below, np.full(len(below), floor), "v", color=style["color"], ms=5, clip_on=False, gid=GUIDE)
    axis.axhline(0, color="#dddddd", lw=0.8, zorder=0)
    axis.set_title(TOKEN_NAMES[token])
    axis.set_xlabel("layer")
    axis.set_xticks(ticks(1, len(found)))
    if floor is not None:
        axis.set_ylim(floor, 1.02)
