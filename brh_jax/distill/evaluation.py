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
from brh_jax.types import Array
from brh_jax.vectors import cosine_distance, directed, length

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


class Classes(NamedTuple):
    """The class of every image that a classifier gives on the last state, `[images]` each.

    Attributes:
        label: the image's own; -1 where it has none, or none that the classifier knows.
        true: given on the true state.
        predicted: given on the predicted state.
    """

    label: np.ndarray
    true: np.ndarray
    predicted: np.ndarray

    @property
    def labelled(self) -> np.ndarray:
        """Which images have a label, `[images]`."""
        return self.label >= 0

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled images that are given their own class on the predicted state; None without labels."""
        return self._right(self.predicted)

    @property
    def true_accuracy(self) -> float | None:
        """The same on the true state: what the teacher reaches."""
        return self._right(self.true)

    @property
    def agreement(self) -> float:
        """Share of all images that are given the same class on both states."""
        return float(np.mean(self.predicted == self.true))

    def _right(self, given: np.ndarray) -> float | None:
        right = (given == self.label)[self.labelled]
        return float(right.mean()) if len(right) else None


@readable(
    r2="R²",
    r2_all="R²",
    r2_one_mean="R²",
    cosine="cosine",
    relative_error="of the norm",
    relative_error_all="of the norm",
    final_cosine="cosine",
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
            images differ by. It depends on the batches, hardly.
        cosine: mean cosine of predicted and true tokens.
        error: e of the hypothesis, mean over images of the Frobenius norm of the difference.
        relative_error: mean over images of that norm divided by the true state's.
        error_all, relative_error_all: the same over all tokens of a state, `[depth]`.
        final_cosine: mean cosine of [cls, mean patch] after the final norm.
        classes: what a classifier gives on either last state; None without one.
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
    classes: Classes | None
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
    labelled: bool = True,
) -> dict[str, TrajectoryFit]:
    """Measures several predictions of one teacher's trajectories in one pass.

    Args:
        teacher_states: uint8 images -> trajectory `[depth + 1, batch, tokens, dim]`.
        predictors: name -> function from a_0 to a trajectory. `repeat_state` is the identity baseline.
        normalize: states -> states after the final norm.
        batches: from `measuring_batches`; without `photograph` each image is its own.
        head: a classifier on [cls, mean patch].
        labelled: whether its outputs are the classes of the batches' `label`; without, only whether it decides alike is measured.

    Raises:
        UserError: no images.
    """
    photographs: list[np.ndarray] = []
    totals: dict[str, dict[str, Any]] = {}
    errors: dict[str, list[ImageErrors]] = {name: [] for name in predictors}
    classes: dict[str, list[Classes | None]] = {name: [] for name in predictors}
    for batch in batches:
        states, valid = teacher_states(batch["image"]), batch["valid"]
        own = batch.get("photograph", sum(map(len, photographs)) + np.arange(len(valid)))
        photographs.append(np.asarray(own)[valid])
        for name, predict in predictors.items():
            predicted = predict(states[0])
            measured = to_host(_statistics(states, predicted, valid, layout))
            final, *given = to_host(_final(normalize(states[-1]), normalize(predicted[-1]), head, layout))
            errors[name].append(jax.tree.map(lambda values, valid=valid: values[:, valid], measured.errors))
            found = _sums(measured, valid, predicted[-1, 0].size)
            found["final"] = final.astype(np.float64)[valid].sum()
            classes[name].append(_classes(given, batch, labelled))
            totals[name] = _merge(totals[name], found) if name in totals else found
    if not photographs:
        raise UserError("no images to evaluate on")
    views = np.concatenate(photographs)
    return {name: _fit(total, errors[name], classes[name], views) for name, total in totals.items()}


def repeat_state(depth: int) -> Callable:
    """The identity baseline: a_0 at every depth."""
    return lambda state: jnp.broadcast_to(state, (depth + 1, *state.shape))


class _Statistics(NamedTuple):
    """What is summed over a batch of one prediction, lengths rather than their squares: those of large states overflow float32.

    Attributes:
        types: per token type, and of all tokens together as the last, None for types that are not there: number of valid tokens,
            mean state `[layers, dim]`, length of each image's deviation from it and sum of its cosines `[layers, batch]`.
        errors: e of each image.
        spread: length of the deviation of each image's predicted last state from the mean of all its numbers, `[batch]`.
    """

    types: list[dict[str, Array] | None]
    errors: ImageErrors
    spread: Array


@functools.partial(jax.jit, static_argnames="layout")
def _statistics(states, predicted, valid, layout) -> _Statistics:
    weight = valid.astype(states.dtype)
    images = weight.sum()
    weight /= images
    types: list[dict[str, Array] | None] = []
    errors: list[Array] = []  # [layers, batch] for each type, as sizes
    sizes: list[Array] = []
    for target, guess in zip(*((*layout.split(whole[1:]), whole[1:]) for whole in (states, predicted)), strict=True):
        if not (tokens := target.shape[-2]):
            types.append(None)
            errors.append(jnp.zeros((0, len(valid))))
            sizes.append(jnp.zeros((0, len(valid))))
            continue
        mean = jnp.einsum("lbtd,b->ld", target, weight / tokens, precision="highest")
        deviation = length(target - mean[:, None, None], axis=(2, 3))
        cosine = jnp.mean(_cosine(target, guess), axis=-1)
        types.append({"count": images * tokens, "mean": mean, "deviation": deviation, "cosine": cosine})
        errors.append(length(target - guess, axis=(2, 3)))
        sizes.append(length(target, axis=(2, 3)))
    relatives = [error / jnp.maximum(size, 1e-15) for error, size in zip(errors, sizes, strict=True)]
    last = predicted[-1]
    centre = jnp.einsum("btd,b->", last, weight / last[0].size, precision="highest")
    spread = length(last - centre, axis=(1, 2))
    by_type = (ByToken(*errors[:3]), ByToken(*relatives[:3]), errors[3], relatives[3])
    return _Statistics(types, ImageErrors._make(by_type), spread)


def _sums(measured: _Statistics, valid: np.ndarray, size: int) -> dict[str, Any]:
    """Sums over the valid images of a batch, in float64: per token type counts, mean state, squares about it, residual squares,
    cosines; R² about one mean times the images.

    Args:
        size: numbers of a state.
    """

    def total(per_image: Array, power: int = 1) -> Any:  # [..., batch] -> [...]
        return np.sum(np.asarray(per_image, np.float64)[..., valid] ** power, axis=-1)

    types = [
        t
        and {
            "count": t["count"],
            "mean": t["mean"],
            "centred": total(t["deviation"], 2),
            "residual": total(error, 2),
            "cosine": total(t["cosine"]),
        }
        for t, error in zip(measured.types, (*measured.errors.error, measured.errors.error_all), strict=True)
    ]
    images = valid.sum()
    squares, variance = (total(of, 2) / (images * size) for of in (measured.errors.error_all[-1], measured.spread))
    return {"images": images, "types": types, "one_mean": images * (1 - squares / (variance + 1e-6))}


@functools.partial(jax.jit, static_argnames="layout")
def _final(target, predicted, head, layout) -> tuple:
    """Cosine of [cls, mean patch] of each image, and the class that a head gives on either."""
    a, b = pooled_features(target, layout), pooled_features(predicted, layout)
    cosine = _cosine(a, b)
    return (cosine,) if head is None else (cosine, *(jnp.argmax(apply_head(head, features), -1) for features in (a, b)))


def _classes(given, batch, labelled: bool) -> Classes | None:
    """The classes of the images of a batch that count; None where no classifier gave any."""
    if not given:
        return None
    true, predicted = (one[batch["valid"]] for one in given)
    label = np.asarray(batch["label"])[batch["valid"]] if labelled else np.full(len(true), -1)
    return Classes(label, true, predicted)


def _cosine(a, b):
    """Zero where one of the vectors is."""
    return jnp.where(directed(a) & directed(b), 1 - cosine_distance(a, b), 0)


def _merge(a, b):
    """Sums of two batches in float64; squares about the mean by the pairwise update of Chan et al. (1979)."""

    def add(x, y):
        return np.asarray(x, np.float64) + np.asarray(y, np.float64)

    out = {key: add(a[key], b[key]) for key in ("images", "final", "one_mean")} | {"types": []}
    for x, y in zip(a["types"], b["types"], strict=True):
        if x is None:
            out["types"].append(None)
            continue
        merged = {key: add(x[key], y[key]) for key in x}
        shift = np.asarray(y["mean"], np.float64) - x["mean"]
        merged["mean"] = x["mean"] + shift * (y["count"] / merged["count"])
        merged["centred"] += np.square(shift).sum(-1) * (np.float64(x["count"]) * y["count"] / merged["count"])
        out["types"].append(merged)
    return out


def _fit(total, errors: list[ImageErrors], classes: list[Classes | None], photographs: np.ndarray) -> TrajectoryFit:
    images, given = (jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *one) for one in (errors, classes))
    means = jax.tree.map(lambda values: values.mean(-1, dtype=np.float64), images)
    count = float(total["images"])

    *types, everything = total["types"]

    def by_token(value):
        return ByToken(*(np.zeros(0) if t is None else np.asarray(value(t), np.float64) for t in types))

    def r2(t):
        return 1.0 - t["residual"] / np.maximum(t["centred"], 1e-30)

    return TrajectoryFit(
        r2=by_token(r2),
        r2_all=np.asarray(r2(everything), np.float64),
        r2_one_mean=float(total["one_mean"] / count),
        cosine=by_token(lambda t: t["cosine"] / count),
        **means._asdict(),
        final_cosine=float(total["final"] / count),
        classes=given,
        num_images=round(count),
        photographs=photographs,
        images=images,
    )
