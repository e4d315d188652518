"""Directions of states along depth, on the unit sphere x^ = x / |x| (paper, section 8).

A token that is zero has no direction: means are over the others, and NaN where there are none.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.readable import readable
from brh_jax.system import check_values
from brh_jax.tokens import ByToken, TokenLayout, check_trajectory
from brh_jax.train.parallel import to_host
from brh_jax.types import Array, Trajectory, TrajectoryBatch
from brh_jax.vectors import angle, directed, length, mean_where, unit


@readable(convergence="cosine", speed="rad per layer", acceleration="rad per layer²", coherence="cosine")
class Directions(NamedTuple):
    """What trajectories do on the sphere, image by image; per token type, and empty (size 0) for a type that a model lacks.

    Attributes:
        convergence: `[depth + 1, images]`, see `directional_convergence`.
        speed: `[depth, images]`, see `angular_speed`.
        acceleration: `[depth - 1, images]`, see `angular_acceleration`.
        norm: `[depth + 1, images]`, see `token_norm`.
        coherence: `[depth + 1, images]` of the patches, no ByToken; see `patch_coherence`.
    """

    convergence: ByToken
    speed: ByToken
    acceleration: ByToken
    norm: ByToken
    coherence: jax.Array


def direction_measures(batches: Iterable[TrajectoryBatch], layout: TokenLayout) -> Directions:
    """All measures of this file for every image of a stream of trajectories, each of which is read once.

    Args:
        batches: yields trajectories `[depth + 1, batch, tokens, dim]`. A batch of another size (the last one) compiles anew.

    Returns:
        numpy arrays with the images of all batches on their last axis.

    Raises:
        ValueError: no batches, batches of different depth, not trajectories of that layout, or states that are not
            finite.
    """
    return over_batches(_measures, batches, layout)


def directional_convergence(states: Trajectory, layout: TokenLayout, *, per_image: bool = False) -> ByToken:
    """gamma_l = <x^_l, x^_L>: cosine of each state with the last one, mean over tokens and images.

    Args:
        states: trajectory `[depth + 1, batch, tokens, dim]`.
        per_image: whether the images are told apart, on a last axis, instead of averaged over.

    Returns:
        per token type `[depth + 1]`, empty for a type that the model lacks.

    Raises:
        ValueError: not a trajectory of that layout, or states that are not finite.
    """
    return _measure(states, layout, "convergence", per_image)


def angular_speed(states: Trajectory, layout: TokenLayout, *, per_image: bool = False) -> ByToken:
    """s_l = arccos <x^_{l+1}, x^_l>: angle that a token turns in each layer, mean over tokens and images, in radians.

    Arguments and errors are those of `directional_convergence`.

    Returns:
        per token type `[depth]` in radians.
    """
    return _measure(states, layout, "speed", per_image)


def angular_acceleration(states: Trajectory, layout: TokenLayout, *, per_image: bool = False) -> ByToken:
    """s_{l+1} - s_l: change of a token's angular speed from layer l to the next, mean over tokens and images.

    Arguments and errors are those of `directional_convergence`.

    Returns:
        per token type `[depth - 1]` in radians per layer².
    """
    return _measure(states, layout, "acceleration", per_image)


def token_norm(states: Trajectory, layout: TokenLayout, *, per_image: bool = False) -> ByToken:
    """|x_l|: length of a token, mean over tokens and images.

    Arguments and errors are those of `directional_convergence`.

    Returns:
        per token type `[depth + 1]`; a token may be zero.
    """
    return _measure(states, layout, "norm", per_image)


def patch_coherence(states: Trajectory, layout: TokenLayout, *, per_image: bool = False) -> Array:
    """kappa_l: mean cosine of the patch tokens with their mean direction, mean over images.

    Arguments and errors are those of `directional_convergence`.

    Returns:
        `[depth + 1]`, or `[0]` for a model without patches.
    """
    return _measure(states, layout, "coherence", per_image)


def over_batches(measure: Callable, batches: Iterable[TrajectoryBatch], layout: TokenLayout) -> Any:
    """`measure(states, layout)` of batches that are never held together, as numpy arrays joined along the images.

    Args:
        measure: gives a tree of arrays whose second axis is the batch's images.
        batches: yields trajectories `[depth + 1, batch, tokens, dim]`.

    Raises:
        ValueError: as `direction_measures`.
    """
    parts = []
    for states in checked(batches, layout):
        part = to_host(measure(states, layout))
        _check_finite(part, states)
        parts.append(part)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *parts)


def checked(batches: Iterable[TrajectoryBatch], layout: TokenLayout) -> Iterator[TrajectoryBatch]:
    """The batches, each looked at before it is passed on.

    Raises:
        ValueError: no batches, batches of different depth, or not trajectories of that layout.
    """
    depth = None
    for number, states in enumerate(batches):
        check_trajectory(states, layout)
        if depth not in (None, len(states) - 1):
            raise ValueError(
                f"batch {number} is {len(states) - 1} layers deep, those before it {depth}: hand in one model's states"
            )
        depth = len(states) - 1
        yield states
    if depth is None:
        raise ValueError("no batches: expected at least one trajectory [depth + 1, batch, tokens, dim]")


@functools.partial(jax.jit, static_argnames="layout")
def _measures(states, layout) -> Directions:
    """One walk along depth with the last two unit vectors in hand: no normalised copy of the trajectory is ever made."""
    states = states.astype(jnp.promote_types(states.dtype, jnp.float32))
    last, in_last = unit(states[-1]), directed(states[-1])

    def visit(before, state):
        direction, there = unit(state), directed(state)
        convergence = 1 - jnp.sum(jnp.square(direction - last), axis=-1) / 2
        # The mean cosine with the mean direction is the length of the mean of the unit vectors.
        patches = layout.split(direction).patches
        has_patches = layout.split(there[..., None]).patches[..., 0].sum(-1, dtype=state.dtype)
        coherence = jnp.linalg.norm(jnp.sum(patches, axis=-2), axis=-1) / has_patches
        turned = angle(direction, before[0])
        measured = length(state), convergence, there & in_last, turned, there & before[1], coherence
        return (direction, there), measured

    begin = unit(states[0]), directed(states[0])
    _, (norm, convergence, converges, turned, turns, coherence) = jax.lax.scan(visit, begin, states)

    def by_token(values, defined):  # [..., batch, tokens] -> per type [..., batch]
        of_types = zip(layout.split(values[..., None]), layout.split(defined[..., None]), strict=True)
        return ByToken(*(mean_where(v, d, (-2, -1)) if v.shape[-2] else values[:0, :, 0] for v, d in of_types))

    return Directions(
        by_token(convergence, converges),
        by_token(turned[1:], turns[1:]),
        by_token(jnp.diff(turned[1:], axis=0), turns[1:-1] & turns[2:]),
        by_token(norm, jnp.ones_like(norm, bool)),
        coherence if layout.num_patches else coherence[:0],
    )


@functools.partial(jax.jit, static_argnames=("layout", "name"))
def _one_measure(states, layout, name):
    return getattr(_measures(states, layout), name)


def _measure(states, layout, name, per_image):
    check_trajectory(states, layout)
    values = _one_measure(states, layout, name)
    if not isinstance(states, jax.core.Tracer):
        _check_finite(values, states)
    return values if per_image else jax.tree.map(lambda v: mean_where(v, ~jnp.isnan(v)), values)


def _check_finite(values, states) -> None:
    """The cheap check: what is wrong with states shows in their measures, which are small; NaN is also what is not defined."""
    leaves = [to_host(leaf) for leaf in jax.tree.leaves(values)]
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        check_values(states)
        if any(np.isinf(leaf).any() for leaf in leaves):
            raise ValueError("a measure of the states is not finite though they are: their lengths are out of float32's range")
