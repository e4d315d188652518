"""Cutting depth into phases: exact optima of two objectives, the recursive bisection, and random partitions.

The objectives are different and may give different partitions of one matrix; a result should name the one it used.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from brh_jax.errors import UserError
from brh_jax.partition import Partition
from brh_jax.readable import readable
from brh_jax.types import Array


def max_cut(dissimilarity: Array, k: int, min_length: int = 1) -> Partition:
    """The contiguous partition of largest total dissimilarity across phases, by dynamic programming (paper, section 2).

    Exact, in O(k depth²). Of equal optima the one with the earliest last cut is returned.

    Args:
        dissimilarity: symmetric `[depth, depth]`.
        k: number of phases.
        min_length: fewest layers in a phase.

    Raises:
        ValueError: not a square, finite and symmetric matrix with a diagonal of zeros.
        UserError: k phases of that length do not fit.
    """
    d = _check(dissimilarity, k, min_length)
    depth = len(d)
    place = np.arange(depth + 1)
    phase = np.where(place - place[:, None] >= min_length, _within(d), np.inf)  # [start, stop]
    # cost[i]: least dissimilarity within phases over all cuts of the first i layers into j phases; cut: where the last begins.
    cost = np.where(place == 0, 0.0, np.inf)
    cut = np.zeros((k + 1, depth + 1), int)
    for j in range(1, k + 1):
        totals = cost[:, None] + phase
        cut[j] = np.argmin(totals, axis=0)
        cost = totals[cut[j], place]
    return _trace(cut, depth)


def contrast_cut(dissimilarity: Array, k: int, min_length: int = 1) -> Partition:
    """The contiguous partition of largest (mean dissimilarity across phases) - (mean within), exactly.

    Means, unlike sums, do not favour phases of equal length, but isolate an outlying layer unless `min_length` forbids it.
    For every number of within-phase pairs the least within-phase sum is found; the objective is a function of the two.

    Args and errors as for `max_cut`.
    """
    d = _check(dissimilarity, k, min_length)
    depth = len(d)
    within = _within(d)
    pairs = depth * (depth - 1) // 2
    total = within[0, depth]
    cost = np.full((k + 1, depth + 1, pairs + 1), np.inf)
    cut = np.zeros((k + 1, depth + 1, pairs + 1), int)
    cost[0, 0, 0] = 0.0
    for j in range(1, k + 1):
        for i in range(j * min_length, depth + 1):
            for start in range(i - min_length + 1):
                new = (i - start) * (i - start - 1) // 2
                candidate = np.full(pairs + 1, np.inf)
                candidate[new:] = cost[j - 1, start, : pairs + 1 - new] + within[start, i]
                better = candidate < cost[j, i]
                cost[j, i][better] = candidate[better]
                cut[j, i][better] = start
    sums, counts = cost[k, depth], np.arange(pairs + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_within = np.where(counts > 0, sums / counts, 0.0)
        mean_across = np.where(counts < pairs, (total - sums) / (pairs - counts), 0.0)
        best = int(np.argmax(np.where(np.isfinite(sums), mean_across - mean_within, -np.inf)))
    edges, i, p = [depth], depth, best
    for j in range(k, 0, -1):
        start = cut[j, i, p]
        p -= (i - start) * (i - start - 1) // 2
        i = start
        edges.append(i)
    return Partition(tuple(np.diff(edges[::-1])))


@readable(depth="layers", min_length="layers", cuts="layers above", thresholds="share of the dissimilarity")
class Bisection(NamedTuple):
    """The cuts of a recursive bisection, in the order in which a falling threshold makes them.

    Attributes:
        depth: number of layers.
        min_length: fewest layers of a phase.
        cuts: number of layers above each cut, `[n]`.
        thresholds: largest threshold at which the cut is made, falling, `[n]`.
    """

    depth: int
    min_length: int
    cuts: np.ndarray
    thresholds: np.ndarray

    @property
    def most(self) -> int:
        """The largest number of phases; it depends on where the first cuts fall."""
        return len(self.cuts) + 1

    def partition(self, k: int) -> Partition:
        """The partition with k phases: of the thresholds that give it, `thresholds[k - 2]` is the largest.

        Raises:
            UserError: there are no k phases.
        """
        if not 1 <= k <= self.most:
            raise UserError(
                f"the recursive bisection of {self.depth} layers into phases of at least {self.min_length} ends at {self.most} "
                f"phases of this matrix, {k} were asked for: expected 1 to {self.most}, a smaller min_length, or another cut"
            )
        return Partition(tuple(np.diff([0, *sorted(self.cuts[: k - 1]), self.depth])))


def bisection(dissimilarity: Array, min_length: int = 2) -> Bisection:
    """Cuts depth in two where most dissimilarity crosses, and each part again, down to the shortest phases.

    A cut is worth the share of the whole matrix's dissimilarity that crosses it, within the segment that it divides, and is made
    after those that its segment comes from.

    Args:
        dissimilarity: symmetric `[depth, depth]`.
        min_length: fewest layers of a phase; the paper's authors take two.

    Raises:
        ValueError: not a square, finite and symmetric matrix with a diagonal of zeros.
        UserError: no phase of that length fits.
    """
    d = _check(dissimilarity, 1, min_length)
    within, depth = _within(d), len(d)
    total = max(within[0, depth], 0.0)
    found: list[tuple[float, int]] = []

    def divide(start, stop, bound):
        places = np.arange(start + min_length, stop - min_length + 1)
        if not len(places):
            return
        crossing = within[start, stop] - within[start, places] - within[places, stop]
        place = int(places[np.argmax(crossing)])
        threshold = min(bound, float(crossing.max() / total) if total else 0.0)
        found.append((threshold, place))
        divide(start, place, threshold)
        divide(place, stop, threshold)

    divide(0, depth, 1.0)
    found.sort(key=lambda cut: -cut[0])  # stable: a segment is divided before its parts
    return Bisection(depth, min_length, np.array([cut for _, cut in found], int), np.array([t for t, _ in found]))


def recursive_bisection(dissimilarity: Array, threshold: float, min_length: int = 2) -> Partition:
    """The bisection down to a threshold, as the paper's authors cut: the number of phases follows from it.

    Args:
        dissimilarity, min_length: as for `bisection`.
        threshold: least share of the whole matrix's dissimilarity that must cross a cut. The authors used 0.2, 0.10 and 0.09,
            for k = 2, 3 and 4.

    Raises:
        ValueError: not a square, finite and symmetric matrix with a diagonal of zeros.
        UserError: a threshold that is not positive, or no phase of that length fits.
    """
    if not threshold > 0:
        raise UserError(f"threshold must be positive, got {threshold}: it is a share of the total dissimilarity")
    found = bisection(dissimilarity, min_length)
    return found.partition(1 + int(np.sum(found.thresholds >= threshold)))


def random_contiguous(depth: int, k: int, seed: int, min_length: int = 1) -> Partition:
    """A contiguous partition drawn uniformly from all with k phases of at least `min_length` layers.

    Raises:
        UserError: there is no such partition.
    """
    _fits(depth, k, min_length)
    slack = depth - k * min_length
    # Stars and bars: k - 1 bars among slack + k - 1 places.
    bars = np.sort(np.random.default_rng(seed).choice(slack + k - 1, k - 1, replace=False))
    extra = np.diff(np.concatenate([[-1], bars, [slack + k - 1]])) - 1
    return Partition(tuple(extra + min_length))


def random_fragmented(lengths: Sequence[int] | np.ndarray, seed: int) -> Partition:
    """The layers of a partition dealt out to its phases at random: phases keep their sizes but not their place in depth."""
    labels = np.repeat(np.arange(len(lengths)), lengths)
    return Partition.from_labels(np.random.default_rng(seed).permutation(labels).tolist())


def cut_weight(dissimilarity: Array, partition: Partition) -> float:
    """Share of the dissimilarity that lies between phases: what `max_cut` maximises, divided by the total."""
    d = np.asarray(dissimilarity, np.float64)
    labels = np.asarray(partition.labels)
    total = d.sum()
    return float(d[labels[:, None] != labels[None, :]].sum() / total) if total else 0.0


def all_contiguous(depth: int, k: int, min_length: int = 1) -> Iterator[Partition]:
    """Every contiguous partition into k phases; for brute force at small depth."""
    for cuts in itertools.combinations(range(1, depth), k - 1):
        lengths = np.diff([0, *cuts, depth])
        if lengths.min() >= min_length:
            yield Partition(tuple(lengths))


def _within(d) -> np.ndarray:
    """within[i, j]: sum of d over pairs a < b of layers i ... j - 1."""
    with_earlier = np.cumsum(np.triu(d, 1)[::-1], axis=0)[::-1]  # [i, b]: of layer b with layers i ... b - 1
    return np.pad(np.cumsum(with_earlier, axis=1), ((0, 1), (1, 0)))


def _trace(cut, depth) -> Partition:
    edges = [depth]
    for j in range(len(cut) - 1, 0, -1):
        edges.append(cut[j, edges[-1]])
    return Partition(tuple(np.diff(edges[::-1])))


def _check(dissimilarity, k, min_length) -> np.ndarray:
    d = np.asarray(dissimilarity, np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1]:
        raise ValueError(f"expected a square matrix of layer-layer dissimilarities, got shape {d.shape}")
    if not np.isfinite(d).all():
        raise UserError(
            "the dissimilarity matrix holds NaN or infinity: check the states that it is of, and the weights of these"
        )
    if not np.allclose(d, d.T, rtol=1e-4, atol=1e-6):
        raise ValueError("the dissimilarity matrix is not symmetric")
    _fits(len(d), k, min_length)
    if (own := np.abs(np.diagonal(d)).max()) > 0.01 * np.abs(d).max():
        raise ValueError(f"the dissimilarity of a layer to itself is {own:.3g}, expected 0: of similarities give 1 - similarity")
    return (d + d.T) / 2


def _fits(depth, k, min_length):
    if k < 1 or min_length < 1 or k * min_length > depth:
        at_least = f" of at least {min_length} layers" if min_length > 1 else ""
        raise UserError(
            f"{depth} layers cannot be cut into {k} phases{at_least}: k must be between 1 and {depth // max(min_length, 1)}"
        )
