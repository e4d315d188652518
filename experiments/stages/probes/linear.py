"""Linear classification on [cls, mean patch]."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from brh_jax.data.pipeline import training_batches
from brh_jax.data.sources import Selection, Source, Subset
from brh_jax.data.transforms import RandomResizedCrop
from brh_jax.errors import UserError
from brh_jax.models import Encoder
from brh_jax.models.encoder import pooled_width
from brh_jax.probes import classification
from brh_jax.probes.classification import ProbeSettings
from brh_jax.train.loop import Run
from brh_jax.types import Features, Labels
from experiments.interval import Interval, mean_interval
from experiments.stage import Context
from experiments.stages.accuracy.run import head_for
from experiments.stages.probes.choice import (
    Choice,
    LabelledImages,
    ProbeSets,
    Rows,
    SharedSettings,
    TrainedProbe,
    train_with_best_rate,
)
from experiments.stages.probes.features import classes_without_images, open_labelled, read_features


@dataclasses.dataclass(frozen=True)
class LinearProbeSettings(TrainedProbe, LabelledImages, ProbeSettings):
    """Linear probe on [cls, mean patch]. Its data are labelled and may be others than the run's.

    Attributes:
        head: classifier to start from: .pth or .safetensors with weight [classes, features] and bias, or one of Meta's by its
            name, such as dinov2_vitb14_reg4_linear_head.pth; "teacher" for its own; empty for zeros.
    """

    head: str = ""

    def __post_init__(self):
        TrainedProbe.__post_init__(self)
        ProbeSettings.__post_init__(self)


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """The probe of a model.

    Attributes:
        accuracy: share of the test images that are right.
        accuracy_of_given_head: the same of the classifier that it started from; None without one.
        learning_rate: that it was trained with.
    """

    accuracy: Interval
    accuracy_of_given_head: float | None
    learning_rate: Choice


@dataclasses.dataclass(frozen=True)
class LinearResult(ProbeSets):
    """Linear classification.

    Attributes:
        head: name of the classifier that the probes started from; empty for zeros.
        models: by model.
    """

    head: str
    models: dict[str, LinearProbe]


def head_file(folder: pathlib.Path, model: str) -> pathlib.Path:
    """Where the stage leaves a model's classifier: `kernel`, `bias` and the names of the `classes`."""
    return folder / model / "head.npz"


def check_head(own: LinearProbeSettings) -> None:
    """Raises UserError where the classifier to start from is not there."""
    if own.train and own.head not in ("", "teacher"):
        from weights_convert.heads import find_linear_head

        try:
            find_linear_head(own.head)
        except UserError as error:
            raise UserError(f"config.probe.head: {error}") from None


def run(context: Context, settings: SharedSettings, own: LinearProbeSettings, models: dict[str, Encoder]) -> LinearResult:
    """Trains and measures a probe of every model; leaves them in `MODEL/head.npz`."""
    train, test = open_labelled(context, settings, "probe", own)
    probes = {}
    for name, encoder in models.items():
        start = _start(context, own, encoder, train)
        images = (_Cached if own.cache else _Crops)(context, settings, own, name, encoder, train)
        head, rate = _fit(context, settings, own, name, images, start)
        context.save_arrays(head_file(context.folder, name), **head, classes=np.array(train.classes))
        features, labels, views = read_features(context, settings, encoder, test, own.num_eval, f"probe {name}: test set")
        accuracy = mean_interval(classification.hits(head, features, labels), groups=views)
        given = None if start is None else classification.accuracy(start, features, labels)
        probes[name] = LinearProbe(accuracy, given, rate)
        note = "" if given is None else f" ({given:.4f} with {own.head} as it is)"
        print(f"probes: {name}: accuracy {accuracy.value:.4f} on {len(labels)} images{note}", flush=True)
    return LinearResult(train.name, test.name, images.count, len(labels), pathlib.Path(own.head).name, probes)


def _start(context: Context, own: LinearProbeSettings, encoder: Encoder, train: Source) -> dict | None:
    """The classifier to start from; None for zeros."""
    if not own.head:
        return None
    shape = pooled_width(encoder.dim, encoder.layout), len(train.classes)
    if own.head != "teacher":
        from weights_convert.cache import fingerprint
        from weights_convert.heads import find_linear_head, read_linear_head

        path = find_linear_head(own.head)
        context.outside(f"weights {path}", fingerprint(path))
        return read_linear_head(path, *shape)
    head = head_for(encoder, train)
    if head is None or np.shape(head["kernel"]) != shape:
        raise UserError(
            f"config.probe.head is teacher, but {encoder.name} has no classifier for the {len(train.classes)} classes of "
            f"{train.name}: give a teacher trained here on them, or the file of a published classifier"
        )
    return head


class _Cached:
    """Training images as features that are computed once: `count` of them."""

    def __init__(
        self, context: Context, settings: SharedSettings, own: LinearProbeSettings, name: str, encoder: Encoder, train: Source
    ):
        self.own, self.seed, self.classes, self.encoder = own, settings.seed, train.classes, None
        label = f"probe {name}: training set"
        self.values, self.labels, _ = read_features(context, settings, encoder, train, own.num_train, label)
        self.count, self.num_features = self.values.shape
        if empty := classes_without_images(train, self.labels):
            print(
                f"probe {name}: no training image of {len(empty)} of {len(train.classes)} classes, {empty[0]} for one", flush=True
            )

    def batches(self, rows: Rows) -> tuple[Iterator, int]:
        """Endless batches of some of the images, and their size."""
        made = classification.CachedBatches(self.values[rows], self.labels[rows], self.own.batch_size, self.seed)
        return made, made.batch_size

    def features(self, rows: Rows) -> tuple[Features, Labels]:
        """Features of some of the images, to measure on."""
        return self.values[rows], self.labels[rows]


class _Crops:
    """Training images as random crops, whose features the `encoder` computes in the step; the same methods as `_Cached`."""

    def __init__(
        self, context: Context, settings: SharedSettings, own: LinearProbeSettings, name: str, encoder: Encoder, train: Source
    ):
        self.context, self.settings, self.own, self.name, self.encoder = context, settings, own, name, encoder
        self.source = Subset(train, own.num_train, settings.seed) if own.num_train else train
        self.classes, self.count, self.num_features = train.classes, len(self.source), pooled_width(encoder.dim, encoder.layout)

    def batches(self, rows: Rows) -> tuple[Iterator, int]:
        crops = RandomResizedCrop(self.encoder.preprocessing.crop)  # the paper's, whatever config.data does
        source, size, data = Selection(self.source, rows), self.own.batch_size, self.settings.data
        made = training_batches(source, crops, size, seed=self.settings.seed, threads=data.threads, workers=data.workers)
        return made, size

    def features(self, rows: Rows) -> tuple[Features, Labels]:
        held = Selection(self.source, rows)
        return read_features(self.context, self.settings, self.encoder, held, 0, f"probe {self.name}: held out")[:2]


def _fit(
    context: Context, settings: SharedSettings, own: LinearProbeSettings, name: str, images: _Cached | _Crops, start: dict | None
) -> tuple[dict, Choice]:
    def fit(rate: float, rows: Rows, run: Run) -> dict:
        batches, size = images.batches(rows)
        return classification.train_probe(
            images.encoder,
            batches,
            images.num_features,
            len(images.classes),
            own.epochs * max(len(rows) // size, 1),
            dataclasses.replace(own, learning_rate=rate),
            run,
            batch_size=size,
            head=start,
        )

    def score(head: dict, rows: Rows) -> float:
        return classification.accuracy(head, *images.features(rows))

    return train_with_best_rate(context, own, context.folder / name, f"probe {name}", images.count, settings.seed, fit, score)
