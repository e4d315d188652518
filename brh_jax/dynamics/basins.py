"""Angular basins: how trajectories of one class draw together on the sphere, and apart from others (paper, section 8)."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.dynamics.directions import over_batches
from brh_jax.readable import readable
from brh_jax.statistics import numbered_groups
from brh_jax.system import check_values
from brh_jax.tokens import ByToken, TokenLayout, check_trajectory
from brh_jax.types import Labels, Trajectory, TrajectoryBatch
from brh_jax.vectors import unit

# Angles in radians that directions rounded to float32 do not tell from zero.
RESOLUTION = 1e-6


@readable(within="rad", between="rad", accuracy="share of images", hits="0 ... 1")
class AngularBasins(NamedTuple):
    """Classes of images on the sphere, per token type and depth; empty for a type that a model lacks.

    Attributes:
        within: `[depth + 1]`, mean angle of two images of one class, in radians.
        between: `[depth + 1]`, mean angle of two images of different classes, in radians.
        separation: `[depth + 1]`, between / within; one where all images are in one place (class tokens before the first layer).
        silhouette: `[depth + 1]`, mean over images of (b - a) / max(a, b): a the mean angle to the images of its class, b that
            to those of the nearest other class (Rousseeuw 1987); zero where both are.
        accuracy: `[depth + 1]`, share of images nearest to the mean direction of their own class, mean over classes: chance is
            one over their number, however many images each has. The class mean is taken without the image, and without other
            views of its photograph. Of classes equally near, the image counts for one over their number.
        hits: `[depth + 1, images]`, of each image, what the accuracy is a mean of.
        projection: `[depth + 1, images, components]`, all depths on the principal components of the last one's directions: of the
            class token, or the patches where there is none.
        labels: `[images]`, the classes: those given, or the clusters found.
        photographs: `[images]`, numbers of the photographs that they are views of.
    """

    within: ByToken
    between: ByToken
    separation: ByToken
    silhouette: ByToken
    accuracy: ByToken
    hits: ByToken
    projection: np.ndarray
    labels: np.ndarray
    photographs: np.ndarray


def angular_basins(
    states: Trajectory | ByToken,
    labels: Labels | None,
    layout: TokenLayout,
    *,
    num_clusters: int | None = None,
    num_components: int = 2,
    seed: int = 0,
    photographs: np.ndarray | None = None,
) -> AngularBasins:
    """Within- and between-class angles, their contrast, and a projection of the trajectories (paper, section 8).

    An image's direction at a depth is the mean direction of its tokens of a type, see `image_directions`.

    Args:
        states: trajectory `[depth + 1, batch, tokens, dim]`, or the result of `image_directions` for more than one batch.
        labels: class of each image, integers from 0, every class with two images (of different photographs) or more. None: the
            last directions of the class token (the patches where there is none) are clustered by k-means of unit vectors. Classes
            found in the last state are apart there by construction: only earlier depths tell something.
        num_clusters: of k-means; None takes the number of 2 to 10 with the largest silhouette.
        num_components: of the projection.
        seed: of k-means.
        photographs: of which photograph each image is a view, any integers: pairs of one photograph count for nothing. None: each
            is its own.

    Returns:
        numpy arrays, see AngularBasins. One matrix of the angles of all pairs of images is held at a time, in float64.

    Raises:
        ValueError: not a trajectory of that layout, states that are not finite, labels that are not one integer from 0
            per image, fewer than two classes, a class of one image, or more components or clusters than images allow.
    """
    if isinstance(states, ByToken):
        directions = states
        for of_type in directions:
            check_values(of_type)
    else:
        check_trajectory(states, layout)
        directions = image_directions([states], layout)
    leading: np.ndarray = next(d for d in (directions.cls, directions.patches, directions.registers) if len(d))
    num_images, dim = leading.shape[1:]
    views = _same_photograph(photographs, num_images)
    if labels is None:
        labels = _cluster(leading[-1], num_clusters, seed, views)
    else:
        if num_clusters is not None:
            raise ValueError(f"num_clusters {num_clusters} is for labels=None: the labels that are given are not clustered")
        labels = _check_labels(labels, num_images, views)
    if not 1 <= num_components <= min(num_images - 1, dim):
        raise ValueError(
            f"num_components {num_components} is out of range: {num_images} images of dimension {dim} have "
            f"1 to {min(num_images - 1, dim)} principal components"
        )
    members = _members(labels)
    measured = [[_measures(depth, members, views) for depth in of_type] for of_type in directions]
    by_measure = (ByToken(*(np.array([m[i] for m in of_type]) for of_type in measured)) for i in range(6))
    projection = _project(leading, num_components)
    return AngularBasins._make((*by_measure, projection, labels, numbered_groups(photographs, num_images)))


def image_directions(batches: Iterable[TrajectoryBatch], layout: TokenLayout) -> ByToken:
    """Direction of the mean of the unit vectors x / |x| of an image's tokens, for every image of a stream of trajectories.

    Tokens that are zero are left out; an image all of whose tokens of a type are has the direction zero.

    Args:
        batches: yields trajectories `[depth + 1, batch, tokens, dim]`.

    Returns:
        per token type `[depth + 1, images, dim]`, `[0, images, dim]` for a type that the model lacks. Numpy, float32 (or the
        states' own float64).

    Raises:
        ValueError: no batches, batches of different depth, not trajectories of that layout, or states that are not
            finite.
    """
    return over_batches(_mean_directions, batches, layout)


@functools.partial(jax.jit, static_argnames="layout")
def _mean_directions(states, layout) -> ByToken:
    dtype = jnp.promote_types(states.dtype, jnp.float32)

    def of_state(state):
        return ByToken(*(jnp.sum(unit(tokens.astype(dtype)), axis=-2) for tokens in layout.split(state)))

    sums = jax.lax.map(of_state, states)
    return ByToken(*(unit(total) if count else total[:0] for total, count in zip(sums, layout.counts, strict=True)))


def _same_photograph(photographs, num_images):
    """`[images, images]`, one for two views of a photograph, an image and itself among them."""
    numbers = numbered_groups(photographs, num_images)
    return (numbers[:, None] == numbers).astype(np.float64)


def _measures(directions, members, views) -> tuple:
    """Within, between, separation, silhouette, accuracy and hits of `[images, dim]`; NaN where an image has no direction."""
    if not np.any(directions, axis=-1).all():
        return (*(np.nan,) * 5, np.full(len(directions), np.nan))
    directions = _renormalised(directions)
    angles = _angles(directions) * (1 - views)
    pairs, own = (1 - views) @ members, members.astype(bool)  # [images, classes]: with how many of a class an image is compared
    to_class = angles @ members  # sums
    within = to_class[own].sum() / pairs[own].sum()
    between = to_class[~own].sum() / pairs[~own].sum()
    separation = 1.0 if within == between else np.inf if within == 0 else between / within
    hits = _hits(directions, own, views)
    accuracy = float(np.mean(hits @ members / members.sum(0)))
    return within, between, separation, _silhouette(to_class, pairs, own), accuracy, hits


def _silhouette(to_class, pairs, own) -> float:
    means = to_class / np.maximum(pairs, 1)
    a, b = means[own], np.min(np.where(own, np.inf, means), axis=1)
    larger = np.maximum(a, b)
    return float(np.mean((b - a) / np.where(larger > 0, larger, 1.0)))


def _hits(directions, own, views):
    sums = own.T.astype(float) @ directions
    cosines = directions @ sums.T / np.maximum(np.linalg.norm(sums, axis=1), np.finfo(float).tiny)
    rest = own @ sums - (views * (own @ own.T)) @ directions
    of_own = np.sum(directions * rest, axis=1) / np.maximum(np.linalg.norm(rest, axis=1), np.finfo(float).tiny)
    cosines[own] = of_own
    nearest = cosines >= np.max(cosines, axis=1, keepdims=True) - RESOLUTION**2
    return nearest[own] / nearest.sum(1)


def _angles(directions):
    """Angles of all pairs of `[images, dim]`, in radians."""
    cosines = directions @ directions.T
    angles = np.arccos(np.clip(cosines, -1.0, 1.0, out=cosines), out=cosines)
    angles[angles < RESOLUTION] = 0.0
    np.fill_diagonal(angles, 0.0)
    return angles


def _renormalised(directions):
    """float64, in which an arccos is right to 1e-8."""
    directions = np.asarray(directions, np.float64)
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def _project(directions, num_components):
    last = directions[-1]
    centre = last.mean(0)
    _, _, axes = np.linalg.svd(last - centre, full_matrices=False)
    axes = axes[:num_components]
    # Either sign will do; the same one each time is easier to compare.
    axes = axes * np.sign(axes[np.arange(num_components), np.abs(axes).argmax(1)])[:, None]
    return (directions - centre) @ axes.T


def _cluster(directions, num_clusters, seed, views):
    from sklearn.cluster import KMeans

    num_images, most = len(directions), len(directions) // 2
    if most < 2:
        raise ValueError(f"two clusters of two images need four images, got {num_images}: give labels or more images")
    if num_clusters is not None and not 2 <= num_clusters <= most:
        raise ValueError(
            f"num_clusters {num_clusters} is out of range: {num_images} images make 2 to {most} of two images or more"
        )
    directions = _renormalised(directions)
    angles = _angles(directions)
    best = None
    for k in range(2, min(10, most) + 1) if num_clusters is None else (num_clusters,):
        labels = KMeans(k, n_init=10, random_state=seed).fit_predict(directions)
        sizes = np.bincount(labels, minlength=k)
        if sizes.min() < 2:
            continue  # an image by itself has no angle within its cluster
        members = _members(labels)
        pairs, own = (1 - views) @ members, members.astype(bool)
        if pairs[own].min() < 1:
            continue  # views of one photograph alone have none either
        score = _silhouette((angles * (1 - views)) @ members, pairs, own)
        if best is None or score > best[0]:
            best = score, labels
    if best is None:
        raise ValueError(
            f"k-means of {num_images} images leaves a cluster of one image, with num_clusters={num_clusters}: ask for fewer "
            "clusters or use more images"
        )
    return best[1]


def _members(labels):
    """One-hot `[images, classes]`, float64."""
    return (labels[:, None] == np.unique(labels)).astype(np.float64)


def _check_labels(labels, num_images, views):
    labels = np.asarray(labels)
    if labels.shape != (num_images,):
        raise ValueError(f"labels of shape {labels.shape} for {num_images} images: expected one label per image")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"labels must be integers from 0, got {labels.dtype} from {labels.min()}")
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"all {num_images} images are of class {classes[0]}: basins need two classes or more")
    members = _members(labels)
    others = ((1 - views) @ members * members).max(0)  # of the image of a class that has most of other photographs beside it
    if others.min() < 1:
        alone = classes[others < 1]
        raise ValueError(
            f"{len(alone)} of {len(classes)} classes have one photograph only (class {alone[0]}, say), which has no angle within "
            "its class: leave those out, or use more images of fewer classes"
        )
    return labels
