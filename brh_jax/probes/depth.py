"""Linear depth on patch and class tokens of a frozen encoder (paper, section 9)."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from brh_jax.data.transforms import RandomCrop, RandomResizedCrop, Transform
from brh_jax.errors import UserError, expect, expect_not_negative, expect_one_of, expect_positive
from brh_jax.models.encoder import Encoder
from brh_jax.models.head import apply_head, zero_head
from brh_jax.probes.dense import enlarge, pad_amounts, pad_target, token_maps, unpad
from brh_jax.probes.heads import bootstrap_interval, train_head
from brh_jax.train.loop import AdamwSettings, Run
from brh_jax.train.parallel import to_host
from brh_jax.types import Array, Pixels

UPSAMPLED = 4  # the head's map is so many times as fine as the patches
# How a probe trains. "paper": as the authors' code does, a variance of log(x + 1e-3) as the loss, a constant learning rate, no
# clipping.
# "ours": the root of it, of log(x), as BTS has it (Lee et al. 2019), with the classification probe's warm-up, cosine and
# clipping.
RECIPES = ("paper", "ours")
_OFFSET = 1e-3  # metres, in the paper's logarithm


@dataclasses.dataclass(frozen=True)
class DepthSettings(AdamwSettings):
    """How a depth probe trains and is measured; the defaults are the paper's for NYUv2, on about 50,000 images.

    `learning_rate` and `weight_decay` are of both recipes; `final_learning_rate`, `warmup_steps` and `clip_norm` of "ours" alone:
    the paper's rate is constant, and nothing is clipped.

    Attributes:
        recipe: "paper", as the authors' code trains, or "ours", see RECIPES.
        epochs: passes over the training set.
        batch_size: images of a step.
        min_depth, max_depth: the range in metres; ground truth out of it is no measurement.
        num_bins: bins of equal width that the range is cut into.
        variance_focus: of the scale-invariant loss.
        silog_weight: weight of that loss beside the cross-entropy.
        crop_size: (height, width) of training crops in pixels.
        crop_scale: of the recipe "paper", smallest and largest share of an image's area that a crop is stretched from, in the
            shape of crop_size; a share above one is drawn again. Crops of "ours" keep the image's scale, since depth is metric.
        jitter: of brightness, contrast and saturation, see `brh_jax.data.transforms.jittered`.
        hue: of the recipe "paper", how far hues are turned, as a share of the circle.
        eval_size: (height, width) that images and ground truth are measured at, stretched where they have another size.
        eval_crop: first and last row, first and last column that count (Eigen's crop), ends excluded; () for the whole image.
    """

    recipe: str = "paper"
    min_depth: float = 0.001
    max_depth: float = 10.0
    num_bins: int = 256
    variance_focus: float = 0.85
    silog_weight: float = 10.0
    crop_size: tuple[int, int] = (420, 560)
    crop_scale: tuple[float, float] = (0.5, 2.0)
    jitter: float = 0.2
    hue: float = 0.1
    eval_size: tuple[int, int] = (480, 640)
    eval_crop: tuple[int, ...] = (45, 471, 41, 601)
    epochs: int = 25
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        expect_positive(self, "epochs", "batch_size")
        expect_one_of(self, "recipe", RECIPES)
        expect_not_negative(self, "jitter", "hue")
        expect(self.hue <= 0.5, "hue", self.hue, "a share of the circle, at most 0.5")
        scale = self.crop_scale
        rising = len(scale) == 2 and 0 < scale[0] <= min(scale[1], 1)
        expect(rising, "crop_scale", self.crop_scale, "two positive shares, the smaller one first and at most 1")
        for field in ("crop_size", "crop_scale", "eval_size", "eval_crop"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field in ("crop_size", "eval_size"):
            size = getattr(self, field)
            expect(len(size) == 2 and min(size) > 0, field, size, "(height, width) in pixels")
        for field in ("variance_focus", "jitter"):
            expect(0 <= getattr(self, field) <= 1, field, getattr(self, field), "a share, from 0 to 1")
        expect_not_negative(self, "silog_weight")
        if not 0 <= self.min_depth < self.max_depth or self.num_bins < 2:
            raise UserError(
                f"{self.num_bins} bins on {self.min_depth} to {self.max_depth} m: expected two bins or more on a range that rises"
            )
        if self.eval_crop:
            rows, columns = self.eval_crop[:2], self.eval_crop[2:]
            if len(columns) != 2 or not all(
                0 <= first < last <= size for (first, last), size in zip((rows, columns), self.eval_size, strict=True)
            ):
                raise UserError(
                    f"eval_crop is {tuple(self.eval_crop)}: it does not lie in images of {tuple(self.eval_size)}, expected "
                    "(first row, last row, first column, last column), or () for the whole image"
                )

    def crop(self) -> Transform:
        """What training sees of an image and its depth."""
        if self.recipe == "ours":
            return RandomCrop(self.crop_size, jitter=self.jitter)
        height, width = self.crop_size
        ratio = (width / height,) * 2
        options: dict[str, Any] = {"interpolation": "bilinear", "jitter": self.jitter, "hue": self.hue}
        return RandomResizedCrop(self.crop_size, self.crop_scale, ratio, **options)

    @property
    def centres(self) -> np.ndarray:
        """Middle of every bin in metres, `[bins]`."""
        edges = np.linspace(self.min_depth, self.max_depth, self.num_bins + 1)
        return ((edges[1:] + edges[:-1]) / 2).astype(np.float32)

    def valid(self, depth: Array) -> Array:
        """Whether ground truth is a measurement within the range, its ends included."""
        return (depth > 0) & (depth >= self.min_depth) & (depth <= self.max_depth)


class DepthScores(NamedTuple):
    """Agreement of predicted depth with the truth.

    Attributes:
        rmse: root of the mean squared error in metres over all images' valid pixels together (Eigen et al. 2014; the paper).
        low, high: its 95 % bootstrap interval.
        rmse_per_image: the same of each image, mean over images (as BTS, AdaBins and DINOv2 report it): another statistic, never
            above the pooled one where images have as many pixels each.
        per_image_low, per_image_high: its interval.
        abs_rel: mean of |error| / truth, mean over images.
        delta1: share of pixels with max(prediction / truth, truth / prediction) < 1.25, mean over images.
        num_images: how many were measured.
        num_without: how many more had no valid ground truth.
    """

    rmse: float
    low: float
    high: float
    rmse_per_image: float
    per_image_low: float
    per_image_high: float
    abs_rel: float
    delta1: float
    num_images: int
    num_without: int


def train_depth(
    encoder: Encoder, batches: Any, num_steps: int, settings: DepthSettings, run: Run, *, batch_size: int
) -> dict[str, Any]:
    """Trains [LN(patch), LN(cls)] -> bins of depth on silog_weight * SI-log + cross-entropy.

    Either recipe's cross-entropy is that of the bin of valid pixels only. (The authors build bins with 255 as the value to ignore
    and train with 256, so that pixels without a measurement are trained as the deepest bin.) It is taken on the head's own map,
    the ground truth of which is the nearest pixel's; the scale-invariant loss at the size of the image.

    Args:
        batches: of `image` uint8 and `target`, depth in metres of that size, 0 for no measurement.
        batch_size: of all processes together.

    Returns:
        The head {"kernel": [features, bins], "bias": [bins]}.
    """

    def loss_fn(head, encoder, batch):
        amounts = pad_amounts(encoder, *batch["target"].shape[1:])
        target = pad_target(batch["target"], amounts, 0)
        logits = bin_logits(encoder, head, batch["image"])
        predicted = enlarge(expected_depth(logits, settings), *target.shape[1:])
        silog = scale_invariant_log(predicted, target, settings)
        return settings.silog_weight * silog + bin_cross_entropy(logits, target, settings)

    head = zero_head(encoder.dim * (2 if encoder.layout.num_cls else 1), settings.num_bins)
    constant = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay) if settings.recipe == "paper" else None
    options: dict[str, Any] = {"batch_size": batch_size, "encoder": encoder, "optimiser": constant}
    return train_head(loss_fn, head, batches, num_steps, settings, run, **options)[0]


def bin_logits(encoder: Encoder, head: dict[str, Any], images: Pixels) -> jax.Array:
    """Logits of the bins on a map four times as fine as the patches, `[batch, 4 rows, 4 columns, bins]`; inside jit.

    The head is linear and the weights of the interpolation sum to one: it is applied before the upsampling, which is then of
    `bins` numbers rather than of two tokens.
    """
    patches, cls = token_maps(encoder, images)
    if cls.shape[1]:
        everywhere = jnp.broadcast_to(cls[:, None, None, 0], patches.shape)
        patches = jnp.concatenate([patches, everywhere], -1)
    rows, columns = patches.shape[1:3]
    return enlarge(apply_head(head, patches), UPSAMPLED * rows, UPSAMPLED * columns)


def expected_depth(logits: Array, settings: DepthSettings):
    """Mean of the bins' centres under the softmax, `[..., bins] -> [...]` in metres."""
    return jax.nn.softmax(logits) @ settings.centres


def scale_invariant_log(predicted: Array, target: Array, settings: DepthSettings) -> jax.Array:
    """mean g^2 - variance_focus (mean g)^2 over the pixels of a batch that were measured, g = log(predicted) - log(true).

    Of the recipe "paper" so, with 1e-3 m added in both logarithms, over all pixels of positive depth; of "ours" its square root,
    with nothing added, over those within the range.
    """
    paper = settings.recipe == "paper"
    valid = target > 0 if paper else settings.valid(target)
    offset = _OFFSET if paper else 0.0
    ratio = jnp.log(jnp.maximum(predicted, 1e-6) + offset) - jnp.log(jnp.where(valid, target, 1.0) + offset)
    ratio, count = jnp.where(valid, ratio, 0.0), jnp.maximum(valid.sum(), 1)
    spread = jnp.sum(ratio**2) / count - settings.variance_focus * (jnp.sum(ratio) / count) ** 2
    return spread if paper else jnp.sqrt(spread + 1e-8)  # the root's slope is infinite at zero


def bin_cross_entropy(logits: Array, target: Array, settings: DepthSettings) -> jax.Array:
    """Mean over the valid pixels, ground truth taken from the nearest pixel; 0 without any."""
    nearest = jax.image.resize(target, (len(target), *logits.shape[1:3]), "nearest")
    valid = settings.valid(nearest)
    width = (settings.max_depth - settings.min_depth) / settings.num_bins
    bins = jnp.clip((nearest - settings.min_depth) / width, 0, settings.num_bins - 1).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, bins)
    return jnp.sum(losses * valid) / jnp.maximum(valid.sum(), 1)


def predictor(encoder: Encoder, settings: DepthSettings) -> Callable:
    """A function from a head and uint8 images to depth in metres at their size, `[batch, height, width]`."""

    @jax.jit
    def predict(encoder, head, images):
        height, width = images.shape[1:3]
        amounts = pad_amounts(encoder, height, width)
        depth = expected_depth(bin_logits(encoder, head, images), settings)
        return unpad(enlarge(depth, height + sum(amounts[0]), width + sum(amounts[1])), amounts)

    return functools.partial(predict, encoder)


@functools.partial(jax.jit, static_argnames="settings")
def image_errors(predicted: Array, target: Array, settings: DepthSettings) -> jax.Array:
    """Per image, over its valid pixels in the crop: their number, mean squared error, mean |error| / truth, share within 1.25.

    Args:
        predicted, target: metres, `[batch, height, width]`.

    Returns:
        `[batch, 4]`.
    """
    if settings.eval_crop:
        top, bottom, left, right = settings.eval_crop
        predicted, target = predicted[:, top:bottom, left:right], target[:, top:bottom, left:right]
    valid = settings.valid(target)
    count = valid.sum((1, 2))
    true = jnp.where(valid, target, 1.0)
    ratio = jnp.maximum(predicted / true, true / jnp.maximum(predicted, 1e-6))

    def mean(values):
        return jnp.sum(values * valid, (1, 2)) / jnp.maximum(count, 1)

    error = predicted - true
    return jnp.stack([count.astype(jnp.float32), mean(error**2), mean(jnp.abs(error) / true), mean(ratio < 1.25)], -1)


def evaluate_depth(predict: Callable, settings: DepthSettings, batches: Iterable) -> DepthScores:
    """Scores at the ground truth's size, inside the crop.

    Args:
        predict: uint8 images -> metres, a `predictor` with its head.
        batches: from `measuring_batches`, of `image` and `target`.

    Raises:
        UserError: no image with valid ground truth.
    """
    found, photographs = [], []
    for batch in batches:
        errors = to_host(image_errors(predict(batch["image"]), batch["target"], settings))
        found.append(errors[batch["valid"]].astype(np.float64))
        photographs.append(np.asarray(batch["photograph"])[batch["valid"]])
    return depth_scores(*map(np.concatenate, (found, photographs))) if found else depth_scores(np.zeros((0, 4)))


def depth_scores(errors: np.ndarray, photographs: np.ndarray | None = None) -> DepthScores:
    """Scores from `image_errors` of all images, `[images, 4]`.

    Args:
        photographs: `[images]`, of which each is a view: what intervals draw; None for the images.

    Raises:
        UserError: no image has valid pixels.
    """
    measured = errors[:, 0] > 0
    count, square, relative, within = errors[measured].T
    groups = None if photographs is None else photographs[measured]
    if not len(count):
        raise UserError(f"none of {len(errors)} images has ground truth within the range: there is nothing to measure depth by")
    pooled = bootstrap_interval(np.stack([square * count, count], -1), lambda sums: np.sqrt(sums[0] / sums[1]), groups=groups)
    each = np.sqrt(square)
    band = bootstrap_interval(np.stack([each, np.ones_like(each)], -1), lambda sums: sums[0] / sums[1], groups=groups)
    return DepthScores(
        float(np.sqrt(np.sum(square * count) / count.sum())),
        *pooled,
        float(each.mean()),
        *band,
        float(relative.mean()),
        float(within.mean()),
        len(count),
        len(errors) - len(count),
    )
