"""A surrogate beside the system that it stands for (paper, section 8)."""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from brh_jax.dynamics.drawing import curves, drawn
from brh_jax.dynamics.portrait import FirstStates, Portrait, portraits
from brh_jax.system import DepthSystem
from brh_jax.types import RandomKey

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    def plot(self, figure: str = "summary", names: tuple[str, str] = ("teacher", "Raptor")) -> "Figure":
        """Both in one figure, the first in black, with the phases of the second: by default all of the dynamics, see `draw`.

        Raises:
            ValueError: no figure of that name, or nothing measured that it shows.
        """
        both = dict(zip(names, (self.first, self.second), strict=True))
        return drawn(figure, both, {names[1]: self.second.partition})

    def __repr__(self) -> str:
        """How far apart, curve by curve."""
        width = max(map(len, self.distance), default=0)
        lines = [
            f"{name.ljust(width)}  {100 * one.relative:5.1f} %  ({one.absolute:.3g} root mean square, in the curve's unit)"
            for name, one in self.distance.items()
        ]
        title = f"Comparison over {self.first.num_images} images: distance of the second system's mean curve from the first's"
        return "\n  ".join([title, *lines])


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


def _distance(first, second) -> Distance:
    finite = np.isfinite(first) & np.isfinite(second)
    first, second = first[finite], second[finite]
    size = np.linalg.norm(first)
    difference = np.linalg.norm(second - first)
    relative = float(difference / size) if size else float(difference > 0)
    return Distance(float(difference / np.sqrt(max(first.size, 1))), relative)
