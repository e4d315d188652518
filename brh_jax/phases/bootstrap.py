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
from brh_jax.readable import readable
from brh_jax.statistics import bootstrap_counts, num_groups, numbered_groups
from brh_jax.tokens import TokenLayout
from brh_jax.train.parallel import to_host
from brh_jax.types import Array, TrajectoryBatch, ValidBatch

METRICS = ("cosine", "cka")
UNIT = 16  # images of an unbiased HSIC, of as many photographs


@dataclasses.dataclass(frozen=True)
class LayerSamples:
    """What units of a sample say about pairs of layers.

    Attributes:
        metric: "cosine", of which a unit is an image and `values` are 1 - cosine, `[images, depth,
            depth]`; or "cka", of which a unit
            is 16 images of different photographs and `values` are the `[units, token types, depth, depth]` HSIC of the cls and
            mean patch.
        values: float32 for 1 - cosine, float64 for HSIC.
        groups: `[units]`, which of them are independent: of the cosine the photographs that images are views of, of CKA the sets
            of 16 photographs. None: every unit for itself.
    """

    metric: str
    values: np.ndarray
    groups: np.ndarray | None = None

    @property
    def num_units(self) -> int:
        """How many units there are."""
        return len(self.values)

    @property
    def num_groups(self) -> int:
        """How many independent groups of units there are to resample."""
        return num_groups(self.groups, self.num_units)

    def dissimilarity(self) -> np.ndarray:
        """1 - similarity of layers over all units, `[depth, depth]` float64."""
        return self._of_mean(self.values.mean(0, dtype=np.float64))

    def halves(self) -> tuple["LayerSamples", "LayerSamples"]:
        """The units of every second group, and the others: no photograph is in both."""
        numbers = numbered_groups(self.groups, self.num_units)
        parts = (numbers % 2 == part for part in (0, 1))
        first, second = (dataclasses.replace(self, values=self.values[part], groups=numbers[part]) for part in parts)
        return first, second

    def resampled(self, num_resamples: int, seed: int) -> np.ndarray:
        """The dissimilarity over groups drawn with replacement, as many as there are: `[num_resamples, depth, depth]`."""
        flat = self.values.reshape(self.num_units, -1).astype(np.float64)
        draws = bootstrap_counts(self.num_units, num_resamples, seed, self.groups)
        weights = (counts / counts.sum() for counts in draws)
        return np.stack([self._of_mean((weight @ flat).reshape(self.values.shape[1:])) for weight in weights])

    def _of_mean(self, mean) -> np.ndarray:
        dissimilarity = 1.0 - alignment(mean).mean(0) if self.metric == "cka" else mean.copy()
        np.fill_diagonal(dissimilarity, 0.0)
        return dissimilarity


def layer_samples(
    trajectories: Iterable[tuple[TrajectoryBatch, ValidBatch] | tuple[TrajectoryBatch, ValidBatch, Array]],
    layout: TokenLayout,
    metrics: Sequence[str] = METRICS,
) -> dict[str, LayerSamples]:
    """The samples of each metric, in one pass over batches that are never held together.

    Args:
        trajectories: yields `(states, valid)`, as for `streaming_dissimilarity`, or `(states, valid, photographs)` with a number
            for each image: those of one photograph are views of it, and not independent. Without, each image is its own.
        metrics: some of METRICS.

    Raises:
        UserError: an unknown metric, no images, or fewer than 16 photographs for "cka".
    """
    if unknown := [m for m in metrics if m not in METRICS]:
        raise UserError(f"unknown metric {', '.join(unknown)}: expected some of {', '.join(METRICS)}")
    dissimilarity = jax.jit(image_dissimilarity, static_argnums=1)
    vectors = jax.jit(token_vectors, static_argnums=1)
    cosines, photographs, units = [], [], _Units()
    for states, valid, *told in trajectories:
        valid = np.asarray(valid)
        photographs += (np.asarray(told[0])[valid] if told else len(photographs) + np.arange(int(valid.sum()))).tolist()
        if "cosine" in metrics:
            cosines.append(to_host(dissimilarity(states, layout))[valid])
        if "cka" in metrics:
            images = np.moveaxis(to_host(vectors(states, layout))[:, :, valid], 2, 0)
            units.add(images, photographs[len(photographs) - len(images) :])
    if not photographs:
        raise UserError("no images: the similarity of layers is a mean over images")
    if "cka" in metrics and not units.values:
        raise UserError(
            f"{len(photographs)} images of {len(set(photographs))} photographs: kernel alignment is measured over groups of "
            f"{UNIT} different ones, give more images or leave cka out"
        )
    made = {
        "cosine": lambda: LayerSamples("cosine", np.concatenate(cosines), np.array(photographs)),
        "cka": lambda: LayerSamples("cka", np.stack(units.values), np.array(units.sets)),
    }
    return {metric: made[metric]() for metric in metrics}


class _Units:
    """Puts images together by 16, each of another photograph: an HSIC takes its images for independent.

    The first 16 photographs that come are a set, the next 16 another: units of one set are not independent, sets are. Photographs
    that fill up no set, and views that lack others beside them, are left out.

    Attributes:
        values, sets: of each unit its HSIC, and the number of its set.
    """

    def __init__(self):
        self.values: list[np.ndarray] = []
        self.sets: list[int] = []
        self._places: dict[int, int] = {}  # of photographs, in the order in which they came
        self._waiting: dict[int, list[list[np.ndarray]]] = {}  # set -> images of each of its photographs

    def add(self, images: np.ndarray, photographs: Sequence[int]) -> None:
        """Takes in `[images, token types, depth, dim]`."""
        for image, photograph in zip(images, photographs, strict=True):
            number, place = divmod(self._places.setdefault(photograph, len(self._places)), UNIT)
            waiting = self._waiting.setdefault(number, [[] for _ in range(UNIT)])
            waiting[place].append(image)
            if all(waiting):
                self.values.append(hsic(np.stack([of_one.pop(0) for of_one in waiting], axis=2)))
                self.sets.append(number)


@readable(boundary_frequency="share of resamples", frequencies="of resamples")
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


def stability(matrices: Array | Sequence[np.ndarray], cut: Callable[[np.ndarray], Partition], found: Partition) -> Stability:
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
