"""A portrait as curves, and a surrogate beside the system that it stands for (paper, section 8)."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from brh_jax.curves import Curve
from brh_jax.dynamics.measures import MEASURES
from brh_jax.dynamics.portrait import FirstStates, Portrait, portraits
from brh_jax.system import DepthSystem
from brh_jax.types import RandomKey


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far two curves are apart, means over images compared.

    Attributes:
        absolute: root mean square difference along the curve, in the curve's unit.
        relative: |difference| / |first curve|, Euclidean norms along the curve.
    """

    absolute: float
    relative: float


class Comparison(NamedTuple):
    """A system, its surrogate, and how far apart they are by each curve of `curves`."""

    first: Portrait
    second: Portrait
    distance: dict[str, Distance]


def compare(
    first: DepthSystem,
    second: DepthSystem,
    first_states: Iterable[FirstStates],
    *,
    key: RandomKey,
    **options: Any,
) -> Comparison:
    """The portraits of two systems from the same first states, and their distance: a surrogate is as good as its dynamics.

    Args:
        first, second: a teacher and its Raptor, say.
        first_states, key, **options: as for `portraits`.
    """
    both = portraits({"first": first, "second": second}, first_states, key=key, **options)
    return Comparison(both["first"], both["second"], distance(both["first"], both["second"]))


def distance(first: Portrait, second: Portrait) -> dict[str, Distance]:
    """How far two portraits are apart, by each of their `curves` that have as many points."""
    ours, theirs = curves(first), curves(second)
    common = [name for name in ours if name in theirs and len(ours[name].values) == len(theirs[name].values)]
    return {name: _distance(ours[name].mean, theirs[name].mean) for name in common}


def curves(portrait: Portrait) -> dict[str, Curve]:
    """A portrait as curves, measure by measure: name -> Curve.

    Names have the token type behind where there is one: `speed_cls`, `stable_rank_patches`, `uncentred_stable_rank_patches`,
    `raw_stable_rank_patches` (of raw updates), `token_stable_rank_patches` (over the tokens of each image). What a curve is
    of says the file of its measure.
    """
    return {name: curve for m, result in portrait.results.items() for name, curve in MEASURES[m].curves(result).items()}


def _distance(first, second) -> Distance:
    finite = np.isfinite(first) & np.isfinite(second)
    first, second = first[finite], second[finite]
    size = np.linalg.norm(first)
    difference = np.linalg.norm(second - first)
    relative = float(difference / size) if size else float(difference > 0)
    return Distance(float(difference / np.sqrt(max(first.size, 1))), relative)
