"""What simpler predictions of a trajectory reach: mean states, linear maps of the first state, and linear blocks.

They are fitted to the teacher's states of training images in one pass, from sums in double precision: states are never held
together, and the fit is exact however many images there are.
"""

import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.errors import UserError
from brh_jax.least_squares import least_squares
from brh_jax.partition import Partition
from brh_jax.tokens import TokenLayout
from brh_jax.train.float64 import float64
from brh_jax.train.parallel import to_host
from brh_jax.types import Array

BASELINES = ("mean", "linear", "linear_blocks")


def fit_baselines(
    trajectories: Iterable,
    layout: TokenLayout,
    names: Collection[str] = BASELINES,
    *,
    partitions: dict[str, Partition] | None = None,
    ridge: float = 1e-6,
) -> dict[str, Callable]:
    """Predictors for `evaluate`, functions from a_0 to a trajectory.

    - mean: the mean state of each layer and token position, whatever the image.
    - linear: a_l = b_l + W_l a_0, token by token, one affine map for each layer and token type.
    - linear_blocks: a_l = b_j + W_j a_{l-1} for the layers of phase j, one affine map for each phase and token type applied again
      and again: a Raptor whose blocks are linear. `linear_NAME` for each of the partitions.

    Maps are least squares with a ridge in units of the mean squared centred entry, W = Y X^T (X X^T + ridge tr(X X^T) / dim)^-1,
    the offset unpenalised. Sums of `linear` take (depth + 1) dim² doubles per token type, of `linear_blocks` twice depth dim².

    Args:
        trajectories: yields `(states, valid)`, `[depth + 1, batch, tokens, dim]` and `[batch]`, of training images.
        names: some of BASELINES.
        partitions: name -> Partition, for linear_blocks.

    Raises:
        UserError: an unknown name, or no images.
    """
    if unknown := [name for name in names if name not in BASELINES]:
        raise UserError(f"unknown baseline {', '.join(unknown)}: expected some of {', '.join(BASELINES)}")
    if not names:
        return {}
    sums = None
    for states, valid in trajectories:
        with float64(states) as held:
            found = to_host(_sums(held, valid, layout, tuple(names)))
        sums = found if sums is None else jax.tree.map(np.add, sums, found)
    if sums is None or not sums["images"]:
        raise UserError("no training images to fit baselines to")
    predictors = {}
    if "mean" in names:
        predictors["mean"] = _jitted(_predict_mean, np.float32(sums["mean"] / sums["images"]))
    if "linear" in names:
        maps = [m and _fit(m, ridge) for m in sums["linear"]]
        predictors["linear"] = _jitted(functools.partial(_predict_linear, layout), maps)
    if "linear_blocks" in names:
        for name, partition in (partitions or {}).items():
            maps = [m and [_fit(_of_phase(m, partition, phase), ridge) for phase in range(partition.k)] for m in sums["blocks"]]
            predictors[f"linear_{name}"] = _jitted(functools.partial(_predict_blocks, layout, partition), maps)
    return predictors


class _Moments(NamedTuple):
    """Sums over tokens of inputs x and targets y, stacked over layers; inputs that all layers share are not stacked."""

    number: Array
    x: Array  # [..., dim]
    xx: Array  # [..., dim, dim]
    y: Array  # [depth, dim]
    yx: Array  # [depth, dim, dim]


class _Affine(NamedTuple):
    """y = mean_y + W (x - mean_x); W is transposed, `[..., dim of x, dim of y]`."""

    transposed: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray


@functools.partial(jax.jit, static_argnames=("layout", "names"))
def _sums(states, valid, layout, names):
    states, weight = states.astype(jnp.float64), jnp.asarray(valid, jnp.float64)
    out: dict[str, Any] = {"images": weight.sum()}
    if "mean" in names:
        out["mean"] = jnp.einsum("lbtd,b->ltd", states, weight)

    def moments(tokens, inputs):
        x, y = inputs * weight[:, None, None], tokens[1:]
        return _Moments(
            number=weight.sum() * tokens.shape[-2],
            x=x.sum((-3, -2)),
            xx=jnp.einsum("...btd,...bte->...de", inputs, x),
            y=jnp.einsum("lbtd,b->ld", y, weight),
            yx=jnp.einsum("...btd,...bte->...de", y, x),
        )

    by_type = [tokens if tokens.shape[-2] else None for tokens in layout.split(states)]
    if "linear" in names:
        out["linear"] = [None if t is None else moments(t, t[0]) for t in by_type]
    if "linear_blocks" in names:
        out["blocks"] = [None if t is None else moments(t, t[:-1]) for t in by_type]
    return out


def _of_phase(moments: _Moments, partition: Partition, phase: int) -> _Moments:
    """The pairs of all layers of a phase as those of one map."""
    member = np.equal(partition.labels, phase)
    summed = (values[member].sum(0, keepdims=True) for values in moments[3:])
    return _Moments(moments.number * member.sum(), *(values[member].sum(0) for values in moments[1:3]), *summed)


def _fit(moments: _Moments, ridge: float) -> _Affine:
    # What does not vary (cls and registers of a_0) predicts nothing: its mean is in the offset.
    fit = least_squares(*moments, ridge=ridge, center=True)
    transposed = fit.basis @ np.swapaxes(fit.lift, -1, -2)
    return _Affine._make(np.float32(part) for part in (transposed, fit.mean_x, fit.mean_y))


def _jitted(predict, parameters):
    # numpy, which jax takes for the same everywhere: predictions of states laid over several processes work too.
    return functools.partial(jax.jit(predict), parameters)


def _predict_mean(mean, state):
    repeated = jnp.broadcast_to(mean[1:, None], (len(mean) - 1, *state.shape)).astype(state.dtype)
    return jnp.concatenate([state[None], repeated])


def _predict_linear(layout, maps, state):
    def of_type(tokens, affine):
        found = jnp.einsum("btd,lde->lbte", tokens - affine.mean_x, affine.transposed, precision="highest")
        return found + affine.mean_y[:, None, None]

    parts = [of_type(t, m) for t, m in zip(layout.split(state), maps, strict=True) if m is not None]
    return jnp.concatenate([state[None], jnp.concatenate(parts, axis=-2)])


def _predict_blocks(layout, partition, maps, state):
    parts = []
    for tokens, blocks in zip(layout.split(state), maps, strict=True):
        if blocks is None:
            continue
        outputs = []
        for phase in partition.labels:
            affine = blocks[phase]
            tokens = jnp.matmul(tokens - affine.mean_x, affine.transposed[0], precision="highest") + affine.mean_y[0]
            outputs.append(tokens)
        parts.append(jnp.stack(outputs))
    return jnp.concatenate([state[None], jnp.concatenate(parts, axis=-2)])
