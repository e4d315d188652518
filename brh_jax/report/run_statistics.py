"""What runs say together: a mean over seeds, the correlation of two measures, each with an interval."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from brh_jax.statistics import bootstrap_draws


class Mean(NamedTuple):
    """Attributes: mean, bounds of its interval (None of a single value), number of values."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_over_seeds(values: ArrayLike, *, level: float = 0.95) -> Mean:
    """Takes the mean, with Student's t interval, mean ± t_{n-1} s / sqrt(n).

    Of three seeds it is a wide one, 2.5 standard deviations either way.

    Raises:
        ValueError: no values, or some that are not finite.
    """
    values = np.asarray(values, np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"a mean over seeds needs finite values, got {values}")
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Mean(mean, None, None, n)
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return Mean(mean, float(mean - half), float(mean + half), n)


class Correlation(NamedTuple):
    """Attributes: coefficients, each with the (low, high) of its bootstrap interval; number of points and of groups.

    A coefficient is None where a measure does not vary.
    """

    pearson: float | None
    pearson_interval: tuple[float, float] | None
    spearman: float | None
    spearman_interval: tuple[float, float] | None
    num_points: int
    num_groups: int


def correlation(
    x: ArrayLike, y: ArrayLike, groups: Sequence, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Correlation:
    """Gives Pearson's and Spearman's coefficients of (x_i, y_i), with percentile intervals of the cluster bootstrap.

    Points of one group (snapshots of one training, say) are not independent: groups are drawn with replacement, each with all its
    points (Davison and Hinkley 1997, section 3.8). Draws in which a measure does not vary are left out.

    Args:
        x, y: `[points]`.
        groups: `[points]`, any labels.
        level: probability that an interval should hold the coefficient.

    Raises:
        ValueError: arrays of different lengths, fewer than three points, or values that are not finite.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    names = list(dict.fromkeys(groups))
    if x.ndim != 1 or x.shape != y.shape or len(groups) != len(x) or len(x) < 3:
        raise ValueError(f"x {x.shape}, y {y.shape} and {len(groups)} groups: expected three or more points, one group for each")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("the values are not all finite: leave those runs out before they are correlated")
    members = [np.flatnonzero([g == name for g in groups]) for name in names]
    draws = [np.concatenate([members[i] for i in draw]) for draw in bootstrap_draws(len(names), num_resamples, seed)]

    def with_interval(measure: Callable) -> tuple[float | None, tuple[float, float] | None]:
        value = measure(x, y)
        drawn = [r for draw in draws if (r := measure(x[draw], y[draw])) is not None]
        if value is None or len(names) < 3 or not drawn:
            return value, None
        low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
        return value, (float(low), float(high))

    spearman = with_interval(lambda a, b: _pearson(stats.rankdata(a), stats.rankdata(b)))
    return Correlation(*with_interval(_pearson), *spearman, len(x), len(names))


def _pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    a, b = x - x.mean(), y - y.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / size, -1, 1)) if size > 1e-12 * (1 + len(x)) else None
