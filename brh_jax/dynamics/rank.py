"""In how many directions a layer moves tokens: ranks of its updates, and how the directions turn (paper, section 8).

Singular values of an update matrix U come from its Gram matrix U^T U, which adds up over images, so that U itself is never held.
Squaring doubles the digits that small singular values need: Grams are made and added in float64, whatever the states are in,
and agree with a singular value decomposition of U where float32 would lose all below 3e-4 of the largest.
"""

import concurrent.futures
import functools
import itertools
import operator
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import threadpoolctl

from brh_jax.dynamics.directions import checked
from brh_jax.tokens import ByToken, TokenLayout, check_trajectory
from brh_jax.train.parallel import to_host
from brh_jax.types import Trajectory


class UpdateRank(NamedTuple):
    """Ranks of each layer's updates U with singular values sigma_i; all are r where r of them are equal and the others zero.

    Each is a ByToken `[depth]` (`[depth, batch]` image by image), zero where a layer changes nothing. A token's update that is
    no larger than the rounding of its states is none.

    Attributes:
        stable: |U|_F² / |U|_2².
        effective: exp(-sum_i p_i log p_i), p_i = sigma_i / sum_j sigma_j (Roy and Vetterli 2007).
        participation: (sum_i sigma_i²)² / sum_i sigma_i⁴.
    """

    stable: ByToken
    effective: ByToken
    participation: ByToken


def update_rank(
    states: Trajectory, layout: TokenLayout, *, kind: str = "angular", over: str = "images", per_image: bool = False
) -> UpdateRank:
    """Stable, effective and participation rank of what each layer adds to tokens (paper, section 8).

    The rows of U are x^_{l+1} - x^_l, x^ = x / |x| (`kind="angular"`), or x_{l+1} - x_l (`kind="raw"`). Of more images than one
    batch: `gram_rank(update_grams(batches, layout))`, of which this is the case of one batch.

    Args:
        states: trajectory `[depth + 1, batch, tokens, dim]`.
        kind: which update.
        over: "images": U `[images * tokens, dim]` holds all tokens of a type of all images. "tokens": every image has its own
            U `[tokens, dim]`, and the ranks are averaged over images.
        per_image: over tokens alone: whether the images are told apart, on a last axis, instead of averaged over.

    Returns:
        per token type `[depth]`; empty for a type that the model lacks and, over tokens, for a type of a single token, whose
        rank would be one whatever the model does.

    Raises:
        ValueError: not a trajectory of that layout, another kind or `over`, per_image of all images together, or states that are
            zero or not finite.
    """
    if over not in ("images", "tokens"):
        raise ValueError(f'over={over!r}: expected "images" or "tokens"')
    if over == "tokens":
        ranks = _rank_per_image(states, layout, kind)
        return ranks if per_image else jax.tree.map(lambda of_images: of_images.mean(-1), ranks)
    if per_image:
        raise ValueError('per_image=True, but over="images" takes the tokens of all images together: give over="tokens"')
    return gram_rank(update_grams([states], layout, kind=kind))


def _rank_per_image(states, layout, kind) -> UpdateRank:
    check_trajectory(states, layout)
    _check_kind(kind)
    _check_depth(states)

    def spectrum(layer, name):
        with jax.enable_x64(True):
            grams = _image_grams(states, layer, layout, kind, name)
        return _spectrum(_finite(to_host(grams)))

    def of_type(name, count):
        if count < 2:
            return _ranks(np.zeros((0, states.shape[1], 1)))
        # One layer at a time: the Grams of all would be larger than the trajectory.
        return _ranks(np.stack([spectrum(layer, name) for layer in range(len(states) - 1)]))

    return _transpose(ByToken(*(of_type(name, count) for name, count in layout.counts._asdict().items())))


def update_grams(batches: Iterable[Trajectory], layout: TokenLayout, *, kind: str = "angular") -> ByToken:
    """U^T U of each layer's updates, summed over all tokens of a type and all images of a stream.

    Args:
        batches: yields trajectories `[depth + 1, batch, tokens, dim]`; only one is held at a time.
        kind: as for `update_rank`.

    Returns:
        per token type float64 `[depth, dim, dim]`, `[0, dim, dim]` for a type that the model lacks. Those of different batches
        add up.

    Raises:
        ValueError: no batches, batches of different depth, not trajectories of that layout, another kind, or states that are
            zero or not finite.
    """
    _check_kind(kind)
    total = None
    for states in checked(batches, layout):
        _check_depth(states)
        with jax.enable_x64(True):
            grams = _grams(states, layout, kind)
            total = grams if total is None else jax.tree.map(operator.add, total, grams)
    return _finite(to_host(total))


def gram_rank(grams: ByToken) -> UpdateRank:
    """`update_rank` from `update_grams`: per token type `[depth]`."""
    return _transpose(ByToken(*(_ranks(_spectrum(gram)) for gram in grams)))


def num_update_directions(grams: ByToken) -> ByToken:
    """In how many directions a layer moves tokens at all: the rank of its updates, as integers per token type `[depth]`."""
    return ByToken(*(np.count_nonzero(_spectrum(gram), axis=-1) for gram in grams))


def principal_angles(grams: ByToken, *, num_directions: int) -> ByToken:
    """Principal angles between the leading update directions of neighbouring layers (Björck and Golub 1973).

    The `num_directions` leading right singular vectors of a layer's updates span the subspace in which it moves tokens most.
    Angles of zero: the next layer moves them in the same one; of pi / 2: in directions of its own.

    Args:
        grams: of `update_grams`.
        num_directions: dimension of the subspaces.

    Returns:
        per token type `[depth - 1, num_directions]` in radians, smallest first; empty for a type that the model lacks.

    Raises:
        ValueError: `num_directions` out of range, or more than the rank of a layer's updates, which then span no such subspace.
    """
    dim = grams.cls.shape[-1]
    if not 1 <= num_directions <= dim:
        raise ValueError(f"num_directions {num_directions} is out of range: states of dimension {dim} have 1 to {dim}")

    def of_type(name, gram):
        if not len(gram):
            return np.zeros((0, num_directions))
        decomposed = _of_each(np.linalg.eigh, gram)
        for layer, (values, _) in enumerate(decomposed):
            if (rank := np.count_nonzero(_without_rounding(values))) < num_directions:
                raise ValueError(
                    f"layer {layer} moves {name} in {rank} directions only, so {num_directions} leading ones are not defined: "
                    "ask for fewer, or use more images"
                )
        leading = [vectors[:, dim - num_directions :] for _, vectors in decomposed]
        angles = _of_each(lambda pair: scipy.linalg.subspace_angles(*pair)[::-1], itertools.pairwise(leading))
        return np.array(angles).reshape(-1, num_directions)

    return ByToken(*(of_type(name, gram) for name, gram in grams._asdict().items()))


@functools.partial(jax.jit, static_argnames=("layout", "kind"))
def _grams(states, layout, kind) -> ByToken:
    def of_layer(layer):
        updates = layout.split(_updates(states, layer, kind))
        return ByToken(*(jnp.einsum("btd,bte->de", u, u, precision="highest") for u in updates))

    grams = jax.lax.map(of_layer, jnp.arange(len(states) - 1))
    return ByToken(*(gram if count else gram[:0] for gram, count in zip(grams, layout.counts, strict=True)))


@functools.partial(jax.jit, static_argnames=("layout", "kind", "name"))
def _image_grams(states, layer, layout, kind, name):
    """The smaller of U U^T and U^T U of each image; both have the same eigenvalues, but for zeros."""
    u = getattr(layout.split(_updates(states, layer, kind)), name)
    return jnp.einsum("btd,bsd->bts" if u.shape[1] <= u.shape[2] else "btd,bte->bde", u, u, precision="highest")


def _updates(states, layer, kind):
    def at(index):
        state = jax.lax.dynamic_index_in_dim(states, index, keepdims=False).astype(jnp.float64)
        return state / _norm(state) if kind == "angular" else state

    before, after = at(layer), at(layer + 1)
    update = after - before
    # A layer that only stretches a token turns it by rounding errors, which have ranks of their own.
    rounding = 4 * jnp.finfo(states.dtype).eps * jnp.maximum(_norm(before), _norm(after))
    return jnp.where(_norm(update) <= rounding, 0.0, update)


def _norm(x):
    return jnp.linalg.norm(x, axis=-1, keepdims=True)


def _spectrum(grams) -> np.ndarray:
    """Eigenvalues of `[..., n, n]`: `[..., n]`."""
    values = _of_each(np.linalg.eigvalsh, grams.reshape(-1, *grams.shape[-2:]))
    return _without_rounding(np.array(values).reshape(grams.shape[:-1]))


def _of_each(function, matrices) -> list:
    """Matrices this small are slower on several threads each, and fastest on one thread each."""
    with threadpoolctl.threadpool_limits(1, user_api="blas"), concurrent.futures.ThreadPoolExecutor() as threads:
        return list(threads.map(function, matrices))


def _without_rounding(eigenvalues):
    """Those that rounding leaves of zero are zero."""
    floor = eigenvalues.shape[-1] * np.finfo(eigenvalues.dtype).eps * np.max(eigenvalues, axis=-1, keepdims=True)
    return np.where(eigenvalues > floor, eigenvalues, 0.0)


def _ranks(squares) -> UpdateRank:
    """Ranks from squared singular values `[..., n]`, zero where all are."""
    total, largest = squares.sum(-1), squares.max(-1)
    some = largest > 0
    sigma = np.sqrt(squares)
    shares = sigma / np.where(some, sigma.sum(-1), 1.0)[..., None]
    entropy = -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=-1)
    return UpdateRank(
        total / np.where(some, largest, 1.0),
        np.where(some, np.exp(entropy), 0.0),
        total**2 / np.where(some, np.sum(squares**2, axis=-1), 1.0),
    )


def _transpose(by_type: ByToken) -> UpdateRank:
    return UpdateRank(*(ByToken(*values) for values in zip(*by_type, strict=True)))


def _finite(grams):
    if not all(np.isfinite(gram).all() for gram in jax.tree.leaves(grams)):
        raise ValueError("the states hold values that are not finite, or a token that is zero, which has no direction")
    return grams


def _check_depth(states) -> None:
    if len(states) < 2:
        raise ValueError(
            "a trajectory of one state has no updates: expected [depth + 1, batch, tokens, dim] with depth at least 1"
        )


def _check_kind(kind: str) -> None:
    if kind not in ("angular", "raw"):
        raise ValueError(f'kind={kind!r}: expected "angular" or "raw"')
