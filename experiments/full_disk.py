"""A full disk, which any library may run into in its own words, said in one line."""

import contextlib
import errno
import pathlib
import shutil
from collections.abc import Iterator

from brh_jax.errors import UserError

_SAID = (
    "No space left on device",
    "os error 28",
    "Disk quota exceeded",
    "os error 122",
)  # by tensorstore, safetensors and others


@contextlib.contextmanager
def reported(workdir: pathlib.Path) -> Iterator[None]:
    """Within it a full disk is a UserError that names the place, the work directory where the error does not say."""
    try:
        yield
    except Exception as error:
        if (cause := _cause(error)) is None:
            raise
        place = pathlib.Path(getattr(cause, "filename", None) or workdir)
        raise UserError(
            f"the disk of {place} is full{_left(workdir)}: make room, then the same command goes on from where this one was"
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or any(text in str(error) for text in _SAID)


def _cause(error: BaseException | None) -> BaseException | None:
    """The error that says so, among what led to this one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if is_full(error):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _left(workdir: pathlib.Path) -> str:
    """How much the disk of the work directory has left."""
    there = next(place for place in (workdir.absolute(), *workdir.absolute().parents) if place.exists())
    return f" ({shutil.disk_usage(there).free / 1e6:,.1f} MB left where the run is)"
