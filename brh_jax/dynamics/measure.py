"""What a measure is: how it is gathered and computed, which curves it gives, and how it is drawn.

A measure is one file in `brh_jax/dynamics/measures/` and one line there in `__init__.py`: portraits then hold it, comparisons
have a distance for each of its curves, and pages its figures.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from brh_jax.curves import Band, Curve
from brh_jax.errors import expect, expect_positive
from brh_jax.partition import Partition
from brh_jax.system import DepthSystem
from brh_jax.tokens import TokenLayout
from brh_jax.types import Labels, RandomKey, Trajectory, TrajectoryBatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEN_ON = ("stream", "classes", "trajectories", "tangent")


@dataclasses.dataclass(frozen=True)
class PortraitSettings:
    """How much is measured.

    Attributes:
        tangent_images: images that perturbations, exponents, Jacobians and iterated blocks are measured on: the first ones. 0
            leaves those out.
        linear_images: images that linear models and the ranks over the tokens of each image are of: the first ones. Their
            trajectories are held together for each system, (depth + 1) x tokens x dim numbers an image: 10 MB of a ViT-B at
            224 px. 0 leaves those out.
        relative_sizes: of perturbations, see `perturbation_growth`; curves are of the middle one.
        num_directions: random perturbations of each size.
        num_exponents: see `lyapunov_exponents`.
        num_values: of singular values and eigenvalues, see `jacobian_singular_values`.
        num_probes: see `jacobian_structure`.
        num_angles: dimension of the subspaces of updates, see `principal_angles`; fewer where the states are narrower.
        rank: of the linear models, see `dmd`; fewer where there are not as many independent states.
        extrapolated_steps: how often the last layer of each phase is applied beyond its place, see `extrapolated_depth`; 0: none.
        influence_probes: products for each token of the first system, see `token_influence`; 0: none.

    Raises:
        UserError: a number that is out of range.
    """

    tangent_images: int = 8
    linear_images: int = 64
    relative_sizes: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    num_directions: int = 8
    num_exponents: int = 8
    num_values: int = 8
    num_probes: int = 16
    num_angles: int = 4
    rank: int = 32
    extrapolated_steps: int = 200
    influence_probes: int = 4

    def __post_init__(self):
        expect_positive(self, "num_directions", "num_exponents", "num_values", "num_angles", "rank")
        for name, least in (("tangent_images", 0), ("linear_images", 0), ("influence_probes", 0), ("num_probes", 2)):
            expect(getattr(self, name) >= least, name, getattr(self, name), f"{least} or more")
        steps, sizes = self.extrapolated_steps, self.relative_sizes
        expect(steps == 0 or steps >= 16, "extrapolated_steps", steps, "0, or 16 or more")
        positive = bool(sizes) and all(0 < size < float("inf") for size in sizes)
        expect(positive, "relative_sizes", sizes, "positive sizes such as (1e-2,)")


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What there is of one system for a measure to be computed from.

    Attributes:
        system: the system itself.
        sublayers: the same with attention and feed-forward as two layers; None where it was not given.
        partition: its phases.
        finest: the partition with most phases of all systems measured.
        reference: whether it is the first of the systems, which others are held against.
        settings: how much is measured.
        key: of perturbations and probes.
        classes: of every image, integers from 0 (below: not known); None where they did not come with all images. A measure on
            "classes" is given those of the images that are there for it, if there are some.
        photographs: `[images]`, of every image, of which photograph it is a view.
        trajectories: of the linear images, by batch, on the host.
        start: a_0 of the tangent images, laid over devices as they came; None without.
        gathered: what the measure's `gather` and `merge` left of all images.
        shared: what the measure's `share` gave.
    """

    system: DepthSystem
    sublayers: DepthSystem | None
    partition: Partition
    finest: Partition
    reference: bool
    settings: PortraitSettings
    key: RandomKey
    classes: Labels | None
    photographs: np.ndarray
    trajectories: Sequence[TrajectoryBatch]
    start: Any
    gathered: Any = None
    shared: Any = None

    @property
    def layout(self) -> TokenLayout:
        """Which tokens of a state are which."""
        return self.system.layout

    @functools.cached_property
    def states(self) -> Trajectory:
        """Trajectories of the tangent images."""
        return self.system.rollout(self.start)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What figures are drawn from. The first system is the one that the others are held against.

    Attributes:
        bands: system -> name of the curve -> band.
        arrays: system -> `measure/array` -> what figures take besides curves.
        partitions: of the systems whose phase boundaries are drawn.
        layout: of all states.
        num_images, num_photographs, tangent_images: how many images were measured, of how many photographs.
    """

    bands: Mapping[str, Mapping[str, Band]]
    arrays: Mapping[str, Mapping[str, np.ndarray]]
    partitions: Mapping[str, Partition]
    layout: TokenLayout
    num_images: int
    num_photographs: int
    tangent_images: int

    @property
    def reference(self) -> str:
        """Name of the first system."""
        return next(iter(self.bands))

    def each(self, array: str) -> dict[str, np.ndarray]:
        """`measure/array` of every system that has it."""
        return {name: arrays[array] for name, arrays in self.arrays.items() if array in arrays}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: unique, of its file.
        title: what it shows.
        caption: what to see in it; {num_images}, {num_photographs} and {tangent_images} are filled in.
        draw: Shown -> Figure, or None where there is nothing to show.
    """

    name: str
    title: str
    caption: str
    draw: "Callable[[Shown], Figure | None]"

    def caption_of(self, shown: Shown) -> str:
        """The caption, with the numbers of images in it."""
        return self.caption.format(
            num_images=shown.num_images, num_photographs=shown.num_photographs, tangent_images=shown.tangent_images
        )


def join_images(total: Any, part: Any) -> Any:
    """Trees of arrays side by side along their second axis, the images."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), total, part)


def add(total: Any, part: Any) -> Any:
    """The sum of two trees of arrays."""
    return jax.tree.map(np.add, total, part)


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure of systems, or several that are computed together.

    Attributes:
        name: its key in MEASURES and in portraits.
        compute: what there is of one system -> result; None where there is nothing to measure.
        curves: result -> the curves of which figures and distances are.
        arrays: result -> what its figures take besides curves.
        figures: its figures.
        on: what it cannot do without. "stream": `gather` of all images; "classes": of images of classes in balance where there
            are some, of all images otherwise; "trajectories": of the linear images; "tangent": a_0 of
            the tangent images, for derivatives and perturbed trajectories. It may use the others where they are there.
        gather: (trajectories of a batch, layout) -> tree of arrays on the host, what is kept of them.
        merge: (gathered so far, of one more batch) -> gathered.
        share: all systems' Seen, the first one first -> what systems have to agree on, as `shared`.

    Raises:
        ValueError: `on` is none of these, or a stream is not gathered.
    """

    name: str
    compute: Callable[[Seen], Any]
    curves: Callable[[Any], dict[str, Curve]] = lambda result: {}
    arrays: Callable[[Any], dict[str, np.ndarray]] = lambda result: {}
    figures: tuple[Picture, ...] = ()
    on: str = "stream"
    gather: Callable[[Trajectory, TokenLayout], Any] | None = None
    merge: Callable[[Any, Any], Any] = join_images
    share: Callable[[Sequence[Seen]], Any] | None = None

    def __post_init__(self):
        if self.on not in SEEN_ON:
            raise ValueError(f"{self.name}: on={self.on!r} is not known, expected one of {', '.join(SEEN_ON)}")
        if self.on in ("stream", "classes") and self.gather is None:
            raise ValueError(f"{self.name}: a measure on the stream of all images needs gather=, what is kept of a batch")


def styled(figure: Callable) -> Callable:
    """A figure in the style of `brh_jax.report`, which is imported when it is drawn."""

    @functools.wraps(figure)
    def draw(*arguments, **options):
        from brh_jax.report import style

        return style.styled(figure)(*arguments, **options)

    return draw


def along_depth(*rows: tuple[str, str, str]) -> "Callable[[Shown], Figure | None]":
    """How curves along depth are drawn, a row for each and a column for each token type: (curve, label, scale) of each row."""

    def draw(shown: Shown):
        from brh_jax.report import portrait

        return portrait.along_depth(shown.bands, shown.partitions, rows)

    return draw


def side_by_side(*panels: tuple[str, str, str]) -> "Callable[[Shown], Figure | None]":
    """How curves of all tokens together are drawn, side by side: (curve, label, scale) of each panel."""

    def draw(shown: Shown):
        from brh_jax.report import portrait

        return portrait.side_by_side(shown.bands, shown.partitions, panels)

    return draw
