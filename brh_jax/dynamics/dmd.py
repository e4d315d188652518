"""One linear map per span of layers: dynamic mode decomposition along depth (paper, section 8; arXiv 2605.07556).

A span is named by its first and last layer, counted from 1 as a Partition prints them: (1, 7) is `1-7`, the layers that lead
from a_0 to a_7, and the run `run` of a partition is the span (run.start + 1, run.stop).
"""

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.least_squares import NEGLIGIBLE, LeastSquares, least_squares
from brh_jax.readable import readable
from brh_jax.system import check_values
from brh_jax.tokens import ByToken, TokenLayout, check_trajectory
from brh_jax.train.float64 import float64
from brh_jax.train.parallel import to_host
from brh_jax.types import Array, Directed, TrajectoryBatch
from brh_jax.vectors import cosine_distance, directed, length, mean_where

_TINY = np.finfo(np.float64).tiny


@readable(eigenvalues="per layer", residual="of the norm", span="layers")
class DMD(NamedTuple):
    """The linear map y - mean[1] = K (x - mean[0]) of a span of layers, of rank r, as numpy arrays in double precision.

    A mode with |eigenvalue| < 1 contracts and with > 1 grows, by that factor in each layer; the angle of an eigenvalue is how
    far its mode turns per layer, in radians. Complex ones come in conjugate pairs, the positive angle first.

    Attributes:
        eigenvalues: `[r]` complex, those of K that can differ from zero, largest modulus first.
        modes: `[dim, r]` complex eigenvectors of K of unit length, in the order of the eigenvalues.
        basis: U, `[dim, r]`, orthonormal leading left singular vectors of the snapshots.
        lift: `[dim, r]`, K = lift basis^T.
        mean: `[2, dim]`, mean of the states that enter a layer and of those that leave it; zeros where not centred.
        singular_values: `[dim]` of the snapshots (centred, if asked for), divided by the root of their number.
        residual: |Y - prediction|_F / |Y|_F over the pairs it was fitted to.
        span: first and last layer, counted from 1.
    """

    eigenvalues: np.ndarray
    modes: np.ndarray
    basis: np.ndarray
    lift: np.ndarray
    mean: np.ndarray
    singular_values: np.ndarray
    residual: float
    span: tuple[int, int]

    @property
    def rank(self) -> int:
        """r, how many directions of the states the map reads."""
        return self.basis.shape[1]

    @property
    def reduced(self) -> np.ndarray:
        """K in the coordinates of the basis, U^T K U, `[r, r]`."""
        return self.basis.T @ self.lift

    @property
    def operator(self) -> np.ndarray:
        """K in full, `[dim, dim]`."""
        return self.lift @ self.basis.T


@readable(cosine="cosine", relative_error="of the norm")
class Fidelity(NamedTuple):
    """Agreement of predicted with true states.

    Attributes:
        cosine: mean cosine of predicted and true tokens.
        relative_error: mean over images of |prediction - state|_F / |state|_F.
    """

    cosine: np.ndarray
    relative_error: np.ndarray


@readable(steps="layers ahead")
class Horizon(NamedTuple):
    """How far ahead a span is linear: predictions a_l -> a_{l+p} of held-out images.

    Attributes:
        steps: the p, `[steps]`.
        dmd: fidelity of K^p, `[steps]`, mean over all a_l and a_{l+p} of the span.
        identity: the same of the prediction a_{l+p} = a_l.
        linear: the same of a linear map of full rank for each pair (l, p), the best that a linear map can do.
        rollout: fidelity of K^p from the span's first state on, `[layers]`, one entry for the output of each layer.
    """

    steps: np.ndarray
    dmd: Fidelity
    identity: Fidelity
    linear: Fidelity
    rollout: Fidelity


def dmd(
    states: TrajectoryBatch | Iterable[TrajectoryBatch],
    span: tuple[int, int] = (1, 7),
    rank: int = 64,
    *,
    ridge: float = 0.0,
    layout: TokenLayout | None = None,
    token: str | None = None,
    center: bool = False,
    projected: bool = True,
    clip_rank: bool = False,
    stride: int = 1,
) -> DMD:
    """The linear map K that takes the states of a span of layers to the next ones, a_l = K a_{l-1}.

    Pairs (a_{l-1}, a_l) of all images, tokens and layers of the span are the columns of X and Y. With the leading `rank`
    singular vectors U of X, K = U U^T Y X^T U (S^2 + alpha)^-1 U^T, alpha = ridge |X|_F^2 / dim; projected DMD (Schmid, 2010;
    Tu et al., 2014), all of it from the products X X^T and Y X^T, so that snapshots are never held together.

    Args:
        states: trajectory `[depth + 1, batch, tokens, dim]`, or an iterable of trajectories that are never held together.
        span: first and last layer, counted from 1: (1, 7) fits a_0 -> a_1, ..., a_6 -> a_7.
        rank: number of singular vectors, hence of eigenvalues.
        ridge: penalty on |K|_F^2, in units of the mean squared entry of the snapshots.
        layout: which tokens are which; only `token` needs it.
        token: "cls", "registers" or "patches"; None fits all tokens together.
        center: subtract the mean of X from X and that of Y from Y, so that the map is affine (Hirsh et al., 2020).
        projected: keep the predictions in the span of U. Else exact DMD: K = Y X^T U (S^2 + alpha)^-1 U^T, the least-squares
            map of U^T a_{l-1}; the eigenvalues are the same.
        clip_rank: take the dimension that the snapshots span where `rank` is above it, instead of refusing.
        stride: fit only to every so many layers of the span, from its first on. With 2, of a trajectory of sub-layers, to
            attention alone (spans from an odd layer) or to the MLP alone (from an even one).

    Raises:
        ValueError: not trajectories of that layout, states that are not finite, a span that the depth does not have, a
            negative ridge, a stride below one, a token type that the model lacks, or a rank above dim, above the number of pairs
            or above the dimension that the snapshots span.
    """
    _check_arguments(span, rank, ridge, layout, token)
    if stride < 1:
        raise ValueError(f"stride must be one or more, got {stride}")
    pooled = _sum(itertools.chain.from_iterable(_moments(states, span, (1,), layout, token, stride)))
    return _decompose(pooled, span, rank, ridge, center, projected, clip_rank)


def dmd_predict(model: DMD, states: Directed, num_steps: int) -> Array:
    """K^p a for p = 0 ... num_steps; the affine map applied p times where the model is centred.

    Args:
        states: `[..., dim]`.

    Returns:
        `[num_steps + 1, ..., dim]`, the first of them `states` as given.

    Raises:
        ValueError: states of another width than the model's, or negative num_steps.
    """
    if not states.ndim or states.shape[-1] != len(model.basis):
        raise ValueError(f"states of shape {tuple(states.shape)} do not fit a model of width {len(model.basis)}")
    if num_steps < 0:
        raise ValueError(f"num_steps must be zero or more, got {num_steps}")
    return _iterate(_LinearMap(model.basis, model.lift, model.mean), _at_least_single(states), num_steps)


def dmd_horizon(
    train_states: TrajectoryBatch | Iterable[TrajectoryBatch],
    test_states: TrajectoryBatch | Iterable[TrajectoryBatch],
    span: tuple[int, int] = (1, 7),
    rank: int = 64,
    *,
    steps: Sequence[int] = (1, 2, 3, 4),
    ridge: float = 0.0,
    layout: TokenLayout | None = None,
    token: str | None = None,
    center: bool = False,
    projected: bool = True,
    clip_rank: bool = False,
) -> Horizon:
    """How well K^p predicts p layers ahead on held-out images, beside the identity and the best linear map of each pair.

    The linear maps are fitted to the same images with the same ridge (and mean, if centred), but with no limit to their rank
    and apart for each (l, l + p). Where a token type has fewer snapshots than dimensions they want a ridge.

    Args:
        train_states: trajectory `[depth + 1, batch, tokens, dim]` to fit to, or an iterable of them.
        test_states: trajectory of held-out images, or an iterable of them.
        steps: the numbers p of layers to look ahead, each at most the length of the span.
        span, rank, ridge, layout, token, center, projected, clip_rank: as for `dmd`.

    Raises:
        ValueError: as for `dmd`, or steps that the span has no room for.
    """
    _check_arguments(span, rank, ridge, layout, token)
    first, last = span
    steps = tuple(int(p) for p in steps)
    if not steps or not all(1 <= p <= last - first + 1 for p in steps):
        raise ValueError(f"steps must lie in 1 ... {last - first + 1}, the number of layers of span {span}, got {steps}")
    lags = sorted({1, *steps})
    moments = _sum(list(of_starts) for of_starts in _moments(train_states, span, lags, layout, token))
    one_layer = (m._replace(y=m.y[:1], yx=m.yx[:1], yy=m.yy[:1]) for m in moments)
    model = _decompose(_sum(one_layer), span, rank, ridge, center, projected, clip_rank)
    direct = {}
    for start, of_start in enumerate(moments, first - 1):
        fit = _least_squares(of_start, ridge, center)
        for p, lift, mean_y in zip(lags, fit.lift, fit.mean_y, strict=False):
            direct[start, p] = _LinearMap(fit.basis, lift, np.stack([fit.mean_x, mean_y]))
    return _measure(test_states, model, direct, steps, layout, token)


class _Moments(NamedTuple):
    """Sums over snapshot pairs of a state and of the states some lags of layers on; columns of X and Y are snapshots."""

    number: Array
    x: Array  # [dim]
    xx: Array  # X X^T
    y: Array  # [lags, dim]
    yx: Array  # Y X^T, [lags, dim, dim]
    yy: Array  # |Y|_F^2, [lags]


class _LinearMap(NamedTuple):
    """x -> lift basis^T (x - mean[0]) + mean[1]."""

    basis: np.ndarray
    lift: np.ndarray
    mean: np.ndarray


def _moments(states, span, lags, layout, token, stride=1) -> Iterator[Iterator[_Moments]]:
    """For each trajectory, the moments of each state of the span that has a successor in it, of the lags that it has."""
    first, last = span
    for trajectory in _trajectories(states, span, layout):
        with float64(trajectory) as held:
            trajectory = jnp.asarray(held)
        yield (
            _moments_of_state(trajectory, start, np.array([p for p in lags if start + p <= last]), layout, token)
            for start in range(first - 1, last, stride)
        )


def _moments_of_state(trajectory, start, lags, layout, token) -> _Moments:
    # In double precision: X X^T has the condition number of X squared, and the leading singular values of a ViT's states lie
    # orders of magnitude apart.
    with float64(trajectory) as held:
        return to_host(_products(held, start, lags, layout, token))


@functools.partial(jax.jit, static_argnames=("layout", "token"))
def _products(trajectory, start, lags, layout, token):
    def snapshots(layers):
        return _tokens(trajectory[layers], layout, token).astype(jnp.float64)

    x, y = snapshots(start), snapshots(start + lags)
    return _Moments(
        number=x.shape[0] * x.shape[1],
        x=x.sum((0, 1)),
        xx=jnp.einsum("btd,bte->de", x, x),
        y=y.sum((1, 2)),
        yx=jnp.einsum("pbtd,bte->pde", y, x),
        yy=jnp.square(y).sum((1, 2, 3)),
    )


def _sum(moments: Iterable):
    total = None
    for m in moments:
        total = m if total is None else jax.tree.map(np.add, total, m)
    if total is None:
        raise ValueError("no trajectories: the iterable of states is empty (an iterator can be read only once)")
    return total


def _least_squares(moments: _Moments, ridge, center) -> LeastSquares:
    return least_squares(*moments[:5], ridge=ridge, center=center)


def _decompose(moments: _Moments, span, rank, ridge, center, projected, clip_rank) -> DMD:
    dim = len(moments.xx)
    if rank > dim and not clip_rank:
        raise ValueError(f"rank {rank} is above the width of the states, {dim}")
    if not moments.number or (rank > moments.number and not clip_rank):
        raise ValueError(f"rank {rank} is above the number of snapshot pairs, {moments.number}: give more images or a lower rank")
    fit = _least_squares(moments, ridge, center)
    if clip_rank:
        rank = max(1, min(rank, int(moments.number), fit.spanned))
    if rank > fit.spanned and not clip_rank:  # clipped, it is one where all snapshots are zero, and the map is zero too
        raise ValueError(
            f"rank {rank} is above the {fit.spanned} dimensions that the snapshots span, counting singular values above "
            f"{NEGLIGIBLE:g} of their norm: give a lower rank, or more images"
        )
    basis, lift = fit.basis[:, :rank], fit.lift[0, :, :rank]
    if projected:
        lift = basis @ (basis.T @ lift)
    yx = moments.yx[0] - moments.number * np.outer(fit.mean_y[0], fit.mean_x)
    yy = moments.yy[0] - moments.number * np.sum(fit.mean_y[0] ** 2)
    error = yy - 2 * np.sum(lift * (yx @ basis)) + np.sum(lift**2 * fit.values[:rank])
    eigenvalues, vectors = np.linalg.eig(basis.T @ lift)
    order = np.lexsort((-eigenvalues.imag, -np.abs(eigenvalues)))
    modes = (basis if projected else lift) @ vectors[:, order]
    return DMD(
        eigenvalues=eigenvalues[order].astype(complex),
        modes=(modes / np.maximum(np.linalg.norm(modes, axis=0), _TINY)).astype(complex),
        basis=basis,
        lift=lift,
        mean=np.stack([fit.mean_x, fit.mean_y[0]]),
        singular_values=np.sqrt(fit.values / moments.number),
        residual=float(np.sqrt(max(error, 0.0) / max(moments.yy[0], _TINY))),
        span=tuple(span),
    )


def _measure(test_states, model: DMD, direct, steps, layout, token) -> Horizon:
    first, last = model.span
    length = last - first + 1
    dmd_map = jax.tree.map(jnp.asarray, _LinearMap(model.basis, model.lift, model.mean))
    direct = jax.tree.map(jnp.asarray, direct)
    sums = collections.defaultdict(float)
    images = 0
    for trajectory in _trajectories(test_states, model.span, layout, len(model.basis)):
        images += trajectory.shape[1]
        for start in range(first - 1, last):
            whole = start == first - 1
            state = predicted = _at_least_single(_tokens(trajectory[start], layout, token))
            for p in range(1, (length if whole else min(max(steps), last - start)) + 1):
                predicted = _apply(dmd_map, predicted)
                actual = _at_least_single(_tokens(trajectory[start + p], layout, token))
                agreement = _agreement(predicted, actual)
                if whole:
                    sums["rollout", p] += agreement
                if p in steps:
                    sums["dmd", p] += agreement
                    sums["identity", p] += _agreement(state, actual)
                    sums["linear", p] += _agreement(_apply(direct[start, p], state), actual)
    if not images:
        raise ValueError("no test images: fidelity is a mean over images")

    def fidelity(name, numbers_of_layers, pairs):
        return Fidelity(*np.stack([sums[name, p] / (images * pairs(p)) for p in numbers_of_layers], axis=-1))

    predictors = {name: fidelity(name, steps, lambda p: length + 1 - p) for name in ("dmd", "identity", "linear")}
    return Horizon(np.array(steps), **predictors, rollout=fidelity("rollout", range(1, length + 1), lambda p: 1))


@jax.jit
def _apply(linear_map, states):
    basis, lift, mean = (part.astype(states.dtype) for part in linear_map)
    with jax.default_matmul_precision("highest"):
        return (states - mean[0]) @ basis @ lift.T + mean[1]


@functools.partial(jax.jit, static_argnames="num_steps")
def _iterate(linear_map, states, num_steps):
    def step(states, _):
        states = _apply(linear_map, states)
        return states, states

    _, predicted = jax.lax.scan(step, states, None, num_steps)
    return jnp.concatenate([states[None], predicted])


def _agreement(predicted, actual) -> np.ndarray:
    """Sums over images of the two figures of Fidelity, `[2]`."""
    return to_host(_image_agreement(predicted, actual)).astype(np.float64).sum(-1)


@jax.jit
def _image_agreement(predicted, actual):
    tiny = jnp.finfo(actual.dtype).tiny
    # A prediction of zero has nothing in common with a state; a state that is zero cannot be predicted in direction.
    cosine = jnp.where(directed(predicted), 1 - cosine_distance(predicted, actual), 0)
    cosine = jnp.where(jnp.any(directed(actual), axis=-1), mean_where(cosine, directed(actual)), 0)
    error, size = (length(v.reshape(len(v), -1)) for v in (predicted - actual, actual))
    return jnp.stack([cosine, error / jnp.maximum(size, tiny)])


def _tokens(states, layout, token):
    return states if token is None else getattr(layout.split(states), token)


def _at_least_single(states):
    states = jnp.asarray(states)
    return states.astype(jnp.promote_types(states.dtype, jnp.float32))


def _trajectories(states, span, layout, dim=None) -> Iterator:
    """The trajectories of one array or of an iterable, each of them checked; `dim`: the width they must have."""
    for trajectory in [states] if hasattr(states, "ndim") else states:
        _check_states(trajectory, span, layout)
        dim = trajectory.shape[-1] if dim is None else dim
        if trajectory.shape[-1] != dim:
            raise ValueError(f"all trajectories must be of one width, got {dim} and {trajectory.shape[-1]}")
        yield trajectory


def _check_states(trajectory, span, layout) -> None:
    if trajectory.ndim != 4:
        raise ValueError(
            f"expected a trajectory [depth + 1, batch, tokens, dim], got an array of shape {tuple(trajectory.shape)}"
        )
    if layout is not None:
        check_trajectory(trajectory, layout)
    (first, last), depth = span, len(trajectory) - 1
    if last > depth:
        raise ValueError(f"span {tuple(span)} is out of range: layers are counted from 1, the trajectory has {depth}")
    for state in trajectory[first - 1 : last + 1]:
        check_values(state)


def _check_arguments(span, rank, ridge, layout, token) -> None:
    if len(span) != 2 or not 1 <= span[0] <= span[1]:
        raise ValueError(f"span must be (first, last), layers counted from 1 with 1 <= first <= last, got {tuple(span)}")
    if rank < 1:
        raise ValueError(f"rank must be one or more, got {rank}")
    if not 0 <= ridge < np.inf:
        raise ValueError(f"ridge must be zero or more, got {ridge}")
    if token is None:
        return
    if token not in ByToken._fields:
        raise ValueError(f"token must be one of {', '.join(ByToken._fields)}, or None for all tokens, got {token!r}")
    if layout is None:
        raise ValueError(f"token={token!r} needs layout=, which says where those tokens are: encoder.layout")
    if not getattr(layout.counts, token):
        raise ValueError(f"token={token!r}, but the layout has none: {layout}")
