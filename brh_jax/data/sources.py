"""Where images come from: folders, IDX files, TFDS, scikit-learn's digits, arrays. All give records by index."""

import gzip
import hashlib
import json
import pathlib
import re
import threading
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from brh_jax.errors import UserError
from brh_jax.preprocessing import as_image
from brh_jax.types import PathLike

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif"}
UNLABELLED = -1


class CorruptImage(Exception):
    """An image that cannot be decoded; pipelines skip and count it."""


class Source:
    """Records `{"image": PIL image or uint8 array, "label": int}` by index; dense ones (data/dense.py) hold a `target` beside it.

    Attributes:
        name: for people.
        classes: names of the classes, empty where there are no labels (every label is then -1).
        skipped: what could not be decoded so far, name -> reason.
    """

    def __init__(self, name: str, classes: Iterable[str] = ()):
        self.name = name
        self.classes = tuple(classes)
        self.skipped: dict[str, str] = {}
        self._lock = threading.Lock()

    def __getstate__(self):  # a worker process has a lock of its own
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._lock = threading.Lock()

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> dict[str, Any]:
        """The record; raises CorruptImage."""
        raise NotImplementedError

    def label(self, index: int) -> int:
        """Class of a record, UNLABELLED for none; raises CorruptImage. Sources that can do not decode the image for it."""
        return int(self.read(index).get("label", UNLABELLED))

    def photograph(self, index: int) -> int:
        """Number of the photograph that a record shows: views of one are not independent, whatever crops are taken of it. Here
        each record is its own; a source that holds several of one photograph says so."""
        return index

    def fingerprint(self) -> str:
        """Sha256 of what the source holds, wherever it lies: of files their names and sizes, of arrays their content."""
        raise NotImplementedError

    def read_or_skip(self, index: int) -> dict[str, Any] | None:
        """The record, or None after noting in `skipped` why it cannot be read.

        Raises:
            UserError: nothing in the source can be read.
        """
        try:
            return self.read(index)
        except CorruptImage as error:
            name, _, reason = str(error).partition(": ")
            with self._lock:
                if name not in self.skipped:
                    self.skipped[name] = reason
                    print(f"warning: skipped {name}: {reason}", flush=True)
                everything = len(self.skipped) == len(self)
            if everything:
                raise UserError(f"none of the {len(self)} images of {self.name} can be decoded; the last: {error}") from None
            return None


def digest(*parts: object) -> str:
    """Sha256 of strings, numbers, and lists of them; what `Source.fingerprint` gives."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def listing(folder: pathlib.Path, paths: Iterable[pathlib.Path]) -> list:
    """Name relative to the folder and size in bytes of each file."""
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]


class ArraySource(Source):
    """Images held in memory, uint8 `[n, height, width]` or `[n, height, width, 3]`, with optional labels `[n]`."""

    def __init__(self, images: np.ndarray, labels: ArrayLike | None = None, name: str = "array", classes: Sequence[str] = ()):
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise UserError(f"{name}: expected uint8 images [n, height, width(, 3)], got {images.dtype} {images.shape}")
        found = np.full(len(images), UNLABELLED) if labels is None else np.asarray(labels)
        if len(found) != len(images):
            raise UserError(f"{name}: {len(images)} images but {len(found)} labels")
        if labels is not None and not len(classes):
            classes = [str(i) for i in range(int(found.max()) + 1)]
        super().__init__(name, classes)
        self.images, self.labels = images, found

    def __len__(self):
        return len(self.images)

    def read(self, index: int):
        return {"image": self.images[index], "label": self.label(index)}

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def fingerprint(self):
        arrays = (np.ascontiguousarray(array) for array in (self.images, self.labels.astype(np.int64)))
        return digest(self.classes, *((array.shape, hashlib.sha256(array.data).hexdigest()) for array in arrays))


class Selection(Source):
    """Records of another source, by their indices."""

    def __init__(self, source: Source, indices: ArrayLike):
        super().__init__(source.name, source.classes)
        self.skipped = source.skipped
        self._source, self._indices = source, np.asarray(indices)

    def __len__(self):
        return len(self._indices)

    def read(self, index: int):
        return self._source.read(int(self._indices[index]))

    def label(self, index: int) -> int:
        return self._source.label(int(self._indices[index]))

    def photograph(self, index: int) -> int:
        return self._source.photograph(int(self._indices[index]))

    def fingerprint(self):
        return digest(self._source.fingerprint(), self._indices.tolist())


class Subset(Selection):
    """`count` records of another source, drawn at random."""

    def __init__(self, source: Source, count: int, seed: int):
        super().__init__(source, np.random.default_rng(seed).permutation(len(source))[:count])


class ImageFolder(Source):
    """Image files below a folder. With images in sub-folders the path of the sub-folder is the class; a flat folder has none.

    Raises:
        UserError: no such folder, or no images in it.
    """

    def __init__(self, folder: PathLike):
        folder = pathlib.Path(folder).expanduser()
        if not folder.is_dir():
            raise UserError(f"no image folder at {folder}: expected images in it, or one sub-folder of images per class")
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not self.paths:
            raise UserError(f"{folder} holds no images: expected files ending in {', '.join(sorted(SUFFIXES))}")
        groups = [p.parent.relative_to(folder).as_posix() for p in self.paths]
        classes = sorted(set(groups)) if "." not in groups else []
        super().__init__(str(folder), classes)
        self._folder = folder
        number = {name: i for i, name in enumerate(classes)}
        self.labels = [number.get(group, UNLABELLED) for group in groups]
        if classes and (empty := _without_images(folder, classes)):
            print(f"warning: {folder} has classes without images, left out: {', '.join(empty[:5])}", flush=True)

    def __len__(self):
        return len(self.paths)

    def read(self, index: int):
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                image.load()
                return {"image": as_image(image), "label": self.labels[index]}
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise CorruptImage(f"{path}: {error}") from None

    def label(self, index: int) -> int:
        return self.labels[index]

    def fingerprint(self):
        return digest(listing(self._folder, self.paths))


def _without_images(folder: pathlib.Path, classes) -> list[str]:
    """Sub-folders with no image in or below them."""
    found = (d.relative_to(folder).as_posix() for d in sorted(folder.rglob("*")) if d.is_dir())
    return [d for d in found if not any(name == d or name.startswith(d + "/") for name in classes)]


class TfdsSource(Source):
    """A TFDS data set prepared as array_record files; read without TensorFlow.

    Args:
        name: `imagenet2012`, `cifar100:3.0.2`, ...
        split: `train`, `validation`, `train[:1%]`, ...
        data_dir: where the data sets are; TFDS's own default if empty.

    Raises:
        UserError: the data set is not prepared there.
    """

    def __init__(self, name: str, split: str, data_dir: str = ""):
        import tensorflow_datasets as tfds

        where = pathlib.Path(data_dir).expanduser() if data_dir else None
        try:
            builder = tfds.builder(name, data_dir=where, file_format="array_record")
            records = builder.as_data_source(split)
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"TFDS data set {name!r}, split {split!r}, is not ready in {where or 'the default data_dir'} ({first}). "
                f"Prepare it once, on a machine with TensorFlow: tfds build {name} --file_format=array_record --data_dir=DIR, "
                "then give that DIR as data_dir"
            ) from None
        features = builder.info.features
        super().__init__(f"tfds:{name}:{split}", getattr(features["label"], "names", ()) if "label" in features else ())
        self.features = tuple(features)
        self.records = records
        # The same without decoding images, for what asks for labels alone.
        undecoded = {"image": tfds.decode.SkipDecoding()} if "image" in features else None
        self._plain = builder.as_data_source(split, decoders=undecoded) if "label" in features else None
        self._version = str(builder.info.version)

    def __len__(self):
        return len(self.records)

    def record(self, index: int) -> dict:
        """All features of a record; raises CorruptImage."""
        try:
            return self.records[index]
        except Exception as error:  # TFDS decodes as it reads, with whatever errors its decoder has
            raise CorruptImage(f"{self.name} record {index}: {error}") from None

    def read(self, index: int):
        record = self.record(index)
        return {"image": record["image"], "label": int(record.get("label", UNLABELLED))}

    def label(self, index: int) -> int:
        return UNLABELLED if self._plain is None else int(self._plain[index]["label"])

    def fingerprint(self):
        return digest(self.name, self._version, len(self))


def digits(split: str) -> ArraySource:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels; 4/5 `train`, 1/5 `test`, always the same."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    cut = len(order) * 4 // 5
    part = {"train": order[:cut], "test": order[cut:]}.get(split)
    if part is None:
        raise UserError(f"digits has no split {split!r}: expected digits:train or digits:test")
    images = np.round(data.images[part] * (255 / 16)).astype(np.uint8)
    return ArraySource(images, data.target[part], f"digits:{split}")


def idx(path: PathLike) -> ArraySource:
    """MNIST's format: `PATH-images-idx3-ubyte` and `PATH-labels-idx1-ubyte`, plain or .gz.

    Raises:
        UserError: the files are not there or not of that format.
    """

    def load(kind: str):
        candidates = [pathlib.Path(f"{path}-{kind}-ubyte{suffix}").expanduser() for suffix in (".gz", "")]
        file = next((f for f in candidates if f.exists()), None)
        if file is None:
            raise UserError(f"no file {candidates[0]}: give the path up to '-images-idx3-ubyte.gz', such as .../train")
        try:
            raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            dims = raw[3] if raw[:3] == b"\0\0\x08" else 0
            shape = np.frombuffer(raw, ">u4", dims, 4).astype(int)
            return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape if dims else -2)
        except (OSError, EOFError, zlib.error, ValueError, IndexError):
            raise UserError(f"{file} is damaged or not of unsigned bytes in IDX format: download it again") from None

    return ArraySource(load("images-idx3"), load("labels-idx1"), f"idx:{path}")


def name_and_split(rest: str) -> tuple[str, str]:
    """Takes `NAME:SPLIT` apart, where a split may be of slices, `train[:1%]`; the name is empty where there is none."""
    found = re.fullmatch(r"(.+):((?:[^:\[\]]|\[[^\]]*\])*)", rest)
    return (found[1], found[2]) if found else ("", rest)


def open_source(spec: str, data_dir: str = "") -> Source:
    """A source from its description.

    Args:
        spec: `tfds:NAME[:VERSION]:SPLIT`, `folder:PATH`, `idx:PATH` or `digits:SPLIT`.
        data_dir: where TFDS data sets are.

    Raises:
        UserError: unknown kind, or nothing there.
    """
    kind, _, rest = spec.partition(":")
    name, split = name_and_split(rest)
    if kind == "tfds" and name:
        return TfdsSource(name, split, data_dir)
    makers = {"folder": ImageFolder, "idx": idx, "digits": digits}
    if kind in makers and rest:
        return makers[kind](rest)
    raise UserError(f"unknown data {spec!r}: expected tfds:NAME:SPLIT, folder:PATH, idx:PATH, digits:train or digits:test")
