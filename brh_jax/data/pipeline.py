"""Batches of uint8 images from a source, through grain: shuffled and endless for training, in order and padded for measuring."""

from collections.abc import Iterator

import grain
import numpy as np

from brh_jax.data.sources import Source


class _Load(grain.transforms.RandomMap):
    """Index -> transformed record; None for an image that cannot be decoded, which grain then leaves out."""

    def __init__(self, source: Source, transform):
        self.source, self.transform = source, transform

    def random_map(self, index: int, rng: np.random.Generator):
        record = self.source.read_or_skip(index)
        if record is None:
            return None
        return {"image": self.transform(record["image"], rng), "label": np.int32(record["label"])}


def _records(source, transform, seed, shuffle, repeat):
    indices = grain.MapDataset.range(len(source)).seed(seed)
    if shuffle:
        indices = indices.shuffle()
    return indices.repeat(repeat).random_map(_Load(source, transform))


def training_batches(source: Source, transform, batch_size: int, *, seed: int, threads: int = 8):
    """An endless iterator over shuffled epochs of `{"image": uint8 [batch, h, w, 3], "label": int32 [batch]}`.

    It is grain's: `get_state()` and `set_state()` go on exactly where a run stopped. Every epoch has its own order and crops.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch_size)
    records = _records(source, transform, seed, shuffle=True, repeat=None)
    return iter(records.to_iter_dataset(options).batch(batch_size, drop_remainder=True))


def measuring_batches(
    source: Source, transform, batch_size: int, *, num_images: int | None = None, seed: int = 0, threads: int = 8
) -> Iterator[dict]:
    """One pass of full batches with a `valid` mask, the last one padded; the same images every time.

    Args:
        num_images: at most this many, drawn at random if the source has more. With a random transform the source is gone
            through again, with new crops, until there are as many; without one, no image comes twice.
    """
    total = len(source) if num_images is None else num_images
    if not transform.random:
        total = min(total, len(source))
    repeats = -(-total // len(source))
    records = _records(source, transform, seed, shuffle=total % len(source) != 0, repeat=repeats)[:total]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch_size)
    for batch in records.to_iter_dataset(options).batch(batch_size, drop_remainder=False):
        count = len(batch["label"])
        padded = {k: np.concatenate([v, np.repeat(v[:1], batch_size - count, axis=0)]) for k, v in batch.items()}
        yield padded | {"valid": np.arange(batch_size) < count}
