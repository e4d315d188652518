"""Jacobians of layers, and of spans of layers: dense blocks, leading singular values and eigenvalues (paper, section 8).

The Jacobian J = d a_{l+1} / d a_l of one image is square, of side tokens x dim (98,688 for a ViT-S at 224 px), and never formed.
A layer is linearised once per image and then applied to vectors (`jax.linearize`, and its transpose): Golub-Kahan and Arnoldi of
matfree for spectra, basis vectors for blocks, random probes for norms (`brh_jax.dynamics.influence`). Images go side by side by
vmap, so that a state sharded over a mesh along its batch axis stays so; what a function holds is therefore per image.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.dynamics.sphere import sphere_linearize
from brh_jax.readable import readable
from brh_jax.system import DepthSystem, check_state
from brh_jax.tokens import TokenLayout
from brh_jax.train.parallel import to_host
from brh_jax.types import Array, RandomKey, State, TokenState


@readable()
class SingularValues(NamedTuple):
    """Leading singular triplets, J v = s u and J^T u = s v, of each image.

    Attributes:
        values: s, descending, `[batch, n]`.
        left: u, unit vectors over the outputs, `[batch, n, tokens, dim]`, or `[batch, n, dim]` for one token.
        right: v, unit vectors over the inputs, of the same shape.
        residual: |J^T u - s v|, `[batch, n]`: some singular value of J lies at most this far from s, in general much nearer (the
            error is of second order).
    """

    values: jax.Array
    left: jax.Array
    right: jax.Array
    residual: jax.Array


@readable()
class Eigenvalues(NamedTuple):
    """Leading eigenvalues of each image.

    Attributes:
        values: complex, by decreasing modulus, `[batch, n]`; of a conjugate pair the one of positive imaginary part comes first.
            The last may be one whose other is cut off.
        residual: |J v - lambda v| of the unit Ritz vectors v, `[batch, n]`. J is not normal: the error may be larger.
    """

    values: np.ndarray
    residual: np.ndarray


def jacobian_singular_values(
    system: DepthSystem,
    state: State,
    layer: int,
    num_values: int | None = None,
    *,
    stop: int | None = None,
    token: int | str | None = None,
    sphere: bool = False,
    key: RandomKey | None = None,
    num_steps: int | None = None,
) -> SingularValues:
    """Leading singular values and vectors of the Jacobian J = U S V^T of a layer, matrix-free (paper, section 8).

    Golub-Kahan bidiagonalisation with full re-orthogonalisation (Golub and Kahan, 1965; `matfree.decomp.bidiag`): every step is
    one product with J and one with J^T. Memory is 2 num_steps vectors of tokens x dim for each image.

    Args:
        system: the system.
        state: the state that enters the layer, `[batch, tokens, dim]`.
        layer: from 0.
        num_values: how many; None for 32, or for all dim of a token.
        stop: the Jacobian of layers `layer` to `stop - 1` together; None for one layer.
        token: an index, or "cls" for the first class token: instead of the whole Jacobian the dense block d y_token / d x_token,
            all of it.
        sphere: of the map of directions (`brh_jax.dynamics.sphere`) instead of states.
        key: of the starting vector.
        num_steps: dimension of the Krylov space; None for 3 num_values + 32, or tokens x dim if that is less. Raise it
            where `residual` is too large: most layers need fewer, a cluster of equal values more.

    Raises:
        ValueError: a state, layer, token or count that the system does not have.
    """
    state, layer, length = check_span(system, state, layer, stop)
    if token is not None:
        num_values = _check_count("num_values", num_values, state.shape[2], state.shape[2])
        index = token_range(token, system.layout, single=True)[0]
        return _token_singular_values(system, state, layer, index, length=length, sphere=sphere, num_values=num_values)
    size = state.shape[1] * state.shape[2]
    num_values = _check_count("num_values", num_values, min(32, size), size)
    num_steps = _check_count("num_steps", num_steps, min(3 * num_values + 32, size), size, least=num_values)
    key = jax.random.key(0) if key is None else key
    options = {"length": length, "sphere": sphere, "num_values": num_values, "num_steps": num_steps}
    return _singular_values(system, state, layer, key, **options)


def jacobian_eigenvalues(
    system: DepthSystem,
    state: State,
    layer: int,
    num_values: int = 16,
    *,
    stop: int | None = None,
    sphere: bool = False,
    key: RandomKey | None = None,
    num_steps: int | None = None,
) -> Eigenvalues:
    """Leading eigenvalues by modulus of the Jacobian of a layer, J v = lambda v, matrix-free (paper, section 8).

    Arnoldi's method with full re-orthogonalisation (`matfree.decomp.hessenberg`): the eigenvalues of the small Hessenberg matrix
    H = Q^T J Q. Memory is num_steps vectors of tokens x dim for each image.

    Args:
        system, state, layer, stop, sphere, key: as in `jacobian_singular_values`.
        num_values: how many.
        num_steps: dimension of the Krylov space; None for 8 num_values + 64, or tokens x dim if that is less. Raise it
            where `residual` is too large: eigenvalues inside the cloud of the others converge slowly.

    Raises:
        ValueError: a state, layer or count that the system does not have.
    """
    state, layer, length = check_span(system, state, layer, stop)
    size = state.shape[1] * state.shape[2]
    num_values = _check_count("num_values", num_values, None, size)
    num_steps = _check_count("num_steps", num_steps, min(8 * num_values + 64, size), size, least=num_values)
    key = jax.random.key(0) if key is None else key
    found = _hessenberg(system, state, layer, key, length=length, sphere=sphere, num_steps=num_steps)
    hessenberg, rest = to_host(found)
    return _ritz(hessenberg, rest, num_values, state.dtype)


def jacobian_block(
    system: DepthSystem,
    state: State,
    layer: int,
    source: int | str,
    target: int | str,
    *,
    stop: int | None = None,
    sphere: bool = False,
    max_bytes: int = 2**31,
) -> Array:
    """The dense block d y_target / d x_source of the Jacobian of a layer, rows = outputs, columns = inputs.

    By products with basis vectors of the sources in forward mode, or of the targets in reverse mode where those are fewer.

    Args:
        system, state, layer, stop, sphere: as in `jacobian_singular_values`.
        source, target: the index of a token, "cls" for the first class token, or "registers" or "patches" for all of them.
        max_bytes: refuse larger results.

    Returns:
        `[batch, dim, dim]` of one token to one token. "registers" and "patches" have an axis of their own before their dim:
        `[batch, n_target, dim, n_source, dim]`.

    Raises:
        ValueError: a state, layer or token that the system does not have, or a result above `max_bytes`.
    """
    state, layer, length = check_span(system, state, layer, stop)
    (source_start, num_source), (target_start, num_target) = (token_range(t, system.layout) for t in (source, target))
    batch, _, dim = state.shape
    size = batch * num_target * num_source * dim**2 * state.dtype.itemsize
    if size > max_bytes:
        raise ValueError(
            f"the Jacobian {source!r} -> {target!r} of {batch} images takes {size / 1e9:.1f} GB, more than "
            f"max_bytes = {max_bytes / 1e9:.1f} GB: take fewer images, single tokens, or raise max_bytes"
        )
    counts = {"num_source": num_source, "num_target": num_target}
    block = _block(system, state, layer, source_start, target_start, **counts, length=length, sphere=sphere)
    one = [axis for axis, token in ((3, source), (1, target)) if token not in ("registers", "patches")]
    return jnp.squeeze(block, one)


def check_span(system: DepthSystem, state: State, layer: int, stop: int | None) -> tuple[State, int, int]:
    """Gives (state, layer, number of layers). Raises ValueError where they do not fit the system."""
    check_state(state, system.layout)
    system.check_layer(layer)
    stop = layer + 1 if stop is None else stop
    if not layer < stop <= system.depth:
        raise ValueError(
            f"stop {stop} does not end a span that starts with layer {layer}: expected {layer + 1} to {system.depth}, "
            "the first layer after the span"
        )
    return jnp.asarray(state), layer, stop - layer


def token_range(token: int | str, layout: TokenLayout, single: bool = False) -> tuple[int, int]:
    """(first index, number) of the tokens named: an index, "cls" for the first class token, "registers" or "patches".

    Raises:
        ValueError: the layout has no such token, or, if `single`, a type was named where one token is needed.
    """
    ranges = {
        "cls": (0, min(1, layout.num_cls)),
        "registers": (layout.num_cls, layout.num_registers),
        "patches": (layout.num_cls + layout.num_registers, layout.num_patches),
    }
    if isinstance(token, str):
        if token not in ranges:
            raise ValueError(f"unknown token {token!r}: expected an index, or one of {', '.join(ranges)}")
        start, count = ranges[token]
        if not count:
            raise ValueError(f"the system has no {token}: its tokens are {layout}")
        if single and token != "cls":
            raise ValueError(f"{token!r} are tokens {start} to {start + count - 1}: name one of them by its index")
        return start, count
    if not 0 <= token < layout.num_tokens:
        raise ValueError(f"token {token} is out of range: tokens are counted from 0, the system has {layout.num_tokens}")
    return token, 1


def linearize_span(system: DepthSystem, state: TokenState, layer: int | Array, length: int, sphere: bool) -> Callable:
    """The Jacobian of `length` layers from `layer` on, at one image's state, as a function of vectors `[tokens, dim]`.

    Its transpose is `jax.linear_transpose(push, state)`. On the sphere, the directions are those that enter and leave the span:
    the norms inside it are free.
    """

    def span(state):
        def body(state, layer):
            return system.step(state, layer), None

        return jax.lax.scan(body, state[None], layer + jnp.arange(length))[0][0]

    return (sphere_linearize if sphere else jax.linearize)(span, state)[1]


def chunk_size(batch: int) -> int:
    """How many vectors of each image go through the linearised layer at once, so that memory is flat in the batch."""
    return max(1, 64 // batch)


def _check_count(name: str, value, default, most: int, least: int = 1) -> int:
    value = default if value is None else value
    if not least <= value <= most:
        raise ValueError(f"{name} = {value} is out of range: expected {least} to {most} for a Jacobian of side {most}")
    return value


@functools.partial(jax.jit, static_argnames=("length", "sphere", "num_values", "num_steps"))
def _singular_values(system, state, layer, key, *, length, sphere, num_values, num_steps) -> SingularValues:
    from matfree import decomp

    def per_image(state):
        push = linearize_span(system, state, layer, length, sphere)
        multiply, start = _krylov(push, state, key, roundings=1)
        (lefts, rights), bidiagonal, rest, _ = decomp.bidiag(num_steps)(multiply, start)
        u, values, vt = jnp.linalg.svd(bidiagonal)
        # A space of the full dimension leaves no rest, only the direction of its rounding errors.
        rest = jnp.linalg.norm(rest) if num_steps < start.size else 0.0
        n = num_values
        left, right = (vectors.reshape(n, *state.shape) for vectors in (u.T[:n] @ lefts, vt[:n] @ rights))
        return SingularValues(values[:n], left, right, rest * jnp.abs(u[-1, :n]))

    with jax.default_matmul_precision("highest"):
        result = jax.vmap(per_image)(state)
    return jax.tree.map(lambda x: x.astype(state.dtype), result)


@functools.partial(jax.jit, static_argnames=("length", "sphere", "num_values"))
def _token_singular_values(system, state, layer, token, *, length, sphere, num_values) -> SingularValues:
    block = _block(system, state, layer, token, token, num_source=1, num_target=1, length=length, sphere=sphere)
    with jax.default_matmul_precision("highest"):
        u, values, vt = jnp.linalg.svd(block[:, 0, :, 0])
        values, left, right = values[:, :num_values], u.mT[:, :num_values], vt[:, :num_values]
        rest = left @ block[:, 0, :, 0] - values[..., None] * right
    return SingularValues(values, left, right, jnp.linalg.norm(rest, axis=-1))


@functools.partial(jax.jit, static_argnames=("length", "sphere", "num_steps"))
def _hessenberg(system, state, layer, key, *, length, sphere, num_steps):
    """H, `[batch, num_steps, num_steps]`, and the norm of what J does not keep in the Krylov space, `[batch]`."""
    from matfree import decomp

    def per_image(state):
        push = linearize_span(system, state, layer, length, sphere)
        # matfree orthogonalises twice over in a bidiagonalisation, but once here: rounding errors must stay small beside it.
        multiply, start = _krylov(push, state, key, roundings=64)
        arnoldi = decomp.hessenberg(num_steps, reortho="full", custom_vjp=False)
        _, hessenberg, rest, _ = arnoldi(multiply, start)
        return hessenberg, jnp.linalg.norm(rest) if num_steps < start.size else jnp.zeros(())

    with jax.default_matmul_precision("highest"):
        return jax.vmap(per_image)(state)


def _ritz(hessenberg, rest, num_values, dtype) -> Eigenvalues:
    """Eigenvalues of H, on the host: accelerators have none of matrices that are not symmetric."""
    values, vectors = np.linalg.eig(hessenberg)
    leading = np.lexsort((-values.imag, -np.abs(values)))[:, :num_values]
    residual = rest[:, None] * np.abs(np.take_along_axis(vectors[:, -1], leading, axis=-1))
    values = np.take_along_axis(values, leading, axis=-1)
    return Eigenvalues(values.astype(np.result_type(dtype, np.complex64)), residual.astype(dtype))


def _krylov(push, state, key, roundings: float):
    """The linear function over flat vectors in the default precision, as matfree wants it, and a starting vector.

    A Krylov space that closes (of an identity, or of a map of low rank) makes matfree divide by zero, or by rounding errors. A
    random diagonal keeps it open; singular values move by at most its size, `roundings` of those of an average product.
    """
    start_key, diagonal_key = jax.random.split(key)
    start = jax.random.normal(start_key, (state.size,))
    diagonal = jax.random.uniform(diagonal_key, (state.size,), minval=-1, maxval=1)

    def product(vector):
        return push(vector.reshape(state.shape).astype(state.dtype)).ravel().astype(start.dtype)

    epsilon = jnp.finfo(state.dtype).eps
    diagonal *= roundings * epsilon * (jnp.linalg.norm(product(start)) / jnp.linalg.norm(start) + epsilon)
    return lambda vector: product(vector) + diagonal * vector, start


@functools.partial(jax.jit, static_argnames=("num_source", "num_target", "length", "sphere"))
def _block(system, state, layer, source, target, *, num_source, num_target, length, sphere):
    """`[batch, n_target, dim, n_source, dim]`."""
    batch, _, dim = state.shape

    def per_image(state):
        push = linearize_span(system, state, layer, length, sphere)

        def columns(linear, start, number, first, count):
            def column(index):
                vector = jnp.zeros_like(state).at[start + index // dim, index % dim].set(1)
                return jax.lax.dynamic_slice_in_dim(linear(vector), first, count)

            return jax.lax.map(column, jnp.arange(number * dim), batch_size=chunk_size(batch))

        if num_source <= num_target:
            block = columns(push, source, num_source, target, num_target)
            return block.reshape(num_source, dim, num_target, dim).transpose(2, 3, 0, 1)
        pull = jax.linear_transpose(push, state)
        return columns(lambda v: pull(v)[0], target, num_target, source, num_source).reshape(num_target, dim, num_source, dim)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(per_image)(state)
