"""A work directory belongs to one run at a time."""

import contextlib
import errno
import json
import os
import pathlib
import socket
import time
import uuid
from collections.abc import Iterator

from brh_jax.errors import UserError
from brh_jax.train.parallel import agree, differences, is_main, together
from experiments.full_disk import is_full

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_PATIENCE = 90.0  # seconds until a file that one host wrote is seen by the others
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)  # what a file system without them says


class Lock:
    """A file in the work directory, locked for as long as its holder lives: the system drops it, whatever the holder dies of.

    Where the file system has no locks the file itself is one; that of a process which is gone from this machine counts for
    nothing.

    Raises:
        UserError: another run holds it, or the directory cannot be written to.
    """

    def __init__(self, workdir: pathlib.Path):
        self._path, self._made = workdir / NAME, not workdir.exists()
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._descriptor = _open(self._path)
        except OSError as error:
            if is_full(error):
                raise
            raise UserError(f"cannot write to {workdir} ({error.strerror}): give another --workdir") from None
        self._text = json.dumps(_this_process())
        try:
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, self._text.encode())
            os.fsync(self._descriptor)
        except OSError:  # a full disk, say
            self._text = ""
            self.release()
            raise

    def release(self) -> None:
        """Lets others in; leaves no file, nor a directory that is empty and was not there before."""
        with contextlib.suppress(OSError):
            if self._path.read_text() == self._text:
                self._path.unlink()
        os.close(self._descriptor)
        if self._made:
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()


class Hold:
    """A work directory that a run has for itself, as one of its processes sees it.

    Attributes:
        text: what the first process wrote of itself.

    Raises:
        UserError: this process does not see what the first one wrote.
    """

    def __init__(self, workdir: pathlib.Path):
        self._workdir, begun = workdir, time.monotonic()
        while not (found := self._read()):
            if time.monotonic() > begun + _PATIENCE:
                raise UserError(f"{workdir} must be one folder for all processes: what the first one wrote is not here")
            time.sleep(0.5)  # network file systems take their time
        self.text = found

    def _read(self) -> str | None:
        """What is in the file; None where it is not there."""
        try:
            return (self._workdir / NAME).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def is_there(self) -> bool:
        """Whether the directory is still the one that was locked."""
        if not is_main():
            return self._workdir.is_dir()  # the first process may have let go already, where a run ends by an error
        try:
            return self._read() == self.text
        except OSError:
            return True  # unreadable for now is not gone

    def check(self) -> None:
        """Raises `lost` where the directory is not there any more; all processes must ask together."""
        if agree(not self.is_there()):
            raise self.lost()

    def lost(self) -> UserError:
        """What to say of a directory that was removed."""
        return UserError(
            f"{self._workdir} was removed or replaced while this run was working in it: what it held is lost, the same command "
            "starts again"
        )


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[Hold]:
    """Within it no other run works in the directory, which is made if it is not there; all processes must come together.

    Raises:
        UserError: another run does; the message says which.
    """
    lock = together(lambda: Lock(workdir) if is_main() else None)
    try:
        held = together(lambda: Hold(workdir))
        if differences({"lock": held.text}):
            raise UserError(f"{workdir} must be one folder for all processes, and is not")
        yield held
    finally:
        if lock is not None:
            lock.release()


def _open(path: pathlib.Path) -> int:
    """The descriptor of the locked file, which no one else has."""
    for _ in range(100 if fcntl is not None else 0):
        was_there = path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
            os.close(descriptor)  # its holder removed it as we opened it
        except BlockingIOError:
            os.close(descriptor)
            raise _in_use(path) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise
            if not was_there:
                path.unlink()
            break
    return _open_alone(path)


def _open_alone(path: pathlib.Path) -> int:
    """The same without locks, by a file that only one can make."""
    holder = _holder(path)
    if holder and holder["host"] == socket.gethostname() and not _runs(int(holder["process"])):
        path.unlink()
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise UserError(f"{_in_use(path)}; if that process is gone, remove {path}") from None


def _in_use(path: pathlib.Path) -> UserError:
    holder = _holder(path)
    who = f"process {holder['process']} on {holder['host']}, since {holder['since']}" if holder else "another process"
    return UserError(f"{path.parent} is in use by {who}: let it end, or give another --workdir")


def _holder(path: pathlib.Path) -> dict:
    """What the holder wrote of itself; empty where it has not yet."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) and set(_this_process()) <= set(holder) else {}


def _this_process() -> dict[str, str | int]:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": since, "run": uuid.uuid4().hex}


def _runs(process: int) -> bool:
    """Whether there is such a process on this machine."""
    if os.name != "posix":
        return True  # asking would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
