"""Whether swaps across phases do more than swaps within them, at equal distance.

Layers that lie closer together swap more easily whatever their phase, and layers of one phase lie closer together: a plain mean
over swaps mixes the two. Here swaps are compared within strata of equal distance |i - j| only (paper, section 7).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from brh_jax.errors import UserError
from brh_jax.interventions.plans import Swap
from brh_jax.partition import Partition
from brh_jax.statistics import summarize
from brh_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Swaps across phases against swaps within them.

    Attributes:
        intra, inter: plain means over all swaps of a kind, which distance confounds.
        difference: inter - intra at equal distance.
        low, high: its bootstrap band over images, the swaps as they are.
        p_value: one-sided, of the permutation of kinds within strata.
        num_intra, num_inter: swaps in strata that hold both kinds; the others say nothing about the difference.
    """

    intra: float
    inter: float
    difference: float
    low: float
    high: float
    p_value: float
    num_intra: int
    num_inter: int


@dataclasses.dataclass(frozen=True)
class BoundaryTest:
    """The difference at equal distance under the phase boundaries that were found, among those of other places for them.

    Attributes:
        difference: under the given boundaries.
        p_value: share of the placements with at least this difference.
        num_placements: how many were compared, the given one included.
    """

    difference: float
    p_value: float
    num_placements: int


def matched_contrast(
    values: Array,
    inter: Sequence[bool] | Array,
    strata: Sequence | Array,
    *,
    num_permutations: int = 10_000,
    seed: int = 0,
    groups: Array | None = None,
) -> Contrast | None:
    """Mean difference of swaps across phases and within them, compared within strata.

        difference = sum_s w_s (mean inter_s - mean intra_s) / sum_s w_s,   w_s = n_intra n_inter / (n_intra + n_inter)

    which is the coefficient of `inter` in a regression with a constant for each stratum. The permutation test shuffles which
    swaps of a stratum are called inter (p = (1 + number at least as large) / (1 + number drawn)), so that an effect of the
    stratum alone is none. It takes swaps for exchangeable, though they share layers: `boundary_test` does not.

    Args:
        values: effect of each swap on each image, `[swaps, images]`; more is worse.
        inter: `[swaps]`, whether across phases.
        strata: `[swaps]`, whatever must be equal: distances, or (place, distance).
        num_permutations: number of shuffles.
        seed: of shuffles and bootstrap.
        groups: `[images]`, the photographs that images are views of, which the bootstrap draws; None for every image for itself.

    Returns:
        None where no stratum holds both kinds.

    Raises:
        ValueError: shapes that do not go together, values that are not finite, fewer than two images.
    """
    values, inter, strata = np.asarray(values, np.float64), np.asarray(inter, bool), _numbered(strata)
    if values.ndim != 2 or not len(values) == len(inter) == len(strata):
        raise ValueError(
            f"expected values [swaps, images] and one kind and stratum for each swap, got {values.shape}, {inter.shape}, "
            f"{strata.shape}"
        )
    if num_permutations < 1:
        raise ValueError(f"num_permutations must be at least 1, got {num_permutations}")
    weight = _weights(inter, strata)
    if not weight.sum():
        return None
    band = summarize(_difference(values, inter, strata), seed=seed, groups=groups)
    means = values.mean(1)
    residuals = means - _stratum_means(means, strata)
    # The difference is a sum of residuals over the inter swaps: a shuffle draws others of their stratum.
    rng, drawn = np.random.default_rng(seed), np.zeros(num_permutations)
    for stratum in np.flatnonzero(weight):
        rows = strata == stratum
        shuffled = rng.permuted(np.tile(residuals[rows], (num_permutations, 1)), axis=1)
        drawn += shuffled[:, : int(inter[rows].sum())].sum(1)
    observed = residuals[inter].sum()
    reached = np.count_nonzero(drawn >= observed - 1e-9 * np.abs(residuals).sum())
    both = weight[strata] > 0
    return Contrast(
        intra=float(means[~inter].mean()),
        inter=float(means[inter].mean()),
        difference=float(band.mean),
        low=float(band.low),
        high=float(band.high),
        p_value=(1 + reached) / (1 + num_permutations),
        num_intra=int(np.sum(both & ~inter)),
        num_inter=int(np.sum(both & inter)),
    )


def boundary_test(
    values: Array, swaps: Sequence[Swap], partition: Partition, *, num_permutations: int = 2000, seed: int = 0
) -> BoundaryTest | None:
    """Whether the phase boundaries that were found part swaps better, at equal distance, than boundaries elsewhere.

    Swaps share layers and are not independent. This test moves the boundaries instead of shuffling swaps: all contiguous runs of
    any lengths, as many and of the same phases as the partition's, or `num_permutations` random ones where there are more.
    Placements that leave no distance with both kinds are passed over. It cannot fall below one over their number.

    Args:
        values: effect of each swap on each image, `[swaps, images]`, or its mean, `[swaps]`.
        swaps: of one layer each, best all of them: drawn for the partition they would favour it.

    Returns:
        None where the partition itself has no distance with both kinds.

    Raises:
        UserError: swaps of several layers.
        ValueError: not one value or row for each swap.
    """
    values = np.asarray(values, np.float64)
    means = values if values.ndim == 1 else values.mean(1)
    if len(means) != len(swaps):
        raise ValueError(f"{len(means)} values for {len(swaps)} swaps")
    if any(len(swap.places) != 1 for swap in swaps):
        raise UserError("the boundaries can be moved for swaps of one layer: of several, most would be neither intra nor inter")
    places, layers = (np.array([getattr(swap, name)[0] for swap in swaps]) for name in ("places", "layers"))
    strata = _numbered(np.abs(places - layers))

    def difference(cuts):
        labels = np.repeat(partition.phases, np.diff([0, *cuts, partition.depth]))
        inter = labels[places] != labels[layers]
        return float(_difference(means[:, None], inter, strata)[0]) if _weights(inter, strata).any() else None

    if (observed := difference(partition.boundaries)) is None:
        return None
    number, room = len(partition.boundaries), range(1, partition.depth)
    if math.comb(len(room), number) <= num_permutations:
        others = [cuts for cuts in itertools.combinations(room, number) if cuts != partition.boundaries]
    else:
        rng = np.random.default_rng(seed)
        others = [tuple(np.sort(rng.choice(room, number, replace=False))) for _ in range(num_permutations)]
    found = [d for cuts in others if (d := difference(cuts)) is not None]
    reached = sum(d >= observed - 1e-9 * abs(observed) for d in found)
    return BoundaryTest(observed, (1 + reached) / (1 + len(found)), 1 + len(found))


def _numbered(strata) -> np.ndarray:
    """Strata of any kind as numbers from 0."""
    strata = np.asarray(strata)
    return np.unique(strata, axis=0, return_inverse=True)[1].reshape(-1)


def _weights(inter, strata) -> np.ndarray:
    """n_intra n_inter / (n_intra + n_inter) of each stratum."""
    total, across = np.bincount(strata), np.bincount(strata, inter)
    return across * (total - across) / total


def _stratum_means(values, strata):
    """Each swap's stratum mean, of values `[swaps, ...]`."""
    sums = np.zeros((strata.max() + 1, *values.shape[1:]))
    np.add.at(sums, strata, values)
    return (sums.T / np.bincount(strata)).T[strata]


def _difference(values, inter, strata):
    """The matched difference of `[swaps, images]`, `[images]`."""
    residuals = values - _stratum_means(values, strata)
    return residuals[inter].sum(0) / _weights(inter, strata).sum()
