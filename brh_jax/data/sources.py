"""Where images come from: folders, IDX files, TFDS, scikit-learn's digits, arrays. All give records by index."""

import hashlib
import json
import math
import pathlib
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from brh_jax.data.files import SUFFIXES, Below, CorruptImage, files_below, listing, printable, read_image
from brh_jax.errors import UserError, did_you_mean
from brh_jax.files import nearest_path, read_first
from brh_jax.types import PathLike

UNLABELLED = -1
_NAMED = 10  # images that are named as they are skipped; the others are counted
_MOST_CLASSES = 10**6  # of arrays, which name them by their numbers
IDX_BYTES = 2**31  # that an IDX file may expand to: it is held in memory


class Skip(NamedTuple):
    """A record that cannot be decoded: the name of its file, or its own, and why not."""

    name: str
    reason: str


class Source:
    """Records `{"image": PIL image or uint8 array, "label": int}` by index; dense ones (data/dense.py) hold a `target` beside it.

    Attributes:
        name: for people.
        classes: names of the classes, empty where there are no labels (every label is then -1).
        on_skip: called with each record that turns out not to be decoded, of this process; None for nothing.
    """

    def __init__(self, name: str, classes: Iterable[str] = ()):
        self.name = printable(name)
        self.classes = tuple(map(printable, classes))
        self.on_skip: Callable[[Skip], None] | None = None
        self._skipped: dict[int, Skip] = {}
        self._lock, self._quiet = threading.Lock(), False

    def __getstate__(self):  # a worker process has a lock of its own, and what it finds is found, and said, by the first one too
        return {key: value for key, value in self.__dict__.items() if key != "_lock"} | {"_quiet": True, "on_skip": None}

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

    @property
    def skipped(self) -> dict[int, Skip]:
        """Records that could not be decoded so far, by index."""
        with self._lock:
            return dict(self._skipped)

    def read_or_skip(self, index: int) -> dict[str, Any] | None:
        """The record, or None after noting in `skipped` why it cannot be read; it is not tried again."""
        if self._is_skipped(index):
            return None
        try:
            return self.read(index)
        except CorruptImage as error:
            self._skip(index, Skip(error.name, error.reason))
            return None

    def _is_skipped(self, index: int) -> bool:
        return index in self._skipped

    def _skip(self, index: int, skip: Skip) -> None:
        with self._lock:
            new, number = index not in self._skipped, len(self._skipped)
            self._skipped[index] = skip
        if new and self.on_skip:
            self.on_skip(skip)
        if new and not self._quiet and number <= _NAMED:
            more = f"more images of {self.name}, which are counted and not named here"
            print(f"warning: skipped {skip.name}: {skip.reason}" if number < _NAMED else f"warning: skipped {more}", flush=True)

    def read_next(self, index: int) -> tuple[int, dict[str, Any]]:
        """The record, or the next one that can be decoded, and its index.

        Raises:
            UserError: nothing in the source can be decoded.
        """
        for at in (place % len(self) for place in range(index, index + len(self))):
            if (record := self.read_or_skip(at)) is not None:
                return at, record
        last = self.skipped[(index - 1) % len(self)]
        raise UserError(f"none of the {len(self)} images of {self.name} can be decoded; the last: {last.name}: {last.reason}")


def digest(*parts: object) -> str:
    """Sha256 of strings, numbers, and lists of them; what `Source.fingerprint` gives."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class ArraySource(Source):
    """Images held in memory, uint8 `[n, height, width]` or `[n, height, width, 3]`, with optional labels `[n]`."""

    def __init__(self, images: np.ndarray, labels: ArrayLike | None = None, name: str = "array", classes: Sequence[str] = ()):
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise UserError(f"{name}: expected uint8 images [n, height, width(, 3)], got {images.dtype} {images.shape}")
        found = np.full(len(images), UNLABELLED) if labels is None else np.asarray(labels)
        if not images.size:
            raise UserError(f"{name} holds no images: its shape is {images.shape}")
        if found.shape != (len(images),):
            raise UserError(f"{name}: {len(images)} images but labels of shape {found.shape}: expected one label for each")
        most = len(classes) or _MOST_CLASSES
        if found.dtype.kind not in "biu" or not UNLABELLED <= found.min() <= found.max() < most:
            some = ", ".join(map(str, np.unique(found)[[0, -1]].tolist()))
            raise UserError(
                f"{name}: labels such as {some}: expected whole numbers from 0 to {most - 1}, or {UNLABELLED} for none"
            )
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
        self._source, self._indices = source, np.asarray(indices, int)

    def __len__(self):
        return len(self._indices)

    def read(self, index: int):
        return self._source.read(int(self._indices[index]))

    @property
    def skipped(self):
        found = self._source.skipped
        return {index: found[at] for index, at in enumerate(self._indices.tolist()) if at in found}

    # What is damaged is noted by the source itself, for all that it is part of.

    def _is_skipped(self, index):
        return self._source._is_skipped(int(self._indices[index]))

    def _skip(self, index, skip):
        self._source._skip(int(self._indices[index]), skip)

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

    Where images lie beside sub-folders of images, the larger part tells what the folder is, and that is said: few beside many in
    sub-folders are left out, many beside few make it one without classes.

    Raises:
        UserError: no such folder, or no images in it.
    """

    def __init__(self, folder: PathLike):
        folder = pathlib.Path(folder).expanduser()
        shown = printable(str(folder))
        if not folder.is_dir():
            hint = nearest_path(folder)
            raise UserError(f"no image folder at {shown}: {hint}expected images in it, or one sub-folder of images per class")
        below = files_below(folder)
        if below.dead:
            _warn(shown, "has links to images that lead nowhere, left out", [path.relative_to(folder) for path in below.dead])
        if not below.files:
            only = f", not in {', '.join(_endings(below.unread))}: convert them" if below.unread else ""
            raise UserError(f"{shown} holds no images: expected files ending in {', '.join(sorted(SUFFIXES))}{only}")
        if below.unread:
            kinds = ", ".join(_endings(below.unread))
            many = f"has {len(below.unread)} images of formats that are not read ({kinds}), left out"
            _warn(shown, many, [path.relative_to(folder) for path in below.unread])
        self.paths, by_class = _labelled(folder, below)
        groups = [p.parent.relative_to(folder).as_posix() for p in self.paths]
        classes = sorted(set(groups)) if by_class else []
        super().__init__(str(folder), classes)
        self._folder = folder
        number = {name: i for i, name in enumerate(classes)}
        self.labels = [number.get(group, UNLABELLED) for group in groups]

    def __len__(self):
        return len(self.paths)

    def read(self, index: int):
        return {"image": read_image(self.paths[index]), "label": self.labels[index]}

    def label(self, index: int) -> int:
        return self.labels[index]

    def fingerprint(self):
        return digest(listing(self._folder, self.paths))


def _labelled(folder: pathlib.Path, below: Below) -> tuple[list[pathlib.Path], bool]:
    """The images that count, and whether sub-folders are their classes; what is left out is said."""
    beside, shown = [path for path in below.files if path.parent == folder], printable(str(folder))
    inside = len(below.files) - len(beside)
    if not inside:
        return below.files, False
    if len(beside) >= inside:
        folders = dict.fromkeys(path.parent.relative_to(folder) for path in below.files if path.parent != folder)
        _warn(shown, f"is one without classes, as {len(beside)} images lie beside sub-folders of {inside}", folders)
        return below.files, False
    if beside:
        _warn(shown, "has images beside the sub-folders that are its classes, left out", [path.name for path in beside])
    holding = {path.parent for path in below.files}
    used = holding.union(*(path.parents for path in holding))
    if empty := [path.relative_to(folder) for path in below.folders if path not in used]:
        _warn(shown, "has classes without images, left out", empty)
    return [path for path in below.files if path.parent != folder], True


def _endings(paths: Iterable[pathlib.Path]) -> list[str]:
    return sorted({path.suffix.lower() for path in paths})


def _warn(folder: str, what: str, names: Iterable[PathLike]) -> None:
    shown = [printable(str(name)) for name in names]
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    print(f"warning: {folder} {what}: {', '.join(shown[:5])}{more}", flush=True)


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
            raise CorruptImage(f"{self.name} record {index}", str(error)) from None

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
        file = next((f for f in candidates if f.is_file()), None)
        if file is None:
            raise UserError(f"no file {candidates[0]}: give the path up to '-images-idx3-ubyte.gz', such as .../train")
        begin = read_first(file, 4 + 4 * 255)
        dims = begin[3] if begin[:3] == b"\0\0\x08" and len(begin) > 3 else 0
        shape = tuple(int(n) for n in np.frombuffer(begin[4 : 4 + 4 * dims], ">u4")) if len(begin) >= 4 + 4 * dims else ()
        size = math.prod(shape)  # of Python's numbers, which do not overflow
        if size > IDX_BYTES:
            raise UserError(f"{file} says that it holds {size:,} bytes: expected {IDX_BYTES:,} at most")
        raw = read_first(file, 4 + 4 * dims + size + 1)[4 + 4 * dims :]
        if not dims or len(raw) != size:
            raise UserError(f"{file} is damaged or not of unsigned bytes in IDX format: download it again")
        return np.frombuffer(raw, np.uint8).reshape(shape)

    return ArraySource(load("images-idx3"), load("labels-idx1"), f"idx:{path}")


def name_and_split(rest: str) -> tuple[str, str]:
    """Takes `NAME:SPLIT` apart, where a split may be of slices, `train[:1%]`; the name is empty where there is none."""
    found = re.fullmatch(r"(.+):((?:[^:\[\]]|\[[^\]]*\])*)", rest)
    return (found[1], found[2]) if found else ("", rest)


# What a description begins with, but for TFDS: who opens the rest.
_MAKERS = {"folder": ImageFolder, "idx": idx, "digits": digits}
KINDS = ("tfds", *_MAKERS)


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
    if kind in _MAKERS and rest:
        return _MAKERS[kind](rest)
    hint = f"did you mean folder:{spec}? " if pathlib.Path(spec).expanduser().is_dir() else did_you_mean(kind, KINDS)
    raise UserError(f"unknown data {spec!r}: {hint}expected tfds:NAME:SPLIT, folder:PATH, idx:PATH, digits:train or digits:test")
