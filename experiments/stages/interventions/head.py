"""The classifier that tells the class of an image from the teacher's last state."""

import numpy as np
from jaxtyping import Float

from brh_jax.data.classes import balanced
from brh_jax.data.sources import Source
from brh_jax.data.transforms import CenterCrop
from brh_jax.errors import UserError
from brh_jax.models import Encoder
from brh_jax.probes import classification
from brh_jax.types import Array, Features, Labels
from experiments.data import AllImages
from experiments.results import read_arrays
from experiments.stage import Context
from experiments.stages.accuracy.run import MeasuringSettings, own_head
from experiments.stages.probes.linear import head_file
from experiments.stages.probes.run import ProbesResult

Head = dict[str, Float[Array, "..."]]


def find_head(
    context: Context, teacher: Encoder, source: Source, data: AllImages, measuring: MeasuringSettings, seed: int
) -> tuple[Head | None, str]:
    """A classifier of a set's images, and what it is: the teacher's own, the probe's, or class means; None without labels."""
    if len(source.classes) < 2:
        return None, ""
    train = context.source(data.train, data.data_dir) if data.train else None
    if (own := own_head(teacher, train, source)) is not None:
        return own, "the teacher's classifier"
    probes = context.results.get(ProbesResult)
    if probes is not None and probes.linear is not None:
        probe = read_arrays(head_file(context.workdir / "probes", "teacher"))
        if tuple(probe["classes"]) == source.classes:
            return {"kernel": probe["kernel"], "bias": probe["bias"]}, "the linear probe"
    if train is None or train.classes != source.classes:
        print(f"interventions: no classifier of {source.name} is there, so accuracies are left out", flush=True)
        return None, ""
    batches = context.measuring_batches(
        balanced(train, train.classes, max(measuring.num_images // len(train.classes), 1), seed),
        CenterCrop(teacher.preprocessing),
        num_images=0,
        batch_size=measuring.batch_size,
        label="class means",
        seed=seed,
        threads=data.threads,
    )
    return class_means(*classification.extract_features(teacher, batches)[:2], len(source.classes)), "the nearest class mean"


def class_means(features: Features, labels: Labels, num_classes: int) -> Head:
    """The nearest class mean as a linear classifier: the least |x - m|² is the largest m·x - |m|² / 2.

    Raises:
        UserError: a class without images.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise UserError(
            f"class {int(np.argmin(counts))} has none of the {len(labels)} images that class means are taken of: raise "
            "config.eval.num_images, or give a probe (config.probe.train)"
        )
    means = np.stack([features[labels == c].mean(0) for c in range(num_classes)])
    return {"kernel": means.T, "bias": -np.square(means).sum(1) / 2}
