"""How well a trajectory is reproduced: pooled R², cosine and e of the hypothesis, per layer and token type."""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.errors import UserError
from brh_jax.models.encoder import pooled_features
from brh_jax.tokens import ByToken, TokenLayout
from brh_jax.train.parallel import to_host
from brh_jax.vectors import cosine_distance, directed


class ImageErrors(NamedTuple):
    """e of every image at a_1 ... a_L, `[depth, images]` each, `[0, images]` for token types that are not there.

    `jax.tree.map(dynamics.summarize, errors)` gives means and their intervals over images.

    Attributes:
        error: Frobenius norm of the difference to the true state, per token type.
        relative_error: that norm divided by the true state's.
        error_all, relative_error_all: the same over all tokens of a state.
    """

    error: ByToken
    relative_error: ByToken
    error_all: np.ndarray
    relative_error_all: np.ndarray


class TrajectoryFit(NamedTuple):
    """Agreement with the teacher at a_1 ... a_L. Fields ByToken hold `[depth]` each, empty for types that are not there.

    Attributes:
        r2: 1 - (residual sum of squares) / (sum of squares about the mean state of the type), pooled over all images and
            tokens. Where a token hardly varies between images it can lie far below zero at a cosine near one: read both.
        cosine: mean cosine of predicted and true tokens.
        error: e of the hypothesis, mean over images of the Frobenius norm of the difference.
        relative_error: mean over images of that norm divided by the true state's.
        error_all, relative_error_all: the same over all tokens of a state, `[depth]`.
        final_cosine: mean cosine of [cls, mean patch] after the final norm.
        num_images: how many images were measured.
        images: e of each of them.
    """

    r2: ByToken
    cosine: ByToken
    error: ByToken
    relative_error: ByToken
    error_all: np.ndarray
    relative_error_all: np.ndarray
    final_cosine: float
    num_images: int
    images: ImageErrors


def evaluate(
    teacher_states: Callable,
    predictors: dict[str, Callable],
    normalize: Callable,
    batches: Iterable,
    layout: TokenLayout,
) -> dict[str, TrajectoryFit]:
    """Measures several predictions of one teacher's trajectories in one pass.

    Args:
        teacher_states: uint8 images -> trajectory `[depth + 1, batch, tokens, dim]`.
        predictors: name -> function from a_0 to a trajectory. `repeat_state` is the identity baseline.
        normalize: states -> states after the final norm.
        batches: from `measuring_batches`.

    Raises:
        UserError: no images.
    """
    totals = {name: None for name in predictors}
    errors = {name: [] for name in predictors}
    for batch in batches:
        states = teacher_states(batch["image"])
        for name, predict in predictors.items():
            predicted = predict(states[0])
            found, each = to_host(_statistics(states, predicted, batch["valid"], layout))
            errors[name].append(jax.tree.map(lambda values, valid=batch["valid"]: values[:, valid], each))
            final = _final_cosine(normalize(states[-1]), normalize(predicted[-1]), layout)
            found["final"] = to_host(final).astype(np.float64)[batch["valid"]].sum()
            totals[name] = found if totals[name] is None else _merge(totals[name], found)
    if any(t is None for t in totals.values()):
        raise UserError("no images to evaluate on")
    return {name: _fit(total, errors[name]) for name, total in totals.items()}


def repeat_state(depth: int) -> Callable:
    """The identity baseline: a_0 at every depth."""
    return lambda state: jnp.broadcast_to(state, (depth + 1, *state.shape))


@functools.partial(jax.jit, static_argnames="layout")
def _statistics(states, predicted, valid, layout) -> tuple[dict, ImageErrors]:
    """Sums over a batch per token type: counts, mean state, squares about it, residual squares, cosines; and e of each image."""
    weight = valid.astype(states.dtype)
    images = weight.sum()

    def total(per_image):  # [layers, batch] -> [layers]
        return jnp.sum(per_image * weight, axis=-1)

    types, residuals, squares = [], [], []  # the last two [layers, batch] for each type
    for target, guess in zip(layout.split(states[1:]), layout.split(predicted[1:]), strict=True):
        if not target.shape[-2]:
            types.append(None)
            residuals.append(jnp.zeros((0, len(valid))))
            squares.append(jnp.zeros((0, len(valid))))
            continue
        count = images * target.shape[-2]
        mean = jnp.einsum("lbtd,b->ld", target, weight, precision="highest") / count
        centred = jnp.einsum("lbtd,b->ld", jnp.square(target - mean[:, None, None]), weight, precision="highest")
        residuals.append(jnp.sum(jnp.square(target - guess), axis=(2, 3)))
        squares.append(jnp.sum(jnp.square(target), axis=(2, 3)))
        cosine = jnp.mean(_cosine(target, guess), axis=-1)
        sums = {"count": count, "mean": mean, "centred": centred, "residual": total(residuals[-1]), "cosine": total(cosine)}
        types.append(sums)

    def relative(residual, square):
        return jnp.sqrt(residual / jnp.maximum(square, 1e-30))

    all_residuals, all_squares = (sum(part for part in parts if len(part)) for parts in (residuals, squares))
    errors = ImageErrors(
        error=ByToken(*map(jnp.sqrt, residuals)),
        relative_error=ByToken(*map(relative, residuals, squares)),
        error_all=jnp.sqrt(all_residuals),
        relative_error_all=relative(all_residuals, all_squares),
    )
    return {"images": images, "types": types}, errors


@functools.partial(jax.jit, static_argnames="layout")
def _final_cosine(target, predicted, layout):
    a, b = pooled_features(target, layout), pooled_features(predicted, layout)
    return _cosine(a, b)


def _cosine(a, b):
    """Zero where one of the vectors is."""
    return jnp.where(directed(a) & directed(b), 1 - cosine_distance(a, b), 0)


def _merge(a, b):
    """Sums of two batches in float64; squares about the mean by the pairwise update of Chan et al. (1979)."""

    def add(x, y):
        return np.asarray(x, np.float64) + np.asarray(y, np.float64)

    out = {key: add(a[key], b[key]) for key in ("images", "final")} | {"types": []}
    for x, y in zip(a["types"], b["types"], strict=True):
        if x is None:
            out["types"].append(None)
            continue
        merged = {key: add(x[key], y[key]) for key in x}
        shift = np.asarray(y["mean"], np.float64) - x["mean"]
        merged["mean"] = x["mean"] + shift * (y["count"] / merged["count"])
        merged["centred"] += np.square(shift) * (np.float64(x["count"]) * y["count"] / merged["count"])
        out["types"].append(merged)
    return out


def _fit(total, errors: list[ImageErrors]) -> TrajectoryFit:
    images = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *errors)
    means = jax.tree.map(lambda values: values.mean(-1, dtype=np.float64), images)
    count = float(total["images"])

    def by_token(value):
        return ByToken(*(np.zeros(0) if t is None else np.asarray(value(t), np.float64) for t in total["types"]))

    return TrajectoryFit(
        r2=by_token(lambda t: 1.0 - t["residual"] / np.maximum(t["centred"].sum(-1), 1e-30)),
        cosine=by_token(lambda t: t["cosine"] / count),
        **means._asdict(),
        final_cosine=float(total["final"] / count),
        num_images=round(count),
        images=images,
    )
