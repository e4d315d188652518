"""What every stage is given, and what stages share: reading earlier results, opening data, making settings of a config."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.data.pipeline import measuring_batches, training_batches
from brh_jax.data.sources import Source, open_source
from brh_jax.data.transforms import CenterCrop, RandomResizedCrop
from brh_jax.errors import UserError
from brh_jax.models import Encoder, store
from brh_jax.phases import Partition
from brh_jax.preprocessing import Preprocessing
from brh_jax.train.loop import LoopSettings
from brh_jax.train.metrics import Progress
from brh_jax.train.parallel import is_main, shard, shard_batch, to_host, wait_for_all


@dataclasses.dataclass(frozen=True)
class Context:
    """A run: its configuration, work directory and mesh, the command that started it, the steps to profile, and whether its
    models are finished and only measured again."""

    config: Any
    workdir: pathlib.Path
    mesh: Any
    command: tuple[str, ...] = ()
    profile: tuple[int, int] | None = None
    finished: bool = False

    @property
    def loop(self) -> LoopSettings:
        """How training loops run."""
        section = self.config.distill
        return LoopSettings(
            log_every=section.log_every,
            save_every=section.save_every,
            keep_last=section.keep_last,
            keep_best=section.keep_best,
            tensorboard=self.config.tensorboard,
            profile=self.profile,
        )

    # Earlier stages' results.

    def teacher(self) -> Encoder:
        """Raises UserError before the teacher stage is done."""
        return self.encoder(self.workdir / "teacher" / "model", "teacher")

    def partitions(self) -> dict[int, Partition]:
        """The partitions that were found, by k. Raises UserError before the phases stage is done."""
        record = read_record(self.workdir / "phases")
        if not record.get("done"):
            raise UserError(f"{self.workdir} holds no partitions yet: put phases before this stage in config.stages")
        found = record["summary"]["partitions"]
        return {int(k): Partition(tuple(p["lengths"]), tuple(p["phases"])) for k, p in found.items()}

    def encoders(self) -> dict[str, Encoder]:
        """The teacher and every Raptor, by name; the teacher alone in a run that neither distils nor has.

        Raises:
            UserError: the distill stage is not done yet.
        """
        found = {"teacher": self.teacher()}
        distils = "distill" in self.config.stages or read_record(self.workdir / "distill").get("done")
        for k in self.partitions() if distils else ():
            found[f"k{k}"] = self.encoder(self.workdir / "distill" / f"k{k}" / "raptor", "distill")
        return found

    def encoder(self, folder, stage) -> Encoder:
        """What a stage left in a folder, on the mesh. Raises UserError where it is not there."""
        if not store.is_encoder_folder(folder):
            raise UserError(f"{folder} is not there yet: put {stage} before this stage in config.stages")
        encoder = store.read(folder)
        encoder = encoder.replace(params=shard(encoder.params, self.mesh))
        dtype = self.config.compute_dtype
        return encoder if dtype == "float32" else encoder.replace(dtype=jnp.dtype(dtype))

    # Results.

    def save(self, encoder: Encoder, folder: pathlib.Path, notes: dict) -> None:
        """Writes an encoder; all processes call, the first writes, and no one goes on before it is there."""
        host = encoder.replace(params=to_host(encoder.params), head=to_host(encoder.head))
        if is_main():
            store.save(host, folder, notes)
        wait_for_all(f"saved {folder}")

    def save_arrays(self, path: pathlib.Path, **arrays) -> None:
        """Writes an .npz file, once."""
        if is_main():
            np.savez(path, **arrays)

    # Data.

    def source(self, spec: str) -> Source:
        """The images that a setting describes."""
        return open_source(spec, self.config.data.data_dir)

    def training_batches(self, source: Source, preprocessing: Preprocessing, batch_size: int, seed: int):
        """Endless augmented batches."""
        transform = self._transform(self.config.data.augment, preprocessing)
        data = self.config.data
        return training_batches(source, transform, batch_size, seed=seed, threads=data.threads, workers=data.workers)

    def measuring_batches(
        self, source: Source, preprocessing: Preprocessing, section, label: str, augment: str = "", transform=None
    ):
        """One pass over `section.num_images` images in batches of `section.batch_size`, with a progress line.

        Images, and targets where there are some, are laid over the mesh; labels and `valid` are numpy, of all processes' images.
        """
        transform = transform or self._transform(augment or self.config.data.eval_augment, preprocessing)
        total = section.num_images if transform.random else min(section.num_images, len(source))
        batches = measuring_batches(
            source,
            transform,
            section.batch_size,
            num_images=total,
            seed=self.config.seed,
            threads=self.config.data.threads,
        )
        progress = Progress(label, -(-total // section.batch_size), per_step=section.batch_size)
        for number, batch in enumerate(batches, 1):
            placed = shard_batch(batch, self.mesh)
            rest = batch if jax.process_count() == 1 else to_host({k: placed[k] for k in ("label", "valid")})
            yield placed | {"label": rest["label"], "valid": rest["valid"]}
            progress.update(number)

    def _transform(self, augment: str, preprocessing: Preprocessing):
        data = self.config.data
        if augment == "center_crop":
            return CenterCrop(preprocessing)
        return RandomResizedCrop(preprocessing.crop, data.crop_scale, data.crop_ratio, data.flip, preprocessing.interpolation)


def settings_of(kind, section, **more):
    """A settings dataclass from a section of the configuration.

    Raises:
        UserError: the section has a setting that the dataclass does not know, or lacks one that it needs.
    """
    values = dict(section) | more
    known = [f.name for f in dataclasses.fields(kind)]
    surplus = [name for name in values if name not in known]
    if surplus:
        raise UserError(f"unknown setting {', '.join(surplus)}: {kind.__name__} knows {', '.join(known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{kind.__name__}: {error}; it knows {', '.join(known)}") from None


def identity(*sections) -> dict:
    """Sections of the configuration as plain JSON, to tell whose a checkpoint is."""
    merged = {}
    for section in sections:
        merged |= json.loads(section.to_json())
    return merged


def read_record(folder) -> dict:
    """What a stage left about itself; empty if it never ran."""
    path = pathlib.Path(folder) / "record.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{path} is damaged: remove {folder} to run that stage again") from None


def write_json(path: pathlib.Path, value) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)
