"""Conversions kept: what was converted once is read from a cache, keyed by the content of the weights.

The cache is `$BRH_JAX_CACHE`, else `brh_jax` in `$XDG_CACHE_HOME` or `~/.cache`. An entry appears under its name only when it is
whole, so any number of processes can use it at once; two that convert the same weights at the same time both work, and the first
entry stays.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence

from brh_jax.errors import UserError
from brh_jax.models import store
from brh_jax.models.encoder import Encoder
from weights_convert.convert import convert
from weights_convert.sources import locate

# Part of the key: raise it when a conversion comes out differently than before.
VERSION = 3
BESIDE = ("config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json")


def converted(spec: str, **options) -> Encoder:
    """`convert(spec, **options)`, from the cache where it has been done before; says what it found when it converts.

    Args:
        options: that `convert` takes, told apart by how they print.
    """
    folder, files = locate(spec)
    entry = cache_folder() / key(spec, folder, files, options)
    if store.is_encoder_folder(entry):
        try:
            return store.read(entry)
        except UserError:
            shutil.rmtree(entry, ignore_errors=True)  # damaged: converted anew
    encoder, report = convert(spec, **options)
    print("\n".join(report.lines(encoder)), file=sys.stderr, flush=True)
    try:
        _keep(encoder, entry, report._asdict())
    except OSError as error:
        print(f"  not kept in {entry.parent} ({error}); BRH_JAX_CACHE names another folder", file=sys.stderr, flush=True)
    return encoder


def cache_folder() -> pathlib.Path:
    """Where conversions are kept."""
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return pathlib.Path(os.environ.get("BRH_JAX_CACHE") or base / "brh_jax").expanduser()


def key(spec: str, folder: pathlib.Path, files: Sequence[pathlib.Path], options: dict) -> str:
    """What a conversion depends on: content of the weights and of what lies beside them, file name, options, version."""
    name = spec.rstrip("/").rpartition("/")[2]  # the encoder's name, and what the names of published files tell
    about = [VERSION, store.VERSION, name, {k: str(v) for k, v in options.items()}]
    return hashlib.sha256(_content(folder, files) + json.dumps(about, sort_keys=True).encode()).hexdigest()[:40]


def fingerprint(spec: str) -> str:
    """What weights hold, sha256 of the content and the names of their files and of what lies beside them; not where they lie.

    Args:
        spec: as for `sources.locate`; a folder that `brh_jax.models.store` wrote is one too.

    Raises:
        UserError: nothing there, or the hub cannot be reached.
    """
    return hashlib.sha256(_content(*locate(spec))).hexdigest()


def _content(folder: pathlib.Path, files) -> bytes:
    """A line for each file that a conversion reads: its name and its sha256."""
    beside = [folder / name for name in BESIDE if (folder / name).exists()]
    # An ONNX graph may keep its tensors in files named after it.
    stems = [file.stem for file in files if file.suffix == ".onnx"]
    external = [p for stem in stems for p in sorted(folder.glob(f"{stem}*")) if p not in files and p.is_file()]
    return "".join(f"{file.name} {_sha256(file)}\n" for file in (*files, *beside, *external)).encode()


def _sha256(file: pathlib.Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _keep(encoder: Encoder, entry: pathlib.Path, notes: dict) -> None:
    """Puts the encoder at `entry`, unless another process has been faster."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=entry.parent, prefix=".converting-"))
    try:
        store.save(encoder, temporary / "encoder", notes)
        os.rename(temporary / "encoder", entry)
    except OSError:
        if not store.is_encoder_folder(entry):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
