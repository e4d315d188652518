"""What a layer's Jacobian does as a whole, by random probes: which token moves which, how far it is from a rotation or identity.

The mean of |M v|^2 over random sign vectors v is |M|_F^2 (Hutchinson, 1990), with a relative standard error of at most
sqrt(2 / num_probes), less the more directions M acts on.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from brh_jax.dynamics.jacobian import check_span, chunk_size, jacobian_block, linearize_span, token_range
from brh_jax.dynamics.sphere import tangential
from brh_jax.readable import readable
from brh_jax.system import DepthSystem
from brh_jax.types import Array, RandomKey, State


@readable()
class JacobianStructure(NamedTuple):
    """Frobenius norms of each image's Jacobian and of its parts, each `[batch]`.

    Attributes:
        norm: |J|.
        symmetric: |(J + J^T) / 2|, what stretches; norm^2 = symmetric^2 + antisymmetric^2.
        antisymmetric: |(J - J^T) / 2|, what rotates.
        from_identity: |J - I|; on the sphere I is the projector I - x^ x^T on the tangent space of each token.
        standard_error: of these, in the same fields; None where they are exact.
    """

    norm: jax.Array
    symmetric: jax.Array
    antisymmetric: jax.Array
    from_identity: jax.Array
    standard_error: "JacobianStructure | None" = None


def token_influence(
    system: DepthSystem,
    state: State,
    layer: int,
    *,
    num_probes: int | None = 8,
    key: RandomKey | None = None,
    stop: int | None = None,
    sphere: bool = False,
) -> Array:
    """How much each token moves each: |d y_i / d x_j|_F, the Frobenius norms of the blocks of a layer's Jacobian.

    Estimated by random sign vectors in the space of each token j: E |J_ij v|^2 = |J_ij|_F^2, one product with J for all i. The
    relative standard error is at most sqrt(1 / (2 num_probes)), that of a block of rank one.

    Args:
        system: the system.
        state: the state that enters the layer, `[batch, tokens, dim]`.
        layer: from 0.
        num_probes: products per token; None for all dim basis vectors, which is exact.
        key: of the probes; needed unless exact. All images see the same ones.
        stop: the Jacobian of layers `layer` to `stop - 1` together; None for one layer.
        sphere: of the map of directions (`brh_jax.dynamics.sphere`) instead of states.

    Returns:
        `[batch, tokens, tokens]`, row i = output, column j = input.

    Raises:
        ValueError: a state or layer that the system does not have, no probes, or no key.
    """
    state, layer, length = check_span(system, state, layer, stop)
    key = _check_probes(num_probes, key, least=1)
    return _token_influence(system, state, layer, key, num_probes=num_probes, length=length, sphere=sphere)


def jacobian_structure(
    system: DepthSystem,
    state: State,
    layer: int,
    *,
    token: int | str | None = None,
    num_probes: int | None = 64,
    key: RandomKey | None = None,
    stop: int | None = None,
    sphere: bool = False,
) -> JacobianStructure:
    """How a layer's Jacobian splits into stretching and rotating, and how far it is from the identity (paper, section 8).

    Estimated by random sign vectors v: |J|^2 = E |J v|^2, |(J ± J^T) / 2|^2 = E |J v ± J^T v|^2 / 4, |J - I|^2 = E |J v - v|^2.

    Args:
        system, state, layer, stop, sphere: as in `token_influence`.
        token: an index, or "cls" for the first class token: exactly, of the block d y_token / d x_token alone.
        num_probes: at least 2; None for all basis vectors, which is exact.
        key: of the probes; needed unless exact. All images see the same ones.

    Raises:
        ValueError: a state, layer or token that the system does not have, too few probes, or no key.
    """
    state, layer, length = check_span(system, state, layer, stop)
    if token is not None:
        start, _ = token_range(token, system.layout, single=True)
        block = jacobian_block(system, state, layer, start, start, stop=layer + length, sphere=sphere)
        return _block_structure(block, state[:, start], sphere=sphere)
    key = _check_probes(num_probes, key, least=2)
    return _structure(system, state, layer, key, num_probes=num_probes, length=length, sphere=sphere)


def _check_probes(num_probes, key, least: int):
    if num_probes is None:
        return jax.random.key(0)
    if num_probes < least:
        raise ValueError(f"num_probes = {num_probes}: expected at least {least}, or None for the exact value")
    if key is None:
        raise ValueError("random probes need a key: key=jax.random.key(0), or num_probes=None for the exact value")
    return key


@functools.partial(jax.jit, static_argnames=("num_probes", "length", "sphere"))
def _token_influence(system, state, layer, key, *, num_probes, length, sphere):
    batch, tokens, dim = state.shape

    def per_image(state):
        push = linearize_span(system, state, layer, length, sphere)

        def column(token):
            if num_probes is None:
                probes = jnp.eye(dim, dtype=state.dtype)
            else:
                probes = jax.random.rademacher(jax.random.fold_in(key, token), (num_probes, dim), state.dtype)
                probes /= num_probes**0.5

            def squares(probe):
                return jnp.sum(push(jnp.zeros_like(state).at[token].set(probe)) ** 2, axis=-1)

            return jnp.sqrt(jnp.sum(jax.lax.map(squares, probes, batch_size=chunk_size(batch)), axis=0))

        return jax.lax.map(column, jnp.arange(tokens)).T

    with jax.default_matmul_precision("highest"):
        return jax.vmap(per_image)(state)


@functools.partial(jax.jit, static_argnames=("num_probes", "length", "sphere"))
def _structure(system, state, layer, key, *, num_probes, length, sphere) -> JacobianStructure:
    chunk = chunk_size(len(state))

    def per_image(state):
        push = linearize_span(system, state, layer, length, sphere)
        pull = jax.linear_transpose(push, state)

        def squares(index):
            if num_probes is None:
                probe = jnp.zeros(state.size, state.dtype).at[index].set(1).reshape(state.shape)
            else:
                probe = jax.random.rademacher(jax.random.fold_in(key, index), state.shape, state.dtype)
            forward, backward = push(probe), pull(probe)[0]
            identity = tangential(state, probe) if sphere else probe
            parts = (forward, (forward + backward) / 2, (forward - backward) / 2, forward - identity)
            return jnp.stack([jnp.sum(part**2) for part in parts])

        number = num_probes or state.size
        samples = jax.lax.map(squares, jnp.arange(number), batch_size=chunk)
        if num_probes is None:
            return JacobianStructure(*jnp.sqrt(jnp.sum(samples, axis=0)))
        norms = jnp.sqrt(jnp.mean(samples, axis=0))
        error = jnp.std(samples, axis=0, ddof=1) / num_probes**0.5
        # Of the root of what was averaged.
        error = jnp.where(norms > 0, error / (2 * jnp.where(norms > 0, norms, 1)), 0)
        return JacobianStructure(*norms)._replace(standard_error=JacobianStructure(*error))

    with jax.default_matmul_precision("highest"):
        return jax.vmap(per_image)(state)


@functools.partial(jax.jit, static_argnames="sphere")
def _block_structure(block, state, *, sphere) -> JacobianStructure:
    identity: Array = jnp.eye(block.shape[-1], dtype=block.dtype)
    if sphere:
        identity = tangential(state[:, None], identity)
    transposed = block.mT
    parts = (block, (block + transposed) / 2, (block - transposed) / 2, block - identity)
    return JacobianStructure(*(jnp.linalg.norm(part, axis=(1, 2)) for part in parts))
