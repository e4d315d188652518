"""Interval: a figure measured on images, and how sure it is."""

import dataclasses

import numpy as np

from brh_jax.statistics import ratio, summarize
from brh_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval; what is drawn are photographs, with all their crops."""

    value: float
    low: float
    high: float


def mean_interval(values: Array, seed: int = 0, groups: Array | None = None) -> Interval:
    """The interval of a mean over images, of which groups are drawn; that of a single image has no width."""
    if len(values) < 2:
        return Interval(*(float(np.mean(values)),) * 3)
    band = summarize(np.asarray(values, float), seed=seed, groups=groups)
    return Interval(float(band.mean), float(band.low), float(band.high))


def ratio_interval(numerator: Array, denominator: Array, seed: int = 0, groups: Array | None = None) -> Interval | None:
    """The interval of a quotient of sums over the same images, groups of them drawn; None where there is nothing to divide by."""
    return Interval(*ratio(numerator, denominator, seed=seed, groups=groups)) if np.sum(denominator) else None


def edges(intervals: list[Interval]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, low and high ends as arrays, for figures."""
    value, low, high = np.array([dataclasses.astuple(one) for one in intervals]).reshape(-1, 3).T
    return value, low, high
