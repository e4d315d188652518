"""Distilling on images of one's own in a given time: what `brh_jax.fit_raptor` does.

The same training as a run's, by the recipe for few images.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.data.lists import ImageList
from brh_jax.data.pipeline import measuring_batches, training_batches
from brh_jax.data.sources import KINDS, ArraySource, ImageFolder, Source, open_source
from brh_jax.data.transforms import CenterCrop, RandomResizedCrop, Transform
from brh_jax.distill.objectives import Joint, init_blocks
from brh_jax.distill.recipe import joint_recipe
from brh_jax.distill.trainer import make_update, train_blocks
from brh_jax.distill.validation import Validation
from brh_jax.errors import UserError
from brh_jax.models.encoder import Encoder
from brh_jax.models.raptor import RaptorConfig
from brh_jax.partition import Partition
from brh_jax.phases import bisection, streaming_dissimilarity
from brh_jax.train.loop import LoopSettings, Run
from brh_jax.train.parallel import make_mesh, shard, shard_batch, to_host

PHASE_IMAGES = 128  # that phases are found on
_FEWEST = 10  # steps
_SHARE = 0.95  # of the time, so that a slower moment is no overrun


def images_source(images: Any) -> Source:
    """A source of what a user has: a folder, an array of pixels, a list of images; see `brh_jax.fit_raptor`.

    Raises:
        UserError: none of these, or no images.
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, str | os.PathLike):
        name = os.fspath(images)
        return open_source(name) if name.partition(":")[0] in KINDS else ImageFolder(name)
    if isinstance(images, np.ndarray | jax.Array):
        if jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f"images are {images.dtype}: expected pixels as they are, uint8; the teacher's preprocessing comes after"
            )
        return ArraySource(np.asarray(images))
    if isinstance(images, Sequence):
        return ImageList(images)
    raise UserError(f"images are a {type(images).__name__}: expected a folder, an array of pixels or a list of images")


def found_phases(teacher: Encoder, source: Source, k: int, batch_size: int) -> Partition:
    """Depth in k phases by the authors' recursive bisection (paper, section 2), on up to PHASE_IMAGES images.

    Raises:
        UserError: the bisection has no k phases.
    """
    batches = measuring_batches(source, CenterCrop(teacher.preprocessing), batch_size, num_images=PHASE_IMAGES)
    trajectories = ((teacher.trajectory(teacher.normalize_pixels(batch["image"])), batch["valid"]) for batch in batches)
    dissimilarity, _ = streaming_dissimilarity(trajectories, teacher.layout)
    return bisection(dissimilarity).partition(k)


class Pace(NamedTuple):
    """Seconds that compiling takes, and a step with its images."""

    compiling: float
    step: float


@dataclasses.dataclass(frozen=True)
class Training:
    """A training, timed on its first steps and then of as many as fit; or of so many.

    Attributes:
        teacher: the ViT.
        config: of the Raptor.
        source: of the images.
        batch_size: images of a step.
        augment: whether training sees random crops or always the centre.
        learning_rate: the largest.
        seed: of the blocks, the order of images and the crops.
        folder: for what the training loop leaves.
        validation: what measures the blocks as they train; its time is on top of what `within` is given.
    """

    teacher: Encoder
    config: RaptorConfig
    source: Any
    batch_size: int
    augment: bool
    learning_rate: float
    seed: int
    folder: pathlib.Path
    validation: Validation | None = None

    def of(self, steps: int) -> Any:
        """The blocks after so many steps."""
        return self._train(steps, None)

    def within(self, deadline: float, minutes: float) -> Any:
        """The trained blocks. Raises UserError where the time is too short."""
        pace = self._pace()
        # The same once more for the training, and about as much for its steps without restarts.
        left = _SHARE * (deadline - time.monotonic()) - 2 * pace.compiling
        steps = int(left / pace.step)
        if steps < _FEWEST:
            spent = minutes - (deadline - time.monotonic()) / 60
            needed = spent + (2 * pace.compiling + _FEWEST * pace.step) / 60 / _SHARE
            raise UserError(
                f"minutes is {minutes:g}: a step takes {pace.step:.2g} s here, so {_FEWEST} of them need {needed:.2g} minutes "
                "with phases and compiling; give more, a smaller batch_size, or a teacher at a smaller image size (at_size)"
            )
        print(f"{steps} steps of {pace.step:.2g} s fit into {minutes:g} minutes", flush=True)
        return self._train(steps, pace.step)

    def _fresh(self) -> Any:
        return to_host(init_blocks(self.config, self.teacher.layout, jax.random.key(self.seed)))

    def _objective(self, steps: int) -> Joint:
        return Joint(dataclasses.replace(joint_recipe(steps), learning_rate=self.learning_rate))

    def _batches(self) -> Any:
        seen = self.teacher.preprocessing
        crops = RandomResizedCrop(seen.crop, interpolation=seen.interpolation)
        transform: Transform = crops if self.augment else CenterCrop(seen)
        return training_batches(self.source, transform, self.batch_size, seed=self.seed)

    def _pace(self) -> Pace:
        """Measures the first steps, on blocks of their own."""
        mesh, objective = make_mesh(), self._objective(1000)
        update, optimiser = make_update(objective, self.teacher, self.config, seed=self.seed)
        params, blocks = self.teacher.on(mesh).params, self._fresh()
        state = shard({"params": blocks, "opt_state": optimiser.init(blocks)}, mesh)
        batches, times = self._batches(), list[float]()
        next(batches)  # threads that read ahead have begun
        while len(times) < 2 or (len(times) < 5 and sum(times[1:]) < 3):
            begun = time.monotonic()
            with jax.numpy_dtype_promotion("standard"):  # optax knows no other
                state, metrics = update(state, params, shard_batch(next(batches), mesh), len(times), True)
            jax.block_until_ready((state, metrics))
            times.append(time.monotonic() - begun)
        step = sum(times[1:]) / len(times[1:])
        return Pace(max(0.0, times[0] - step), step)

    def _train(self, steps: int, seconds: float | None) -> Any:
        every = 10 if seconds is None else max(1, round(1 / max(seconds, 1e-3)))
        loop = LoopSettings(log_every=every, save_every=10 * steps, keep_best=0)
        run = Run(self.folder, {}, make_mesh(), "fit a Raptor", loop)
        arguments = (self._objective(steps), self.teacher, self.config, self._fresh(), self._batches(), run)
        return to_host(train_blocks(*arguments, batch_size=self.batch_size, seed=self.seed, validation=self.validation))
