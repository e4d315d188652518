"""The section `config.data`: each stage takes the part of it that it uses."""

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

from brh_jax.data.classes import check_labels, matched, outputs_of
from brh_jax.data.pipeline import training_batches
from brh_jax.data.sources import Source
from brh_jax.data.transforms import CenterCrop, RandomResizedCrop
from brh_jax.errors import UserError, expect, expect_one_of, expect_positive
from brh_jax.preprocessing import Preprocessing
from experiments.records import OPENERS
from experiments.settings import without_effect

AUGMENTS = ("center_crop", "random_resized_crop")
SPECS = "tfds:NAME:SPLIT, folder:PATH, idx:PATH or digits:SPLIT"


@dataclasses.dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        data_dir: folder of the TFDS data sets.
        threads: threads that decode images and read ahead.
        workers: processes that decode instead, with so many threads each.
    """

    data_dir: str = without_effect("")
    threads: int = without_effect(8)
    workers: int = without_effect(0)

    def __post_init__(self):
        expect_positive(self, "threads")
        expect(self.workers >= 0, "workers", self.workers, "0 or more")

    def named(self, *names: str, labelled: bool = False) -> list["ImageSet"]:
        """The sets that these fields name."""
        return [ImageSet(f"data.{name}", getattr(self, name), self.data_dir, labelled=labelled) for name in names]


@dataclasses.dataclass(frozen=True)
class Crops(Reading):
    """Random crops, where a stage takes them.

    Attributes:
        crop_scale: smallest and largest share of an image's area in a random crop.
        crop_ratio: smallest and largest width : height of a random crop.
        flip: whether random crops are mirrored half the time.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("crop_scale", "crop_ratio"):
            value = getattr(self, name)
            two = len(value) == 2 and all(isinstance(v, int | float) and 0 < v < float("inf") for v in value)
            expect(two and value[0] <= value[1], name, value, "two positive numbers, the smaller one first")
        expect(self.crop_scale[1] <= 1, "crop_scale", self.crop_scale, "shares of an image's area, at most 1")

    def transform(self, augment: str, preprocessing: Preprocessing):
        """The transform of that name, one of AUGMENTS."""
        if augment == "center_crop":
            return CenterCrop(preprocessing)
        return RandomResizedCrop(preprocessing.crop, self.crop_scale, self.crop_ratio, self.flip, preprocessing.interpolation)


@dataclasses.dataclass(frozen=True)
class TrainingImages(Crops):
    """Images to train on.

    Attributes:
        train: images to train on, tfds:NAME:SPLIT, folder:PATH, idx:PATH or digits:SPLIT.
        augment: what training sees of an image, center_crop or random_resized_crop.
    """

    train: str = ""
    augment: str = "center_crop"

    def __post_init__(self):
        super().__post_init__()
        expect_one_of(self, "augment", AUGMENTS)

    def training_batches(self, source: Source, preprocessing: Preprocessing, batch_size: int, seed: int):
        """Endless augmented batches of a source."""
        transform = self.transform(self.augment, preprocessing)
        return training_batches(source, transform, batch_size, seed=seed, threads=self.threads, workers=self.workers)


@dataclasses.dataclass(frozen=True)
class MeasuredCrops(Crops):
    """What measuring sees of an image.

    Attributes:
        eval_augment: what measuring sees of an image; random_resized_crop gives more views of few images.
    """

    eval_augment: str = "center_crop"

    def __post_init__(self):
        super().__post_init__()
        expect_one_of(self, "eval_augment", AUGMENTS)


@dataclasses.dataclass(frozen=True)
class EvalImages(MeasuredCrops):
    """Images to measure on.

    Attributes:
        eval: images to measure on, that are not trained on.
    """

    eval: str = ""


@dataclasses.dataclass(frozen=True)
class AllImages(TrainingImages, EvalImages):
    """Both sets."""


class ImageSet(NamedTuple):
    """A set of images that a stage reads.

    Attributes:
        setting: that names it, `data.train` say.
        spec: its value.
        data_dir: folder of the TFDS data sets.
        kind: a key of `records.OPENERS`.
        labelled: whether classes are needed.
        options: further arguments of what opens it.
        otherwise: how to do without it, "leave config.probe.train and .eval empty for no such probe" say; empty where one cannot.
    """

    setting: str
    spec: str
    data_dir: str
    kind: str = "images"
    labelled: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    otherwise: str = ""

    def check_named(self) -> None:
        """Raises UserError where the setting is empty."""
        if not self.spec:
            raise UserError(
                f"config.{self.setting} is empty: expected {SPECS}, as in "
                "--config.data.train=folder:photos/train --config.data.eval=folder:photos/test"
            )

    def check(self) -> Source:
        """Opens it. Raises UserError where it is not there, or lacks the classes that are needed."""
        try:
            source = OPENERS[self.kind](self.spec, data_dir=self.data_dir, **dict(self.options))
            if self.labelled:
                check_labels(source)
        except UserError as error:
            otherwise = f"; or {self.otherwise}" if self.otherwise else ""
            raise UserError(f"config.{self.setting}: {error}{otherwise}") from None
        return source


def warn_of_same_images(opened: Collection[tuple[ImageSet, Source]]) -> None:
    """Says where a section's images to measure on are those that it trains on: its figures are then of what was fitted."""
    of = {one.setting: source for one, source in opened}
    for setting, test in of.items():
        section, _, name = setting.partition(".")
        train = of.get(f"{section}.train")
        if name != "eval" or train is None or len(train) != len(test):
            continue
        if train is test or train.fingerprint() == test.fingerprint():
            print(
                f"warning: config.{section}.train and .eval are the same {len(test)} images: what is measured on them says "
                "nothing about others",
                flush=True,
            )


def check_classes(opened: Collection[tuple[ImageSet, Source]]) -> None:
    """Raises UserError where what is tested on has classes that what is trained on, `SECTION.train`, does not have."""
    of = {one.setting: source for one, source in opened if one.kind == "images"}
    labelled = {one.setting for one, _ in opened if one.labelled}
    for setting in sorted(labelled):
        section, _, name = setting.partition(".")
        train, test = of[setting], of.get(f"{section}.eval")
        if name != "train" or test is None or len(test.classes) < 2 or outputs_of(train.classes, test.classes) is not None:
            continue
        try:
            matched(train, test)
        except UserError as error:
            raise UserError(f"config.{section}: {error}") from None
