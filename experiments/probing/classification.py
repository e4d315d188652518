"""Linear classification on [cls, mean patch], and quick probes on the same features."""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from brh_jax.data.pipeline import training_batches
from brh_jax.data.sources import Selection, Source, Subset
from brh_jax.data.transforms import RandomResizedCrop
from brh_jax.errors import UserError
from brh_jax.models.encoder import pooled_width
from brh_jax.probes import classification
from brh_jax.probes.heads import choose
from brh_jax.probes.quick import knn_predict, logistic_predict
from brh_jax.statistics import summarize
from experiments.context import Context, identity, settings_of

_NOT_TRAINING = ("train", "eval", "num_train", "num_eval", "head", "learning_rates", "held_out")


def linear(context: Context, folder: pathlib.Path) -> dict:
    """Accuracies of linear probes by model; nothing where `config.probe.train` is empty."""
    config = context.config
    if not config.probe.train:
        return {}
    train, evaluation = context.source(config.probe.train), context.source(config.probe.eval)
    classification.check_same_classes(train, evaluation, "config.probe")
    found = {name: {} for name in ("accuracy", "interval", "accuracy_of_given_head", "learning_rate", "held_out")}
    for name, encoder in context.encoders().items():
        head, start, count, rate, scores = _train(context, folder / name, name, encoder, train)
        values, labels = _features(context, encoder, evaluation, config.probe.num_eval, f"probe {name}: test set")
        hits, note = classification.hits(head, values, labels), ""
        found["accuracy"][name], found["interval"][name] = float(hits.mean()), interval(hits)
        found["learning_rate"][name] = rate
        if scores:
            found["held_out"][name] = {f"{rate:g}": score for rate, score in scores.items()}
        if start is not None:
            given = classification.accuracy(start, values, labels)
            found["accuracy_of_given_head"][name], note = given, f" ({given:.4f} with {config.probe.head} as it is)"
        print(f"probes: {name}: accuracy {hits.mean():.4f} on {len(labels)} images{note}", flush=True)
    about = {"train": train.name, "eval": evaluation.name, "num_train": count, "num_eval": len(labels)}
    return about | found | {"skipped": train.skipped | evaluation.skipped}


def _train(context: Context, folder, name, encoder, train):
    """The head, what it was started from, images trained on, its learning rate and the held-out scores of all."""
    config = context.config
    settings = settings_of(classification.ProbeSettings, {k: v for k, v in config.probe.items() if k not in _NOT_TRAINING})
    if settings.cache:
        values, labels = _features(context, encoder, train, config.probe.num_train, f"probe {name}: training set")
        count, frozen = len(labels), None
        if empty := _without_images(train, labels):
            print(
                f"probe {name}: no training image of {len(empty)} of {len(train.classes)} classes, {empty[0]} for one", flush=True
            )
    else:
        train = Subset(train, config.probe.num_train, config.seed) if config.probe.num_train else train
        count, frozen = len(train), encoder
    num_features = pooled_width(encoder.dim, encoder.layout)
    start = None
    if config.probe.head == "teacher":
        start = encoder.head
        if start is None or np.shape(start["kernel"]) != (num_features, len(train.classes)):
            raise UserError(
                f"config.probe.head is teacher, but {encoder.name} has no classifier for the {len(train.classes)} classes of "
                f"{train.name}: give a teacher trained here on them, or the file of a published classifier"
            )
    elif config.probe.head:
        from weights_convert.heads import read_linear_head

        start = read_linear_head(config.probe.head, num_features, len(train.classes))

    def batches(rows):
        if settings.cache:
            return classification.CachedBatches(values[rows], labels[rows], settings.batch_size, config.seed)
        return _crops(context, Selection(train, rows), encoder, settings.batch_size)

    def fit(rate, rows, where):
        made = batches(rows)
        size = made.batch_size if settings.cache else settings.batch_size
        about = {k: v for k, v in identity(config.probe).items() if k not in ("eval", "num_eval", "learning_rates", "held_out")}
        return classification.train_probe(
            frozen,
            made,
            num_features,
            len(train.classes),
            settings.epochs * max(len(rows) // size, 1),
            settings_of(classification.ProbeSettings, vars(settings) | {"learning_rate": rate}),
            mesh=context.mesh,
            head=start,
            folder=where,
            identity=about | {"learning_rate": rate},
            label=f"probe {name}",
            batch_size=size,
            loop=context.loop,
        )

    def score(rate, rest, held):
        head = fit(rate, rest, folder / f"rate_{rate:g}")
        if settings.cache:
            return classification.accuracy(head, values[held], labels[held])
        found = _features(context, encoder, Selection(train, held), 0, f"probe {name}: held out")
        return classification.accuracy(head, *found)

    rates = tuple(config.probe.learning_rates) or (settings.learning_rate,)
    rate, scores = choose(rates, count, config.probe.held_out, config.seed, score)
    head = fit(rate, np.arange(count), folder)
    context.save_arrays(folder / "head.npz", **head, classes=np.array(train.classes))
    return head, start, count, rate, scores


def _crops(context: Context, source: Source, encoder, batch_size):
    data = context.config.data
    crops = RandomResizedCrop(encoder.preprocessing.crop)  # the paper's, whatever config.data does
    return training_batches(source, crops, batch_size, seed=context.config.seed, threads=data.threads, workers=data.workers)


def _features(context: Context, encoder, source: Source, limit: int, label: str):
    section = ConfigDict({"num_images": limit or len(source), "batch_size": context.config.eval.batch_size})
    batches = context.measuring_batches(source, encoder.preprocessing, section, label, augment="center_crop")
    return classification.extract_features(encoder, batches)


def _without_images(source: Source, labels) -> list[str]:
    return [source.classes[i] for i in np.setdiff1d(np.arange(len(source.classes)), labels)]


def interval(values) -> list[float]:
    """95 % bootstrap interval of a mean over images."""
    if len(values) < 2:
        return [float(np.mean(values))] * 2
    band = summarize(np.asarray(values, float))
    return [float(band.low), float(band.high)]


def quick(context: Context) -> dict:
    """Accuracies of k-NN and logistic regression by model; nothing where `config.quick.train` is empty."""
    section = context.config.quick
    if not section.train:
        return {}
    train, evaluation = context.source(section.train), context.source(section.eval)
    classification.check_same_classes(train, evaluation, "config.quick")
    models = {}
    for name, encoder in context.encoders().items():
        values, labels = _features(context, encoder, train, section.num_train, f"quick {name}: training set")
        queries, truth = _features(context, encoder, evaluation, section.num_eval, f"quick {name}: test set")
        voted = knn_predict(values, labels, queries, len(train.classes), section.neighbours, temperature=section.temperature)
        found = {f"{k}-NN": predicted for k, predicted in voted.items()}
        found["logistic"], strength, scores = logistic_predict(
            values, labels, queries, strengths=section.strengths, held_out=section.held_out, seed=context.config.seed
        )
        accuracy = {probe: float(np.mean(predicted == truth)) for probe, predicted in found.items()}
        models[name] = {
            "accuracy": accuracy,
            "interval": {probe: interval(predicted == truth) for probe, predicted in found.items()},
            "strength": strength,
            "held_out": {f"{c:g}": score for c, score in scores.items()},
            "classes_without_images": _without_images(train, labels),
        }
        print(f"quick: {name}: " + ", ".join(f"{k} {v:.4f}" for k, v in accuracy.items()), flush=True)
    return {
        "train": train.name,
        "eval": evaluation.name,
        "num_train": len(labels),
        "num_eval": len(truth),
        "models": models,
        "skipped": train.skipped | evaluation.skipped,
    }
