"""Curves of measures: points along an axis that the curve itself names, and what is left of them as JSON can hold it."""

import dataclasses
from typing import NamedTuple

import numpy as np

from brh_jax.statistics import num_groups, summarize
from brh_jax.tokens import ByToken
from brh_jax.types import CurveValues


class Axis(NamedTuple):
    """What the points of a curve stand for.

    Attributes:
        label: of the axis in a figure.
        first: where the first point lies; the others follow in steps of one.
        layers: number of layers of the system less that of the points; None where the axis is not depth.
    """

    label: str
    first: float = 1.0
    layers: int | None = None


AXES = {
    "states": Axis("state", 0.0, -1),
    "layers": Axis("layer", 1.0, 0),
    "between layers": Axis("layer", 1.5, 1),
    "sizes": Axis("size of the perturbation"),
    "exponents": Axis("exponent"),
    "phases": Axis("phase"),
    "modes": Axis("mode"),
    "horizon": Axis("layers ahead"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A measure point by point.

    Attributes:
        values: `[points, images]`, or `[points]` for what is measured of all images together.
        axis: what the points are, a key of AXES.
        token: type of the tokens that it is of; empty where it is of all of them.
        images: `[images]`, which of those measured the values are of; None for the first ones.

    Raises:
        ValueError: an axis that is not known, or values of another shape.
    """

    values: CurveValues
    axis: str
    token: str = ""
    images: np.ndarray | None = None

    def __post_init__(self):
        _check_axis(self.axis)
        if np.ndim(self.values) not in (1, 2):
            raise ValueError(f"values of shape {np.shape(self.values)}: expected [points, images] or [points]")

    @property
    def mean(self) -> CurveValues:
        """Mean over images, `[points]`."""
        return self.values.mean(-1) if self.values.ndim > 1 else self.values

    def of_images(self, values: np.ndarray) -> np.ndarray:
        """Of what is known of every image measured, that of the images of this curve."""
        return values[: self.values.shape[1]] if self.images is None else values[self.images]


@dataclasses.dataclass(frozen=True)
class Band:
    """A curve over images as JSON can hold it; lists are empty where there are no two photographs, or values are not finite.

    Attributes:
        mean: `[points]`, None where it is not finite.
        axis, token: as of the Curve.
        low, high: 10 and 90 % quantiles of images.
        mean_low, mean_high: bootstrap band of the mean, see `brh_jax.statistics.summarize`.

    Raises:
        ValueError: an axis that is not known.
    """

    mean: list[float | None]
    axis: str
    token: str = ""
    low: list[float] = dataclasses.field(default_factory=list)
    high: list[float] = dataclasses.field(default_factory=list)
    mean_low: list[float] = dataclasses.field(default_factory=list)
    mean_high: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        _check_axis(self.axis)

    @property
    def positions(self) -> np.ndarray:
        """Where the points lie on the axis, `[points]`: states from 0, everything else from 1."""
        return AXES[self.axis].first + np.arange(len(self.mean))

    @property
    def depth(self) -> int | None:
        """Number of layers of the system; None for a curve that does not run along depth."""
        more = AXES[self.axis].layers
        return None if more is None else len(self.mean) + more


def band(curve: Curve, photographs: np.ndarray | None = None) -> Band:
    """Mean, quantiles and bootstrap band of a curve over its images.

    Args:
        photographs: of every image measured, the number of the photograph that it is a view of: these are drawn. None for every
            image for itself.
    """
    values = np.asarray(curve.values)
    mean = [value if np.isfinite(value) else None for value in curve.mean.tolist()]
    groups = None if photographs is None or values.ndim < 2 else curve.of_images(photographs)
    if values.ndim < 2 or num_groups(groups, values.shape[1]) < 2 or not np.isfinite(values).all():
        return Band(mean, curve.axis, curve.token)
    summary = summarize(values, quantiles=(0.1, 0.9), groups=groups)
    edges = (*summary.quantiles, summary.low, summary.high)
    return Band(mean, curve.axis, curve.token, *(edge.tolist() for edge in edges))


def by_token(name: str, values: ByToken, axis: str) -> dict[str, Curve]:
    """A curve for each token type that there is, named `speed_cls` and so on."""
    present = {token: np.asarray(v) for token, v in values._asdict().items() if v.size}
    return {f"{name}_{token}": Curve(v, axis, token) for token, v in present.items()}


def _check_axis(axis: str) -> None:
    if axis not in AXES:
        raise ValueError(f"axis {axis!r} is not known: expected one of {', '.join(AXES)}")
