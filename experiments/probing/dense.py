"""Segmentation and depth, which differ in their data, their loss and their scores, and in nothing else."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from brh_jax.data.dense import check_depths, open_depths, open_masks
from brh_jax.data.pipeline import training_batches
from brh_jax.data.sources import Selection, Source, Subset
from brh_jax.data.transforms import RandomCrop, RandomResizedCrop, Resize
from brh_jax.errors import UserError
from brh_jax.probes import depth as depths
from brh_jax.probes import segmentation as masks
from brh_jax.probes.heads import choose
from brh_jax.train.parallel import to_host
from experiments.context import Context, identity, settings_of

NUM_EXAMPLES = 4
_NOT_TRAINING = ("train", "eval", "num_train", "num_eval", "num_classes", "eval_batch_size", "learning_rates", "held_out")


@dataclasses.dataclass(frozen=True)
class Task:
    """What a dense probe learns, and how.

    Attributes:
        name: of its section of the configuration.
        train, evaluation: sources of (image, target).
        settings: the probe's.
        crop, resize: encoder -> transform of training and of test images.
        fit: (encoder, batches, steps, settings, **options) -> (head, classes seen or None).
        predictor: encoder -> function of a head and images.
        measure: (function of images, batches) -> scores.
        merit: scores -> number, higher is better.
        text: scores -> what to print.
    """

    name: str
    train: Source
    evaluation: Source
    settings: Any
    crop: Callable
    resize: Callable
    fit: Callable
    predictor: Callable
    measure: Callable
    merit: Callable
    text: Callable


def segmentation(context: Context, folder: pathlib.Path) -> dict:
    """mIoU by model; nothing where `config.segmentation.train` is empty."""
    section = context.config.segmentation
    if not section.train:
        return {}
    options = {"num_classes": section.num_classes, "data_dir": context.config.data.data_dir}
    train, evaluation = open_masks(section.train, **options), open_masks(section.eval, **options)
    if train.classes != evaluation.classes:
        raise UserError(
            f"config.segmentation.train and .eval have different classes: {len(train.classes)} in {train.name}, "
            f"{len(evaluation.classes)} in {evaluation.name}, or others by name"
        )
    settings, count = _settings(masks.SegmentationSettings, section), len(train.classes)
    size = (settings.image_size,) * 2

    def fit(encoder, batches, steps, settings, **options):
        return masks.train_segmentation(encoder, batches, count, steps, settings, **options)

    task = Task(
        "segmentation",
        train,
        evaluation,
        settings,
        crop=lambda e: RandomResizedCrop(size, settings.crop_scale, interpolation=e.preprocessing.interpolation),
        resize=lambda e: Resize(size, e.preprocessing.interpolation),
        fit=fit,
        predictor=masks.predictor,
        measure=lambda predict, batches: masks.evaluate_segmentation(predict, count, batches),
        merit=lambda scores: scores.miou,
        text=lambda s: f"mIoU {s.miou:.4f}, {100 * s.pixel_accuracy:.1f} % of pixels",
    )
    return _run(task, context, folder) | {"classes": list(train.classes)}


def depth(context: Context, folder: pathlib.Path) -> dict:
    """RMSE by model; nothing where `config.depth.train` is empty."""
    section = context.config.depth
    if not section.train:
        return {}
    data_dir = context.config.data.data_dir
    train, evaluation = open_depths(section.train, data_dir=data_dir), open_depths(section.eval, data_dir=data_dir)
    settings = _settings(depths.DepthSettings, section)
    for source, name in ((train, "train"), (evaluation, "eval")):
        check_depths(source, settings.min_depth, settings.max_depth, f"config.depth.{name}")

    def fit(encoder, batches, steps, settings, **options):
        return depths.train_depth(encoder, batches, steps, settings, **options), None

    task = Task(
        "depth",
        train,
        evaluation,
        settings,
        crop=lambda e: RandomCrop(settings.crop_size, jitter=settings.jitter),
        resize=lambda e: Resize(settings.eval_size, e.preprocessing.interpolation),
        fit=fit,
        predictor=lambda encoder: depths.predictor(encoder, settings),
        measure=lambda predict, batches: depths.evaluate_depth(predict, settings, batches),
        merit=lambda scores: -scores.rmse,
        text=lambda s: f"RMSE {s.rmse:.4f} m, relative {s.abs_rel:.4f}, within 1.25 {s.delta1:.4f}",
    )
    return _run(task, context, folder) | {"min_depth": settings.min_depth, "max_depth": settings.max_depth}


def _settings(kind, section):
    return settings_of(kind, {k: v for k, v in section.items() if k not in _NOT_TRAINING})


def _run(task: Task, context: Context, folder) -> dict:
    """Trains and measures on every model; leaves some predictions in `examples.npz`."""
    section, models, examples = context.config[task.name], {}, {}
    train = Subset(task.train, section.num_train, context.config.seed) if section.num_train else task.train
    for name, encoder in context.encoders().items():
        predictor = task.predictor(encoder)
        head, seen, rate, held_out = _fit(task, context, folder / name, name, encoder, train, predictor)
        predict = functools.partial(predictor, head)
        scores = task.measure(predict, _measured(task, context, encoder, task.evaluation, name, section.num_eval))
        models[name] = {k: _plain(v) for k, v in scores._asdict().items()} | {"learning_rate": rate, "held_out": held_out}
        if seen is not None and not seen.all():
            models[name]["unseen"] = [task.train.classes[i] for i in np.flatnonzero(~seen)]
        print(f"{task.name}: {name}: {task.text(scores)}, {scores.num_images} images", flush=True)
        batch = next(iter(_measured(task, context, encoder, task.evaluation, name, section.num_eval)))
        shown = np.flatnonzero(batch["valid"])[:NUM_EXAMPLES]
        examples |= {"images": to_host(batch["image"])[shown], "targets": to_host(batch["target"])[shown]}
        examples[f"predictions/{name}"] = to_host(predict(batch["image"]))[shown]
    context.save_arrays(folder / "examples.npz", **examples)
    unseen = next(iter(models.values())).get("unseen", [])
    if unseen:
        print(f"warning: {task.name}: no pixel of {len(unseen)} classes in training: {', '.join(unseen[:5])}", flush=True)
    return {
        "train": task.train.name,
        "eval": task.evaluation.name,
        "num_train": len(train),
        "num_eval": next(iter(models.values()))["num_images"],
        "models": models,
        "skipped": task.train.skipped | task.evaluation.skipped,
    }


def _fit(task: Task, context: Context, folder, name, encoder, train, predictor):
    """The head, which classes it saw, its learning rate, and the held-out merit of all rates."""
    config, section = context.config, context.config[task.name]
    size = section.batch_size
    without = ("eval", "num_eval", "eval_batch_size", "learning_rates", "held_out")
    about = {k: v for k, v in identity(section).items() if k not in without}

    def fit(rate, rows, where):
        source = Selection(train, rows)
        batches = training_batches(
            source, task.crop(encoder), size, seed=config.seed, threads=config.data.threads, workers=config.data.workers
        )
        return task.fit(
            encoder,
            batches,
            section.epochs * max(len(rows) // size, 1),
            dataclasses.replace(task.settings, learning_rate=rate),
            mesh=context.mesh,
            folder=where,
            identity=about | {"learning_rate": rate},
            label=f"{task.name} {name}",
            batch_size=size,
            loop=context.loop,
        )

    def score(rate, rest, held):
        head, _ = fit(rate, rest, folder / f"rate_{rate:g}")
        batches = _measured(task, context, encoder, Selection(train, held), name, 0)
        return task.merit(task.measure(functools.partial(predictor, head), batches))

    rates = tuple(section.learning_rates) or (section.learning_rate,)
    rate, scores = choose(rates, len(train), section.held_out, config.seed, score)
    head, seen = fit(rate, np.arange(len(train)), folder)
    return head, seen, rate, {f"{rate:g}": score for rate, score in scores.items()}


def _measured(task: Task, context: Context, encoder, source, name, limit):
    size = context.config[task.name].eval_batch_size
    section = ConfigDict({"num_images": limit or len(source), "batch_size": size})
    label = f"{task.name} {name}: test set" if source is task.evaluation else f"{task.name} {name}: held out"
    return context.measuring_batches(source, encoder.preprocessing, section, label, transform=task.resize(encoder))


def _plain(value):
    """Scores as JSON, which has no NaN."""
    if isinstance(value, np.ndarray):
        return [float(v) if np.isfinite(v) else None for v in value]
    return value
