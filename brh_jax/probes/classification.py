"""Linear classification of [LN(cls), mean LN(patches)] on a frozen encoder (paper, section 9)."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from brh_jax.data.pipeline import epoch_rows
from brh_jax.errors import expect_positive
from brh_jax.models.encoder import Encoder, pooled_features
from brh_jax.models.head import apply_head, zero_head
from brh_jax.probes.heads import train_head
from brh_jax.train.loop import AdamwSettings, Run
from brh_jax.train.parallel import to_host
from brh_jax.types import Features, Labels, Pixels


@dataclasses.dataclass(frozen=True)
class ProbeSettings(AdamwSettings):
    """How a probe trains; the defaults are the paper's for ImageNet-1k.

    Attributes:
        epochs: passes over the training set.
        batch_size: images of a step.
        cache: whether features are computed once and kept. Saves the encoder's passes on small sets, but sees no random crops.
    """

    epochs: int = 15
    batch_size: int = 512
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    cache: bool = False

    def __post_init__(self):
        super().__post_init__()
        expect_positive(self, "epochs", "batch_size")


@jax.jit
def encode(encoder: Encoder, images: Pixels) -> Features:
    """uint8 images to probe features."""
    variables = {"params": encoder.params}
    module: Any = encoder.module
    states = module.apply(variables, encoder.normalize_pixels(images))
    return pooled_features(module.apply(variables, states[-1], method="normalize"), encoder.layout)


class Extracted(NamedTuple):
    """Features `[n, features]`, labels `[n]`, and of which photograph each image is a view, `[n]`: what intervals draw."""

    features: np.ndarray
    labels: np.ndarray
    photographs: np.ndarray


def extract_features(encoder: Encoder, batches: Iterable) -> Extracted:
    """Features of all images in `measuring_batches`."""
    found = []
    for batch in batches:
        features = to_host(encode(encoder, batch["image"]))
        found.append([np.asarray(part)[batch["valid"]] for part in (features, batch["label"], batch["photograph"])])
    return Extracted(*map(np.concatenate, zip(*found, strict=True)))


class CachedBatches(Iterator):
    """Endless shuffled epochs over features held in memory by every process; batch n is the same whenever it is asked for."""

    def __init__(self, features: Features, labels: Labels, batch_size: int, seed: int):
        self.features, self.labels, self.seed = features, labels, seed
        self.batch_size = min(batch_size, len(labels))
        self.step = 0

    def seek(self, step: int) -> None:
        """Makes batch number `step` the next one."""
        self.step = step

    def __next__(self):
        rows = epoch_rows(self.step, len(self.labels), self.batch_size, self.seed)
        self.step += 1
        return {"features": self.features[rows], "label": self.labels[rows]}


def train_probe(
    encoder: Encoder | None,
    batches: Any,
    num_features: int,
    num_classes: int,
    num_steps: int,
    settings: ProbeSettings,
    run: Run,
    *,
    batch_size: int,
    head: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains `{"kernel": [features, classes], "bias": [classes]}` by cross-entropy.

    Args:
        encoder: computes features of `batch["image"]` in the step; None where batches hold `features`.
        batch_size: of all processes together.
        head: what to start from, a published classifier say; zeros by default.
    """

    def loss_fn(head, encoder, batch):
        features = batch["features"] if encoder is None else encode(encoder, batch["image"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(apply_head(head, features), batch["label"]))

    head = zero_head(num_features, num_classes) if head is None else head
    return train_head(loss_fn, head, batches, num_steps, settings, run, batch_size=batch_size, encoder=encoder)[0]


def hits(head: dict[str, Any], features: Features, labels: Labels) -> np.ndarray:
    """Whether each image's largest logit is the label's, bool `[n]`."""
    return np.argmax(np.asarray(apply_head(head, features)), -1) == labels


def accuracy(head: dict[str, Any], features: Features, labels: Labels) -> float:
    """Share of images whose largest logit is the label's."""
    return float(np.mean(hits(head, features, labels)))
