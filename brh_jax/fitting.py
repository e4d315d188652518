"""brh_jax.fit_raptor: a Raptor of one's own, from a teacher and images, in so many minutes.

The same training as a run's (`brh_jax.distill`): the blocks side by side from the teacher's states, then joined. A run of
`experiments.main` beside it can stop and go on, measures what came out and writes a page.
"""

import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.errors import UserError, expect, is_number, is_whole
from brh_jax.images import ImageLike
from brh_jax.loading import load
from brh_jax.models import Encoder, RaptorConfig
from brh_jax.partition import Partition
from brh_jax.types import PathLike

if TYPE_CHECKING:
    from brh_jax.data.sources import Source

PHASE_IMAGES = 128  # that phases are found on
_KINDS = ("tfds:", "folder:", "idx:", "digits:")
_FEWEST = 10  # steps of a stage
_SHARE = 0.95  # of the time, so that a slower moment is no overrun


def fit_raptor(
    teacher: "Encoder | PathLike",
    images: "PathLike | np.ndarray | Sequence[ImageLike] | Source",
    k: int = 2,
    *,
    minutes: float = 10.0,
    steps: int | None = None,
    partition: Partition | Sequence[int] | None = None,
    batch_size: int = 16,
    augment: bool = True,
    learning_rates: tuple[float, float] = (1e-3, 3e-4),
    seed: int = 0,
) -> Encoder:
    """Distils a ViT into k shared blocks on images of one's own, within a time (paper, sections 2 to 4).

    Depth is cut as the paper's authors cut it, by recursive bisection of the dissimilarity of layers on up to PHASE_IMAGES of the
    images. The first steps of each stage are timed, and both get as many steps as fit into what is left, their learning rates
    falling to the end. Ten minutes are a beginning: the paper trains for 625,000 steps. A line shows how far it is.

    Args:
        teacher: the ViT, or anything that `load` takes.
        images: a folder of images; uint8 `[n, height, width]` or `[n, height, width, 3]`; a list of PIL images or arrays of any
            sizes; or `tfds:NAME:SPLIT`, `idx:PATH`, `digits:SPLIT`. Labels are not used.
        k: number of phases, where `partition` is None.
        minutes: for all of it, finding phases and compiling included; from the call on.
        steps: of each of the two stages, whatever they take, instead: the same call then gives the same Raptor.
        partition: which layers share a block, a Partition or numbers of layers such as (7, 3, 2).
        batch_size: images of a step, a multiple of the number of devices.
        augment: whether training sees random crops, mirrored half the time, or always the centre.
        learning_rates: the largest of each stage. The paper's is 3e-4 for both; the first is more here, as its steps are few.
        seed: of the blocks, the order of images and the crops.

    Returns:
        The Raptor, an Encoder like its teacher: `trajectory(images)`, `system()`, `logits(images)`. `brh_jax.save` keeps it,
        `brh_jax.load` gives it back.

    Raises:
        UserError: no ViT, no images, no k phases, or a time that is too short for ten steps of each stage.
    """
    begun = time.monotonic()
    _check(k, minutes, steps, batch_size, learning_rates)
    if jax.process_count() > 1:
        raise UserError("fit_raptor runs in one process: on several use python -m experiments.main")
    teacher = teacher if isinstance(teacher, Encoder) else load(teacher)
    if teacher.config.kind != "vit" or "embedding" not in teacher.params:
        raise UserError(f"the teacher {teacher.name} is a Raptor: expected a ViT, which it stands for")
    source = _source(images)
    if partition is None:
        partition = _phases(teacher, source, k, batch_size)
    elif not isinstance(partition, Partition):
        partition = Partition(tuple(partition))
    config = RaptorConfig(teacher.config, partition)
    print(f"{teacher.name}: {len(source)} images, phases {partition}", flush=True)
    with tempfile.TemporaryDirectory(prefix="brh_jax_raptor_") as folder:
        training = _Training(teacher, config, source, batch_size, augment, tuple(learning_rates), seed, pathlib.Path(folder))
        blocks = training.within(begun + 60 * minutes, minutes) if steps is None else training.of(steps)
    from brh_jax.distill import raptor_encoder

    return raptor_encoder(config, blocks, teacher, f"Raptor {partition} of {teacher.name}")


def _check(k, minutes, steps, batch_size, learning_rates) -> None:
    expect(is_whole(k) and k >= 1, "k", k, "a number of phases, 1 or more")
    expect(is_number(minutes) and minutes > 0, "minutes", minutes, "a positive number")
    good = steps is None or (is_whole(steps) and steps > 0)
    expect(good, "steps", steps, "a number of steps of each stage, or None for as many as fit")
    devices = jax.local_device_count()
    good = is_whole(batch_size) and batch_size > 0 and batch_size % devices == 0
    expect(good, "batch_size", batch_size, f"a positive multiple of the number of devices, {devices}")
    rates = isinstance(learning_rates, Sequence) and len(learning_rates) == 2 and all(map(is_number, learning_rates))
    expect(rates and min(learning_rates) > 0, "learning_rates", learning_rates, "two positive numbers, of the two stages")


def _source(images: Any) -> "Source":
    from brh_jax.data.lists import ImageList
    from brh_jax.data.sources import ArraySource, ImageFolder, Source, open_source

    if isinstance(images, Source):
        return images
    if isinstance(images, str | os.PathLike):
        name = os.fspath(images)
        return open_source(name) if name.startswith(_KINDS) else ImageFolder(name)
    if isinstance(images, np.ndarray | jax.Array):
        if jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f"images are {images.dtype}: expected pixels as they are, uint8; the teacher's preprocessing comes after"
            )
        return ArraySource(np.asarray(images))
    if isinstance(images, Sequence):
        return ImageList(images)
    raise UserError(f"images are a {type(images).__name__}: expected a folder, an array of pixels or a list of images")


def _phases(teacher: Encoder, source: "Source", k: int, batch_size: int) -> Partition:
    from brh_jax import phases
    from brh_jax.data.pipeline import measuring_batches
    from brh_jax.data.transforms import CenterCrop

    batches = measuring_batches(source, CenterCrop(teacher.preprocessing), batch_size, num_images=PHASE_IMAGES)
    trajectories = ((teacher.trajectory(teacher.normalize_pixels(batch["image"])), batch["valid"]) for batch in batches)
    dissimilarity, _ = phases.streaming_dissimilarity(trajectories, teacher.layout)
    return phases.bisection(dissimilarity).partition(k)


class _Pace(NamedTuple):
    """Seconds that compiling takes, and a step with its images."""

    compiling: float
    step: float


@dataclasses.dataclass(frozen=True)
class _Training:
    """Both stages: timed on their first steps, then trained for as many as fit."""

    teacher: Encoder
    config: RaptorConfig
    source: Any
    batch_size: int
    augment: bool
    learning_rates: tuple[float, ...]
    seed: int
    folder: pathlib.Path

    def of(self, steps: int) -> Any:
        """The blocks after so many steps of each stage."""
        return self._train(1, steps, self._train(0, steps, self._fresh(), None), None)

    def within(self, deadline: float, minutes: float) -> Any:
        """The trained blocks. Raises UserError where the time is too short."""
        blocks = self._fresh()
        apart, joined = self._objective(0, 1000), self._objective(1, 1000)
        forced, alone = self._pace(apart, blocks, True), self._pace(apart, blocks, False)
        rolled = self._pace(joined, blocks, False)
        annealed = apart.settings.annealed
        both = annealed * forced.step + (1 - annealed) * alone.step + rolled.step
        left = _SHARE * (deadline - time.monotonic()) - forced.compiling - alone.compiling - rolled.compiling
        steps = int(left / both)
        if steps < _FEWEST:
            spent = minutes - (deadline - time.monotonic()) / 60
            needed = spent + (forced.compiling + alone.compiling + rolled.compiling + _FEWEST * both) / 60 / _SHARE
            raise UserError(
                f"minutes is {minutes:g}: a step of each stage takes {both:.2g} s here, so ten of each need {needed:.2g} minutes "
                "with phases and compiling; give more, a smaller batch_size, or a teacher at a smaller image size (at_size)"
            )
        print(f"{steps} steps of each of two stages fit into {minutes:g} minutes, {both:.2g} s for one of each", flush=True)
        blocks = self._train(0, steps, blocks, alone.step)
        left = _SHARE * (deadline - time.monotonic()) - rolled.compiling
        return self._train(1, max(_FEWEST, int(left / rolled.step)), blocks, rolled.step)

    def _fresh(self) -> Any:
        from brh_jax.distill import init_blocks
        from brh_jax.train.parallel import to_host

        return to_host(init_blocks(self.config, self.teacher.layout, jax.random.key(self.seed)))

    def _objective(self, stage: int, steps: int) -> Any:
        from brh_jax.distill import Blockwise, BlockwiseSettings, Joint, JointSettings

        options: dict[str, Any] = {"learning_rate": self.learning_rates[stage], "warmup_steps": max(1, steps // 20)}
        if stage == 0:
            return Blockwise(BlockwiseSettings(steps=steps, **options))
        return Joint(JointSettings(steps=steps, **options))

    def _batches(self, stage: int) -> Any:
        from brh_jax.data.pipeline import training_batches
        from brh_jax.data.transforms import CenterCrop, RandomResizedCrop

        seen, transform = self.teacher.preprocessing, CenterCrop(self.teacher.preprocessing)
        if self.augment:
            transform = RandomResizedCrop(seen.crop, interpolation=seen.interpolation)
        return training_batches(self.source, transform, self.batch_size, seed=2 * self.seed + stage)

    def _pace(self, objective: Any, blocks: Any, variant: bool) -> _Pace:
        """Of an objective's first steps, on a copy of the blocks."""
        from brh_jax.distill.trainer import make_update
        from brh_jax.train.parallel import make_mesh, shard, shard_batch

        mesh = make_mesh()
        update, optimiser = make_update(objective, self.teacher, self.config, seed=self.seed)
        params = self.teacher.on(mesh).params
        state = shard(jax.tree.map(jnp.copy, {"params": blocks, "opt_state": optimiser.init(blocks)}), mesh)
        batches, times = self._batches(0), list[float]()
        next(batches)  # threads that read ahead have begun
        while len(times) < 2 or (len(times) < 5 and sum(times[1:]) < 3):
            begun = time.monotonic()
            with jax.numpy_dtype_promotion("standard"):  # optax knows no other
                state, metrics = update(state, params, shard_batch(next(batches), mesh), len(times), variant)
            jax.block_until_ready((state, metrics))
            times.append(time.monotonic() - begun)
        step = sum(times[1:]) / len(times[1:])
        return _Pace(max(0.0, times[0] - step), step)

    def _train(self, stage: int, steps: int, blocks: Any, seconds: float | None) -> Any:
        from brh_jax.distill import train_blocks
        from brh_jax.train.loop import LoopSettings, Run
        from brh_jax.train.parallel import make_mesh, to_host

        every = 10 if seconds is None else max(1, round(1 / max(seconds, 1e-3)))
        loop = LoopSettings(log_every=every, save_every=10 * steps, keep_best=0)
        label = f"stage {stage + 1} of 2: blocks {('apart', 'joined')[stage]}"
        run = Run(self.folder / str(stage), {"stage": stage}, make_mesh(), label, loop)
        options = {"batch_size": self.batch_size, "seed": 2 * self.seed + stage}
        return to_host(
            train_blocks(self._objective(stage, steps), self.teacher, self.config, blocks, self._batches(stage), run, **options)
        )
