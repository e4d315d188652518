"""Figure of the answer: where depth is cut, and how far Raptors follow their teacher through it."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from brh_jax.partition import Partition
from brh_jax.report.agreement import draw_lines
from brh_jax.report.phases import outlined
from brh_jax.report.style import TOKEN_NAMES, legend, styled
from brh_jax.types import Array


@styled
def at_a_glance(
    matrix: Array, partition: Partition, r2: Mapping[str, Mapping[str, ArrayLike]], styles: Mapping[str, dict[str, Any]]
) -> Figure:
    """Phases at the left, R² of every state at the right, a panel per token type.

    Args:
        matrix: layer-layer dissimilarity, `[depth, depth]`.
        partition: its phases, outlined.
        r2: prediction -> token type -> `[depth]`.
        styles: prediction -> options of its line, its `label` among them.
    """
    types = [t for t in TOKEN_NAMES if t in next(iter(r2.values()))]
    figure = Figure(figsize=(3.1 + 2.7 * len(types) + 1.2, 2.9), layout="constrained")
    phases, *axes = figure.subplots(1, 1 + len(types), width_ratios=[1.15, *(1 for _ in types)])
    image = outlined(phases, matrix, partition)
    phases.set_ylabel("layer")
    figure.colorbar(image, ax=phases, label="1 - cosine", shrink=0.85)
    for axis, token in zip(axes, types, strict=True):
        draw_lines(axis, token, r2, styles, floor=-0.2)
    axes[0].set_ylabel("R² of every state")
    legend(figure, axes[0])
    return figure
