"""The teacher's states on disk, for small sets: computed once, read in every epoch.

Off by default: running the teacher inside the step needs no disk at all, and a large set would take terabytes. The store is a
zarr array through tensorstore, one chunk per image with a checksum each; it is made anew for other weights, another preprocessing
or other images. Images are told by the set's name, their number, and the first, middle and last of them: where others were
replaced, remove the folder.
"""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore as ts
from jax.sharding import Mesh

from brh_jax.data.files import CorruptImage
from brh_jax.data.pipeline import epoch_rows, measuring_batches
from brh_jax.data.sources import Source
from brh_jax.data.transforms import CenterCrop
from brh_jax.errors import UserError
from brh_jax.models.encoder import Encoder
from brh_jax.train.checkpoints import fingerprints
from brh_jax.train.metrics import Progress
from brh_jax.train.parallel import is_main, shard_batch, to_host, wait_for_all


def bytes_needed(teacher: Encoder, num_images: int) -> int:
    """Size of the store, float32."""
    return 4 * num_images * (teacher.depth + 1) * teacher.layout.num_tokens * teacher.dim


def open_states(teacher: Encoder, source: Source, folder: pathlib.Path, *, limit_gb: float, batch_size: int, mesh: Mesh) -> Any:
    """The states of all images of a source, centre crops, `[images, depth + 1, tokens, dim]` float32; made if they are not there.

    Raises:
        UserError: they take more than `limit_gb` or than the disk has; an image that cannot be decoded.
    """
    needed = bytes_needed(teacher, len(source)) / 1e9
    if needed > limit_gb:
        raise UserError(
            f"the teacher's states of the {len(source)} images of {source.name} take {needed:,.3g} GB, limit_gb "
            f"is {limit_gb:,.3g}: allow more, or run the teacher inside the step, which needs no disk"
        )
    about = _about(teacher, source)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    done = folder / "done.json"
    if done.exists() and json.loads(done.read_text()) == {"sha256": digest}:
        return _store(folder / "states", about["shape"], create=False)
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        free = shutil.disk_usage(folder).free / 1e9
        if needed > 0.95 * free:
            raise UserError(
                f"the teacher's states take {needed:,.3g} GB, {folder} has {free:,.3g} GB left: run the teacher inside the step"
            )
    wait_for_all("room for the states")
    store = _store(folder / "states", about["shape"], create=True)
    transform = CenterCrop(teacher.preprocessing)
    progress, number = Progress("teacher's states", -(-len(source) // batch_size), per_step=batch_size), 0
    for step, batch in enumerate(measuring_batches(source, transform, batch_size), start=1):
        placed = shard_batch(batch, mesh)
        states = np.moveaxis(to_host(teacher.trajectory(teacher.normalize_pixels(placed["image"]))), 0, 1)
        valid = to_host(placed["valid"])
        for skip in source.skipped.values():
            raise _damaged(skip.name, skip.reason)
        count = int(valid.sum())
        if is_main():
            store[number : number + count].write(states[valid]).result()
        number += count
        progress.update(step)
    if is_main():
        done.write_text(json.dumps({"sha256": digest}))
    wait_for_all("states written")
    return store


def _about(teacher: Encoder, source: Source) -> dict:
    weights = {path: entry["number"] for path, entry in fingerprints(teacher.params).items()}
    shape = [len(source), teacher.depth + 1, teacher.layout.num_tokens, teacher.dim]
    told = {"weights": weights, "config": repr(teacher.config), "preprocessing": repr(teacher.preprocessing)}
    try:
        images = [_digest(source.read(i)["image"]) for i in (0, len(source) // 2, len(source) - 1)]
    except CorruptImage as error:
        raise _damaged(error.name, error.reason) from None
    return told | {"source": source.name, "images": images, "shape": shape, "dtype": str(teacher.dtype)}


def _damaged(name: str, reason: str) -> UserError:
    return UserError(f"{name} cannot be decoded ({reason}): remove it, or run the teacher inside the step")


def _digest(image) -> str:
    return hashlib.sha256(np.ascontiguousarray(np.asarray(image)).tobytes()).hexdigest()[:16]


def _store(path: pathlib.Path, shape, create: bool):
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path.absolute())},
        "metadata": {
            "shape": list(shape),
            "data_type": "float32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *shape[1:]]}},
            "fill_value": "NaN",  # what a chunk that is gone reads as
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        },
    }
    return ts.open(spec, create=create, open=True).result()


class StatesBatches(Iterator):
    """Endless shuffled epochs of `{"states": [batch, depth + 1, tokens, dim]}`; batch n is the same whenever it is asked for.

    Args:
        store: from `open_states`.
        batch_size: of all processes together.
    """

    def __init__(self, store: Any, batch_size: int, *, seed: int):
        self.store, self.batch_size, self.seed, self.step = store, batch_size, seed, 0
        self._ahead: tuple[int, Any] | None = None  # (step, what is being read)

    def seek(self, step: int) -> None:
        """Makes batch number `step` the next one."""
        self.step, self._ahead = step, None

    def __next__(self) -> dict:
        ahead = self._ahead if self._ahead and self._ahead[0] == self.step else (self.step, self._read(self.step))
        self._ahead = (self.step + 1, self._read(self.step + 1))
        self.step += 1
        try:
            states = np.asarray(ahead[1].result())
            if not np.isfinite(states).all():
                raise ValueError("some are missing")
            return {"states": states}
        except ValueError as error:
            why = str(error).splitlines()[0][:200]
            raise UserError(f"the teacher's states are damaged ({why}): remove {self._path}, they are made anew") from None

    @property
    def _path(self) -> str:
        return self.store.spec().to_json()["kvstore"]["path"]

    def _read(self, step: int):
        return self.store[epoch_rows(step, self.store.shape[0], self.batch_size, self.seed)].read()
