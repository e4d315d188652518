"""Accuracy of the teacher's own classifier."""

import dataclasses

import numpy as np

from brh_jax.data.sources import Source
from brh_jax.data.transforms import CenterCrop
from brh_jax.errors import expect_positive
from brh_jax.models import Encoder
from brh_jax.models.encoder import pooled_width
from brh_jax.probes import classification
from experiments.data import AllImages
from experiments.settings import Common, without_effect
from experiments.stage import Context
from experiments.stages.teacher.run import TeacherResult, TeacherSettings, open_training_images, read_teacher, snapshot_folder


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """How many images are measured at a time.

    Attributes:
        batch_size: images at a time.
    """

    batch_size: int = without_effect(64)

    def __post_init__(self):
        expect_positive(self, "batch_size")


@dataclasses.dataclass(frozen=True)
class MeasuringSettings(BatchSettings):
    """How many images are measured on.

    Attributes:
        num_images: images to measure on.
    """

    num_images: int = 10_000

    def __post_init__(self):
        super().__post_init__()
        expect_positive(self, "num_images")


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """Sections that the stage uses."""

    teacher: TeacherSettings = TeacherSettings()
    data: AllImages = AllImages()
    eval: MeasuringSettings = MeasuringSettings()


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Share of images whose class the teacher's own classifier gives; None where it is not of these classes.

    Attributes:
        test: of images to measure on.
        train: of images to train on, without random crops.
    """

    test: float | None
    train: float | None


@dataclasses.dataclass(frozen=True)
class AccuracyResult:
    """Accuracy of the teacher, and of what it was after some steps of its training."""

    teacher: Accuracy
    snapshots: dict[int, Accuracy]


def run(context: Context, settings: Settings) -> AccuracyResult:
    """Measures the teacher and its snapshots, where they have a classifier."""
    teacher, snapshots = context.result(TeacherResult, "teacher"), {}
    for step in teacher.snapshots:
        snapshots[step] = _measure(context, settings, context.encoder(snapshot_folder(context.workdir, step), "teacher"))
    return AccuracyResult(_measure(context, settings, read_teacher(context, settings.compute_dtype)), snapshots)


def _measure(context: Context, settings: Settings, encoder: Encoder) -> Accuracy:
    data = settings.data
    if encoder.head is None or not (data.train and data.eval):
        return Accuracy(None, None)
    train = open_training_images(context, data, settings.teacher.train.num_images, settings.seed)
    test = context.source(data.eval, data.data_dir)
    return Accuracy(
        _share(context, settings, encoder, test, "accuracy"), _share(context, settings, encoder, train, "train accuracy")
    )


def _share(context: Context, settings: Settings, encoder: Encoder, source: Source, label: str) -> float | None:
    if np.shape(encoder.head["kernel"]) != (pooled_width(encoder.dim, encoder.layout), len(source.classes)):
        return None
    batches = context.measuring_batches(
        source,
        CenterCrop(encoder.preprocessing),
        num_images=settings.eval.num_images,
        batch_size=settings.eval.batch_size,
        label=label,
        seed=settings.seed,
        threads=settings.data.threads,
    )
    share = classification.accuracy(encoder.head, *classification.extract_features(encoder, batches))
    print(f"accuracy: {label} {share:.3f} on {source.name}", flush=True)
    return share
