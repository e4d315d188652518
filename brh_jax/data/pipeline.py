"""Batches of uint8 images from a source, through grain: shuffled and endless for training, in order and padded for measuring.

Where records hold a dense target (a mask, a depth map), it goes through the same transform as its image, as `target`.
A batch belongs to all processes of a run: each gives its part of it, and which images the whole holds does not depend on how
many processes or workers there are.
"""

from collections.abc import Iterator

import grain
import jax
import numpy as np
from absl import flags

from brh_jax.data.sources import UNLABELLED, Source
from brh_jax.data.transforms import Transform
from brh_jax.errors import UserError

_ENDLESS = 2**53  # records: grain counts batches in floats, and overflows with one record in each


class _Load(grain.transforms.RandomMap, grain.transforms.Map):
    """Index -> transformed record; an image that cannot be decoded is replaced by the next that can, and `failed` names it."""

    def __init__(self, source: Source, transform: Transform):
        self.source, self.transform = source, transform

    def map(self, index: int):
        return self.random_map(index, None)

    def random_map(self, index: int, rng: np.random.Generator | None):
        at, record = self.source.read_next(index)
        found = {"label": np.int32(record.get("label", UNLABELLED)), "failed": np.int64(-1 if at == index else index)}
        if "target" not in record:
            return {"image": self.transform(record["image"], rng)} | found
        image, target = self.transform(record["image"], rng, record["target"])
        return {"image": image, "target": target} | found


def _records(indices, source: Source, transform: Transform):
    """The records of indices; a random generator for each only where the transform uses it."""
    load = _Load(source, transform)
    return indices.random_map(load) if transform.random else indices.map(load)


class _Part(grain.MapDataset):
    """What one process gives to batches of `batch_size` records: the `part`-th of `count` equal pieces of each."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, part: int, count: int):
        super().__init__(parent)
        self._batch_size, self._part, self._count = batch_size, part, count

    def __len__(self):
        whole, rest = divmod(len(self._parent), self._batch_size)
        size = self._batch_size // self._count
        return min(whole * size + min(max(rest - self._part * size, 0), size), _ENDLESS)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        size = self._batch_size // self._count
        batch, place = divmod(index, size)
        return self._parent[batch * self._batch_size + self._part * size + place]


def _place(source: Source, batch_size: int, process: tuple[int, int] | None) -> tuple[int, int]:
    """(index, count) of this process, after a look at what it is asked for."""
    index, count = process or (jax.process_index(), jax.process_count())
    if batch_size % count:
        raise UserError(f"a batch of {batch_size} images does not divide over {count} processes")
    if not len(source):
        raise UserError(f"{source.name} holds no images: give another split, or more of it")
    return index, count


class TrainingBatches(Iterator):
    """An endless iterator over shuffled epochs of `{"image": uint8 [batch, h, w, 3], "label": int32 [batch]}`.

    Every epoch has its own order and crops. Batch number n is the same whenever it is asked for: `seek(n)` goes on where a run
    stopped, on any number of processes.

    Args:
        batch_size: of all processes together.
        threads: that read ahead, or, with `workers`, in each worker.
        workers: processes that decode; 0 to decode in threads of this one.
        process: (index, count) of this process among those of the run; jax's by default.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        batch_size: int,
        *,
        seed: int,
        threads: int = 8,
        workers: int = 0,
        process: tuple[int, int] | None = None,
    ):
        index, count = _place(source, batch_size, process)
        self.source, self.step = source, 0
        self._threads, self._workers = threads, workers
        records = _records(grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None), source, transform)
        self._batches = _Part(records, batch_size, index, count).batch(batch_size // count)
        self._iterator: Iterator | None = None

    def seek(self, step: int) -> None:
        """Makes batch number `step` the next one."""
        self.step, self._iterator = step, None

    def __next__(self) -> dict:
        if self._iterator is None:
            options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=max(2, self._threads))
            batches = self._batches[self.step :].to_iter_dataset(options)
            if self._workers:
                if not flags.FLAGS.is_parsed():  # grain reads flags of its own, which notebooks do not parse
                    flags.FLAGS.mark_as_parsed()
                batches = batches.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=self._workers))
            self._iterator = iter(batches)
        batch = next(self._iterator)
        self.step += 1
        for index in batch.pop("failed"):
            if index >= 0:
                self.source.read_or_skip(int(index))  # a worker's notes do not come back: noted here
        return batch


def epoch_rows(step: int, total: int, batch_size: int, seed: int) -> np.ndarray:
    """This process's rows of batch number `step`, of shuffled epochs over `total` rows that every process holds.

    Raises:
        UserError: a batch larger than the set, or one that does not divide over the processes.
    """
    if batch_size > total or batch_size % jax.process_count():
        raise UserError(
            f"a batch of {batch_size} images of {total}, over {jax.process_count()} processes: it must be at most the set, and "
            "divide over the processes"
        )
    epoch, position = divmod(step, total // batch_size)
    order = np.random.default_rng((seed, epoch)).permutation(total)
    rows = order[position * batch_size :][:batch_size]
    return np.split(rows, jax.process_count())[jax.process_index()]


def training_batches(source: Source, transform: Transform, batch_size: int, *, seed: int, threads: int = 8, workers: int = 0):
    """See TrainingBatches."""
    return TrainingBatches(source, transform, batch_size, seed=seed, threads=threads, workers=workers)


def measuring_batches(
    source: Source,
    transform: Transform,
    batch_size: int,
    *,
    num_images: int | None = None,
    seed: int = 0,
    threads: int = 8,
    process: tuple[int, int] | None = None,
) -> Iterator[dict]:
    """One pass of full batches with a `valid` mask, the last one padded; the same images every time.

    Args:
        batch_size: of all processes together.
        num_images: at most this many, in random order, drawn at random if the source has more. With a random transform the source
            is gone through again, with new crops, until there are as many; without one, no image comes twice.
        process: (index, count) of this process among those of the run; jax's by default.
    """
    part, count = _place(source, batch_size, process)
    total = len(source) if num_images is None else num_images
    if not transform.random:
        total = min(total, len(source))
    # In random order even where all are taken: folders come class by class, and kernel alignment is measured over groups.
    indices = grain.MapDataset.range(len(source)).seed(seed).shuffle()
    records = _records(indices.repeat(-(-total // len(source))), source, transform)[:total]
    spare = {key: np.asarray(value)[None] for key, value in records[0].items()}  # fills up what has no record of its own
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch_size)
    local, mine = batch_size // count, _Part(records, batch_size, part, count)
    batches = iter(mine.to_iter_dataset(options).batch(local, drop_remainder=False)) if len(mine) else iter(())
    for _ in range(-(-total // batch_size)):
        batch = next(batches, {key: value[:0] for key, value in spare.items()})
        size = len(batch["label"])
        whole = {key: np.concatenate([value, np.repeat(spare[key], local - size, axis=0)]) for key, value in batch.items()}
        # An image that cannot be decoded has been replaced: it does not count.
        valid = (whole.pop("failed") < 0) & (np.arange(local) < size)
        yield whole | {"valid": valid}
