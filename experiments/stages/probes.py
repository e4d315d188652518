"""Linear probes on the teacher and on every Raptor."""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from brh_jax.data.pipeline import training_batches
from brh_jax.data.sources import Subset
from brh_jax.data.transforms import RandomResizedCrop
from brh_jax.errors import UserError
from brh_jax.probes import classification
from experiments.context import Context, identity, settings_of

_NOT_TRAINING = ("train", "eval", "num_train", "num_eval", "head")


def run(context: Context, folder: pathlib.Path) -> dict:
    """Returns accuracies by model; nothing where `config.probe.train` is empty."""
    config = context.config
    if not config.probe.train:
        print("probes: config.probe.train is empty, nothing to do", flush=True)
        return {}
    train, evaluation = context.source(config.probe.train), context.source(config.probe.eval)
    classification.check_labels(train, "config.probe.train")
    classification.check_labels(evaluation, "config.probe.eval")
    if train.classes != evaluation.classes:
        raise UserError(f"config.probe.train and config.probe.eval have different classes: {train.name}, {evaluation.name}")
    accuracies, before, counts = {}, {}, (0, 0)
    for name, encoder in context.encoders().items():
        accuracies[name], start, counts = _probe(context, folder / name, name, encoder, train, evaluation)
        note = ""
        if start is not None:
            before[name], note = start, f" ({start:.4f} with {config.probe.head} as it is)"
        print(f"probes: {name}: accuracy {accuracies[name]:.4f} on {counts[1]} images{note}", flush=True)
    return {
        "train": train.name,
        "eval": evaluation.name,
        "num_train": counts[0],
        "num_eval": counts[1],
        "accuracy": accuracies,
        "accuracy_of_given_head": before,
        "skipped": train.skipped | evaluation.skipped,
    }


def _probe(context: Context, folder, name, encoder, train, evaluation):
    config = context.config
    settings = settings_of(classification.ProbeSettings, {k: v for k, v in config.probe.items() if k not in _NOT_TRAINING})

    def features(source, limit, what):
        section = ConfigDict({"num_images": limit or len(source), "batch_size": config.eval.batch_size})
        label = f"probe {name}: {what}"
        batches = context.measuring_batches(source, encoder.preprocessing, section, label, augment="center_crop")
        return classification.extract_features(encoder, batches)

    if settings.cache:
        batches = classification.CachedBatches(
            *features(train, config.probe.num_train, "training set"), settings.batch_size, config.seed
        )
        count, batch_size, frozen = len(batches.labels), batches.batch_size, None
    else:
        crops = RandomResizedCrop(encoder.preprocessing.crop)  # the paper's, whatever config.data does
        if config.probe.num_train:
            train = Subset(train, config.probe.num_train, config.seed)
        batches = training_batches(
            train, crops, settings.batch_size, seed=config.seed, threads=config.data.threads, workers=config.data.workers
        )
        count, batch_size, frozen = len(train), settings.batch_size, encoder
    layout = encoder.layout
    num_features = encoder.dim * (bool(layout.num_cls) + bool(layout.num_patches))
    start = None
    if config.probe.head == "teacher":
        start = encoder.head
        shape = None if start is None else (num_features, len(train.classes))
        if start is None or np.shape(start["kernel"]) != shape:
            raise UserError(
                f"config.probe.head is teacher, but {encoder.name} has no classifier for the {len(train.classes)} classes of "
                f"{train.name}: give a teacher trained here on them, or the file of a published classifier"
            )
    elif config.probe.head:
        from weights_convert.heads import read_linear_head

        start = read_linear_head(config.probe.head, num_features, len(train.classes))
    head = classification.train_probe(
        frozen,
        batches,
        num_features,
        len(train.classes),
        settings.epochs * max(count // batch_size, 1),
        settings,
        mesh=context.mesh,
        head=start,
        folder=folder,
        identity={key: value for key, value in identity(config.probe).items() if key not in ("eval", "num_eval")},
        label=f"probe {name}",
        batch_size=batch_size,
        loop=context.loop,
    )
    values, labels = features(evaluation, config.probe.num_eval, "test set")
    before = None if start is None else classification.accuracy(start, values, labels)
    return classification.accuracy(head, values, labels), before, (count, len(labels))
