"""How sure a curve along depth is: bands over images, and whether it jumps at phase boundaries."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from brh_jax.errors import UserError


class Summary(NamedTuple):
    """A measure over images.

    Attributes:
        mean: `[...]`.
        low, high: `[...]`, the band in which the mean over all such images is expected.
        quantiles: `[number of quantiles, ...]`, the spread of the images themselves.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    quantiles: np.ndarray


@dataclasses.dataclass(frozen=True)
class JumpTest:
    """Whether a curve jumps at phase boundaries.

    Attributes:
        statistic: mean absolute change across the boundaries minus mean absolute change between all other layers.
        p_value: share of placements of as many boundaries that have at least this statistic.
        num_placements: how many placements were compared, the observed one included.
    """

    statistic: float
    p_value: float
    num_placements: int


def bootstrap_draws(num_units: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draws units with replacement, as many as there are: for each draw the index of every unit that it takes, `[num_units]`.

    The one bootstrap of this library: what is drawn depends on these three numbers alone, so that all measures of the same units
    are resampled together.
    """
    rng = np.random.default_rng(seed)
    return (rng.integers(num_units, size=num_units) for _ in range(num_resamples))


def bootstrap_counts(num_units: int, num_resamples: int, seed: int, groups: ArrayLike | None = None) -> Iterator[np.ndarray]:
    """How often each draw takes each unit, `[num_units]`.

    Units that are not independent of one another (crops of one photograph, say) are drawn together: as many groups as there are,
    each with all its units (the cluster bootstrap, Davison and Hinkley 1997, section 3.8). Draws take as many units as there are
    only where groups are of one size: means over them are weighted means.

    Args:
        groups: `[num_units]`, any labels; None for units that are each their own.

    Raises:
        ValueError: not one group for each unit.
    """
    numbers = numbered_groups(groups, num_units)
    count = int(numbers.max(initial=-1)) + 1
    return (np.bincount(draw, minlength=count)[numbers] for draw in bootstrap_draws(count, num_resamples, seed))


def numbered_groups(groups: ArrayLike | None, num_units: int) -> np.ndarray:
    """Labels of groups as numbers from 0, in the order in which they come first, `[num_units]`; None makes each unit its own.

    Raises:
        ValueError: not one label for each unit.
    """
    if groups is None:
        return np.arange(num_units)
    labels = np.asarray(groups).tolist()
    if len(labels) != num_units:
        raise ValueError(f"{len(labels)} groups for {num_units} units: expected one group for each")
    known = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.array([known[label] for label in labels], int)


def num_groups(groups: ArrayLike | None, num_units: int) -> int:
    """How many groups there are; as many as units without groups."""
    return int(numbered_groups(groups, num_units).max(initial=-1)) + 1


def summarize(
    values: ArrayLike,
    *,
    seed: int = 0,
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    num_resamples: int = 1000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> Summary:
    """Mean over images with its bootstrap band, and quantiles of the images.

    The band is the percentile bootstrap (Efron and Tibshirani 1993, section 13.3): from the (1 - level) / 2 to the
    (1 + level) / 2 quantile of the means of `num_resamples` draws of the images with replacement. An image is drawn with all its
    values, and the draws depend on the seed, the number of images and their groups alone, so that depths, and measures of the
    same images, are resampled together. Of a ByToken: `jax.tree.map(summarize, values)`; an empty array has an empty summary.

    Args:
        values: `[..., images]`.
        seed: of the draws.
        quantiles: shares, from 0 to 1.
        num_resamples: number of draws.
        level: probability that the band should hold the mean.
        groups: `[images]`, labels of what was sampled independently, photographs of which the images are crops, say: these are
            drawn, see `bootstrap_counts`. With a single group the band has no width and means nothing. None: every image for
            itself.

    Raises:
        ValueError: fewer than two images, not one group for each, values that are not finite, or a share, level or number out of
            range.
    """
    values = np.asarray(values, np.float64)
    if values.ndim < 1 or values.shape[-1] < 2:
        raise ValueError(f"values of shape {values.shape}: a band over images needs [..., images] with two images or more")
    if not np.isfinite(values).all():
        raise UserError("the values are not all finite: leave those images or layers out before they are averaged")
    if not 0 < level < 1 or num_resamples < 1:
        raise ValueError(f"level {level} must lie between 0 and 1, and num_resamples {num_resamples} be at least 1")
    if not all(0 <= q <= 1 for q in quantiles):
        raise ValueError(f"quantiles are shares from 0 to 1, got {tuple(quantiles)}")
    num_images = values.shape[-1]
    draws = bootstrap_counts(num_images, num_resamples, seed, groups)
    means = np.stack([values @ (count / count.sum()) for count in draws])
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2), axis=0)
    return Summary(values.mean(-1), low, high, np.quantile(values, quantiles, axis=-1))


class Ratio(NamedTuple):
    """A quotient, and the band in which it is expected."""

    value: float
    low: float
    high: float


def ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    seed: int = 0,
    num_resamples: int = 1000,
    level: float = 0.95,
    groups: ArrayLike | None = None,
) -> Ratio:
    """Quotient of two sums over the same images, with its bootstrap band.

    An image is drawn with both of its values, so what the two have in common does not widen the band. Draws, band and groups are
    those of `summarize`; draws whose denominator is 0 are left out.

    Args:
        numerator, denominator: `[images]`.
        seed, num_resamples, level, groups: as `summarize` takes them.

    Raises:
        ValueError: not as many of both, or a denominator that is 0 in sum.
    """
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if above.ndim != 1 or above.shape != below.shape:
        raise ValueError(f"numerator {above.shape} and denominator {below.shape}: expected one value of each for every image")
    if not below.sum():
        raise ValueError("the denominator is 0 in sum: there is no quotient")
    both = np.stack([above, below], axis=1)
    over, under = np.array([counts @ both for counts in bootstrap_counts(len(above), num_resamples, seed, groups)]).T
    drawn = over[under != 0] / under[under != 0]
    value = float(above.sum() / below.sum())
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2)) if len(drawn) else (value, value)
    return Ratio(value, float(low), float(high))


def boundary_jump_test(
    values: ArrayLike, boundaries: Sequence[int], *, num_permutations: int = 10_000, seed: int = 0
) -> JumpTest:
    """Permutation test of whether a curve changes more across phase boundaries than between other layers.

    c_b = |v_b - v_{b-1}| is the change of the image-mean curve between layers b - 1 and b; the statistic is its mean over the
    boundaries minus its mean over all other b in 1 ... depth - 1. It is compared with that of other places for as many
    boundaries: all of them where there are no more than `num_permutations` (the observed one is among them), that many random
    ones otherwise, and then p = (1 + number at least as large) / (1 + number drawn).

    The smallest p that can come out is one over the number of placements: a single boundary in 12 layers gives at best
    p = 1/11, so one boundary of one ViT is never significant at 0.05.

    Args:
        values: one value per layer, `[depth]`, or `[depth, images]` to be averaged (`angular_speed`, say). Of a measure of states
            (convergence, coherence) hand in what each layer changes it by: `np.diff(values, axis=0)`.
        boundaries: number of layers above each cut, as `Partition.boundaries` has it: 7 lies between layers 6 and 7 (from 0).
        num_permutations: most placements to compare with.
        seed: of the random placements.

    Raises:
        ValueError: not such values, values that are not finite, no boundaries or one out of range or twice, or no layers left
            to compare with.
    """
    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(f"expected values [depth] or [depth, images], got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("the values are not all finite: a jump of them cannot be measured")
    curve = values if values.ndim == 1 else values.mean(-1)
    places, cuts = len(curve) - 1, sorted(int(b) for b in boundaries)
    if not cuts or len(set(cuts)) < len(cuts) or cuts[0] < 1 or cuts[-1] > places:
        raise ValueError(f"boundaries {tuple(boundaries)} must be one or more different numbers from 1 to {places}, depth - 1")
    if len(cuts) == places:
        raise ValueError(f"all {places} places between layers are boundaries: there is no other change to compare with")
    if num_permutations < 1:
        raise ValueError(f"num_permutations must be at least 1, got {num_permutations}")
    changes = np.abs(np.diff(curve))
    total = changes.sum()
    across = changes[np.asarray(cuts) - 1].sum()
    if (count := math.comb(places, len(cuts))) <= num_permutations:
        placements = np.array(list(itertools.combinations(range(places), len(cuts))))
        observed = 0
    else:
        rng = np.random.default_rng(seed)
        placements = rng.permuted(np.tile(np.arange(places), (num_permutations, 1)), axis=1)[:, : len(cuts)]
        count, observed = num_permutations + 1, 1
    # The statistic grows with the sum of changes across. Sums in another order differ by rounding: equal ones count.
    reached = np.count_nonzero(changes[placements].sum(1) >= across - 1e-9 * total)
    statistic = across / len(cuts) - (total - across) / (places - len(cuts))
    return JumpTest(float(statistic), float((reached + observed) / count), count)


def crossing(curve: ArrayLike, level: float) -> float | None:
    """Where a curve first comes up to a level, counted from its first point and interpolated; None where it never does.

    Args:
        curve: `[points]`.

    Raises:
        ValueError: not one curve, or values that are not finite.
    """
    curve = np.asarray(curve, np.float64)
    if curve.ndim != 1 or not curve.size or not np.isfinite(curve).all():
        raise ValueError(f"expected one curve of finite values [points], got shape {curve.shape}")
    above = np.flatnonzero(curve >= level)
    if not above.size:
        return None
    first = int(above[0])
    if first == 0:
        return 0.0
    return first - 1 + float((level - curve[first - 1]) / (curve[first] - curve[first - 1]))
