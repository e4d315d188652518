"""How clear the phases of a partition are in layer-layer similarity."""

import math
from typing import NamedTuple

import numpy as np

from brh_jax.errors import UserError
from brh_jax.partition import Partition
from brh_jax.phases.cuts import all_contiguous, cut_weight, random_contiguous
from brh_jax.readable import readable
from brh_jax.types import Array

_ALL_UP_TO = 5000  # partitions; beyond, so many random ones stand for all


@readable(
    mean_similarity="cosine",
    within="cosine",
    across="cosine",
    contrast="cosine",
    matched_contrast="cosine",
    gain="share of the dissimilarity",
    z="standard deviations",
)
class PhaseStructure(NamedTuple):
    """Phase structure of a similarity matrix S under a partition, over pairs of different layers; None where there are no such
    pairs.

    Attributes:
        mean_similarity: mean S of all pairs, whatever the partition.
        within, across: mean S of pairs in one phase and in two.
        contrast: within - across. Of layers that drift apart evenly it is positive too, as pairs across lie further apart.
        matched_contrast: the same at equal distance: mean over |i - j| of (mean S within - mean S across), where both are there.
            Zero where S depends on |i - j| alone: what is left is what the phases add to mere distance in depth.
        modularity: Q = sum over pairs (i, j) of one phase of (S_ij - s_i s_j / 2m) / 2m, with s_i the sum of row i and 2m that
            of S, diagonal left out (Newman 2004, weighted); negative entries count as an attraction that is lacking (Gomez et
            al. 2009): Q = (2m+ Q+ - 2m- Q-) / (2m+ + 2m-), each of the entries of one sign.
        gain: share of the dissimilarity 1 - S between phases, minus its mean over contiguous partitions with as many phases.
        z: that gain in standard deviations of those partitions; None where they are all alike.
    """

    mean_similarity: float
    within: float | None
    across: float | None
    contrast: float | None
    matched_contrast: float | None
    modularity: float
    gain: float
    z: float | None


def phase_structure(dissimilarity: Array, partition: Partition, *, min_length: int = 1, seed: int = 0) -> PhaseStructure:
    """Phase structure of S = 1 - `dissimilarity` (paper, section 6).

    Args:
        dissimilarity: symmetric `[depth, depth]`.
        partition: of that depth, contiguous or not.
        min_length: fewest layers in a phase of the partitions that it is compared with.
        seed: of the draws, where there are too many such partitions to go through all.

    Raises:
        ValueError: a matrix of another size than the partition, or of fewer than two layers.
        UserError: `min_length` leaves no partition to compare with.
    """
    d = np.asarray(dissimilarity, np.float64)
    if d.shape != (partition.depth,) * 2 or partition.depth < 2:
        raise ValueError(
            f"a dissimilarity of shape {d.shape} and a partition of {partition.depth} layers: expected one depth, 2 or more"
        )
    labels, layers = np.asarray(partition.labels), np.arange(partition.depth)
    same = labels[:, None] == labels[None, :]
    distance = layers[None, :] - layers[:, None]
    pairs = distance > 0
    similarity = 1.0 - d
    within, across = _mean(similarity[pairs & same]), _mean(similarity[pairs & ~same])
    matched = []
    for gap in range(1, partition.depth):
        a, b = similarity[(distance == gap) & same], similarity[(distance == gap) & ~same]
        if len(a) and len(b):
            matched.append(a.mean() - b.mean())
    gain, z = _gain(d, partition, min_length, seed)
    return PhaseStructure(
        mean_similarity=float(similarity[pairs].mean()),
        within=within,
        across=across,
        contrast=None if within is None or across is None else within - across,
        matched_contrast=_mean(matched),
        modularity=_modularity(np.where(distance == 0, 0.0, similarity), same),
        gain=gain,
        z=z,
    )


def _mean(values) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _modularity(similarity, same) -> float:
    score = 0.0
    for sign in (1, -1):
        part = np.maximum(sign * similarity, 0.0)
        if total := part.sum():
            rows = part.sum(1)
            score += sign * np.sum((part - np.outer(rows, rows) / total)[same])
    size = np.abs(similarity).sum()
    return float(score / size) if size else 0.0


def _gain(d, partition: Partition, min_length: int, seed: int) -> tuple[float, float | None]:
    depth, k = partition.depth, partition.k
    if math.comb(depth - 1, k - 1) <= _ALL_UP_TO:
        others = all_contiguous(depth, k, min_length)
    else:
        others = (random_contiguous(depth, k, seed + i, min_length) for i in range(_ALL_UP_TO))
    weights = np.array([cut_weight(d, other) for other in others])
    if not len(weights):
        raise UserError(f"{depth} layers have no {k} phases of at least {min_length} layers to compare with")
    gain, spread = cut_weight(d, partition) - weights.mean(), weights.std()
    return float(gain), float(gain / spread) if spread > 1e-12 else None
