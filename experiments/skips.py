"""Images that a stage could not decode, kept beside it as they are found: a run that goes on after a stop names them too."""

import contextlib
import json
import pathlib
import threading

import jax

from brh_jax.data.sources import Skip
from brh_jax.train.parallel import gathered, is_main, wait_for_all

_NAME = "skipped-"


class Skips:
    """Images that this process skipped, in a file of its own, and those of all attempts before; all processes make one together.

    Args:
        folder: of the stage.
        goes_on: whether the stage was begun before: what was found then counts.
    """

    def __init__(self, folder: pathlib.Path, goes_on: bool):
        self._folder, self._lock = folder, threading.Lock()
        self._found: dict[str, str] = {}
        self._over = False
        if is_main():
            for path in _files(folder):
                self._found |= _read(path) if goes_on else {}
            if not goes_on:
                self.remove()
        wait_for_all("skips of before are read")

    def add(self, skip: Skip) -> None:
        """Keeps it, whatever becomes of this process. Threads may call."""
        with self._lock:
            if skip.name not in self._found and not self._over:
                self._found[skip.name] = skip.reason
                with (self._folder / f"{_NAME}{jax.process_index()}.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps({skip.name: skip.reason}) + "\n")

    def of_all_processes(self) -> dict[str, str]:
        """Name -> reason, each once; all processes must ask together. What is read ahead after that is no part of the stage."""
        with self._lock:
            self._over = True
        return gathered(self._found)

    def remove(self) -> None:
        """Removes the files of all processes, where this is the first: what they say is kept elsewhere."""
        for path in _files(self._folder):
            path.unlink(missing_ok=True)


def holds_nothing_else(folder: pathlib.Path, name: str) -> bool:
    """Whether there is that file in a stage's folder, and otherwise only what names skips."""
    return {path.name for path in folder.iterdir()} - {path.name for path in _files(folder)} == {name}


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob(f"{_NAME}*.jsonl"))


def _read(path: pathlib.Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError):  # a line that was being written when its process was killed
            found |= json.loads(line)
    return found
