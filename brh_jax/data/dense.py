"""Images with a dense target: (image, mask of classes) and (image, depth map in metres), from their usual release layouts.

A mask is uint8 `[height, width]`, classes from 0, IGNORED where there is no label. A depth map is float32 `[height, width]` in
metres, 0 where there is no measurement.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from brh_jax.data.files import CorruptImage, decoded, files_below, listing, printable, read_image
from brh_jax.data.sources import Selection, Source, TfdsSource, digest, name_and_split
from brh_jax.errors import UserError
from brh_jax.files import read_array
from brh_jax.types import PathLike

IGNORED = 255
ADE20K_CLASSES = 150
# TFDS data sets whose masks count from 1, 0 being no label: name -> number of classes. scene_parse150 holds, for all its name,
# the challenge's instance annotations: the 100 classes of things, in the first channel.
_COUNTED_FROM_ONE = {"scene_parse150": 100}
_NYU_PIXELS = 2**24  # of an image, at most: they are 480 x 640
_MASK_FEATURES = ("annotation", "segmentation_mask", "mask")
_MASKS_LAYOUT = """expected
  ade20k:PATH:training or :validation, PATH with images/{training,validation}/*.jpg and
      annotations/{training,validation}/*.png, as ADEChallengeData2016 unpacks
  masks:PATH with images/NAME.jpg (or .png ...) and masks/NAME.png, whose values are classes from 0, 255 for no label;
      names of the classes, one a line, in classes.txt, or their number as num_classes
  tfds:NAME:SPLIT, a TFDS data set with an image and an annotation or segmentation_mask"""
_DEPTHS_LAYOUT = """expected
  nyu:PATH:train or :test, PATH with nyu_depth_v2_labeled.mat and splits.mat, as released (:all goes without splits.mat)
  depths:PATH with images/NAME.jpg (or .png ...) and depth/NAME.png, 16 bit in millimetres, or depth/NAME.npy in metres; 0 for no
      measurement
  tfds:NAME:SPLIT, a TFDS data set with an image and a depth in metres, such as tfds:nyu_depth_v2:train"""


class PairedFolders(Source):
    """Images in one folder, their targets in another, under the same names.

    Args:
        layout: for the error message, what was expected.
        suffixes: of the targets' files.
        read_target: path -> array; raises OSError or ValueError for what cannot be decoded, UserError for what is wrong.

    Raises:
        UserError: no such folders, nothing in them, an image without a target, or several files of one name.
    """

    def __init__(
        self,
        images: PathLike,
        targets: PathLike,
        layout: str,
        suffixes: Sequence[str],
        read_target: Callable[[pathlib.Path], np.ndarray],
        classes: Iterable[str] = (),
    ):
        images, targets = pathlib.Path(images).expanduser(), pathlib.Path(targets).expanduser()
        if missing := [folder for folder in (images, targets) if not folder.is_dir()]:
            raise UserError(f"no folder {printable(str(missing[0]))}: {layout}")
        paths, found = _by_name(images, files_below(images).files), _by_name(targets, files_below(targets, suffixes).files)
        if not paths:
            raise UserError(f"{printable(str(images))} holds no images: {layout}")
        if alone := [path for name, path in paths.items() if name not in found]:
            raise UserError(
                f"{len(alone)} of {len(paths)} images in {printable(str(images))} have nothing of their name in "
                f"{printable(str(targets))} (ending in {' or '.join(suffixes)}), {printable(alone[0].name)} for one: {layout}"
            )
        super().__init__(str(images), classes)
        self.pairs = [(path, found[name]) for name, path in paths.items()]
        self._folders, self._read_target = (images, targets), read_target

    def __len__(self):
        return len(self.pairs)

    def read(self, index: int):
        path, target_path = self.pairs[index]
        target = decoded(target_path, lambda: self._read_target(target_path))
        image = read_image(path)
        if target.shape != (
            image.height,
            image.width,
        ):  # a target may be of the pixels as they are stored, before EXIF turns them
            image = read_image(path, upright=False)
        _check_size(target, target_path, (image.height, image.width), path)
        return {"image": image, "target": target}

    def fingerprint(self):
        sides = zip(self._folders, zip(*self.pairs, strict=True), strict=True)
        return digest(self.classes, *(listing(folder, paths) for folder, paths in sides))


def _by_name(folder: pathlib.Path, paths: Iterable[pathlib.Path]) -> dict[pathlib.Path, pathlib.Path]:
    """Files by their paths from a folder without their endings. Raises UserError where two are the same."""
    found: dict[pathlib.Path, pathlib.Path] = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("")
        if (other := found.setdefault(name, path)) != path:
            raise UserError(
                f"{printable(str(other))} and {printable(path.name)} are of one name: expected one file, remove the other"
            )
    return found


def _check_size(target, name, size, image_name):
    if target.shape != size:
        raise UserError(
            f"{printable(str(name))} has {target.shape[1]} x {target.shape[0]} pixels, its image {printable(str(image_name))} "
            f"{size[1]} x {size[0]}: a target must be of its image's size"
        )


# Masks.


def read_mask(path: PathLike, *, num_classes: int, from_one: bool = False) -> np.ndarray:
    """A mask from a file of one channel.

    Raises:
        UserError: several channels, or a value that is no class.
    """
    with Image.open(path) as image:
        values = np.asarray(image)
    if values.ndim != 2:
        raise UserError(f"{path} has {values.shape[-1]} channels: expected a mask of one channel, whose values are classes")
    return check_mask(values, path, num_classes, from_one)


def check_mask(values: ArrayLike, name: PathLike, num_classes: int, from_one: bool = False) -> np.ndarray:
    """A mask of classes from 0, IGNORED for no label.

    Args:
        from_one: the values count classes from 1, 0 is no label (ADE20k).

    Raises:
        UserError: a value that is no class.
    """
    values = np.asarray(values).astype(np.int64)
    none, first = (0, 1) if from_one else (IGNORED, 0)
    mask = np.where(values == none, IGNORED, values - first)
    wrong = (values != none) & ((mask < 0) | (mask >= num_classes))
    if wrong.any():
        known = f"1 to {num_classes}, and 0 for no label" if from_one else f"0 to {num_classes - 1}, and {IGNORED} for no label"
        raise UserError(
            f"{name} has the value {int(values[wrong][0])} in {int(wrong.sum())} pixels: expected classes from {known}"
        )
    return mask.astype(np.uint8)


class TfdsMasks(TfdsSource):
    """A TFDS data set with an image and a mask."""

    def __init__(self, name: str, split: str, data_dir: str = "", num_classes: int = 0):
        super().__init__(name, split, data_dir)
        self._key = next((key for key in _MASK_FEATURES if key in self.features), None)
        if self._key is None:
            raise UserError(f"tfds:{name} holds {', '.join(self.features)}, no mask: {_MASKS_LAYOUT}")
        plain = name.partition(":")[0].partition("/")[0]
        self._from_one = plain in _COUNTED_FROM_ONE
        self.classes = _class_names(num_classes or _COUNTED_FROM_ONE.get(plain, 0), f"tfds:{name}")

    def read(self, index: int):
        record = self.record(index)
        values = np.asarray(record[self._key])
        values = values[..., 0] if values.ndim == 3 else values
        name = f"{self.name} record {index}"
        _check_size(values, f"the mask of {name}", record["image"].shape[:2], "of the same record")
        return {"image": record["image"], "target": check_mask(values, name, len(self.classes), self._from_one)}


def _lines(path: pathlib.Path) -> list[str]:
    return [line.strip() for line in path.read_text("utf-8-sig", "surrogateescape").splitlines() if line.strip()]


def _class_names(count: int, what: str) -> tuple[str, ...]:
    if not 2 <= count <= IGNORED:
        raise UserError(
            f"{what} has {count} classes: expected 2 to {IGNORED}; give their number as num_classes, or their names, one a "
            "line, in classes.txt beside images/ and masks/"
        )
    return tuple(str(i) for i in range(count))


def ade20k(path: PathLike, split: str) -> PairedFolders:
    """ADE20k's scene parsing release, `ADEChallengeData2016`; 150 classes."""
    root = pathlib.Path(path).expanduser()
    if split not in ("training", "validation"):
        raise UserError(f"ade20k:{path} has no split {split!r}: {_MASKS_LAYOUT}")
    read = functools.partial(read_mask, num_classes=ADE20K_CLASSES, from_one=True)
    names = tuple(str(i + 1) for i in range(ADE20K_CLASSES))
    info = root / "objectInfo150.txt"
    if info.is_file():  # Idx, Ratio, Train, Val, Name
        rows = [line.split("\t") for line in _lines(info)[1:]]
        names = tuple(row[-1].split(",")[0].strip() for row in rows) if len(rows) == ADE20K_CLASSES else names
    return PairedFolders(root / "images" / split, root / "annotations" / split, _MASKS_LAYOUT, (".png",), read, names)


def mask_folders(path: PathLike, num_classes: int = 0) -> PairedFolders:
    """`images/` and `masks/` of equal names."""
    root = pathlib.Path(path).expanduser()
    listed = root / "classes.txt"
    names = tuple(_lines(listed)) if listed.is_file() else ()
    if root.is_dir() or num_classes:
        numbers = _class_names(len(names) or num_classes, f"masks:{path}")
        names = names or numbers
    read = functools.partial(read_mask, num_classes=len(names))
    return PairedFolders(root / "images", root / "masks", _MASKS_LAYOUT, (".png",), read, names)


def open_masks(spec: str, *, num_classes: int = 0, data_dir: str = "") -> Source:
    """Images with masks, from `ade20k:PATH:SPLIT`, `masks:PATH` or `tfds:NAME:SPLIT`.

    Args:
        num_classes: where the data do not say it.

    Raises:
        UserError: another layout than expected, which the message describes.
    """
    kind, _, rest = spec.partition(":")
    name, split = name_and_split(rest)
    if kind == "tfds" and name:
        return TfdsMasks(name, split, data_dir, num_classes)
    if kind == "ade20k" and name:
        return ade20k(name, split)
    if kind == "masks" and rest:
        return mask_folders(rest, num_classes)
    raise UserError(f"unknown data {spec!r}: {_MASKS_LAYOUT}")


# Depth.


def read_depth(path: pathlib.Path) -> np.ndarray:
    """A depth map in metres from a 16-bit .png in millimetres or an .npy in metres.

    Raises:
        UserError: another kind of image or array.
        ValueError: a damaged .npy.
    """
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            depth = read_array(file, path.stat().st_size)
    else:
        with Image.open(path) as image:
            if not image.mode.startswith("I"):
                raise UserError(f"{path} is not of 16 bits (mode {image.mode}): expected depth in millimetres")
            depth = np.asarray(image) / 1000
    if depth.ndim != 2 or depth.dtype.kind not in "fiu":
        raise UserError(f"{path} is {depth.dtype} of shape {depth.shape}: expected a depth map [height, width] of numbers")
    return _metres(depth)


def _metres(depth) -> np.ndarray:
    depth = np.asarray(depth, np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)


class NyuRelease(Source):
    """`nyu_depth_v2_labeled.mat`, MATLAB 7.3, 1,449 images of 480 x 640 with dense depth; read through h5py."""

    def __init__(self, path: PathLike):
        try:
            import h5py
        except ImportError:
            raise UserError("nyu_depth_v2_labeled.mat is read through h5py: pip install 'brh-jax[nyu]'") from None
        super().__init__(str(path))
        self._path = path
        try:
            with h5py.File(path) as file:
                self._count = len(file["images"])
                shapes = file["images"].shape[1:], file["depths"].shape[1:]
        except (OSError, KeyError) as error:
            raise UserError(f"{path} is damaged or not nyu_depth_v2_labeled.mat ({error}): download it again") from None
        # MATLAB's arrays come transposed: [image, channel, column, row].
        if len(shapes[0]) != 3 or shapes[0][0] != 3 or shapes[0][1:] != shapes[1] or math.prod(shapes[1]) > _NYU_PIXELS:
            raise UserError(
                f"{path} holds images of {shapes[0]} and depths of {shapes[1]}: expected (3, 640, 480) and (640, 480)"
            )

    def __len__(self):
        return self._count

    def read(self, index: int):
        import h5py

        # Opened for every record: a file that is open goes into no worker process.
        try:
            with h5py.File(self._path) as file:
                image, depth = file["images"][index], file["depths"][index]
        except (OSError, ValueError, KeyError) as error:
            raise CorruptImage(f"{self.name} record {index}", str(error)) from None
        return {"image": np.ascontiguousarray(image.transpose(2, 1, 0)), "target": _metres(depth.T)}

    def fingerprint(self):
        file = pathlib.Path(self._path)
        return digest(listing(file.parent, [file]))


def nyu(path: PathLike, split: str) -> Source:
    """NYU Depth v2 from its release: `train` (795 images) and `test` (654) as splits.mat has them, or `all`."""
    root = pathlib.Path(path).expanduser()
    file = root if root.suffix == ".mat" else root / "nyu_depth_v2_labeled.mat"
    if split not in ("train", "test", "all"):
        raise UserError(f"nyu:{path} has no split {split!r}: {_DEPTHS_LAYOUT}")
    if not file.is_file():
        raise UserError(f"no file {file}: {_DEPTHS_LAYOUT}")
    splits = file.with_name("splits.mat")
    if split != "all" and not splits.is_file():
        raise UserError(f"no file {splits}, which says what is train and test: {_DEPTHS_LAYOUT}")
    source = NyuRelease(file)
    if split == "all":
        return source
    from scipy.io import loadmat

    try:
        rows = loadmat(splits)[f"{split}Ndxs"].ravel().astype(int) - 1
    except Exception as error:  # SciPy has many for damage, of zlib and of its own
        raise UserError(f"{splits} is damaged or not NYU's ({error}): expected trainNdxs and testNdxs") from None
    if rows.min(initial=0) < 0 or rows.max(initial=0) >= len(source):
        raise UserError(f"{splits} names image {rows.max() + 1}, {file} has {len(source)}: they do not belong together")
    return Selection(source, rows)


def depth_folders(path: PathLike) -> PairedFolders:
    """`images/` and `depth/` of equal names."""
    root = pathlib.Path(path).expanduser()
    return PairedFolders(root / "images", root / "depth", _DEPTHS_LAYOUT, (".png", ".npy"), read_depth)


class TfdsDepths(TfdsSource):
    """A TFDS data set with an image and a depth map in metres."""

    def __init__(self, name: str, split: str, data_dir: str = ""):
        super().__init__(name, split, data_dir)
        if "depth" not in self.features:
            raise UserError(f"tfds:{name} holds {', '.join(self.features)}, no depth: {_DEPTHS_LAYOUT}")

    def read(self, index: int):
        record = self.record(index)
        depth = np.asarray(record["depth"])
        depth = depth[..., 0] if depth.ndim == 3 else depth
        _check_size(depth, f"the depth map of {self.name} record {index}", record["image"].shape[:2], "of the same record")
        return {"image": record["image"], "target": _metres(depth)}


def open_depths(spec: str, *, data_dir: str = "") -> Source:
    """Images with depth maps, from `nyu:PATH:SPLIT`, `depths:PATH` or `tfds:NAME:SPLIT`.

    Raises:
        UserError: another layout than expected, which the message describes.
    """
    kind, _, rest = spec.partition(":")
    name, split = name_and_split(rest)
    if kind == "tfds" and name:
        return TfdsDepths(name, split, data_dir)
    if kind == "nyu" and name:
        return nyu(name, split)
    if kind == "depths" and rest:
        return depth_folders(rest)
    raise UserError(f"unknown data {spec!r}: {_DEPTHS_LAYOUT}")


def check_depths(source: Source, min_depth: float, max_depth: float, what: str, num_images: int = 8) -> None:
    """Looks at some depth maps, and raises UserError if they cannot be in metres: no pixel between 1 % of the range and its end.

    Args:
        what: whose they are, for the message.
    """
    targets = (source.read_next(int(i))[1]["target"] for i in np.linspace(0, len(source) - 1, min(num_images, len(source))))
    values = np.concatenate([target[target > 0] for target in targets])
    if not values.size:
        raise UserError(f"{what} {source.name}: the depth maps looked at hold no measurement, all values are 0 or not finite")
    if not np.any((values > max(min_depth, max_depth / 100)) & (values < max_depth)):
        raise UserError(
            f"{what} {source.name}: depths go from {values.min():g} to {values.max():g}, the range is {min_depth:g} to "
            f"{max_depth:g} m (min_depth, max_depth): the wrong unit? .npy and TFDS are read as metres, .png as mm"
        )
