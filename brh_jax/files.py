"""Files from anywhere: read only where they are plain files, hold what they say, and stay within bounds."""

import difflib
import gzip
import hashlib
import json
import math
import os
import pathlib
import re
import stat
import zlib
from collections.abc import Iterable
from typing import IO, Any

import numpy as np

from brh_jax.errors import UserError
from brh_jax.types import PathLike

JSON_BYTES = 2**26
SUMS = "SHA256SUMS"  # as `sha256sum` writes it, and `sha256sum --check` reads it


def cache_folder() -> pathlib.Path:
    """`$BRH_JAX_CACHE`, else `brh_jax` in `$XDG_CACHE_HOME` or `~/.cache`: where conversions and downloads are kept.

    Raises:
        RuntimeError: that would be the home folder, and nobody knows it.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(os.environ.get("BRH_JAX_CACHE") or f"{base}/brh_jax").expanduser()


def is_address(path: PathLike) -> bool:
    """Whether something is an address of the network (gs://bucket/run), which as a path would be a folder called `gs:`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) is not None and not os.path.lexists(path)


def own_folder(path: PathLike) -> pathlib.Path:
    """A folder to write to, of this machine. Raises UserError for an address."""
    if is_address(path):
        raise UserError(f"{path} is an address: expected a folder of this machine; mount it (gcsfuse, s3fs) and give its path")
    return pathlib.Path(path).expanduser()


def nearest_path(path: PathLike) -> str:
    """What to say of a path that leads nowhere: `did you mean X? `, or the folder that a relative one was looked for in."""
    if is_address(path):
        return "addresses are not read, download it or mount it and give its path; "
    missing = pathlib.Path(path).expanduser()
    rest: list[str] = []
    while not os.path.lexists(missing) and missing != missing.parent:
        rest.insert(0, missing.name)
        missing = missing.parent
    try:
        names = os.listdir(missing) if rest else []
    except OSError:
        names = []
    for name in difflib.get_close_matches(rest[0], names, n=2) if rest else ():
        if (found := missing.joinpath(name, *rest[1:])).exists():
            return f"did you mean {found}? "
    return "" if pathlib.Path(path).is_absolute() else f"looked in {pathlib.Path.cwd()}; "


def plain_file(path: PathLike) -> pathlib.Path:
    """The path itself, of a file that can be read to its end.

    Raises:
        UserError: nothing there, a folder, or a pipe, socket or device, which one would read for ever.
    """
    path = pathlib.Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UserError(f"{path} cannot be read ({error}): expected a file") from None
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe, socket or device"
        raise UserError(f"{path} is a {kind}: expected a file")
    return path


def inside(folder: PathLike, name: Any, whose: PathLike) -> pathlib.Path:
    """The file of that name in a folder, or below it.

    Args:
        name: as another file gives it.
        whose: the file that names it, for messages.

    Raises:
        UserError: not a name, or one that leads out of the folder.
    """
    parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts if isinstance(name, str) else ()
    if not parts or ".." in parts or os.path.isabs(name) or parts[0] == "/" or "\0" in name:
        raise UserError(f"{whose} names {name!r}: expected a file in its own folder; nothing outside is read")
    return pathlib.Path(folder).joinpath(*parts)


def read_json(path: PathLike) -> dict | None:
    """The object that a JSON file holds; None where there is no file.

    Raises:
        UserError: not a plain file, not JSON, nested too deeply, or something else than an object.
    """
    path = pathlib.Path(path)
    if not os.path.lexists(path):
        return None
    if (size := plain_file(path).stat().st_size) > JSON_BYTES:
        raise UserError(f"{path} has {size:,} bytes: expected a configuration of {JSON_BYTES:,} at most")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read: download it again") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): download it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected an object: download it again")
    return found


def read_first(path: PathLike, limit: int) -> bytes:
    """The first bytes of a file, or of what a .gz file holds: `limit` at most, whatever it would expand to.

    Raises:
        UserError: damaged, or no plain file.
    """
    path = plain_file(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            return stream.read(limit)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): download it again") from None


def read_array(stream: IO[bytes], size: int) -> np.ndarray:
    """The array of an .npy file, of which no more is read, or held, than is there, whatever its header says.

    Args:
        stream: at the file's beginning.
        size: of the file in bytes.

    Raises:
        ValueError: not such a file, one of Python objects, or one of another size than its header says.
    """
    shape, fortran, dtype = _array_header(stream)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which are not unpickled: expected numbers")
    says, there = math.prod(shape) * dtype.itemsize, size - stream.tell()  # of Python's numbers, which do not overflow
    if min(shape, default=0) < 0 or says != there:
        raise ValueError(f"its header says {dtype} {shape}, which is {says:,} bytes, and {there:,} are there")
    return np.frombuffer(bytearray(stream.read(says)), dtype).reshape(shape, order="F" if fortran else "C")


def _array_header(stream) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        return readers[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # a header is Python's text, and has whatever is wrong with that
        raise ValueError(f"no array in .npy format ({(str(error).splitlines() or [''])[0] or type(error).__name__})") from None


def sha256(path: PathLike) -> str:
    """SHA-256 of a file's content. Raises UserError where it is no plain file."""
    with open(plain_file(path), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_sums(folder: PathLike, names: Iterable[str]) -> None:
    """Leaves SHA256SUMS of some files beside them."""
    lines = [f"{sha256(pathlib.Path(folder) / name)}  {name}\n" for name in names]
    (pathlib.Path(folder) / SUMS).write_text("".join(lines))


def check_sums(folder: PathLike, names: Iterable[str]) -> bool:
    """Compares files with the SHA256SUMS beside them; files that it does not list, or a folder without one, pass.

    Returns:
        whether all of them were compared.

    Raises:
        UserError: files whose content is not what was written.
    """
    path, names = pathlib.Path(folder) / SUMS, list(names)
    if not os.path.lexists(path):
        return False
    text = plain_file(path).read_text(encoding="utf-8", errors="replace")
    sums = {m[2]: m[1] for m in re.finditer(r"^([0-9a-f]{64})[ \t]+\*?(.+)$", text, re.MULTILINE)}
    wrong = [name for name in names if name in sums and sha256(path.with_name(name)) != sums[name]]
    if wrong:
        are = "is" if len(wrong) == 1 else "are"
        raise UserError(
            f"{', '.join(wrong)} {are} not what was written, by the {SUMS} beside it (remove that where it was edited on purpose)"
        )
    return all(name in sums for name in names)
