"""In how many directions a layer moves tokens: ranks of its updates, and how the directions turn (paper, section 8).

Updates are centred: what all tokens of a type are moved by alike is one direction, and where it is large the ranks of U are those
of that one direction. `center=False` keeps it.

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
import threadpoolctl

from brh_jax.dynamics.directions import checked
from brh_jax.errors import UserError
from brh_jax.readable import readable
from brh_jax.tokens import ByToken, TokenLayout, check_trajectory
from brh_jax.train.float64 import float64
from brh_jax.train.parallel import to_host
from brh_jax.types import Trajectory, TrajectoryBatch


@readable(stable="directions", effective="directions", participation="directions")
class UpdateRank(NamedTuple):
    """Ranks of each layer's updates U with singular values sigma_i; all are r where r of them are equal and the others zero.

    Each is a ByToken `[depth]` (`[depth, batch]` image by image), zero where a layer changes nothing, or moves all tokens alike
    and that is taken out. An update that is no larger than the rounding of its states is none. Angular updates of tokens that are
    zero, and have no direction, are left out; NaN where there are no others.

    Attributes:
        stable: |U|_F² / |U|_2².
        effective: exp(-sum_i p_i log p_i), p_i = sigma_i / sum_j sigma_j (Roy and Vetterli 2007).
        participation: (sum_i sigma_i²)² / sum_i sigma_i⁴.
    """

    stable: ByToken
    effective: ByToken
    participation: ByToken


class UpdateGrams(NamedTuple):
    """Sums over the updates u of a stream, float64 and per token type; those of different batches add up.

    Attributes:
        gram: of u u^T, `[depth, dim, dim]`; `[0, dim, dim]` for a type that the model lacks.
        total: of u, `[depth, dim]`.
        number: of updates, `[depth]`.
        rounding: of the squares of what rounding of the states leaves in them, `[depth]`.
    """

    gram: ByToken
    total: ByToken
    number: ByToken
    rounding: ByToken

    def centred(self) -> "UpdateGrams":
        """About the mean update of each layer and type."""
        return _by_type(_about_mean, self)


def update_rank(
    states: Trajectory,
    layout: TokenLayout,
    *,
    kind: str = "angular",
    over: str = "images",
    center: bool = True,
    per_image: bool = False,
) -> UpdateRank:
    """Stable, effective and participation rank of what each layer adds to tokens (paper, section 8).

    The rows of U are x^_{l+1} - x^_l, x^ = x / |x| (`kind="angular"`), or x_{l+1} - x_l (`kind="raw"`). Of more images than one
    batch: `gram_rank(update_grams(batches, layout))`, of which this is the case of one batch.

    Args:
        states: trajectory `[depth + 1, batch, tokens, dim]`.
        kind: which update.
        over: "images": U `[images * tokens, dim]` holds all tokens of a type of all images. "tokens": every image has its own
            U `[tokens, dim]`, and the ranks are averaged over images.
        center: subtract the mean row from U first, of all images or of each. The paper's figures are matched by this (patches
            rise and fall late); without it the mean update hides both.
        per_image: over tokens alone: whether the images are told apart, on a last axis, instead of averaged over.

    Returns:
        per token type `[depth]`; empty for a type that the model lacks and, over tokens, for a type of a single token (or two,
        where they are centred), whose rank would be one whatever the model does.

    Raises:
        ValueError: not a trajectory of that layout, another kind or `over`, per_image of all images together, or states that are
            not finite.
    """
    if over not in ("images", "tokens"):
        raise ValueError(f'over={over!r}: expected "images" or "tokens"')
    if over == "tokens":
        ranks = _rank_per_image(states, layout, kind, center)
        return ranks if per_image else jax.tree.map(mean_of_defined, ranks)
    if per_image:
        raise ValueError('per_image=True, but over="images" takes the tokens of all images together: give over="tokens"')
    return gram_rank(update_grams([states], layout, kind=kind), center=center)


def _rank_per_image(states, layout, kind, center) -> UpdateRank:
    check_trajectory(states, layout)
    _check_kind(kind)
    _check_depth(states)

    def spectrum(layer, name):
        with float64(states) as held:
            grams, count = to_host(_image_grams(held, layer, layout, kind, name, center))
        return np.where(count[:, None] > 0, _spectrum(_finite(grams)), np.nan)

    def of_type(name, count):
        if count < 2 + center:
            return _ranks(np.zeros((0, states.shape[1], 1)))
        # One layer at a time: the Grams of all would be larger than the trajectory.
        return _ranks(np.stack([spectrum(layer, name) for layer in range(len(states) - 1)]))

    return _transpose(ByToken(*(of_type(name, count) for name, count in layout.counts._asdict().items())))


def update_grams(batches: Iterable[TrajectoryBatch], layout: TokenLayout, *, kind: str = "angular") -> UpdateGrams:
    """U^T U of each layer's updates, summed over all tokens of a type and all images of a stream, and what centring needs.

    Args:
        batches: yields trajectories `[depth + 1, batch, tokens, dim]`; only one is held at a time.
        kind: as for `update_rank`.

    Raises:
        ValueError: no batches, batches of different depth, not trajectories of that layout, another kind, or states that are not
            finite.
    """
    _check_kind(kind)
    total = None
    for states in checked(batches, layout):
        _check_depth(states)
        with float64(states) as held:
            grams = _grams(held, layout, kind)
            total = grams if total is None else jax.tree.map(operator.add, total, grams)
    return _finite(to_host(total))


def gram_rank(grams: UpdateGrams, *, center: bool = True) -> UpdateRank:
    """`update_rank` from `update_grams`: per token type `[depth]`."""
    return _transpose(ByToken(*(_ranks(spectrum) for spectrum in _spectra(grams, center))))


def num_update_directions(grams: UpdateGrams, *, center: bool = True) -> ByToken:
    """In how many directions a layer moves tokens at all: rank of its updates, per token type `[depth]`; NaN without tokens."""
    spectra = _spectra(grams, center)
    return ByToken(*(np.where(np.isnan(s).any(-1), np.nan, np.count_nonzero(s, axis=-1)) for s in spectra))


def principal_angles(grams: UpdateGrams, *, num_directions: int, center: bool = True) -> ByToken:
    """Principal angles between the leading update directions of neighbouring layers (Björck and Golub 1973).

    The `num_directions` leading right singular vectors of a layer's updates span the subspace in which it moves tokens most.
    Angles of zero: the next layer moves them in the same one; of pi / 2: in directions of its own.

    Args:
        grams: of `update_grams`.
        num_directions: dimension of the subspaces.
        center: of the updates about their mean, as in `update_rank`.

    Returns:
        per token type `[depth - 1, num_directions]` in radians, smallest first; empty for a type that the model lacks, NaN where
        a layer has no tokens with a direction.

    Raises:
        ValueError: `num_directions` out of range, or more than the rank of a layer's updates, which then span no such subspace.
    """
    from scipy.linalg import subspace_angles  # two fifths of what importing brh_jax.dynamics took

    dim = grams.gram.cls.shape[-1]
    if not 1 <= num_directions <= dim:
        raise ValueError(f"num_directions {num_directions} is out of range: states of dimension {dim} have 1 to {dim}")
    directions = num_update_directions(grams, center=center)._asdict()

    def leading(gram):
        return np.linalg.eigh(gram)[1][:, dim - num_directions :]

    def of_type(name, gram):
        for layer, number in enumerate(directions[name]):
            if number < num_directions:
                raise ValueError(
                    f"layer {layer} moves {name} in {number:.0f} directions only, so {num_directions} leading ones are not "
                    "defined: ask for fewer, or use more images"
                )
        angles = _of_each(lambda pair: subspace_angles(*pair)[::-1], itertools.pairwise(_of_each(leading, gram)))
        defined = [not np.isnan(pair).any() for pair in itertools.pairwise(directions[name])]
        return np.where(np.array(defined, bool)[:, None], np.array(angles).reshape(-1, num_directions), np.nan)

    of_types = (grams.centred() if center else grams).gram
    return ByToken(*(of_type(name, gram) for name, gram in of_types._asdict().items()))


@functools.partial(jax.jit, static_argnames=("layout", "kind"))
def _grams(states, layout, kind) -> UpdateGrams:
    def sums(updates, defined, rounding):
        gram = jnp.einsum("btd,bte->de", updates, updates, precision="highest")
        return gram, updates.sum((0, 1)), defined.sum(dtype=updates.dtype), jnp.square(rounding).sum()

    def of_layer(layer):
        parts = (layout.split(part) for part in _updates(states, layer, kind))
        return UpdateGrams(*(ByToken(*values) for values in zip(*map(sums, *parts), strict=True)))

    grams = jax.lax.map(of_layer, jnp.arange(len(states) - 1))
    return UpdateGrams(*(ByToken(*(v if n else v[:0] for v, n in zip(of, layout.counts, strict=True))) for of in grams))


@functools.partial(jax.jit, static_argnames=("layout", "kind", "name", "center"))
def _image_grams(states, layer, layout, kind, name, center):
    """The smaller of U U^T and U^T U of each image, both have the same eigenvalues but for zeros; and its number of updates."""
    u, defined, rounding = (getattr(layout.split(part), name) for part in _updates(states, layer, kind))
    count = defined.sum((1, 2))
    if center:
        u = jnp.where(defined, u - u.sum(1, keepdims=True) / jnp.maximum(count, 1)[:, None, None], 0.0)
        none = jnp.sum(u**2, (1, 2), keepdims=True) <= jnp.sum(rounding**2, (1, 2), keepdims=True)
        u = jnp.where(none, 0.0, u)
    return jnp.einsum("btd,bsd->bts" if u.shape[1] <= u.shape[2] else "btd,bte->bde", u, u, precision="highest"), count


def _updates(states, layer, kind):
    """Updates `[batch, tokens, dim]`, whether they are defined, and the size of rounding in them, `[batch, tokens, 1]`."""

    def at(index):
        state = jax.lax.dynamic_index_in_dim(states, index, keepdims=False).astype(jnp.float64)
        norm = _norm(state)
        return (state / jnp.where(norm == 0, 1.0, norm) if kind == "angular" else state), norm

    (before, start), (after, end) = at(layer), at(layer + 1)
    defined = jnp.logical_and(start != 0, end != 0) if kind == "angular" else jnp.ones_like(start, bool)
    update = jnp.where(defined, after - before, 0.0)
    # A layer that only stretches a token turns it by rounding errors, which have ranks of their own.
    rounding = jnp.where(defined, 4.0 * jnp.finfo(states.dtype).eps * jnp.maximum(_norm(before), _norm(after)), 0.0)
    return jnp.where(_norm(update) <= rounding, 0.0, update), defined, rounding


def _by_type(function, grams: UpdateGrams) -> UpdateGrams:
    return UpdateGrams(*(ByToken(*values) for values in zip(*map(function, *grams), strict=True)))


def _about_mean(gram, total, count, rounding):
    mean = total / np.maximum(count, 1)[:, None]
    gram = gram - mean[:, :, None] * total[:, None]
    none = np.trace(gram, axis1=1, axis2=2) <= rounding
    return np.where(none[:, None, None], 0.0, gram), np.zeros_like(total), count, rounding


def _spectra(grams: UpdateGrams, center: bool) -> ByToken:
    """Squared singular values `[depth, dim]` of each type, NaN where there are no updates."""

    def of_type(gram, whole, count):
        # What is left of a difference is no more exact than what it was taken from.
        values = _spectrum(gram, np.trace(whole, axis1=1, axis2=2) if center else None)
        return np.where(count[:, None] > 0, values, np.nan)

    return ByToken(*map(of_type, (grams.centred() if center else grams).gram, grams.gram, grams.number))


def _norm(x):
    return jnp.linalg.norm(x, axis=-1, keepdims=True)


def _spectrum(grams, scale=None) -> np.ndarray:
    """Eigenvalues of `[..., n, n]`, `[..., n]`; those that rounding at a scale (of the largest) leaves of zero are zero."""
    values = np.array(_of_each(np.linalg.eigvalsh, grams.reshape(-1, *grams.shape[-2:]))).reshape(grams.shape[:-1])
    scale = np.max(values, axis=-1) if scale is None else scale
    return np.where(values > values.shape[-1] * np.finfo(values.dtype).eps * scale[..., None], values, 0.0)


def _of_each(function, matrices) -> list:
    """Matrices this small are slower on several threads each, and fastest on one thread each."""
    with threadpoolctl.threadpool_limits(1, user_api="blas"), concurrent.futures.ThreadPoolExecutor() as threads:
        return list(threads.map(function, matrices))


def _ranks(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ranks of UpdateRank from squared singular values `[..., n]`, zero where all are, NaN where they are."""
    total, largest = squares.sum(-1), squares.max(-1)
    some = largest != 0
    sigma = np.sqrt(squares)
    shares = sigma / np.where(some, sigma.sum(-1), 1.0)[..., None]
    entropy = -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=-1)
    return (
        total / np.where(some, largest, 1.0),
        np.where(some, np.exp(entropy), 0.0),
        total**2 / np.where(some, np.sum(squares**2, axis=-1), 1.0),
    )


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where there is nothing else."""
    defined = ~np.isnan(values)
    count = defined.sum(-1)
    return np.where(count > 0, np.where(defined, values, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


def _transpose(by_type: ByToken) -> UpdateRank:
    return UpdateRank(*(ByToken(*values) for values in zip(*by_type, strict=True)))


def _finite(grams):
    if not all(np.isfinite(gram).all() for gram in jax.tree.leaves(grams)):
        raise UserError("the states hold values that are not finite: look for the layer or the image that they come from")
    return grams


def _check_depth(states) -> None:
    if len(states) < 2:
        raise ValueError(
            "a trajectory of one state has no updates: expected [depth + 1, batch, tokens, dim] with depth at least 1"
        )


def _check_kind(kind: str) -> None:
    if kind not in ("angular", "raw"):
        raise ValueError(f'kind={kind!r}: expected "angular" or "raw"')
