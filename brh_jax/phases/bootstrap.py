"""How sure a partition is: cut again from resampled images, by the cosine of layers or by their kernel alignment."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from brh_jax.errors import UserError
from brh_jax.partition import Partition
from brh_jax.phases.cka import alignment, hsic
from brh_jax.phases.similarity import image_dissimilarity, token_vectors
from brh_jax.statistics import bootstrap_counts
from brh_jax.tokens import TokenLayout
from brh_jax.train.parallel import to_host
from brh_jax.types import Array, Trajectory, Valid

METRICS = ("cosine", "cka")
_GROUP = 16  # images of an unbiased HSIC


@dataclasses.dataclass(frozen=True)
class LayerSamples:
    """What independent units of a sample say about pairs of layers.

    Attributes:
        metric: "cosine", of which a unit is an image and `values` are 1 - cosine, `[images, depth, depth]`; or "cka", of which
            a unit is a group of 16 images and `values` are the HSIC of cls and mean patch, `[groups, token types, depth, depth]`.
        values: float32 for 1 - cosine, float64 for HSIC.
    """

    metric: str
    values: np.ndarray

    @property
    def num_units(self) -> int:
        """How many units there are to resample."""
        return len(self.values)

    def dissimilarity(self) -> np.ndarray:
        """1 - similarity of layers over all units, `[depth, depth]` float64."""
        return self._of_mean(self.values.mean(0, dtype=np.float64))

    def halves(self) -> tuple["LayerSamples", "LayerSamples"]:
        """Every second unit, and the others."""
        return dataclasses.replace(self, values=self.values[::2]), dataclasses.replace(self, values=self.values[1::2])

    def resampled(self, num_resamples: int, seed: int) -> np.ndarray:
        """The dissimilarity over units drawn with replacement, as many as there are: `[num_resamples, depth, depth]`."""
        flat = self.values.reshape(self.num_units, -1).astype(np.float64)
        weights = (counts / self.num_units for counts in bootstrap_counts(self.num_units, num_resamples, seed))
        return np.stack([self._of_mean((weight @ flat).reshape(self.values.shape[1:])) for weight in weights])

    def _of_mean(self, mean) -> np.ndarray:
        dissimilarity = 1.0 - alignment(mean).mean(0) if self.metric == "cka" else mean.copy()
        np.fill_diagonal(dissimilarity, 0.0)
        return dissimilarity


def layer_samples(
    trajectories: Iterable[tuple[Trajectory, Valid]], layout: TokenLayout, metrics: Sequence[str] = METRICS
) -> dict[str, LayerSamples]:
    """The samples of each metric, in one pass over batches that are never held together.

    Args:
        trajectories: yields `(states, valid)`, as for `streaming_dissimilarity`.
        metrics: some of METRICS.

    Raises:
        UserError: an unknown metric, no images, or fewer images than make up a group for "cka".
    """
    if unknown := [m for m in metrics if m not in METRICS]:
        raise UserError(f"unknown metric {', '.join(unknown)}: expected some of {', '.join(METRICS)}")
    dissimilarity = jax.jit(image_dissimilarity, static_argnums=1)
    vectors = jax.jit(token_vectors, static_argnums=1)
    cosines, groups, rest, count = [], [], None, 0
    for states, valid in trajectories:
        valid = np.asarray(valid)
        count += int(valid.sum())
        if "cosine" in metrics:
            cosines.append(to_host(dissimilarity(states, layout))[valid])
        if "cka" in metrics:
            found = to_host(vectors(states, layout))[:, :, valid]
            rest = found if rest is None else np.concatenate([rest, found], axis=2)
            whole = rest.shape[2] // _GROUP * _GROUP
            groups += [hsic(rest[:, :, i : i + _GROUP]) for i in range(0, whole, _GROUP)]
            rest = rest[:, :, whole:]
    if not count:
        raise UserError("no images: the similarity of layers is a mean over images")
    if "cka" in metrics and not groups:
        raise UserError(
            f"{count} images: kernel alignment is measured over groups of {_GROUP}, give more images or leave cka out"
        )
    values = {"cosine": lambda: np.concatenate(cosines), "cka": lambda: np.stack(groups)}
    return {metric: LayerSamples(metric, values[metric]()) for metric in metrics}


class Stability(NamedTuple):
    """How partitions of resampled images agree.

    Attributes:
        boundary_frequency: share of the resamples that cut after layer 1 ... depth - 1, `[depth - 1]`.
        frequencies: share of the resamples of each partition that came out, the most frequent first.
        rand_index: adjusted Rand index of each resample's partition to the one of all images, `[num_resamples]`: one for the same
            phases, about zero for unrelated ones (Hubert and Arabie, 1985).
    """

    boundary_frequency: np.ndarray
    frequencies: dict[Partition, float]
    rand_index: np.ndarray


def stability(matrices: Array, cut: Callable[[np.ndarray], Partition], found: Partition) -> Stability:
    """Cuts every resampled matrix and compares with the partition of all images.

    Args:
        matrices: `[num_resamples, depth, depth]`, of `LayerSamples.resampled`.
        cut: dissimilarity -> Partition, `functools.partial(max_cut, k=3)` say.
        found: the partition of all images.
    """
    from sklearn.metrics import adjusted_rand_score  # here, as scikit-learn takes longer to import than all the rest

    counts = collections.Counter(cut(matrix) for matrix in matrices)
    boundaries = np.zeros(found.depth - 1)
    for partition, count in counts.items():
        boundaries[np.asarray(partition.boundaries, int) - 1] += count
    index = {partition: adjusted_rand_score(found.labels, partition.labels) for partition in counts}
    return Stability(
        boundary_frequency=boundaries / len(matrices),
        frequencies={partition: count / len(matrices) for partition, count in counts.most_common()},
        rand_index=np.repeat(list(index.values()), list(counts.values())),
    )
