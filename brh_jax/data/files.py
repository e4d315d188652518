"""Image files: which there are below a folder, and what is in them."""

import errno
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError

from brh_jax.errors import UserError
from brh_jax.images import as_image
from brh_jax.types import PathLike

T = TypeVar("T")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
# Images, of formats that are not read here.
_OTHER_IMAGES = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".tga", ".exr", ".hdr", ".psd", ".svg", ".dng", ".cr2",
                 ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}  # fmt: skip
# Of these the size says little about the content: it follows from the number of pixels.
_OF_ONE_SIZE = {".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".npy"}
_SAMPLE = 2**16  # bytes at the beginning, the middle and the end
_OF_THE_SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # folders that archives and file servers leave; hidden ones aside
_OURS_TO_MEND = (errno.EMFILE, errno.ENFILE)  # no fault of the file


class CorruptImage(Exception):
    """An image that cannot be decoded; pipelines skip and count it.

    Attributes:
        name: of the file or record.
        reason: why not.
    """

    def __init__(self, name: PathLike, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = printable(str(name)), printable(reason)

    def __str__(self):
        return f"{self.name}: {self.reason}"


def printable(text: str) -> str:
    r"""A name as one line that can be printed and written: bytes that are no UTF-8, and control characters, as `\xe9`."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", text)


class Below(NamedTuple):
    """What there is below a folder, in order of path; see `files_below`.

    Attributes:
        files: of the endings asked for.
        folders: all that were looked into.
        dead: links with such an ending that lead nowhere.
        unread: images of formats that are not read.
    """

    files: list[pathlib.Path]
    folders: list[pathlib.Path]
    dead: list[pathlib.Path]
    unread: list[pathlib.Path]


def files_below(folder: PathLike, suffixes: Container[str] = SUFFIXES) -> Below:
    """Plain files below a folder by their endings, upper or lower case.

    Links are followed, but not into a folder that they lie in. What is hidden (`.DS_Store`, `._x.jpg`) is left out, and so are
    pipes, sockets and devices, which one would read for ever.

    Raises:
        UserError: a folder that may not be listed.
    """
    found, ahead = Below([], [], [], []), [(pathlib.Path(folder), frozenset[tuple[int, int]]())]
    while ahead:
        here, above = ahead.pop()
        try:
            about, entries = here.stat(), list(os.scandir(here))
        except OSError as error:
            raise UserError(f"cannot list {printable(str(here))}: {error.strerror}") from None
        if (me := (about.st_dev, about.st_ino)) in above:
            continue
        found.folders.append(here)
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _OF_THE_SYSTEM:
                continue
            path, kind = here / entry.name, _kind(entry)
            if kind == "folder":
                ahead.append((path, above | {me}))
            elif kind != "other" and path.suffix.lower() in suffixes:
                (found.files if kind == "file" else found.dead).append(path)
            elif kind == "file" and path.suffix.lower() in _OTHER_IMAGES:
                found.unread.append(path)
    return Below(*map(sorted, found))


def _kind(entry: os.DirEntry) -> str:
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "dead link" if not os.path.exists(entry) else "other"
    except OSError:  # a link to itself
        return "dead link"


def listing(folder: pathlib.Path, paths: Iterable[pathlib.Path]) -> list:
    """Name relative to the folder and size in bytes of each file; where sizes say little, a hash of parts of it, too."""
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, *_sampled(path)) for path in paths]


def _sampled(path: pathlib.Path) -> list[str]:
    """Sha256 of a file's beginning, middle and end, of formats whose files are all of one size; the whole of a small one."""
    if path.suffix.lower() not in _OF_ONE_SIZE:
        return []
    size, found = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for start in (0, max(size // 2 - _SAMPLE // 2, 0), max(size - _SAMPLE, 0)):
            file.seek(start)
            found.update(file.read(_SAMPLE))
    return [found.hexdigest()]


def read_image(path: pathlib.Path, upright: bool = True) -> Image.Image:
    """An image file as eight-bit RGB, see `as_image`. Raises CorruptImage."""

    def read() -> Image.Image:
        with Image.open(path) as image:
            try:
                return as_image(image, upright)
            except UserError as error:
                raise CorruptImage(path, str(error)) from None

    return decoded(path, read)


def decoded(path: pathlib.Path, read: Callable[[], T]) -> T:
    """What a function reads from a file.

    Raises:
        CorruptImage: it fails, with whatever error a decoder has for damage.
        UserError: raised by the function, or no more files can be opened.
    """
    try:
        return read()
    except (UserError, CorruptImage):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OURS_TO_MEND:
            raise UserError(
                f"cannot open {printable(str(path))}, too many files are open: allow more (ulimit -n), or take fewer threads"
            ) from None
        raise CorruptImage(path, _reason(path, error)) from None


def _reason(path: pathlib.Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or type(error).__name__
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image: git lfs pull fetches it"
    if isinstance(error, UnidentifiedImageError):
        return "no image, or of a format that is not read"
    return (str(error).splitlines() or [""])[0].removeprefix(f"{path}: ") or type(error).__name__
