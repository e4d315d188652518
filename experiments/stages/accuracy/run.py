"""Accuracy of the teacher's own classifier."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from brh_jax.data.classes import matched, outputs_of
from brh_jax.data.sources import Source
from brh_jax.data.transforms import CenterCrop
from brh_jax.errors import UserError, expect_positive
from brh_jax.models import Encoder
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
    test = _named_alike(settings, encoder, train, context.source(data.eval, data.data_dir))
    return Accuracy(
        _share(context, settings, encoder, test, "accuracy"), _share(context, settings, encoder, train, "train accuracy")
    )


def _named_alike(settings: Settings, encoder: Encoder, train: Source, test: Source) -> Source:
    """The images to test on, classes numbered as in training: by their names, or the classifier's outputs would mean other
    classes. Where the outputs themselves have these names the numbers are no matter.

    Raises:
        UserError: the classifier has an output for each class of both, and they are not the same ones; or the teacher was trained
            here, and `test` has classes that it was not trained on.
    """
    outputs, counts = len(encoder.head["bias"]), [len(source.classes) for source in (train, test)]
    if min(counts) < 2 or (counts != [outputs] * 2 and settings.teacher.source != "train"):
        return test
    if outputs_of(encoder.classes, test.classes) is not None:
        return test
    try:
        return matched(train, test)
    except UserError as error:
        raise UserError(f"config.data: {error}") from None


class Classifier(NamedTuple):
    """Attributes: the teacher's own on [cls, mean patch], or None; whether its outputs are the classes of a source."""

    head: dict[str, Any] | None
    labelled: bool


def classifier(teacher: Encoder, train: Source | None, source: Source) -> Classifier:
    """The teacher's own classifier for the images of a source, whether or not these have labels."""
    head = teacher.pooled_head
    if head is None or len(head["bias"]) < 2:
        return Classifier(None, False)
    own = own_head(teacher, train, source)
    return Classifier(head if own is None else own, own is not None)


def _of_as_many(encoder: Encoder, source: Source) -> dict[str, Any] | None:
    head = encoder.pooled_head
    return head if head and 2 <= len(source.classes) == len(head["bias"]) else None


def head_for(encoder: Encoder, source: Source) -> dict[str, Any] | None:
    """An encoder's classifier on [cls, mean patch] with its outputs in the order of a source's classes; None where it has not as
    many.

    They are told by their names where the encoder knows them. Where it does not, or they have others, they come as they are; the
    latter is said.
    """
    head = _of_as_many(encoder, source)
    if head is None or not encoder.classes:
        return head
    if (order := outputs_of(encoder.classes, source.classes)) is None:
        ours, theirs = encoder.classes[0], source.classes[0]
        print(
            f"{source.name}: {encoder.name}'s outputs ({ours}, ...) have other names than its classes ({theirs}, ...): "
            "they are taken for them in order",
            flush=True,
        )
        return head
    return {"kernel": head["kernel"][:, np.array(order)], "bias": head["bias"][np.array(order)]}


def own_head(teacher: Encoder, train: Source | None, source: Source) -> dict[str, Any] | None:
    """The teacher's classifier on [cls, mean patch], where it has an output for each class of a source; None where it has not.

    Outputs that are not called as the source's classes are of those that as many were trained on, and a source that calls its own
    otherwise has others.
    """
    if _of_as_many(teacher, source) is None:
        return None
    by_name = outputs_of(teacher.classes, source.classes) is not None
    if not by_name and train is not None and len(train.classes) == len(source.classes) and train.classes != source.classes:
        print(f"{source.name} has other classes than {train.name}: the teacher's classifier is not of them", flush=True)
        return None
    return head_for(teacher, source)


def _share(context: Context, settings: Settings, encoder: Encoder, source: Source, label: str) -> float | None:
    head = head_for(encoder, source)
    if head is None:
        reads, outputs = np.shape(encoder.head["kernel"])
        why = (
            f"{outputs} outputs for {len(source.classes)} classes"
            if encoder.pooled_head
            else f"it reads {reads} features, not of [cls, mean patch]"
        )
        print(f"accuracy: {label} left out on {source.name}: {encoder.name}'s classifier has {why}", flush=True)
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
    share = classification.accuracy(head, *classification.extract_features(encoder, batches)[:2])
    print(f"accuracy: {label} {share:.3f} on {source.name}", flush=True)
    return share
