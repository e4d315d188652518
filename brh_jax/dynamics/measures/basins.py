"""Angular basins of the images' classes, or of clusters where no two classes have two images."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from brh_jax.curves import Curve, by_token
from brh_jax.dynamics.basins import AngularBasins, angular_basins, image_directions
from brh_jax.dynamics.measure import Measure, Picture, Seen, Shown, along_depth, styled
from brh_jax.types import Labels, Projection


def _classes(seen: Sequence[Seen]) -> Labels | None:
    """Class of each image, -1 for those that are left out; clusters of the first system's last directions where no two classes
    have two photographs. None where images fall into no clusters."""
    first = seen[0]
    if first.classes is not None:
        known = np.unique(np.stack([first.classes, first.photographs]), axis=1)
        classes, sizes = np.unique(known[0], return_counts=True)
        several = classes[(sizes > 1) & (classes >= 0)]
        if len(several) > 1:
            return np.where(np.isin(first.classes, several), first.classes, -1)
    if first.gathered.cls.shape[1] < 4:
        return None
    try:
        return angular_basins(first.gathered, None, first.layout, photographs=first.photographs).labels
    except ValueError:  # every number of clusters leaves an image alone
        return None


def _compute(seen: Seen) -> AngularBasins | None:
    if seen.shared is None:
        return None
    known = seen.shared >= 0
    gathered = jax.tree.map(lambda m: m[:, known], seen.gathered)
    return angular_basins(gathered, seen.shared[known], seen.layout, photographs=seen.photographs[known])


def _curves(basins: AngularBasins) -> dict[str, Curve]:
    names = ("within", "between", "separation", "silhouette", "accuracy")
    return {key: curve for name in names for key, curve in by_token(name, getattr(basins, name), "states").items()}


def _arrays(basins: AngularBasins) -> dict[str, np.ndarray]:
    """`projection`, `labels`, and by token type `hits_cls [depth + 1, images]`."""
    hits = {f"hits_{token}": hits for token, hits in basins.hits._asdict().items() if hits.size}
    return {"projection": basins.projection, "labels": basins.labels} | hits


@styled
def projections(paths: Mapping[str, Projection], labels: Labels, num_paths: int = 60):
    """Trajectories of images on the two leading components of the last directions, coloured by class.

    Args:
        paths: system -> `[depth + 1, images, 2]`.
        labels: `[images]`.
        num_paths: at most so many images are drawn.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    from brh_jax.report.style import BASELINE
    from brh_jax.report.values import GUIDE

    labels = np.asarray(labels)
    classes = np.unique(labels)
    shown = np.unique(np.linspace(0, len(labels) - 1, min(num_paths, len(labels))).astype(int))
    colours = colormaps["tab20" if len(classes) > 10 else "tab10"]
    figure = Figure(figsize=(3.5 * len(paths) + 0.9, 3.3), layout="constrained")
    axes = figure.subplots(1, len(paths), squeeze=False)[0]
    for axis, (system, path) in zip(axes, paths.items(), strict=True):
        path = np.asarray(path)
        for image in shown:
            tint = colours(int(np.searchsorted(classes, labels[image])) % colours.N)
            axis.plot(*path[:, image].T, color=tint, lw=0.6, alpha=0.6)
            axis.plot(*path[-1, image], "o", color=tint, ms=3.5, gid=GUIDE)
        axis.plot(*path[0, shown].T, "x", color=BASELINE, ms=4, gid=GUIDE)
        axis.set_title(system)
        axis.set_xlabel("first component")
        axis.set_aspect("equal", adjustable="datalim")
    axes[0].set_ylabel("second component")
    return figure


def _projections(shown: Shown):
    paths = shown.each("basins/projection")
    return projections(paths, shown.each("basins/labels")[shown.reference]) if paths else None


MEASURE = Measure(
    "basins",
    gather=lambda states, layout: image_directions([states], layout),
    share=_classes,
    compute=_compute,
    curves=_curves,
    on="classes",
    arrays=_arrays,
    figures=(
        Picture(
            "basins",
            "Angular basins",
            "Where images of one class draw together and apart from others, the angle within falls below that between. The "
            "nearest class mean is taken without the image itself and other views of its photograph, on images of a few "
            "classes, as many of each. Where the data have no classes these are clusters of the last directions, apart there "
            "by construction.",
            along_depth(
                ("within", "angle within a class (rad)", "linear"),
                ("between", "angle between classes (rad)", "linear"),
                ("silhouette", "silhouette", "linear"),
                ("accuracy", "accuracy of the\nnearest class mean", "linear"),
            ),
        ),
        Picture(
            "projections",
            "Trajectories",
            "Paths of one colour that end together are a class that comes apart from the others. Directions of images from "
            "the first state (crosses) to the last (dots), on the two leading components of each model's last directions, "
            "coloured by class.",
            _projections,
        ),
    ),
)
