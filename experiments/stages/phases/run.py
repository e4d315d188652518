"""Phases of depth: layer-layer dissimilarity over many images, the partitions cut from it, and how sure these are."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from brh_jax import phases
from brh_jax.errors import UserError, expect, expect_one_of, expect_positive
from brh_jax.phases import METRICS, Bisection, LayerSamples, Partition
from brh_jax.types import Dissimilarity
from experiments.data import AllImages, ImageSet
from experiments.settings import Common, without_effect
from experiments.stage import Context
from experiments.stages.teacher.run import TeacherSettings, read_teacher

METHODS = ("max_cut", "contrast_cut", "recursive_bisection", "random_contiguous", "random_fragmented", "given")
_CUT_FROM_IMAGES = ("max_cut", "contrast_cut", "recursive_bisection")
_LARGEST_K = 6  # of the max cuts that are compared with random partitions
_SHOWN = 5  # partitions of resampled images, the most frequent


@dataclasses.dataclass(frozen=True)
class PhaseSettings:
    """How depth is cut (paper, section 2).

    Attributes:
        method: max_cut, contrast_cut, recursive_bisection (the authors'), random_contiguous, random_fragmented (max_cut's phase
            lengths, dealt out), or given (lengths).
        k: numbers of phases, such as (2, 3); a Raptor for each.
        min_length: fewest layers of a phase.
        threshold: of recursive_bisection, share of the total weight that a cut must gain: the number of phases follows from it;
            0 for the largest that gives each of k.
        lengths: of given, the numbers of layers of the phases, such as (7, 3, 2).
        num_images: images that the similarity is a mean over.
        batch_size: images at a time.
        seed: of the random partitions and of the resampling.
        bootstrap: resamples of the images that the partition is cut from again; 0 for none.
        metrics: that it is cut by then, some of cosine, cka; a run's own partitions are always those of the cosine.
    """

    method: str = "max_cut"
    k: tuple[int, ...] = (3,)
    min_length: int = 1
    threshold: float = 0.0
    lengths: tuple[int, ...] = ()
    num_images: int = 10_000
    batch_size: int = without_effect(64)
    seed: int = 0
    bootstrap: int = 1000
    metrics: tuple[str, ...] = ("cosine", "cka")

    def __post_init__(self):
        expect_one_of(self, "method", METHODS)
        expect_positive(self, "num_images", "batch_size", "min_length")
        expect(0 <= self.threshold <= 1, "threshold", self.threshold, "a share of the total weight, or 0 where k says it")
        expect(0 <= self.seed < 2**30, "seed", self.seed, f"0 or more, below {2**30}")
        for metric in self.metrics:
            if metric not in METRICS:
                raise UserError(f"metrics names {metric!r}: expected some of {', '.join(METRICS)}")
        expect(self.bootstrap >= 0, "bootstrap", self.bootstrap, "a number of resamples, or 0 for none")
        if self.method == "given" and not self.lengths:
            raise UserError("lengths is empty, but method is given: expected phase lengths such as (7,3,2)")
        whole = all(isinstance(k, int) and k > 0 for k in self.k)
        expect(bool(self.k) and whole, "k", self.k, "numbers of phases such as (2,3)")

    @property
    def asks_for_k(self) -> bool:
        """Whether the numbers of phases are given, and do not follow from lengths or a threshold."""
        return self.method != "given" and not (self.method == "recursive_bisection" and self.threshold)

    @property
    def resamples(self) -> bool:
        """Whether the partitions come from the images, so that other images could give others."""
        return bool(self.bootstrap) and self.method in _CUT_FROM_IMAGES


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """Sections that the stage uses."""

    teacher: TeacherSettings = TeacherSettings()
    data: AllImages = AllImages()
    phases: PhaseSettings = PhaseSettings()

    def __post_init__(self):
        super().__post_init__()
        if self.teacher.source == "train":
            # With pretrained weights the depth is not known yet; then the stage says it.
            partitions_of(np.zeros((self.teacher.vit.depth,) * 2), self.phases)


@dataclasses.dataclass(frozen=True)
class CutResult:
    """A partition of the run.

    Attributes:
        text: the partition as people write it, 1-7 | 8-12.
        lengths, phases: what `Partition` is made of.
        cut_weight: share of the dissimilarity that lies between its phases.
        structure: see `brh_jax.phases.PhaseStructure`.
        threshold: largest one at which a recursive bisection gives it; None of other methods and of one phase.
    """

    text: str
    lengths: list[int]
    phases: list[int]
    cut_weight: float
    structure: dict[str, float | None]
    threshold: float | None = None

    @property
    def partition(self) -> Partition:
        """The partition that its labels describe."""
        return Partition(tuple(self.lengths), tuple(self.phases))


@dataclasses.dataclass(frozen=True)
class StabilityResult:
    """How the partitions of resampled images agree.

    Attributes:
        metric: what layers were compared by.
        k: number of phases asked for.
        all_images: the partition of all images, and `boundaries` its cuts.
        modal: the most frequent partition.
        boundary_frequency: share of the resamples that cut after each layer.
        frequencies: partition -> share of the resamples, the most frequent ones; `num_partitions` in all.
        rand_index: mean adjusted Rand index of the resamples' partitions to that of all images.
        rand_index_to_used: of that of all images to the one that Raptors share blocks by.
        num_units, num_groups, num_resamples: how many independent groups of how many units were resampled how often: photographs
            with their views for the cosine, sets of 16 photographs for CKA.
    """

    metric: str
    k: int
    all_images: str
    boundaries: list[int]
    modal: str
    boundary_frequency: list[float]
    frequencies: dict[str, float]
    num_partitions: int
    rand_index: float
    rand_index_to_used: float
    num_units: int
    num_groups: int
    num_resamples: int


@dataclasses.dataclass(frozen=True)
class RandomWeights:
    """Cut weights of random partitions of a kind: mean, deviation, their 95 % range, and number."""

    mean: float
    std: float
    low: float
    high: float
    num: int


@dataclasses.dataclass(frozen=True)
class RandomComparison:
    """The max cut with k phases beside random partitions.

    Attributes:
        weight: of the max cut of all images.
        rank_on_other_images: share of the contiguous partitions that the cut of one half of the photographs is at least as heavy
            as, on the other half.
        contiguous, fragmented: the random ones.
    """

    k: int
    weight: float
    rank_on_other_images: float
    contiguous: RandomWeights
    fragmented: RandomWeights


@dataclasses.dataclass(frozen=True)
class ObjectiveResult:
    """What an objective gives for the run's matrix.

    Attributes:
        method: max_cut, contrast_cut or recursive_bisection.
        k: number of phases.
        min_length: fewest layers of a phase.
        text: the partition as people write it.
        cut_weight: share of the dissimilarity that lies between its phases.
        threshold: as of `CutResult`.
    """

    method: str
    k: int
    min_length: int
    text: str
    cut_weight: float
    threshold: float | None = None


@dataclasses.dataclass(frozen=True)
class PhasesResult:
    """What was found of the phases of depth.

    Attributes:
        method: that the partitions were cut by.
        num_images, num_photographs: images that the similarity is a mean over, and photographs that they are views of.
        dissimilarity: 1 - cosine of the outputs of two layers, `[depth][depth]`.
        partitions: k -> partition.
        stability: for each metric and k; empty where nothing was resampled.
        random: the max cuts for k = 2 ... 6 beside random partitions.
        objectives: what each objective gives for the same matrix, with the run's `min_length` and without one or with two.
    """

    method: str
    num_images: int
    num_photographs: int
    dissimilarity: list[list[float]]
    partitions: dict[int, CutResult]
    stability: list[StabilityResult]
    random: list[RandomComparison]
    objectives: list[ObjectiveResult] = dataclasses.field(default_factory=list)

    def partition_of(self, k: int) -> Partition:
        """The partition with k phases."""
        return self.partitions[k].partition

    @property
    def finest(self) -> Partition:
        """The partition with most phases."""
        return self.partition_of(max(self.partitions))


def read_partitions(context: Context) -> dict[int, Partition]:
    """The partitions of the run, by k. Raises UserError before the phases stage is done."""
    return {k: cut.partition for k, cut in context.result(PhasesResult, "phases").partitions.items()}


def reads(settings: Settings) -> list[ImageSet]:
    """What is compared layer by layer."""
    return settings.data.named("train")


def run(context: Context, settings: Settings) -> PhasesResult:
    """Leaves the matrix of each metric in `dissimilarity.npz`; partitions are cut from the one of cosines."""
    data, own = settings.data, settings.phases
    encoder = read_teacher(context, settings.compute_dtype)
    partitions_of(np.zeros((encoder.depth,) * 2), own)  # a k that does not fit is said before any image is read
    source = context.source(data.train, data.data_dir)
    batches = context.measuring_batches(
        source,
        data.transform(data.eval_augment, encoder.preprocessing),
        num_images=own.num_images,
        batch_size=own.batch_size,
        label="similarity of layers",
        seed=settings.seed,
        threads=data.threads,
    )
    trajectories = ((encoder.trajectory(encoder.normalize_pixels(b["image"])), b["valid"], b["photograph"]) for b in batches)
    metrics = _metrics(own, len(source))
    samples = phases.layer_samples(trajectories, encoder.layout, metrics)
    matrices = {metric: sample.dissimilarity() for metric, sample in samples.items()}
    dissimilarity = matrices["cosine"]
    context.save_arrays(context.folder / "dissimilarity.npz", dissimilarity=dissimilarity, **matrices)
    partitions = partitions_of(dissimilarity, own)
    for k, partition in partitions.items():
        print(f"phases: k = {k}: {partition}", flush=True)
    return PhasesResult(
        method=own.method,
        num_images=samples["cosine"].num_units,
        num_photographs=samples["cosine"].num_groups,
        dissimilarity=dissimilarity.round(6).tolist(),
        partitions={k: _cut_result(dissimilarity, partition, own) for k, partition in partitions.items()},
        stability=[one for sample in samples.values() for one in _stability(sample, partitions, own)],
        random=_against_random(samples["cosine"], own),
        objectives=list(_objectives(dissimilarity, list(partitions), own)),
    )


def _metrics(settings: PhaseSettings, num_photographs: int) -> tuple[str, ...]:
    """What layers are compared by; CKA takes 16 photographs or more."""
    metrics = tuple(dict.fromkeys(("cosine", *(settings.metrics if settings.resamples else ()))))
    if "cka" in metrics and num_photographs < phases.UNIT:
        print(
            f"phases: cka left out: {num_photographs} photographs, it is measured over {phases.UNIT} different ones", flush=True
        )
        metrics = tuple(metric for metric in metrics if metric != "cka")
    return metrics


def _cut_result(dissimilarity: Dissimilarity, partition: Partition, settings: PhaseSettings) -> CutResult:
    least = min(settings.min_length, *partition.lengths)  # min_length, where the method held to it
    structure = phases.phase_structure(dissimilarity, partition, min_length=least)
    weight = float(phases.cut_weight(dissimilarity, partition))
    threshold = None
    if settings.method == "recursive_bisection":
        threshold = _threshold(phases.bisection(dissimilarity, settings.min_length), partition.k)
    return CutResult(
        str(partition), list(partition.lengths), list(partition.phases), weight, structure._asdict(), threshold=threshold
    )


def _threshold(bisection: Bisection, k: int) -> float | None:
    return float(bisection.thresholds[k - 2]) if k > 1 else None


def _objectives(dissimilarity: Dissimilarity, ks: list[int], settings: PhaseSettings):
    """Yields what each objective gives for one matrix, where it gives that many phases of that length."""
    depth = len(dissimilarity)
    for min_length in sorted({1, 2, settings.min_length} & set(range(depth + 1))):
        bisection = phases.bisection(dissimilarity, min_length)
        for k in (k for k in ks if k > 1 and k * min_length <= depth):
            partitions = {cut.__name__: cut(dissimilarity, k, min_length) for cut in (phases.max_cut, phases.contrast_cut)}
            if k <= bisection.most:
                partitions["recursive_bisection"] = bisection.partition(k)
            for method, partition in partitions.items():
                weight = float(phases.cut_weight(dissimilarity, partition))
                threshold = _threshold(bisection, k) if method == "recursive_bisection" else None
                yield ObjectiveResult(method, k, min_length, str(partition), weight, threshold)


def _stability(sample: LayerSamples, partitions: dict[int, Partition], settings: PhaseSettings):
    """Yields, for each k, how the partitions of resampled images agree with that of all of them."""
    if not settings.resamples or sample.metric not in settings.metrics:
        return
    if sample.num_groups < 2:
        print(f"phases: {sample.metric}: all images are of one group of photographs, so there is nothing to resample", flush=True)
        return
    from sklearn.metrics import adjusted_rand_score

    matrices = sample.resampled(settings.bootstrap, settings.seed)
    for k, cut in zip(partitions, cuts_of(settings), strict=True):
        whole = cut(sample.dissimilarity())
        result = phases.stability(matrices, cut, whole)
        modal = next(iter(result.frequencies))
        print(
            f"phases: {sample.metric}, k = {k}: {modal} in {100 * result.frequencies[modal]:.0f} % of {settings.bootstrap} "
            f"resamples, adjusted Rand index {result.rand_index.mean():.2f}",
            flush=True,
        )
        yield StabilityResult(
            metric=sample.metric,
            k=k,
            all_images=str(whole),
            boundaries=list(whole.boundaries),
            modal=str(modal),
            boundary_frequency=result.boundary_frequency.round(6).tolist(),
            frequencies={str(p): share for p, share in list(result.frequencies.items())[:_SHOWN]},
            num_partitions=len(result.frequencies),
            rand_index=float(result.rand_index.mean()),
            rand_index_to_used=float(adjusted_rand_score(whole.labels, partitions[k].labels)),
            num_units=sample.num_units,
            num_groups=sample.num_groups,
            num_resamples=settings.bootstrap,
        )


def _against_random(sample: LayerSamples, settings: PhaseSettings) -> list[RandomComparison]:
    """The max cut for k = 2 ... 6 against random partitions, on all images, and that of one half of them on the other half."""
    if sample.num_groups < 2:
        return []
    whole, (first, second) = sample.dissimilarity(), (half.dissimilarity() for half in sample.halves())
    compared = []
    for k in range(2, min(_LARGEST_K, len(whole)) + 1):
        cuts = phases.random_cuts(whole, phases.max_cut(whole, k), seed=settings.seed)
        other = phases.random_cuts(second, phases.max_cut(first, k), seed=settings.seed)
        random = (_random_weights(cuts.contiguous), _random_weights(cuts.fragmented))
        compared.append(RandomComparison(k, float(cuts.weight), float(other.rank), *random))
    return compared


def _random_weights(weights: np.ndarray) -> RandomWeights:
    low, high = np.quantile(weights, (0.025, 0.975)).tolist()
    return RandomWeights(float(weights.mean()), float(weights.std()), low, high, len(weights))


def partitions_of(dissimilarity: Dissimilarity, settings: PhaseSettings) -> dict[int, Partition]:
    """The partitions that the settings ask for, by number of phases.

    Raises:
        UserError: a k or given lengths that do not fit the depth.
    """
    depth = len(dissimilarity)
    partitions = [cut(dissimilarity) for cut in cuts_of(settings)]
    if partitions[0].depth != depth:
        raise UserError(
            f"config.phases.lengths {settings.lengths} add up to {partitions[0].depth}, the teacher has {depth} layers"
        )
    if settings.asks_for_k and (beyond := set(settings.k) - {p.k for p in partitions}):
        most = phases.bisection(dissimilarity, settings.min_length).most
        raise UserError(
            f"config.phases.k asks for {max(beyond)} phases, the recursive bisection of these {depth} layers into phases of at "
            f"least {settings.min_length} ends at {most}: expected k up to {most}, a smaller config.phases.min_length, or "
            "config.phases.method=max_cut"
        )
    return {p.k: p for p in partitions}


def cuts_of(settings: PhaseSettings) -> list[Callable]:
    """How depth is cut: functions from a matrix of dissimilarities to a Partition, one for each that is asked for."""
    if settings.method == "given":
        given = Partition(settings.lengths)
        return [lambda matrix: given]
    if not settings.asks_for_k:
        return [functools.partial(phases.recursive_bisection, threshold=settings.threshold, min_length=settings.min_length)]

    def cut(matrix, k):
        if settings.method == "recursive_bisection":
            bisection = phases.bisection(matrix, settings.min_length)
            return bisection.partition(min(k, bisection.most))  # resampled images may end it earlier
        if settings.method == "random_contiguous":
            return phases.random_contiguous(len(matrix), k, settings.seed, settings.min_length)
        if settings.method == "random_fragmented":
            return phases.random_fragmented(phases.max_cut(matrix, k, settings.min_length).lengths, settings.seed)
        exact = phases.contrast_cut if settings.method == "contrast_cut" else phases.max_cut
        return exact(matrix, k, settings.min_length)

    return [functools.partial(cut, k=k) for k in dict.fromkeys(settings.k)]
