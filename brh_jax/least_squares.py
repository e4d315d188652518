"""Ridge regression on one set of inputs of several targets, from sums over snapshots that are never held together."""

from typing import NamedTuple

import numpy as np

from brh_jax.types import Array

# A direction in which the snapshots are shorter than this share of |X|_F cannot be told from the rounding of float32 states,
# nor, its square being an eigenvalue of X X^T, from that of float64.
NEGLIGIBLE = 1e-6


class LeastSquares(NamedTuple):
    """Least-squares maps y - mean_y = lift basis^T (x - mean_x), one for each target.

    Attributes:
        values: eigenvalues of X X^T about the mean, largest first, `[dim]`.
        spanned: how many of them are not negligible.
        basis: their eigenvectors, `[dim, dim]`.
        lift: `[targets, dim, dim]`, zero for negligible directions.
        mean_x: `[dim]`.
        mean_y: `[targets, dim]`.
    """

    values: np.ndarray
    spanned: int
    basis: np.ndarray
    lift: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray


def least_squares(count: Array | float, x: Array, xx: Array, y: Array, yx: Array, *, ridge: float, center: bool) -> LeastSquares:
    """The maps W that minimise |Y - W X|_F^2 + alpha |W|_F^2, alpha = ridge |X|_F^2 / dim; X and Y about their means if `center`.

    Args:
        count: number of snapshots, the columns of X and Y.
        x: sum of X, `[dim]`.
        xx: X X^T, `[dim, dim]`, in double precision.
        y: sums of each Y, `[targets, dim]`.
        yx: Y X^T of each, `[targets, dim, dim]`.
        ridge: penalty, in units of the mean squared entry of X.
        center: whether the maps are affine, the offset unpenalised.
    """
    x, xx, y, yx = (np.asarray(part) for part in (x, xx, y, yx))
    dim, count = len(xx), float(count)
    mean_x, mean_y = (center * total / count for total in (x, y))
    about = xx - count * np.outer(mean_x, mean_x)
    values, vectors = np.linalg.eigh(about)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    spanned = int(np.sum(values > NEGLIGIBLE**2 * np.trace(xx)))
    inverse = np.zeros(dim)
    inverse[:spanned] = 1 / (values[:spanned] + ridge * values.sum() / dim)
    lift = (yx - count * mean_y[:, :, None] * mean_x) @ vectors * inverse
    return LeastSquares(values, spanned, vectors, lift, mean_x, mean_y)
