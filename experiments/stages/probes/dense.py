"""Segmentation and depth, which differ in their data, their loss and their scores, and in nothing else."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np

from brh_jax.data.pipeline import training_batches
from brh_jax.data.sources import Selection, Source, Subset
from brh_jax.errors import expect_positive
from brh_jax.models import Encoder
from brh_jax.train.loop import Run
from brh_jax.train.parallel import to_host
from experiments.settings import without_effect
from experiments.stage import Context
from experiments.stages.probes.choice import Choice, Rows, SharedSettings, TrainedProbe, train_with_best_rate

NUM_EXAMPLES = 4
Scores = TypeVar("Scores")
Head = tuple[dict, np.ndarray | None]  # with the classes that its training saw, where there are classes


@dataclasses.dataclass(frozen=True)
class DenseProbe(TrainedProbe):
    """What dense probes have besides.

    Attributes:
        eval_batch_size: images at a time in measuring.
    """

    eval_batch_size: int = without_effect(8)

    def __post_init__(self):
        super().__post_init__()
        expect_positive(self, "eval_batch_size")


@dataclasses.dataclass(frozen=True)
class Task(Generic[Scores]):
    """What a dense probe learns, and how.

    Attributes:
        name: of its section of the configuration, and of its folder.
        settings: that section, a DenseProbe that has what every probe's training has.
        train, test: sources of (image, target).
        crop, resize: encoder -> transform of training and of test images.
        fit: (encoder, batches, number of steps, settings, run) -> head.
        predictor: encoder -> function of a head and images.
        measure: (function of images, batches) -> scores.
        merit: scores -> number, higher is better.
        text: scores -> what to print.
    """

    name: str
    settings: Any
    train: Source
    test: Source
    crop: Callable[[Encoder], Any]
    resize: Callable[[Encoder], Any]
    fit: Callable[[Encoder, Iterator, int, Any, Run], Head]
    predictor: Callable[[Encoder], Callable]
    measure: Callable[[Callable, Iterable], Scores]
    merit: Callable[[Scores], float]
    text: Callable[[Scores], str]


def run_task(
    context: Context, settings: SharedSettings, task: Task[Scores], models: dict[str, Encoder]
) -> tuple[dict[str, tuple[Scores, Choice]], int, np.ndarray | None]:
    """Trains and measures a probe of every model; leaves some predictions in `NAME/examples.npz`.

    Returns:
        Model -> (scores, learning rate); the number of training images; and, where there are classes, which of them the training
        saw.
    """
    own, scored, examples = task.settings, {}, {}
    train = Subset(task.train, own.num_train, settings.seed) if own.num_train else task.train
    for name, encoder in models.items():
        (head, seen), rate = _fit(context, settings, task, name, encoder, train)
        predict = functools.partial(task.predictor(encoder), head)

        def batches(name=name, encoder=encoder):
            label = f"{task.name} {name}: test set"
            return _measured(context, settings, task, encoder, task.test, own.num_eval, label)

        scores = task.measure(predict, batches())
        scored[name] = scores, rate
        print(f"{task.name}: {name}: {task.text(scores)}", flush=True)
        batch = next(iter(batches()))
        shown = np.flatnonzero(batch["valid"])[:NUM_EXAMPLES]
        examples |= {"images": to_host(batch["image"])[shown], "targets": to_host(batch["target"])[shown]}
        examples[f"predictions/{name}"] = to_host(predict(batch["image"]))[shown]
    context.save_arrays(context.folder / task.name / "examples.npz", **examples)
    return scored, len(train), seen


def _fit(
    context: Context, settings: SharedSettings, task: Task, name: str, encoder: Encoder, train: Source
) -> tuple[Head, Choice]:
    own, data, size, predictor = task.settings, settings.data, task.settings.batch_size, task.predictor(encoder)

    def fit(rate: float, rows: Rows, run: Run) -> Head:
        source, crop = Selection(train, rows), task.crop(encoder)
        batches = training_batches(source, crop, size, seed=settings.seed, threads=data.threads, workers=data.workers)
        steps = own.epochs * max(len(rows) // size, 1)
        return task.fit(encoder, batches, steps, dataclasses.replace(own, learning_rate=rate), run)

    def score(head: Head, rows: Rows) -> float:
        label = f"{task.name} {name}: held out"
        batches = _measured(context, settings, task, encoder, Selection(train, rows), 0, label)
        return task.merit(task.measure(functools.partial(predictor, head[0]), batches))

    folder = context.folder / task.name / name
    return train_with_best_rate(context, own, folder, f"{task.name} {name}", len(train), settings.seed, fit, score)


def _measured(
    context: Context, settings: SharedSettings, task: Task, encoder: Encoder, source: Source, num_images: int, label: str
) -> Iterator[dict]:
    return context.measuring_batches(
        source,
        task.resize(encoder),
        num_images=num_images,
        batch_size=task.settings.eval_batch_size,
        label=label,
        seed=settings.seed,
        threads=settings.data.threads,
    )
