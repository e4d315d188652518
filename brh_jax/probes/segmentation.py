"""Linear segmentation on the patch tokens of a frozen encoder (paper, section 9)."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from brh_jax.data.dense import IGNORED
from brh_jax.errors import UserError, expect, expect_positive
from brh_jax.models.encoder import Encoder
from brh_jax.models.head import apply_head, zero_head
from brh_jax.probes.dense import enlarge, pad_amounts, pad_target, token_maps, unpad
from brh_jax.probes.heads import bootstrap_interval, train_head
from brh_jax.train.loop import AdamwSettings, Run
from brh_jax.train.parallel import to_host
from brh_jax.types import Array, Pixels


@dataclasses.dataclass(frozen=True)
class SegmentationSettings(AdamwSettings):
    """How a segmentation probe trains; the defaults are the paper's for ADE20k.

    The paper names no warm-up or clipping for it: those of its classification probe. Its final rate is that of the authors' code.

    Attributes:
        image_size: side of the square that images and masks are cropped (training) or stretched (testing) to, in pixels.
        epochs: passes over the training set.
        batch_size: images of a step.
        crop_scale: smallest and largest share of an image's area in a training crop.
    """

    image_size: int = 518
    crop_scale: tuple[float, float] = (0.5, 1.0)
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    weight_decay: float = 1e-2

    def __post_init__(self):
        super().__post_init__()
        expect_positive(self, "image_size", "epochs", "batch_size")
        rising = len(self.crop_scale) == 2 and 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1
        expect(rising, "crop_scale", self.crop_scale, "two shares of an image's area, the smaller one first")


class SegmentationScores(NamedTuple):
    """Agreement of predicted masks with the truth.

    Attributes:
        miou: mean over classes of intersection over union, all images' pixels together.
        low, high: its 95 % bootstrap interval over images.
        pixel_accuracy: share of labelled pixels that are right.
        iou: `[classes]`, NaN for a class that is in neither prediction nor truth.
        num_images: how many were measured.
    """

    miou: float
    low: float
    high: float
    pixel_accuracy: float
    iou: np.ndarray
    num_images: int


def train_segmentation(
    encoder: Encoder,
    batches: Any,
    num_classes: int,
    num_steps: int,
    settings: SegmentationSettings,
    run: Run,
    *,
    batch_size: int,
) -> tuple[dict[str, Any], np.ndarray]:
    """Trains LN(patch) -> classes by cross-entropy at the size of the image, IGNORED pixels left out.

    Args:
        batches: of `image` uint8 and `target`, masks of that size.
        batch_size: of all processes together.

    Returns:
        The head {"kernel": [dim, classes], "bias": [classes]}, and which classes the training saw, bool `[classes]`.
    """

    def loss_fn(head, encoder, batch):
        amounts = pad_amounts(encoder, *batch["target"].shape[1:])
        return cross_entropy(segment(encoder, head, batch["image"]), pad_target(batch["target"], amounts, IGNORED))

    def seen_in(batch):
        return jnp.bincount(batch["target"].ravel(), length=IGNORED + 1)[:num_classes] > 0

    return train_head(
        loss_fn,
        zero_head(encoder.dim, num_classes),
        batches,
        num_steps,
        settings,
        run,
        batch_size=batch_size,
        encoder=encoder,
        seen_in=seen_in,
    )


def segment(encoder: Encoder, head: dict[str, Any], images: Pixels) -> jax.Array:
    """Logits `[batch, height, width, classes]` of uint8 images, on the canvas padded to a multiple of the patch; inside jit."""
    patches, _ = token_maps(encoder, images)
    amounts = pad_amounts(encoder, *images.shape[1:3])
    height, width = (size + sum(pad) for size, pad in zip(images.shape[1:3], amounts, strict=True))
    return enlarge(apply_head(head, patches), height, width)


def cross_entropy(logits: Array, target: Array) -> jax.Array:
    """Mean over the labelled pixels of a batch; 0 where there are none."""
    labelled = target != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(labelled, target, 0).astype(jnp.int32))
    return jnp.sum(losses * labelled) / jnp.maximum(labelled.sum(), 1)


def predictor(encoder: Encoder) -> Callable:
    """A function from a head and uint8 images to masks of predicted classes, uint8 `[batch, height, width]`."""

    @jax.jit
    def predict(encoder, head, images):
        classes = jnp.argmax(segment(encoder, head, images), -1).astype(jnp.uint8)
        return unpad(classes, pad_amounts(encoder, *images.shape[1:3]))

    return functools.partial(predict, encoder)


@functools.partial(jax.jit, static_argnames="num_classes")
def pixel_counts(predicted: Array, target: Array, num_classes: int) -> jax.Array:
    """The pixels of each image and class that are right, predicted and true: what of its confusion matrix mIoU needs.

    Args:
        predicted: classes `[batch, height, width]`.
        target: the same, IGNORED for no label: such pixels count nowhere.

    Returns:
        int32 `[batch, 3, classes]`.
    """

    def count(values, counted):
        values = jnp.where(counted, values, num_classes).astype(jnp.int32).ravel()
        return jnp.bincount(values, length=num_classes + 1)[:num_classes]

    def one(predicted, target):
        labelled = target != IGNORED
        return jnp.stack([count(target, labelled & (predicted == target)), count(predicted, labelled), count(target, labelled)])

    return jax.vmap(one)(predicted, target)


def iou_of(counts: np.ndarray) -> np.ndarray:
    """Intersection over union `[classes]` of summed `pixel_counts`, `[3, classes]`; NaN where the union is empty."""
    right, predicted, true = np.asarray(counts, np.float64)
    union = predicted + true - right
    return np.divide(right, union, out=np.full(len(union), np.nan), where=union > 0)


def mean_iou(counts: np.ndarray) -> float:
    """Mean over the classes that are in the prediction or the truth; NaN where there are none."""
    iou = iou_of(counts)
    return float(iou[np.isfinite(iou)].mean()) if np.isfinite(iou).any() else float("nan")


def evaluate_segmentation(predict: Callable, num_classes: int, batches: Iterable) -> SegmentationScores:
    """Scores at the size of the batches' masks (the paper's 518 px, not each image's own).

    Args:
        predict: uint8 images -> classes, a `predictor` with its head.
        batches: from `measuring_batches`, of `image` and `target`.

    Raises:
        UserError: no labelled pixel.
    """
    found, photographs = [], []
    for batch in batches:
        counts = to_host(pixel_counts(predict(batch["image"]), batch["target"], num_classes))
        found.append(counts[batch["valid"]].astype(np.int64))
        photographs.append(np.asarray(batch["photograph"])[batch["valid"]])
    counts = np.concatenate(found) if found else np.zeros((0, 3, num_classes))
    total = counts.sum(0)
    if not total[2].sum():
        raise UserError(f"none of the {len(counts)} images has a labelled pixel: there is nothing to measure segmentation by")
    low, high = bootstrap_interval(counts, mean_iou, groups=np.concatenate(photographs))
    accuracy = float(total[0].sum() / total[2].sum())
    return SegmentationScores(mean_iou(total), low, high, accuracy, iou_of(total), len(counts))
