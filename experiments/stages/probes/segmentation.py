"""Linear segmentation on patches."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from brh_jax.data.transforms import RandomResizedCrop, Resize
from brh_jax.errors import UserError, expect_not_negative
from brh_jax.models import Encoder
from brh_jax.probes import segmentation as probe
from brh_jax.probes.segmentation import SegmentationScores, SegmentationSettings
from brh_jax.train.loop import Run
from experiments.interval import Interval
from experiments.stage import Context
from experiments.stages.probes.choice import Choice, ProbeSets, SharedSettings
from experiments.stages.probes.dense import DenseProbe, Head, Task, run_task


@dataclasses.dataclass(frozen=True)
class SegmentationProbeSettings(DenseProbe, SegmentationSettings):
    """Linear segmentation on patches.

    Attributes:
        train, eval: ade20k:PATH:training, masks:PATH (images/ and masks/) or tfds:NAME:SPLIT; both empty for no such probe.
        num_classes: where the data do not say it.
    """

    num_classes: int = 0

    def __post_init__(self):
        DenseProbe.__post_init__(self)
        SegmentationSettings.__post_init__(self)
        expect_not_negative(self, "num_classes")


@dataclasses.dataclass(frozen=True)
class SegmentationProbe:
    """The scores of a model; see `brh_jax.probes.segmentation.SegmentationScores`.

    Attributes:
        miou: mean intersection over union of classes.
        pixel_accuracy: share of labelled pixels that are right.
        iou: of each class; None for one that is neither predicted nor there.
        learning_rate: that it was trained with.
    """

    miou: Interval
    pixel_accuracy: float
    iou: list[float | None]
    learning_rate: Choice


@dataclasses.dataclass(frozen=True)
class SegmentationResult(ProbeSets):
    """Linear segmentation.

    Attributes:
        classes: by name.
        unseen: those without a pixel in training.
        models: by model.
    """

    classes: list[str]
    unseen: list[str]
    models: dict[str, SegmentationProbe]


def run(
    context: Context, settings: SharedSettings, own: SegmentationProbeSettings, models: dict[str, Encoder]
) -> SegmentationResult:
    """Trains and measures a probe of every model; leaves some predictions in `segmentation/examples.npz`."""
    train, test = (
        context.source(spec, settings.data.data_dir, kind="masks", num_classes=own.num_classes) for spec in (own.train, own.eval)
    )
    classes, size = train.classes, (own.image_size,) * 2
    if classes != test.classes:
        raise UserError(
            f"config.segmentation.train and .eval have different classes: {len(classes)} in {train.name}, "
            f"{len(test.classes)} in {test.name}, or others by name"
        )

    def fit(encoder: Encoder, batches: Iterator, num_steps: int, settings: SegmentationProbeSettings, run: Run) -> Head:
        return probe.train_segmentation(encoder, batches, len(classes), num_steps, settings, run, batch_size=settings.batch_size)

    task = Task(
        "segmentation",
        own,
        train,
        test,
        crop=lambda e: RandomResizedCrop(size, own.crop_scale, interpolation=e.preprocessing.interpolation),
        resize=lambda e: Resize(size, e.preprocessing.interpolation),
        fit=fit,
        predictor=probe.predictor,
        measure=lambda predict, batches: probe.evaluate_segmentation(predict, len(classes), batches),
        merit=lambda scores: scores.miou,
        text=lambda s: f"mIoU {s.miou:.4f}, {100 * s.pixel_accuracy:.1f} % of pixels, {s.num_images} images",
    )
    scored, num_train, seen = run_task(context, settings, task, models)
    unseen = [classes[i] for i in np.flatnonzero(~np.asarray(seen, bool))]
    if unseen:
        print(f"warning: segmentation: no pixel of {len(unseen)} classes in training: {', '.join(unseen[:5])}", flush=True)
    num_eval = next(iter(scored.values()))[0].num_images
    probes = {name: _result(*found) for name, found in scored.items()}
    return SegmentationResult(train.name, test.name, num_train, num_eval, list(classes), unseen, probes)


def _result(scores: SegmentationScores, rate: Choice) -> SegmentationProbe:
    iou = [float(value) if np.isfinite(value) else None for value in scores.iou]
    return SegmentationProbe(Interval(scores.miou, scores.low, scores.high), scores.pixel_accuracy, iou, rate)
