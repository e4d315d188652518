"""Finite-time Lyapunov exponents along depth."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.dynamics.sphere import sphere_linearize, tangential
from brh_jax.partition import Partition
from brh_jax.readable import readable
from brh_jax.system import DepthSystem, check_state
from brh_jax.types import RandomKey, State


@readable(exponents="per layer, natural logarithm", growth="natural logarithm")
class Lyapunov(NamedTuple):
    """Growth of tangent vectors along depth, natural logarithms.

    Attributes:
        exponents: mean growth per layer, `[batch, num_exponents]`; descending in the limit of many layers.
        growth: log |R_ii| of each layer, `[layers, batch, num_exponents]`; its mean over layers is `exponents`.
    """

    exponents: jax.Array
    growth: jax.Array


def lyapunov_exponents(
    system: DepthSystem,
    state: State,
    num_exponents: int = 8,
    *,
    key: RandomKey | None = None,
    start: int = 0,
    stop: int | None = None,
    sphere: bool = False,
) -> Lyapunov:
    """Finite-time Lyapunov exponents of each image, along its own trajectory.

    Orthonormal tangent vectors Q are pushed through each layer and made orthonormal again,

        DF_l(a_l) Q_l = Q_{l+1} R_{l+1},    lambda_i = (1 / layers) sum_l log |(R_l)_ii|,

    so that the first k exponents together are the rate at which a k-dimensional volume grows (Benettin, Galgani, Giorgilli and
    Strelcyn, Meccanica 15, 1980). All of them together are (1 / layers) log |det| of the derivative of the whole.

    The vectors start at random and turn to the leading directions within the first layers, by the ratio of neighbouring growths;
    over a few layers the result holds that transient, is no limit, and need not be in descending order. `growth` shows where it
    ends (`growth[3:].mean(0)` leaves out three layers). An exponent of -inf says that a layer is singular.

    Args:
        system: the depth system; its step must have a forward-mode derivative, as that of `Encoder.system()` has.
        state: a_0, `[batch, tokens, dim]`, whatever `start`.
        num_exponents: how many, from the largest on. Memory is about this many times that of a layer.
        key: random key of the starting vectors, which are the same for every image; `jax.random.key(0)` by default.
        start: first layer, from 0, that tangent vectors are pushed through.
        stop: layer before which to end; the system's depth by default.
        sphere: exponents of the map of directions, tangent to the sphere of each token, instead of the raw map. Growth of the
            norm, which is most of the raw exponents of a ViT, is then left out.

    Returns:
        Lyapunov, natural logarithm per layer.

    Raises:
        ValueError: not a state of the system's layout, an empty or impossible range of layers, or more exponents than the
            state has dimensions: tokens * dim, on the sphere tokens * (dim - 1).
    """
    state = jnp.asarray(state)
    check_state(state, system.layout)
    stop = system.depth if stop is None else stop
    if not 0 <= start < stop <= system.depth:
        raise ValueError(f"start {start} and stop {stop} must be 0 <= start < stop <= {system.depth}, the system's depth")
    _, tokens, dim = state.shape
    dimensions = tokens * (dim - 1 if sphere else dim)
    if not 1 <= num_exponents <= dimensions:
        where = "on the sphere tokens * (dim - 1)" if sphere else "tokens * dim"
        raise ValueError(f"num_exponents {num_exponents} must be from 1 to {dimensions}, the dimensions of the state ({where})")
    key = jax.random.key(0) if key is None else key
    growth = _growth(system, state, key, num_exponents=num_exponents, start=start, stop=stop, sphere=sphere)
    return Lyapunov(jnp.mean(growth, axis=0), growth)


def exponents_by_phase(lyapunov: Lyapunov, partition: Partition | Sequence[int]) -> jax.Array:
    """Mean growth per layer within each phase, of tangent vectors that were pushed through all the layers before.

    Args:
        lyapunov: what `lyapunov_exponents` gave.
        partition: a Partition of the layers measured, or the number of layers in each phase: (7, 3, 2). A phase that comes
            back later is averaged over all of its layers.

    Returns:
        `[phases, batch, num_exponents]`, natural logarithm per layer. Weighted by the phases' numbers of layers, they average
        to `lyapunov.exponents`.

    Raises:
        ValueError: the partition is not of as many layers.
    """
    partition = partition if isinstance(partition, Partition) else Partition(tuple(partition))
    layers = lyapunov.growth.shape[0]
    if partition.depth != layers:
        raise ValueError(
            f"the partition {partition} is of {partition.depth} layers, but growth was measured over {layers}: "
            "give the phases of those layers alone"
        )
    labels = np.asarray(partition.labels)
    return jnp.stack([jnp.mean(lyapunov.growth[labels == phase], axis=0) for phase in range(partition.k)])


@functools.partial(jax.jit, static_argnames=("num_exponents", "start", "stop", "sphere"))
def _growth(system, state, key, *, num_exponents, start, stop, sphere):
    batch, tokens, dim = state.shape

    def orthonormalize(vectors):
        # Images do not depend on one another: the tangent vectors of a batch are those of its images side by side.
        columns = jnp.moveaxis(vectors, 0, -1).reshape(batch, tokens * dim, num_exponents)
        q, r = jnp.linalg.qr(columns)
        diagonal = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
        return jnp.moveaxis(q.reshape(batch, tokens, dim, num_exponents), -1, 0), jnp.log(diagonal)

    def body(carry, layer):
        state, vectors = carry
        linearize = sphere_linearize if sphere else jax.linearize
        state, push = linearize(lambda state: system.step(state, layer), state)
        vectors, growth = orthonormalize(jax.vmap(push)(vectors))
        return (state, vectors), growth

    with jax.default_matmul_precision("highest"):
        state = jax.lax.fori_loop(0, start, lambda layer, state: system.step(state, layer), state)
        # Folded, or a state drawn from the same key would itself be the first vector, radial and with no part on the sphere.
        vectors = jax.random.normal(jax.random.fold_in(key, 1), (num_exponents, 1, tokens, dim), state.dtype)
        vectors = jnp.broadcast_to(vectors, (num_exponents, *state.shape))
        vectors, _ = orthonormalize(tangential(state, vectors) if sphere else vectors)
        _, growth = jax.lax.scan(body, (state, vectors), jnp.arange(start, stop))
    return growth
