"""brh_jax.fit_raptor: a Raptor of one's own, from a teacher and images, in so many minutes.

The same training as a run's (`brh_jax.distill`), by the recipe for few images (docs/experiments.md). A run of `experiments.main`
beside it can stop and go on, measures what came out and writes a page.
"""

import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from brh_jax.errors import UserError, expect, is_number, is_whole
from brh_jax.images import ImageLike
from brh_jax.loading import load
from brh_jax.models import Encoder, RaptorConfig
from brh_jax.partition import Partition
from brh_jax.types import PathLike

if TYPE_CHECKING:
    from brh_jax.data.sources import Source


def fit_raptor(
    teacher: "Encoder | PathLike",
    images: "PathLike | np.ndarray | Sequence[ImageLike] | Source",
    k: int = 2,
    *,
    minutes: float = 10.0,
    steps: int | None = None,
    partition: Partition | Sequence[int] | None = None,
    batch_size: int = 8,
    augment: bool = True,
    learning_rate: float = 0.03,
    seed: int = 0,
) -> Encoder:
    """Distils a ViT into k shared blocks on images of one's own, within a time (paper, sections 2 to 4).

    Depth is cut as the paper's authors cut it, by recursive bisection of the dissimilarity of layers on up to 128 of the
    images. The first steps are timed, and as many are taken as fit into what is left, the learning rate falling to the end. Ten
    minutes are a beginning: the paper trains for 625,000 steps. A line shows how far it is.

    Args:
        teacher: the ViT, or anything that `load` takes.
        images: a folder of images; uint8 `[n, height, width]` or `[n, height, width, 3]`; a list of PIL images or arrays of any
            sizes; or `tfds:NAME:SPLIT`, `idx:PATH`, `digits:SPLIT`. Labels are not used.
        k: number of phases, where `partition` is None.
        minutes: for all of it, finding phases and compiling included; from the call on.
        steps: so many, whatever they take, instead: the same call then gives the same Raptor.
        partition: which layers share a block, a Partition or numbers of layers such as (7, 3, 2).
        batch_size: images of a step, a multiple of the number of devices. Of few images small batches make more.
        augment: whether training sees random crops, mirrored half the time, or always the centre.
        learning_rate: the largest, of Muon's steps.
        seed: of the blocks, the order of images and the crops.

    Returns:
        The Raptor, an Encoder like its teacher: `trajectory(images)`, `system()`, `logits(images)`. `brh_jax.save` keeps it,
        `brh_jax.load` gives it back.

    Raises:
        UserError: no ViT, no images, no k phases, or a time that is too short for ten steps.
    """
    begun = time.monotonic()
    _check(k, minutes, steps, batch_size, learning_rate)
    if jax.process_count() > 1:
        raise UserError("fit_raptor runs in one process: on several use python -m experiments.main")
    teacher = teacher if isinstance(teacher, Encoder) else load(teacher)
    if teacher.config.kind != "vit" or "embedding" not in teacher.params:
        raise UserError(f"the teacher {teacher.name} is a Raptor: expected a ViT, which it stands for")
    # Here, as it takes longer to import than all the rest.
    from brh_jax.distill import raptor_encoder, timed
    from brh_jax.distill.recipe import BLOCK

    source = timed.images_source(images)
    if partition is None:
        partition = timed.found_phases(teacher, source, k, batch_size)
    elif not isinstance(partition, Partition):
        partition = Partition(tuple(partition))
    config = RaptorConfig(teacher.config, partition, **BLOCK)
    print(f"{teacher.name}: {len(source)} images, phases {partition}", flush=True)
    with tempfile.TemporaryDirectory(prefix="brh_jax_raptor_") as folder:
        training = timed.Training(teacher, config, source, batch_size, augment, learning_rate, seed, pathlib.Path(folder))
        blocks = training.within(begun + 60 * minutes, minutes) if steps is None else training.of(steps)
    return raptor_encoder(config, blocks, teacher, f"Raptor {partition} of {teacher.name}")


def _check(k, minutes, steps, batch_size, learning_rate) -> None:
    expect(is_whole(k) and k >= 1, "k", k, "a number of phases, 1 or more")
    expect(is_number(minutes) and minutes > 0, "minutes", minutes, "a positive number")
    good = steps is None or (is_whole(steps) and steps > 0)
    expect(good, "steps", steps, "a number of steps, or None for as many as fit")
    devices = jax.local_device_count()
    good = is_whole(batch_size) and batch_size > 0 and batch_size % devices == 0
    expect(good, "batch_size", batch_size, f"a positive multiple of the number of devices, {devices}")
    expect(is_number(learning_rate) and learning_rate > 0, "learning_rate", learning_rate, "a positive number")
