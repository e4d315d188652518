"""A partition beside random ones of the same number of phases: is its cut more than any cut?"""

import math
from typing import NamedTuple

import numpy as np

from brh_jax.partition import Partition
from brh_jax.phases.cuts import all_contiguous, cut_weight, random_contiguous, random_fragmented
from brh_jax.readable import readable
from brh_jax.types import Array


@readable(weight="share of the dissimilarity", contiguous="share of the dissimilarity", fragmented="share of the dissimilarity")
class RandomCuts(NamedTuple):
    """Cut weights of a partition and of random ones.

    Attributes:
        weight: of the partition, see `cut_weight`.
        contiguous: of every contiguous partition into as many phases where there are no more than were asked for, else of random
            ones, `[n]`.
        fragmented: of partitions with the same sizes of phases, their layers dealt out at random, `[n]`.
    """

    weight: float
    contiguous: np.ndarray
    fragmented: np.ndarray

    @property
    def rank(self) -> float:
        """Share of the contiguous partitions whose weight is not above this one's."""
        return float(np.mean(self.contiguous <= self.weight + 1e-12))


def random_cuts(dissimilarity: Array, partition: Partition, *, num_random: int = 1000, seed: int = 0) -> RandomCuts:
    """Weighs a partition against random ones on one matrix of dissimilarities (the reviewers' control, paper, section 10).

    Args:
        dissimilarity: symmetric `[depth, depth]`.
        num_random: most contiguous partitions, and number of fragmented ones, to compare with.
        seed: of the random partitions.
    """
    depth, k = partition.depth, partition.k
    if math.comb(depth - 1, k - 1) <= num_random:
        contiguous = all_contiguous(depth, k)
    else:
        contiguous = (random_contiguous(depth, k, seed + i) for i in range(num_random))
    sizes = np.bincount(partition.labels)
    fragmented = (random_fragmented(sizes, seed + i) for i in range(num_random))
    return RandomCuts(
        cut_weight(dissimilarity, partition),
        *(np.array([cut_weight(dissimilarity, p) for p in found]) for found in (contiguous, fragmented)),
    )
