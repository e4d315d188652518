"""Portraits as curves and as figures: each by its name, and all of them in one."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional, Protocol

import numpy as np

from brh_jax.curves import Curve, band
from brh_jax.dynamics.measure import Picture, Shown, styled
from brh_jax.dynamics.measures import MEASURES
from brh_jax.partition import Partition
from brh_jax.tokens import TokenLayout

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Measured(Protocol):
    """What there are figures of: a `Portrait`, whose attributes these are."""

    @property
    def results(self) -> dict[str, Any]: ...
    @property
    def layout(self) -> TokenLayout: ...
    @property
    def partition(self) -> Partition: ...
    @property
    def num_images(self) -> int: ...
    @property
    def tangent_images(self) -> int: ...
    @property
    def photographs(self) -> np.ndarray: ...
    @property
    def num_photographs(self) -> int: ...


def curves(portrait: Measured) -> dict[str, Curve]:
    """A portrait as curves, measure by measure: name -> Curve.

    Names have the token type behind where there is one: `speed_cls`, `stable_rank_patches`, `uncentred_stable_rank_patches`,
    `raw_stable_rank_patches` (of raw updates), `token_stable_rank_patches` (over the tokens of each image). What a curve is
    of says the file of its measure.
    """
    return {name: curve for m, result in portrait.results.items() for name, curve in MEASURES[m].curves(result).items()}


def shown(portraits: Mapping[str, Measured], partitions: Mapping[str, Partition] | None = None) -> Shown:
    """Portraits as figures take them.

    Args:
        portraits: by name; the teacher is called "teacher" and drawn in black.
        partitions: of the systems whose phase boundaries are drawn; None for those of all but the first.
    """
    if partitions is None:
        partitions = {name: one.partition for name, one in list(portraits.items())[1:]}
    first = next(iter(portraits.values()))
    bands = {name: {n: band(curve, one.photographs) for n, curve in curves(one).items()} for name, one in portraits.items()}
    arrays = {name: arrays_of(one) for name, one in portraits.items()}
    return Shown(bands, arrays, partitions, first.layout, first.num_images, first.num_photographs, first.tangent_images)


def arrays_of(portrait: Measured) -> dict[str, np.ndarray]:
    """What figures take besides curves: `measure/array` -> array."""
    found = {name: MEASURES[name].arrays(result) for name, result in portrait.results.items()}
    return {f"{measure}/{name}": array for measure, arrays in found.items() for name, array in arrays.items()}


def pictures() -> Iterator[Picture]:
    """Every figure that there is, in the order of the page."""
    yield SUMMARY
    for measure in MEASURES.values():
        yield from measure.figures


def draw(
    name: str, portraits: Mapping[str, Measured] | Shown, partitions: Mapping[str, Partition] | None = None
) -> Optional["Figure"]:
    """A figure by its name: `draw("summary", {"teacher": ..., "raptor": ...})`.

    Args:
        name: of one of `pictures()`: summary, dynamics, coherence, ranks, basins, projections, ...
        portraits, partitions: as of `shown`, or what that gave.

    Returns:
        a matplotlib Figure; None where there is nothing to show.

    Raises:
        ValueError: no figure of that name.
    """
    known = {picture.name: picture for picture in pictures()}
    if name not in known:
        raise ValueError(f"no figure {name!r}: expected one of {', '.join(known)}")
    return known[name].draw(portraits if isinstance(portraits, Shown) else shown(portraits, partitions))


def drawn(name: str, portraits: Mapping[str, Measured], partitions: Mapping[str, Partition] | None = None) -> Any:
    """`draw`, where there is something to show. Raises ValueError where there is not."""
    figure = draw(name, portraits, partitions)
    if figure is None:
        measured = ", ".join(next(iter(portraits.values())).results)
        raise ValueError(f"nothing that the figure {name!r} shows was measured: there are {measured}, see PortraitSettings")
    return figure


@styled
def _summary(shown: Shown):
    from matplotlib.figure import Figure

    from brh_jax.report.portrait import draw_curve
    from brh_jax.report.style import legend

    first = shown.bands[shown.reference]
    token = "cls" if "speed_cls" in first else "patches"
    panels = (
        (f"convergence_{token}", f"cosine of {token} with its last state", "linear"),
        *((f"speed_{t}", f"angular speed of {t} (rad per layer)", "linear") for t in dict.fromkeys((token, "patches"))),
        ("coherence_patches", "patch coherence", "linear"),
        ("stable_rank_patches", "stable rank of patch updates", "log"),
        (f"accuracy_{token}", f"nearest class mean of {token}", "linear"),
        (f"growth_{token}", f"growth of a perturbation, {token}", "log"),
        ("gain", "largest singular value of a layer", "log"),
    )
    panels = tuple(panel for panel in panels if panel[0] in first)
    figure = Figure(figsize=(11.0, 7.6), layout="constrained")
    axes = figure.subplots(3, 3).ravel()
    for axis, (name, label, scale) in zip(axes, panels, strict=False):
        draw_curve(axis, shown.bands, name, shown.partitions, scale)
        axis.set_title(label)
    rest = axes[len(panels) :]
    if "direction_exponents" in first:
        spectrum, rest = rest[0], rest[1:]
        spectrum.axhline(0, color="#dddddd", lw=0.8, zorder=0)
        means = {s: {n: replace(b, low=[], high=[]) for n, b in bands.items()} for s, bands in shown.bands.items()}
        draw_curve(spectrum, means, "direction_exponents")
        spectrum.set_title("Lyapunov exponents of directions")
    for axis in rest:
        axis.set_visible(False)
    figure.suptitle("Dynamics of teacher and Raptors" if len(shown.bands) > 1 else "Dynamics", fontsize=12)
    legend(figure, axes[0])
    return figure


SUMMARY = Picture(
    "summary",
    "Dynamics in one figure",
    "A good surrogate does what the teacher does in every panel. Mean over {num_images} images of {num_photographs} "
    "photographs, bands from the 10 to the 90 % quantile over images; perturbations and exponents are of {tangent_images} "
    "images. Dotted lines are phase boundaries.",
    _summary,
)
