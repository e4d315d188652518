"""How well a trajectory is reproduced: pooled R², cosine and e of the hypothesis, per layer and token type."""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.errors import UserError
from brh_jax.models.encoder import pooled_features
from brh_jax.parallel import to_host
from brh_jax.tokens import ByToken, TokenLayout


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
    """

    r2: ByToken
    cosine: ByToken
    error: ByToken
    relative_error: ByToken
    error_all: np.ndarray
    relative_error_all: np.ndarray
    final_cosine: float
    num_images: int


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
        ValueError: no images.
    """
    totals = {name: None for name in predictors}
    for batch in batches:
        states = teacher_states(batch["image"])
        for name, predict in predictors.items():
            predicted = predict(states[0])
            found = to_host(_statistics(states, predicted, batch["valid"], layout))
            final = _final_cosine(normalize(states[-1]), normalize(predicted[-1]), layout)
            found["final"] = to_host(final).astype(np.float64)[batch["valid"]].sum()
            totals[name] = found if totals[name] is None else _merge(totals[name], found)
    if any(t is None for t in totals.values()):
        raise UserError("no images to evaluate on")
    return {name: _fit(total) for name, total in totals.items()}


def repeat_state(depth: int) -> Callable:
    """The identity baseline: a_0 at every depth."""
    return lambda state: jnp.broadcast_to(state, (depth + 1, *state.shape))


@functools.partial(jax.jit, static_argnames="layout")
def _statistics(states, predicted, valid, layout):
    """Sums over a batch, per token type: counts, mean state, squares about it, residual squares, cosines, norms."""
    weight = valid.astype(states.dtype)
    images = weight.sum()

    def total(per_image):  # [layers, batch] -> [layers]
        return jnp.sum(per_image * weight, axis=-1)

    out = {"images": images, "types": []}
    squares = jnp.zeros(())
    target_squares = jnp.zeros(())
    for target, guess in zip(layout.split(states[1:]), layout.split(predicted[1:]), strict=True):
        if not target.shape[-2]:
            out["types"].append(None)
            continue
        difference = target - guess
        count = images * target.shape[-2]
        mean = jnp.einsum("lbtd,b->ld", target, weight, precision="highest") / count
        centred = jnp.einsum("lbtd,b->ld", jnp.square(target - mean[:, None, None]), weight, precision="highest")
        residual = jnp.sum(jnp.square(difference), axis=(2, 3))
        true = jnp.sum(jnp.square(target), axis=(2, 3))
        norms = jnp.linalg.norm(target, axis=-1) * jnp.linalg.norm(guess, axis=-1)
        cosine = jnp.mean(jnp.sum(target * guess, axis=-1) / jnp.maximum(norms, 1e-30), axis=-1)
        squares, target_squares = squares + residual, target_squares + true
        out["types"].append(
            {
                "count": count,
                "mean": mean,
                "centred": centred,
                "residual": total(residual),
                "cosine": total(cosine),
                "error": total(jnp.sqrt(residual)),
                "relative": total(jnp.sqrt(residual / jnp.maximum(true, 1e-30))),
            }
        )
    out["error"] = total(jnp.sqrt(squares))
    out["relative"] = total(jnp.sqrt(squares / jnp.maximum(target_squares, 1e-30)))
    return out


@functools.partial(jax.jit, static_argnames="layout")
def _final_cosine(target, predicted, layout):
    a, b = pooled_features(target, layout), pooled_features(predicted, layout)
    return jnp.sum(a * b, -1) / jnp.maximum(jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1), 1e-30)


def _merge(a, b):
    """Sums of two batches in float64; squares about the mean by the pairwise update of Chan et al. (1979)."""

    def add(x, y):
        return np.asarray(x, np.float64) + np.asarray(y, np.float64)

    out = {key: add(a[key], b[key]) for key in ("images", "error", "relative", "final")} | {"types": []}
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


def _fit(total) -> TrajectoryFit:
    images = float(total["images"])

    def by_token(value):
        return ByToken(*(np.zeros(0) if t is None else np.asarray(value(t), np.float64) for t in total["types"]))

    return TrajectoryFit(
        r2=by_token(lambda t: 1.0 - t["residual"] / np.maximum(t["centred"].sum(-1), 1e-30)),
        cosine=by_token(lambda t: t["cosine"] / images),
        error=by_token(lambda t: t["error"] / images),
        relative_error=by_token(lambda t: t["relative"] / images),
        error_all=np.asarray(total["error"], np.float64) / images,
        relative_error_all=np.asarray(total["relative"], np.float64) / images,
        final_cosine=float(total["final"] / images),
        num_images=round(images),
    )
