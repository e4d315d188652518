"""What the dynamics say in a few figures: what the paper says of them can be held against these."""

import dataclasses
from typing import Any

import numpy as np

from brh_jax.curves import Band, Curve, band
from brh_jax.dynamics import FATES, boundary_jump_test, curves, distance
from brh_jax.dynamics.basins import AngularBasins
from brh_jax.dynamics.comparison import Distance
from brh_jax.dynamics.measures.extrapolation import IteratedBlocks
from brh_jax.dynamics.portrait import Portrait
from brh_jax.partition import Partition
from brh_jax.statistics import JumpTest, crossing
from brh_jax.types import Array
from experiments.interval import Interval, mean_interval

# Measures whose jumps at phase boundaries are tested, and what they are called; of those of states, what a layer changes.
JUMPS = {
    "speed": "angular speed",
    "convergence": "cosine with the end",
    "coherence": "patch coherence",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
}


@dataclasses.dataclass(frozen=True)
class TokenResult:
    """Directions of the tokens of one type.

    Attributes:
        half, nine_tenths: state at which the cosine with the last state passes 0.5 and 0.9; None where it never does.
        speed: angular speed in the first, middle and last layer; None where a layer's tokens have no direction.
        stable_rank: of updates about their mean, by thirds of depth.
        jumps: measure -> whether it jumps at phase boundaries.
        uncentred_stable_rank: the same with the mean update left in.
    """

    half: float | None
    nine_tenths: float | None
    speed: list[float | None]
    stable_rank: list[float | None]
    jumps: dict[str, JumpTest]
    uncentred_stable_rank: list[float | None] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class StabilityResult:
    """What becomes of small differences.

    Attributes:
        exponent, direction_exponent: largest Lyapunov exponent, of states and of directions.
        by_phase: that of directions within each phase.
        recovery: what is perturbed -> for each size, angle of all tokens at the end over the injected one.
    """

    exponent: float | None
    direction_exponent: float | None
    by_phase: list[float | None]
    recovery: dict[str, list[float | None]]


@dataclasses.dataclass(frozen=True)
class IteratedResult:
    """The last layer of a phase iterated beyond its place.

    Attributes:
        layers: of the phase.
        num_steps: how often it was applied.
        fates, direction_fates: how many images end how, their states and their directions.
        norm_growth: factor of the norm per step at the end, mean over the images for which it is finite.
    """

    layers: str
    num_steps: int
    fates: dict[str, int]
    direction_fates: dict[str, int]
    norm_growth: float | None


@dataclasses.dataclass(frozen=True)
class BasinsResult:
    """Whether images lie nearest to the mean direction of their own class, taken without them.

    Attributes:
        num_classes, num_images, num_photographs: that it was measured on.
        accuracy: token type -> of each state, mean over classes: chance is one over their number. None where tokens are zero.
    """

    num_classes: int
    num_images: int
    num_photographs: int
    accuracy: dict[str, list[Interval | None]]


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """The dynamics of one model.

    Attributes:
        basins: of the classes of images; None where they have none.
        bands: curve -> its band over images.
        tokens: token type -> its directions.
        stability: None without tangent images.
        iterated: for each run of the partition; empty where none was asked for.
        distance: curve -> distance to the teacher's; empty for the teacher.
    """

    basins: BasinsResult | None
    bands: dict[str, Band]
    tokens: dict[str, TokenResult]
    stability: StabilityResult | None
    iterated: list[IteratedResult]
    distance: dict[str, Distance]


@dataclasses.dataclass(frozen=True)
class DynamicsResult:
    """The dynamics of teacher and Raptors, by name; of the tangent images perturbations and derivatives were taken."""

    num_images: int
    num_photographs: int
    tangent_images: int
    models: dict[str, ModelResult]


def model_result(portrait: Portrait, teacher: Portrait, classes: bool) -> ModelResult:
    """A portrait in a few figures, beside the teacher's.

    Args:
        classes: whether basins are of classes; otherwise of clusters, apart by construction.
    """
    by_name = curves(portrait)
    types = {c.token for c in by_name.values() if c.token}
    basins = portrait.results.get("basins") if classes else None
    return ModelResult(
        basins=None if basins is None else _basins(basins),
        bands={name: band(curve, portrait.photographs) for name, curve in by_name.items()},
        tokens={token: _token_result(by_name, token, portrait.partition) for token in sorted(types)},
        stability=_stability(portrait, by_name) if "exponents" in portrait.results else None,
        iterated=_iterated(portrait["extrapolation"]) if "extrapolation" in portrait.results else [],
        distance=distance(teacher, portrait) if portrait is not teacher else {},
    )


def _basins(basins: AngularBasins) -> BasinsResult:
    sizes = np.bincount(basins.labels)
    weights = len(basins.labels) / (np.count_nonzero(sizes) * sizes[basins.labels])  # so that the mean is over classes
    accuracy = {
        token: [_accuracy(state * weights, basins.photographs) for state in hits]
        for token, hits in basins.hits._asdict().items()
        if hits.size
    }
    return BasinsResult(int(np.count_nonzero(sizes)), len(basins.labels), len(np.unique(basins.photographs)), accuracy)


def _accuracy(hits: Array, photographs: np.ndarray) -> Interval | None:
    return mean_interval(hits, groups=photographs) if np.isfinite(hits).all() else None


def _token_result(by_name: dict[str, Curve], token: str, partition: Partition) -> TokenResult:
    convergence, speed = (by_name[f"{name}_{token}"].mean for name in ("convergence", "speed"))
    return TokenResult(
        half=_crossing(convergence, 0.5),
        nine_tenths=_crossing(convergence, 0.9),
        speed=[_number(speed[i]) for i in (0, len(speed) // 2, -1)],
        stable_rank=_thirds(by_name[f"stable_rank_{token}"].mean),
        jumps=_jumps({name: by_name[f"{name}_{token}"] for name in JUMPS if f"{name}_{token}" in by_name}, partition),
        uncentred_stable_rank=_thirds(by_name[f"uncentred_stable_rank_{token}"].mean),
    )


def _crossing(curve: Array, level: float) -> float | None:
    """`crossing`, of the states from the first on in which the tokens have a direction."""
    first = int(np.argmax(np.isfinite(curve)))
    if not np.isfinite(curve[first:]).all():
        return None
    place = crossing(curve[first:], level)
    return None if place is None else first + place


def _thirds(curve: Array) -> list[float | None]:
    """Means of thirds of depth, over the layers that have a value."""
    thirds = (part[np.isfinite(part)] for part in np.array_split(curve, 3))
    return [_number(part.mean()) if part.size else None for part in thirds]


def _jumps(by_name: dict[str, Curve], partition: Partition) -> dict[str, JumpTest]:
    if not 0 < len(partition.boundaries) < partition.depth - 1:
        return {}
    of_layers = {name: np.diff(c.mean) if c.axis == "states" else c.mean for name, c in by_name.items()}
    return {name: boundary_jump_test(v, partition.boundaries) for name, v in of_layers.items() if np.isfinite(v).all()}


def _stability(portrait: Portrait, by_name: dict[str, Curve]) -> StabilityResult:
    growth = portrait["perturbations"].growth
    return StabilityResult(
        exponent=_number(by_name["exponents"].mean[0]),
        direction_exponent=_number(by_name["direction_exponents"].mean[0]),
        by_phase=[_number(value) for value in by_name["phase_exponents"].mean],
        recovery={kind: [_number(r) for r in np.mean(one.recovery, axis=-1)] for kind, one in growth.items()},
    )


def _iterated(blocks: IteratedBlocks) -> list[IteratedResult]:
    def counts(fates: Array) -> dict[str, int]:
        return {fate: int(np.sum(fates == i)) for i, fate in enumerate(FATES) if np.any(fates == i)}

    results = []
    for layers, end in zip(blocks.runs, blocks.ends, strict=True):
        finite = end.norm_growth[np.isfinite(end.norm_growth)]
        growth = float(finite.mean()) if finite.size else None
        results.append(IteratedResult(layers, blocks.speed.shape[1], counts(end.fate), counts(end.direction_fate), growth))
    return results


def _number(value: Any) -> float | None:
    """None where the number is not finite: JSON has no infinities."""
    return float(value) if np.isfinite(value) else None
