"""The map of directions: a layer as it acts on the unit sphere of each token (paper, section 8).

For a state x, whose tokens have norms r = |x| and directions x^ = x / r, a layer F maps directions by x^ -> F(r x^) / |F(r x^)|
per token, the norms held at those of x. Its derivative at x is

    v -> (1 / |y|) (I - y^ y^T) DF(x) [r (I - x^ x^T) v],    y = F(x),    per token,

which takes tangent vectors of the sphere at x^ to tangent vectors at y^, both in units of angle. The derivatives of successive
layers chain: their product is the derivative of a rollout in which every state is brought back to the norms of the reference
trajectory, so it leaves out what a changed norm would do to directions further on.

Matrix products are in the caller's precision: analysis traces these functions under `jax.default_matmul_precision("highest")`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from brh_jax.types import Array, Directed
from brh_jax.vectors import directed, length, unit


def sphere_linearize(f: Callable, state: Directed) -> tuple[Array, Callable]:
    """The derivative of the map of directions of `f` at `state`, as a function to be applied to many tangent vectors.

    Args:
        f: `state -> state`.
        state: the reference x, `[..., tokens, dim]`. A token that is zero has no direction to change.

    Returns:
        (f(state), linear): `linear(tangent)` is the image of a vector of the state's shape, whose radial part at each token is
        ignored; `jax.linear_transpose(linear, state)` is its transpose.
    """
    output, push = jax.linearize(f, state)

    def linear(tangent):
        return _as_directions(output, push(length(state, keepdims=True) * tangential(state, tangent)))

    return output, linear


def tangential(state: Directed, vector: Directed) -> Array:
    """(I - x^ x^T) v per token: the part of a vector along the sphere, `[..., tokens, dim]`; zero for a token that is zero."""
    direction = unit(state)
    along = vector - direction * jnp.sum(direction * vector, axis=-1, keepdims=True)
    return jnp.where(directed(state)[..., None], along, jnp.zeros_like(along))


def _as_directions(output, image):
    """What a change of the output is to its directions."""
    norm = length(output, keepdims=True)
    return tangential(output, image) / jnp.where(norm == 0, jnp.ones_like(norm), norm)
