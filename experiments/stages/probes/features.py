"""Features of labelled images: [cls, mean patch] of centre crops."""

from typing import Any

import numpy as np

from brh_jax.data.classes import OfClasses, balanced, draw_classes, matched
from brh_jax.data.sources import Source
from brh_jax.data.transforms import CenterCrop
from brh_jax.errors import UserError
from brh_jax.models import Encoder
from brh_jax.probes import classification
from brh_jax.probes.classification import Extracted
from brh_jax.types import Labels
from experiments.stage import Context
from experiments.stages.probes.choice import SharedSettings


def open_labelled(context: Context, settings: SharedSettings, section: str, own: Any) -> tuple[Source, Source]:
    """Images to train and to test on, `own.train` and `own.eval`, of `own.classes` of their classes where that is not 0.

    Raises:
        UserError: the set to test on has classes that the other has not.
    """
    train, test = (context.source(spec, settings.data.data_dir) for spec in (own.train, own.eval))
    try:
        test = matched(train, test)
    except UserError as error:
        raise UserError(f"config.{section}: {error}") from None
    if not 0 < own.classes < len(train.classes):
        return train, test
    names = draw_classes(train, own.classes, settings.seed)
    per_class = (max(own.num_train // len(names), 1) if own.num_train else 0), 0
    parts = (balanced(source, names, each, settings.seed) for source, each in zip((train, test), per_class, strict=True))
    train, test = (OfClasses(part, names) for part in parts)
    return train, test


def read_features(
    context: Context, settings: SharedSettings, encoder: Encoder, source: Source, num_images: int, label: str
) -> Extracted:
    """Features, labels and photographs; of all images where `num_images` is 0."""
    batches = context.measuring_batches(
        source,
        CenterCrop(encoder.preprocessing),
        num_images=num_images,
        batch_size=settings.eval.batch_size,
        label=label,
        seed=settings.seed,
        threads=settings.data.threads,
    )
    return classification.extract_features(encoder, batches)


def classes_without_images(source: Source, labels: Labels) -> list[str]:
    """Names of the classes that are not among the labels."""
    return [source.classes[i] for i in np.setdiff1d(np.arange(len(source.classes)), labels)]
