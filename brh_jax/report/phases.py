"""Figure of phases: the matrix that depth is cut by."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from brh_jax.partition import Partition
from brh_jax.report.style import COLOURS, styled, ticks
from brh_jax.report.values import GUIDE
from brh_jax.types import Array


@styled
def heat_maps(matrix: Array, partitions: Sequence[Partition]) -> Figure:
    """Layer-layer dissimilarity `[depth, depth]`, once for each partition, its phases outlined; once where there is none."""
    panels: Sequence[Partition | None] = partitions or (None,)
    figure = Figure(figsize=(3.6 * len(panels) + 0.8, 3.7), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, partition in zip(axes, panels, strict=True):
        image = outlined(axis, matrix, partition)
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="1 - cosine", shrink=0.85)
    return figure


def outlined(axis: Axes, matrix: Array, partition: Partition | None) -> AxesImage:
    """Draws layer-layer dissimilarity `[depth, depth]`, the phases of a partition outlined."""
    depth = len(matrix)
    image = axis.imshow(matrix, cmap="magma_r", extent=(0.5, depth + 0.5, depth + 0.5, 0.5), vmin=0)
    for run in partition.runs if partition else ():
        corner, side = run.start + 0.5, run.stop - run.start
        x, y = corner + np.array([0, side, side, 0, 0]), corner + np.array([0, 0, side, side, 0])
        axis.plot(x, y, color=COLOURS[0], lw=2, clip_on=False, gid=GUIDE)
    axis.set_title(f"k = {partition.k}:  {partition}" if partition else "")
    axis.set_xlabel("layer")
    axis.set_xticks(ticks(1, depth))
    axis.set_yticks(ticks(1, depth))
    for spine in axis.spines.values():
        spine.set_visible(False)
    return image
