"""What interventions do, group by group: the stage's part of results.json, and how it is made of the effects on every image."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from brh_jax import interventions as causal
from brh_jax.interventions import BoundaryTest, Contrast
from brh_jax.partition import Partition
from brh_jax.statistics import summarize
from experiments.interval import Interval
from experiments.stages.interventions.plans import LayerGroup, SwapGroup

# All are of the last state after the final norm, and larger the worse. `error` needs labelled images.
MEASURES = ("change", "distance", "token_change", "token_distance", "error")
Measured = dict[str, np.ndarray]  # measure -> [plans, images]


@dataclasses.dataclass(frozen=True)
class Draws:
    """How what was measured is resampled.

    Attributes:
        seed: of bootstrap and shuffles.
        photographs: `[images]`, what each image is a view of: these are drawn.
        num_permutations: shuffles of a test.
    """

    seed: int
    photographs: np.ndarray
    num_permutations: int


Effect = dict[str, Interval]  # measure -> mean over images


@dataclasses.dataclass(frozen=True)
class Point:
    """Swaps of one kind at one distance.

    Attributes:
        distance: |place - layer|.
        num_swaps: that the effect is a mean over.
        effect: by measure.
    """

    distance: int
    num_swaps: int
    effect: Effect


@dataclasses.dataclass(frozen=True)
class Tests:
    """Whether swaps across phases do more than swaps within them; None for a test that these swaps do not allow.

    Attributes:
        distance: of swaps at equal distance.
        place_and_distance: of swaps at equal place and distance; single layers only.
        boundaries: the difference at equal distance under other boundaries; all swaps of single layers only.
    """

    distance: Contrast | None
    place_and_distance: Contrast | None
    boundaries: BoundaryTest | None


@dataclasses.dataclass(frozen=True)
class PhaseSwaps:
    """Swaps seen from one partition; those that are neither within its phases nor across are left out.

    Attributes:
        phases: the partition, as people write it.
        intra, inter: swaps within and across phases, by distance.
        tests: by measure.
    """

    phases: str
    intra: list[Point]
    inter: list[Point]
    tests: dict[str, Tests]


@dataclasses.dataclass(frozen=True)
class SwapsResult:
    """A group of swaps; see `SwapGroup`.

    Attributes:
        name: for people, and of its arrays in arrays.npz.
        num_layers, part: what was replaced.
        num_swaps: how many swaps there are.
        matrix: measure -> `[place][layer]`, None where it was not measured; empty for several layers at a time.
        partitions: the same by number of phases.
    """

    name: str
    num_layers: int
    part: str
    num_swaps: int
    matrix: dict[str, list[list[float | None]]]
    partitions: dict[int, PhaseSwaps]


@dataclasses.dataclass(frozen=True)
class LayersResult:
    """Every layer by itself; see `LayerGroup`.

    Attributes:
        name: for people, and of its arrays in arrays.npz.
        action, part: what was done to what of it.
        effects: measure -> effect of each layer.
    """

    name: str
    action: str
    part: str
    effects: dict[str, list[Interval]]


@dataclasses.dataclass(frozen=True)
class HybridPhase:
    """What one phase costs.

    Attributes:
        layers: of the phase, as people write them.
        raptor_in_teacher: effect of the Raptor's block in the teacher.
        teacher_in_raptor: effect of the teacher's layers in the Raptor.
    """

    layers: str
    raptor_in_teacher: Effect
    teacher_in_raptor: Effect


@dataclasses.dataclass(frozen=True)
class HybridResult:
    """A Raptor and its teacher in one another's place.

    Attributes:
        k: number of phases.
        raptor: effect of the Raptor alone.
        phases: each in the place of the other's.
    """

    k: int
    raptor: Effect
    phases: list[HybridPhase]


@dataclasses.dataclass(frozen=True)
class InterventionsResult:
    """What interventions do; without images nothing was measured.

    Attributes:
        images: name of the set.
        num_images, num_photographs, num_plans: how many images were measured, of how many photographs, and plans.
        head: what images are classified by; empty where they are not.
        unchanged: effect of the trained order.
        swaps, layers: by group.
        hybrids: by Raptor.
    """

    images: str = ""
    num_images: int = 0
    num_photographs: int = 0
    num_plans: int = 0
    head: str = ""
    unchanged: Effect = dataclasses.field(default_factory=dict)
    swaps: list[SwapsResult] = dataclasses.field(default_factory=list)
    layers: list[LayersResult] = dataclasses.field(default_factory=list)
    hybrids: dict[str, HybridResult] = dataclasses.field(default_factory=dict)


def effects_of(measured: Measured, draws: Draws) -> list[Effect]:
    """Mean effect of each plan, with its interval over images."""
    columns = {measure: _intervals(values, draws) for measure, values in measured.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _intervals(values: np.ndarray, draws: Draws) -> list[Interval]:
    band = summarize(values, seed=draws.seed, groups=draws.photographs)
    ends = [(np.round(one, 6) + 0.0).tolist() for one in (band.mean, band.low, band.high)]
    return [Interval(*row) for row in zip(*ends, strict=True)]


def swaps_result(group: SwapGroup, measured: Measured, partitions: dict[int, Partition], draws: Draws) -> SwapsResult:
    """A group of swaps, seen from every partition."""
    depth = next(iter(partitions.values())).depth
    single = group.num_layers == 1
    return SwapsResult(
        group.name,
        group.num_layers,
        group.part,
        len(group.swaps),
        {measure: _matrix(group, values, depth) for measure, values in measured.items()} if single else {},
        {k: _phase_swaps(group, measured, partition, draws) for k, partition in partitions.items()},
    )


def _matrix(group: SwapGroup, values: np.ndarray, depth: int) -> list[list[float | None]]:
    matrix: list[list[float | None]] = [[None] * depth for _ in range(depth)]
    for swap, value in zip(group.swaps, values.mean(1), strict=True):
        matrix[swap.places[0]][swap.layers[0]] = round(float(value), 6)
    return matrix


def _phase_swaps(group: SwapGroup, measured: Measured, partition: Partition, draws: Draws) -> PhaseSwaps:
    kinds = np.array([swap.is_inter(partition) for swap in group.swaps])
    tests = {measure: _tests(group, values, kinds, partition, draws) for measure, values in measured.items()}
    intra, inter = (_points(group, measured, kinds == kind, draws) for kind in (False, True))
    return PhaseSwaps(str(partition), intra, inter, tests)


def _points(group: SwapGroup, measured: Measured, rows: np.ndarray, draws: Draws) -> list[Point]:
    """The mean over the swaps in `rows` at each distance."""
    distance, points = _distances(group), []
    for one in np.unique(distance[rows]):
        chosen = rows & (distance == one)
        means = {measure: values[chosen].mean(0, keepdims=True) for measure, values in measured.items()}
        points.append(Point(int(one), int(chosen.sum()), effects_of(means, draws)[0]))
    return points


def _tests(group: SwapGroup, values: np.ndarray, kinds: np.ndarray, partition: Partition, draws: Draws) -> Tests:
    known, distance = kinds != None, _distances(group)  # noqa: E711 - of every element

    def contrast(strata: np.ndarray) -> Contrast | None:
        options: dict[str, Any] = {"num_permutations": draws.num_permutations, "seed": draws.seed, "groups": draws.photographs}
        return causal.matched_contrast(values[known], kinds[known], strata[known], **options)

    single, depth = group.num_layers == 1, partition.depth
    return Tests(
        distance=contrast(distance),
        place_and_distance=contrast(np.column_stack([[s.places[0] for s in group.swaps], distance])) if single else None,
        boundaries=causal.boundary_test(values, group.swaps, partition, seed=draws.seed)
        if single and len(group.swaps) == depth * (depth - 1)
        else None,
    )


def _distances(group: SwapGroup) -> np.ndarray:
    return np.array([swap.distance for swap in group.swaps])


def layers_result(group: LayerGroup, measured: Measured, draws: Draws) -> LayersResult:
    """What every layer does by itself."""
    effects = {measure: _intervals(values, draws) for measure, values in measured.items()}
    return LayersResult(group.name, group.action, group.part, effects)


def hybrid_result(partition: Partition, effects: Sequence[Effect]) -> HybridResult:
    """What `hybrid_plans` lists, by phase."""
    k = partition.k
    phases = zip(str(partition).split(" | "), effects[1 : k + 1], effects[k + 1 :], strict=True)
    return HybridResult(k, effects[0], [HybridPhase(*phase) for phase in phases])
