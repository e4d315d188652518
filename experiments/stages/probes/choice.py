"""What all probes share: their images, and a setting that a held-out part of the training set chooses among several."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Integer

from brh_jax.errors import UserError, expect, expect_not_negative
from brh_jax.probes.heads import choose
from brh_jax.train.loop import Run
from brh_jax.types import Array
from experiments.data import Reading
from experiments.settings import Common, flat
from experiments.stage import Context
from experiments.stages.accuracy.run import BatchSettings

Head = TypeVar("Head")
Rows = Integer[Array, " rows"]
# Settings of measuring: a head that was trained with others is the same.
_MEASURING = ("eval", "num_eval", "learning_rates", "held_out")


@dataclasses.dataclass(frozen=True)
class ProbeImages:
    """What a probe is trained and tested on.

    Attributes:
        train, eval: labelled images to train and to test on, as data.train names them; both empty for no such probe.
        num_train, num_eval: at most so many of them, 0 for all.
        held_out: share of the training set that chooses a setting where there are several to choose from.
    """

    train: str = ""
    eval: str = ""
    num_train: int = 0
    num_eval: int = 0
    held_out: float = 0.1

    def __post_init__(self):
        if bool(self.train) != bool(self.eval):
            raise UserError("train and eval go together: give both, or leave both empty")
        expect_not_negative(self, "num_train", "num_eval")
        expect(0 < self.held_out < 1, "held_out", self.held_out, "a share of the training set between 0 and 1")


@dataclasses.dataclass(frozen=True)
class LabelledImages(ProbeImages):
    """What a probe of classes has besides.

    Attributes:
        classes: of as many classes, drawn at random, and num_train in balance over them; 0 for all classes. 1,000 images of
            ImageNet
            are about one of each class: of 50 classes they are 20 each.
    """

    classes: int = 0

    def __post_init__(self):
        super().__post_init__()
        expect(self.classes >= 0 and self.classes != 1, "classes", self.classes, "two classes or more, or 0 for all")


@dataclasses.dataclass(frozen=True)
class TrainedProbe(ProbeImages):
    """What a probe that is trained step by step has besides.

    Attributes:
        learning_rates: several, of which the one that does best on the held-out part is trained again on all of the training set;
            empty for learning_rate alone.
    """

    learning_rates: tuple[float, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        check_candidates("learning_rates", self.learning_rates)


def check_candidates(name: str, values: tuple[float, ...]) -> None:
    """Raises UserError unless a setting's candidates are positive, and finite."""
    expect(all(0 < value < float("inf") for value in values), name, values, "positive numbers such as (0.001, 0.01)")


@dataclasses.dataclass(frozen=True)
class SharedSettings(Common):
    """Sections that every probe uses."""

    data: Reading = Reading()
    eval: BatchSettings = BatchSettings()


@dataclasses.dataclass(frozen=True)
class ProbeSets:
    """What a probe was trained and tested on.

    Attributes:
        train, eval: names of the sets.
        num_train, num_eval: images of each.
    """

    train: str
    eval: str
    num_train: int
    num_eval: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """A setting that was chosen.

    Attributes:
        value: of the setting.
        held_out: candidate -> score on the held-out part of the training set, higher is better; empty where there was no choice.
    """

    value: float
    held_out: dict[float, float]


def train_with_best_rate(
    context: Context,
    section: Any,
    folder: pathlib.Path,
    label: str,
    count: int,
    seed: int,
    fit: Callable[[float, Rows, Run], Head],
    score: Callable[[Head, Rows], float],
) -> tuple[Head, Choice]:
    """What `fit` makes of all `count` images of the training set with the best learning rate, and how it was chosen.

    Args:
        section: of the configuration, a TrainedProbe with a `learning_rate`.
        folder: for the training; those of candidates go to `rate_R/` in it.
        fit: (learning rate, rows to train on, run) -> trained head.
        score: (trained head, rows to measure) -> score, higher is better.
    """
    about = {name: value for name, value in flat(section).items() if name not in _MEASURING}

    def trained(rate: float, rows: Rows, where: pathlib.Path) -> Head:
        return fit(rate, rows, Run(where, about | {"learning_rate": rate}, context.mesh, label, context.loop))

    def tried(rate: float, rest: Rows, held: Rows) -> float:
        return score(trained(rate, rest, folder / f"rate_{rate:g}"), held)

    rates = section.learning_rates or (section.learning_rate,)
    rate, scores = choose(rates, count, section.held_out, seed, tried)
    return trained(rate, np.arange(count), folder), Choice(rate, scores)
