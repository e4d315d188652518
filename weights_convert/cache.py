"""Conversions kept: what was converted once is read from a cache, keyed by the content of the weights.

The cache is `$BRH_JAX_CACHE`, else `brh_jax` in `$XDG_CACHE_HOME` or `~/.cache`. An entry appears under its name only when it is
whole, so any number of processes can use it at once; two that convert the same weights at the same time both work, and the first
entry stays. One that is damaged since is made anew. Where nothing can be kept, a line says so, and the
conversion is used as it is.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile

from brh_jax.errors import UserError
from brh_jax.files import cache_folder, sha256
from brh_jax.models import store
from brh_jax.models.encoder import Encoder
from weights_convert.convert import convert
from weights_convert.sources import all_files

# Part of the key: raise it when a conversion comes out differently than before.
VERSION = 4


def converted(spec: str, **options) -> Encoder:
    """`convert(spec, **options)`, from the cache where it has been done before; says what it found when it converts.

    Args:
        options: that `convert` takes, told apart by how they print.
    """
    name = key(spec, options)
    try:
        entry, why = cache_folder() / name, ""
    except RuntimeError as error:
        entry, why = None, str(error)
    if entry and store.is_encoder_folder(entry):
        try:
            return store.read(entry)
        except UserError:
            print(f"{entry} was damaged and is made anew", file=sys.stderr, flush=True)
    encoder, report = convert(spec, **options)
    print("\n".join(report.lines(encoder)), file=sys.stderr, flush=True)
    if entry:
        try:
            _keep(encoder, entry, report._asdict())
        except OSError as error:
            why = f"{entry.parent}: {error}"
    if why:
        print(f"  not kept for the next time ({why}); BRH_JAX_CACHE names another folder", file=sys.stderr, flush=True)
    return encoder


def key(spec: str, options: dict) -> str:
    """What a conversion depends on: content of the weights and of what lies beside them, file name, options, version."""
    name = spec.rstrip("/").rpartition("/")[2]  # the encoder's name, and what the names of published files tell
    about = [VERSION, store.VERSION, name, {k: str(v) for k, v in options.items()}]
    return hashlib.sha256(_content(spec) + json.dumps(about, sort_keys=True).encode()).hexdigest()[:40]


def fingerprint(spec: str) -> str:
    """What weights hold, sha256 of the content and the names of their files and of what lies beside them; not where they lie.

    Args:
        spec: as for `sources.locate`; a folder that `brh_jax.models.store` wrote is one too.

    Raises:
        UserError: nothing there, or the hub cannot be reached.
    """
    return hashlib.sha256(_content(spec)).hexdigest()


def _content(spec: str) -> bytes:
    """A line for each file that a conversion reads: its name and its sha256."""
    return "".join(f"{file.name} {sha256(file)}\n" for file in all_files(spec)).encode()


def _keep(encoder: Encoder, entry: pathlib.Path, notes: dict) -> None:
    """Puts the encoder at `entry`, in place of what is damaged there, unless another process has been faster."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=entry.parent, prefix=".converting-"))
    try:
        store.save(encoder, temporary / "encoder", notes)
        try:
            os.rename(temporary / "encoder", entry)
        except OSError:
            if _is_whole(entry):
                return
            os.rename(entry, temporary / "damaged")
            os.rename(temporary / "encoder", entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(entry) -> bool:
    try:
        store.check(entry)
    except UserError:
        return False
    return store.is_encoder_folder(entry)
