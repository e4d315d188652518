"""How well a trajectory is reproduced: pooled R², cosine and e of the hypothesis, per layer and token type."""

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.errors import UserError, expect
from brh_jax.models.encoder import pooled_features
from brh_jax.models.head import apply_head
from brh_jax.readable import readable
from brh_jax.tokens import ByToken, TokenLayout
from brh_jax.train.parallel import to_host
from brh_jax.vectors import cosine_distance, directed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@readable(relative_error="of the norm", relative_error_all="of the norm")
class ImageErrors(NamedTuple):
    """e of every image at a_1 ... a_L, `[depth, images]` each, `[0, images]` for token types that are not there.

    `jax.tree.map(functools.partial(dynamics.summarize, groups=fit.photographs), errors)` gives means and their intervals.

    Attributes:
        error: Frobenius norm of the difference to the true state, per token type.
        relative_error: that norm divided by the true state's.
        error_all, relative_error_all: the same over all tokens of a state.
    """

    error: ByToken
    relative_error: ByToken
    error_all: np.ndarray
    relative_error_all: np.ndarray


@readable(
    r2="R²",
    r2_all="R²",
    r2_one_mean="R²",
    cosine="cosine",
    relative_error="of the norm",
    relative_error_all="of the norm",
    final_cosine="cosine",
    accuracy="share of images",
    same_class="share of images",
)
class TrajectoryFit(NamedTuple):
    """Agreement with the teacher at a_1 ... a_L. Fields ByToken hold `[depth]` each, empty for types that are not there.

    Attributes:
        r2: 1 - (residual sum of squares) / (sum of squares about the mean state of the type), pooled over all images and
            tokens. Where a token hardly varies between images it can lie far below zero at a cosine near one: read both.
        r2_all: the same of all tokens together, about one mean state for all of them, `[depth]`.
        r2_one_mean: what the paper's authors report of their training: of the last layer, 1 - (mean squared error) / (variance of
            all numbers of the prediction about their one mean), of each batch, mean over images. Tokens that differ among
            themselves, and dimensions of different mean, count as variance: it lies above `r2_all`, and is no share of what
                images
            differ by. It depends on the batches, hardly.
        cosine: mean cosine of predicted and true tokens.
        error: e of the hypothesis, mean over images of the Frobenius norm of the difference.
        relative_error: mean over images of that norm divided by the true state's.
        error_all, relative_error_all: the same over all tokens of a state, `[depth]`.
        final_cosine: mean cosine of [cls, mean patch] after the final norm.
        accuracy: share of the labelled images whose class a classifier gives on the predicted last state; None without one.
        same_class: share of images to which it gives the class that it gives on the true one.
        num_images: how many images were measured.
        photographs: number of the photograph that each image is a view of, `[images]`: what intervals over images draw.
        images: e of each of them.
    """

    r2: ByToken
    r2_all: np.ndarray
    r2_one_mean: float
    cosine: ByToken
    error: ByToken
    relative_error: ByToken
    error_all: np.ndarray
    relative_error_all: np.ndarray
    final_cosine: float
    accuracy: float | None
    same_class: float | None
    num_images: int
    photographs: np.ndarray
    images: ImageErrors

    def plot(self, measure: str = "r2", label: str = "Raptor") -> "Figure":
        """A measure layer by layer, one panel per token type; values below -1 are triangles on the axis.

        Args:
            measure: r2 or cosine.
            label: of the line.

        Raises:
            UserError: another measure.
        """
        from brh_jax.report.agreement import per_layer
        from brh_jax.report.style import colour

        names = {"r2": "R²", "cosine": "cosine"}
        expect(measure in names, "measure", measure, "r2 or cosine")
        found = {token: values for token, values in getattr(self, measure)._asdict().items() if len(values)}
        return per_layer({label: found}, {label: {"color": colour(0), "lw": 1.8, "label": label}}, names[measure], -1.0)


def evaluate(
    teacher_states: Callable,
    predictors: dict[str, Callable],
    normalize: Callable,
    batches: Iterable,
    layout: TokenLayout,
    *,
    head: dict[str, Any] | None = None,
) -> dict[str, TrajectoryFit]:
    """Measures several predictions of one teacher's trajectories in one pass.

    Args:
        teacher_states: uint8 images -> trajectory `[depth + 1, batch, tokens, dim]`.
        predictors: name -> function from a_0 to a trajectory. `repeat_state` is the identity baseline.
        normalize: states -> states after the final norm.
        batches: from `measuring_batches`; without `photograph` each image is its own.
        head: a classifier on [cls, mean patch], whose classes are those of the batches' `label`.

    Raises:
        UserError: no images.
    """
    photographs: list[np.ndarray] = []
    totals = {name: None for name in predictors}
    errors = {name: [] for name in predictors}
    for batch in batches:
        states = teacher_states(batch["image"])
        own = batch.get("photograph", sum(map(len, photographs)) + np.arange(len(batch["valid"])))
        photographs.append(np.asarray(own)[batch["valid"]])
        for name, predict in predictors.items():
            predicted = predict(states[0])
            found, each = to_host(_statistics(states, predicted, batch["valid"], layout))
            errors[name].append(jax.tree.map(lambda values, valid=batch["valid"]: values[:, valid], each))
            final, *classes = to_host(_final(normalize(states[-1]), normalize(predicted[-1]), head, layout))
            found["final"] = final.astype(np.float64)[batch["valid"]].sum()
            found["classes"] = _class_counts(classes, batch)
            totals[name] = found if totals[name] is None else _merge(totals[name], found)
    if any(t is None for t in totals.values()):
        raise UserError("no images to evaluate on")
    return {name: _fit(total, errors[name], np.concatenate(photographs)) for name, total in totals.items()}


def repeat_state(depth: int) -> Callable:
    """The identity baseline: a_0 at every depth."""
    return lambda state: jnp.broadcast_to(state, (depth + 1, *state.shape))


@functools.partial(jax.jit, static_argnames="layout")
def _statistics(states, predicted, valid, layout) -> tuple[dict, ImageErrors]:
    """Sums over a batch per token type, and of all tokens together as the last: counts, mean state, squares about it, residual
    squares, cosines; and e of each image."""
    weight = valid.astype(states.dtype)
    images = weight.sum()

    def total(per_image):  # [layers, batch] -> [layers]
        return jnp.sum(per_image * weight, axis=-1)

    types, residuals, squares = [], [], []  # the last two [layers, batch] for each type
    for target, guess in zip(*((*layout.split(whole[1:]), whole[1:]) for whole in (states, predicted)), strict=True):
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

    roots, relatives = [jnp.sqrt(each) for each in residuals], list(map(relative, residuals, squares))
    errors = ImageErrors(ByToken(*roots[:3]), ByToken(*relatives[:3]), roots[3], relatives[3])
    last, mean_square = predicted[-1], types[-1]["residual"][-1] / (images * predicted[-1, 0].size)
    variance = _variance(last, weight / (images * last[0].size))
    return {"images": images, "types": types, "one_mean": images * (1 - mean_square / (variance + 1e-6))}, errors


def _variance(values, weight):
    """Of all numbers in `[batch, ...]` about their one mean; the weight of a number is its image's."""
    mean = jnp.einsum("btd,b->", values, weight, precision="highest")
    return jnp.einsum("btd,b->", jnp.square(values - mean), weight, precision="highest")


@functools.partial(jax.jit, static_argnames="layout")
def _final(target, predicted, head, layout) -> tuple:
    """Cosine of [cls, mean patch] of each image, and the class that a head gives on either."""
    a, b = pooled_features(target, layout), pooled_features(predicted, layout)
    cosine = _cosine(a, b)
    return (cosine,) if head is None else (cosine, *(jnp.argmax(apply_head(head, features), -1) for features in (a, b)))


def _class_counts(classes, batch) -> np.ndarray:
    """How many images have a label, how many of these are right, how many have the class of the true state."""
    if not classes:
        return np.zeros(3)
    target, predicted = (one[batch["valid"]] for one in classes)
    labels = np.asarray(batch["label"])[batch["valid"]]
    return np.array([(labels >= 0).sum(), (predicted == labels).sum(), (predicted == target).sum()], np.float64)


def _cosine(a, b):
    """Zero where one of the vectors is."""
    return jnp.where(directed(a) & directed(b), 1 - cosine_distance(a, b), 0)


def _merge(a, b):
    """Sums of two batches in float64; squares about the mean by the pairwise update of Chan et al. (1979)."""

    def add(x, y):
        return np.asarray(x, np.float64) + np.asarray(y, np.float64)

    out = {key: add(a[key], b[key]) for key in ("images", "final", "one_mean", "classes")} | {"types": []}
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


def _fit(total, errors: list[ImageErrors], photographs: np.ndarray) -> TrajectoryFit:
    images = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *errors)
    means = jax.tree.map(lambda values: values.mean(-1, dtype=np.float64), images)
    count = float(total["images"])

    *types, everything = total["types"]
    labelled, right, same = total["classes"]

    def by_token(value):
        return ByToken(*(np.zeros(0) if t is None else np.asarray(value(t), np.float64) for t in types))

    def r2(t):
        return 1.0 - t["residual"] / np.maximum(t["centred"].sum(-1), 1e-30)

    return TrajectoryFit(
        r2=by_token(r2),
        r2_all=np.asarray(r2(everything), np.float64),
        r2_one_mean=float(total["one_mean"] / count),
        cosine=by_token(lambda t: t["cosine"] / count),
        **means._asdict(),
        final_cosine=float(total["final"] / count),
        accuracy=float(right / labelled) if labelled else None,
        same_class=float(same / count) if labelled else None,
        num_images=round(count),
        photographs=photographs,
        images=images,
    )
