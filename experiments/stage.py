"""Stage: one room of a run; and Context, what a stage is given to work with."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from brh_jax.data.pipeline import measuring_batches
from brh_jax.data.sources import Skip, Source
from brh_jax.data.transforms import Transform
from brh_jax.errors import UserError
from brh_jax.models import Encoder, store
from brh_jax.train.loop import LoopSettings
from brh_jax.train.metrics import Progress
from brh_jax.train.parallel import differences, is_main, shard, shard_batch, to_host, together, wait_for_all
from experiments.data import ImageSet
from experiments.records import OPENERS
from experiments.results import Results

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a run: `experiments/stages/NAME/`, listed in `experiments/stages/__init__.py`.

    Its fingerprint is made of its own settings, the content that it reads from outside the run, and the fingerprints of the
    stages that it needs: where one of these differs, what the stage left is not taken for done.

    Attributes:
        name: of the stage, its folder in the work directory, and its part of results.json.
        Settings: dataclass whose fields are the sections of the configuration that the stage uses, each with the settings that
            it uses; see `experiments.settings`.
        Result: dataclass of what it found out, the part of results.json.
        run: (context, settings) -> Result. Reads what other stages left, writes into `context.folder`, and can be called again
            after a stop.
        needs: stages that it cannot do without.
        uses: stages whose results it takes where there are some.
        page: (page) -> the figures and tables of its section, of `experiments.report.Page`; None for none.
        merits: Result -> model -> figure of merit -> value, for `experiments.tables`; None for none.
        reads: settings -> the sets of images that it reads; they are opened once before any stage runs, so that what is not there
            is said at once and not after hours. Raises UserError where a setting that names them is empty.
        ready: settings -> None, called before any stage runs: raises UserError where something is missing that it reads in the
            end; None for none.
        measures: whether it measures what other stages made: --mode=eval does it again.
        cheap: whether what it left is made anew where something differs; that of other stages is never discarded unasked.
        trained_with: settings of a record -> those of them that what the stage trained to measure with depends on: --mode=eval
            takes that as it is.
        follows: name of the stage that this one is run with where `config.stages` names that stage and not this one.
    """

    name: str
    Settings: type
    Result: type
    run: Callable[["Context", Any], Any]
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    page: Callable[..., Iterator] | None = None
    merits: Callable[[Any], dict[str, dict[str, float]]] | None = None
    reads: Callable[[Any], Iterable[ImageSet]] = lambda settings: ()
    ready: Callable[[Any], None] | None = None
    measures: bool = False
    cheap: bool = False
    trained_with: Callable[[dict[str, Any]], set[str]] = lambda settings: set()
    follows: str = ""


@dataclasses.dataclass(frozen=True)
class Context:
    """What a stage works with.

    Attributes:
        workdir, folder: of the run, and of this stage in it.
        mesh: the devices.
        loop: how training loops run.
        results: of the stages done before.
        outside: called with what is read from outside the run, `images SPEC` or `weights PATH` say, and the fingerprint of its
            content.
        skipped: called with each image, mask or depth map that cannot be decoded, from any thread.
        stages: names of the stages that this run is made of.
        waits: whether files of arrays wait for the stage to be done; `arrays` are those that do.
    """

    workdir: pathlib.Path
    folder: pathlib.Path
    mesh: Mesh
    loop: LoopSettings = LoopSettings()
    results: Results = dataclasses.field(default_factory=Results)
    outside: Callable[[str, str], None] = lambda what, fingerprint: None
    skipped: Callable[[Skip], None] = lambda skip: None
    stages: tuple[str, ...] = ()
    waits: bool = False
    arrays: set[pathlib.Path] = dataclasses.field(default_factory=set)

    # Earlier stages' work.

    def result(self, kind: type[R], stage: str) -> R:
        """What a stage found out. Raises UserError where it is not done yet."""
        if (found := self.results.get(kind)) is None:
            raise UserError(f"{self.workdir / stage} is not there yet: put {stage} before this stage in config.stages")
        return found

    def encoder(self, folder: pathlib.Path, stage: str, compute_dtype: str = "float32") -> Encoder:
        """The encoder that a stage left in a folder, on the mesh. Raises UserError where it is not there or damaged."""
        if not folder.exists():
            raise UserError(f"{folder} is not there yet: put {stage} before this stage in config.stages")
        try:
            encoder = store.read(folder)
        except UserError as error:
            raise UserError(f"{error} (remove {self.workdir / stage}, and its stage runs again)") from None
        encoder = encoder.replace(params=shard(encoder.params, self.mesh))
        return encoder if compute_dtype == "float32" else encoder.replace(dtype=jnp.dtype(compute_dtype))

    # Its own.

    def save(self, encoder: Encoder, folder: pathlib.Path, notes: dict) -> None:
        """Writes an encoder; all processes call, the first writes, and no one goes on before it is there."""
        host = encoder.replace(params=to_host(encoder.params), head=to_host(encoder.head))
        if is_main():
            store.save(host, folder, notes)
        wait_for_all(f"saved {folder}")

    def save_arrays(self, path: pathlib.Path, **arrays) -> None:
        """Writes an .npz file, once; in a run it takes its place when the stage is done, and what was there stays till then."""
        if is_main():
            with _fresh(path).open("wb") as file:
                np.savez(file, **arrays)
            self.arrays.add(path)
            if not self.waits:
                self.place_arrays()

    def place_arrays(self) -> None:
        """Puts the files of arrays in their places."""
        while self.arrays:
            path = self.arrays.pop()
            os.replace(_fresh(path), path)

    # Data.

    def source(self, spec: str, data_dir: str = "", kind: str = "images", effect: bool = True, **options) -> Source:
        """The images that a setting describes.

        Args:
            kind: a key of `records.OPENERS`.
            effect: whether what the stage leaves depends on them: their content becomes part of its fingerprint.
        """
        source = together(lambda: OPENERS[kind](spec, data_dir=data_dir, **options))
        (self.outside if effect else check_same)(f"{kind} {spec}", source.fingerprint())
        source.on_skip = self.skipped
        return source

    def measuring_batches(
        self,
        source: Source,
        transform: Transform,
        *,
        num_images: int,
        batch_size: int,
        label: str,
        seed: int = 0,
        threads: int = 8,
    ) -> Iterator[dict]:
        """One pass over `num_images` images, all of them where that is 0, with a progress line.

        Images, and targets where there are some, are laid over the mesh; `label`, `valid` and `photograph` are numpy, of all
        processes' images.
        """
        total = num_images or len(source)
        total = total if transform.random else min(total, len(source))
        batches = measuring_batches(source, transform, batch_size, num_images=total, seed=seed, threads=threads)
        progress = Progress(label, -(-total // batch_size), per_step=batch_size)
        for number, batch in enumerate(batches, 1):
            placed = shard_batch(batch, self.mesh)
            told = ("label", "valid", "photograph")
            rest = batch if jax.process_count() == 1 else to_host({k: placed[k] for k in told})
            yield placed | {k: rest[k] for k in told}
            progress.update(number)


def check_same(what: str, fingerprint: str) -> None:
    """Raises UserError where something outside the run is not the same in all its processes, which all ask together."""
    if lines := differences({what: fingerprint[:12]}):
        raise UserError(f"{what} is not the same in all processes of this run ({lines[what]}): give all the same files")


def _fresh(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.new")
