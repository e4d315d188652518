"""The picture of phases: layer-layer dissimilarity, with the phases outlined. Layers are counted from 1."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from brh_jax.errors import UserError
from brh_jax.partition import Partition

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(dissimilarity: ArrayLike, *partitions: Partition) -> "Figure":
    """Layer-layer dissimilarity as a heat map, once for each partition, its phases outlined (paper, section 2).

    A clear phase structure is light inside the boxes and dark off them.

    Args:
        dissimilarity: `[depth, depth]`, 1 - cosine, of `layer_dissimilarity`.
        partitions: of that depth; none for the matrix alone.

    Returns:
        a matplotlib Figure, which notebooks show.

    Raises:
        UserError: not a square matrix of finite numbers, or a partition of another depth.
    """
    from brh_jax.report.phases import heat_maps

    matrix = np.asarray(dissimilarity, np.float64)
    if matrix.ndim != 2 or len(matrix) != matrix.shape[-1] or not np.isfinite(matrix).all():
        raise UserError(f"dissimilarity of shape {matrix.shape}: expected [depth, depth], finite numbers throughout")
    for partition in partitions:
        if partition.depth != len(matrix):
            raise UserError(f"the partition {partition} has {partition.depth} layers, the matrix {len(matrix)}")
    return heat_maps(matrix, partitions)
