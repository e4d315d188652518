"""Every token's way through depth, on the two axes along which directions differ most: as a figure, and as an animation."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.errors import UserError, expect, is_whole
from brh_jax.partition import Partition
from brh_jax.readable import readable
from brh_jax.system import check_values
from brh_jax.tokens import ByToken, TokenLayout, check_trajectory
from brh_jax.types import Trajectory
from brh_jax.vectors import directed, unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from brh_jax.report.animation import Animation


@readable(tokens="on the sphere", explained="share of the variance")
class TokenPaths(NamedTuple):
    """Directions x^ = x / |x| of all tokens at all depths, projected.

    Attributes:
        tokens: per token type `[depth + 1, images, tokens, 2]`; empty for a type that a model lacks.
        explained: `[2]`, share of the variance that the axes hold.
        mean: `[dim]`, what is taken off before.
        axes: `[dim, 2]`, orthonormal.
        layout: of the tokens.
    """

    tokens: ByToken
    explained: np.ndarray
    mean: np.ndarray
    axes: np.ndarray
    layout: TokenLayout

    def plot(self, **options: Any) -> "Figure":
        """See `draw_paths`, whose options these are."""
        return draw_paths({"": self}, **options)

    def animate(self, **options: Any) -> "Animation":
        """See `animate_paths`, whose options these are."""
        return animate_paths({"": self}, **options)


def token_paths(states: Trajectory, layout: TokenLayout, *, onto: TokenPaths | None = None) -> TokenPaths:
    """Principal components of the directions of all tokens at all depths; each type of token weighs the same.

    Args:
        states: trajectory `[depth + 1, batch, tokens, dim]`.
        layout: of its tokens.
        onto: paths whose axes are taken, so that a Raptor's lie beside its teacher's.

    Raises:
        ValueError: not a trajectory of that layout, or states that are not finite.
        UserError: axes of another width.
    """
    check_trajectory(states, layout)
    check_values(states)
    directions = unit(jnp.asarray(states, jnp.promote_types(jnp.float32, jnp.asarray(states).dtype)))
    dim = directions.shape[-1]
    if dim < 2:
        raise UserError(f"tokens of width {dim} lie on no plane: expected 2 or more")
    if onto is None:
        mean, axes, explained = jax.device_get(_components(directions, jnp.asarray(directed(states)), layout))
    elif len(onto.mean) != dim:
        raise UserError(f"onto has tokens of width {len(onto.mean)}, the states of width {dim}: they have no axes in common")
    else:
        mean, axes, explained = onto.mean, onto.axes, np.full(2, np.nan)
    with jax.default_matmul_precision("highest"):
        projected = np.asarray((directions - mean) @ axes)
    if onto is not None:
        total = np.square(np.asarray(directions) - mean).sum(-1).mean()
        explained = np.square(projected).mean((0, 1, 2)) / max(total, 1e-30)
    return TokenPaths(layout.split(projected), explained, mean, axes, layout)


def _components(directions, defined, layout: TokenLayout):
    """(mean, axes, explained) of directions whose types weigh the same; tokens that are zero are left out."""
    weight = jnp.concatenate([jnp.full(count, 1 / max(count, 1), directions.dtype) for count in layout.counts])
    weight = jnp.where(defined, weight, 0)
    weight = weight / jnp.sum(weight)
    with jax.default_matmul_precision("highest"):
        mean = jnp.einsum("lbtd,lbt->d", directions, weight)
        centred = directions - mean
        values, vectors = jnp.linalg.eigh(jnp.einsum("lbtd,lbte,lbt->de", centred, centred, weight))
    axes = vectors[:, :-3:-1]
    largest = jnp.take_along_axis(axes, jnp.argmax(jnp.abs(axes), axis=0)[None], axis=0)
    return mean, axes * jnp.sign(largest), values[:-3:-1] / jnp.maximum(values.sum(), 1e-30)


def draw_paths(paths: Mapping[str, TokenPaths], *, image: int = 0, labels: Sequence[int] | np.ndarray | None = None) -> "Figure":
    """Paths of the class token of every image, and of the patches of one, from the first state (cross) to the last (dot).

    Args:
        paths: system -> its paths, a row each; of one layout.
        image: whose patches are drawn, coloured by their place in the image.
        labels: `[images]`, classes that colour the class tokens.

    Raises:
        UserError: no such image, or labels that are not one for each.
    """
    from brh_jax.report.paths import draw

    _check(paths, image, labels)
    return draw({name: one.tokens for name, one in paths.items()}, next(iter(paths.values())).layout, image, labels)


def animate_paths(
    paths: Mapping[str, TokenPaths],
    *,
    image: int = 0,
    labels: Sequence[int] | np.ndarray | None = None,
    partition: Partition | None = None,
) -> "Animation":
    """The same moving through depth: one page of HTML that needs no network; a notebook shows it, `save(path)` writes it.

    Args:
        paths, image, labels: as of `draw_paths`; systems lie side by side.
        partition: whose phases are named as they are passed.

    Raises:
        UserError: as of `draw_paths`; a partition of another depth.
    """
    from brh_jax.report.animation import animation

    _check(paths, image, labels)
    first = next(iter(paths.values()))
    depth = len(first.tokens.patches) - 1
    if partition is not None and partition.depth != depth:
        raise UserError(f"the partition {partition} has {partition.depth} layers, the paths {depth}")
    names = [f"state {state} of {depth}" for state in range(depth + 1)]
    if partition is not None:
        names[1:] = [
            f"{name}, phase {run.phase + 1} (layers {run})"
            for run in partition.runs
            for name in names[run.start + 1 : run.stop + 1]
        ]
    return animation({name: one.tokens for name, one in paths.items()}, first.layout, image, labels, names)


def _check(paths: Mapping[str, TokenPaths], image: int, labels) -> None:
    if not paths:
        raise UserError("no paths: expected those of one system or more, of token_paths")
    first = next(iter(paths.values()))
    for name, one in paths.items():
        ours, theirs = ([part.shape for part in each.tokens] for each in (first, one))
        if ours != theirs:
            raise UserError(
                f"the paths of {name} have another depth, number of images or layout than the first: {theirs}, {ours}"
            )
    images = first.tokens.patches.shape[1]
    expect(is_whole(image) and 0 <= image < images, "image", image, f"one from 0 to {images - 1}")
    if labels is not None and np.shape(labels) != (images,):
        raise UserError(f"labels of shape {np.shape(labels)}: expected ({images},), one for each image")
