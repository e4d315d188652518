"""Encoders on disk: a folder with `model.safetensors` (or its shards) and `config.json`, written whole or not at all."""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from brh_jax.errors import UserError
from brh_jax.models.encoder import Encoder
from brh_jax.models.raptor import RaptorConfig
from brh_jax.models.vit import ViTConfig
from brh_jax.partition import Partition
from brh_jax.preprocessing import Preprocessing

FORMAT = "brh_jax encoder"
VERSION = 1
SHARD_BYTES = 2**30


def is_encoder_folder(path: str | os.PathLike) -> bool:
    """Whether `path` is a folder that `save` wrote."""
    config = pathlib.Path(path) / "config.json"
    try:
        return json.loads(config.read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def save(encoder: Encoder, folder: str | os.PathLike, notes: dict | None = None) -> pathlib.Path:
    """Writes an encoder in place of what is at `folder`; a crash leaves nothing half-written.

    Args:
        notes: anything worth keeping with it, as JSON (where the weights came from, say).

    Raises:
        UserError: something else than an encoder is there.
    """
    tree = {"params": encoder.params} | ({"head": encoder.head} if encoder.head is not None else {})
    about = {
        "format": FORMAT,
        "version": VERSION,
        "kind": encoder.config.kind,
        "name": encoder.name,
        "head_reads": encoder.head_reads,
        "config": dataclasses.asdict(encoder.config),
        "preprocessing": dataclasses.asdict(encoder.preprocessing),
        "notes": notes or {},
    }
    tensors = traverse_util.flatten_dict(tree, sep="/")
    return write_folder(folder, tensors, {"config.json": json.dumps(about, indent=2) + "\n"})


def write_folder(folder: str | os.PathLike, tensors: dict, files: dict[str, str], metadata: dict | None = None) -> pathlib.Path:
    """Writes tensors and small files in place of the encoder at `folder`; a crash leaves nothing half-written.

    Tensors beyond SHARD_BYTES go into several files with an index, as on the hub: a file is made in memory before it is written.

    Raises:
        UserError: something else than an encoder is there.
    """
    folder = pathlib.Path(folder).absolute()
    if folder.exists() and not _is_ours(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and holds no encoder: nothing is written over it, give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    aside, moved = temporary.with_name(f"{temporary.name}.old"), False
    try:
        shards = _shards(tensors)
        index = {}
        for number, names in enumerate(shards, start=1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file({name: jax.block_until_ready(jnp.asarray(tensors[name])) for name in names}, temporary / file, metadata)
            index |= dict.fromkeys(names, file)
        if len(shards) > 1:
            total = sum(tensor.nbytes for tensor in tensors.values())
            about = {"metadata": {"total_size": total}, "weight_map": index}
            (temporary / "model.safetensors.index.json").write_text(json.dumps(about, indent=2) + "\n")
        for name, text in files.items():
            (temporary / name).write_text(text)
        temporary.chmod(0o755)
        if folder.exists():
            os.replace(folder, aside)  # a folder cannot be renamed onto another: the old one steps aside first
            moved = True
        os.replace(temporary, folder)
    except BaseException:
        if moved:
            os.replace(aside, folder)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    return folder


def _is_ours(folder) -> bool:
    try:
        about = json.loads((pathlib.Path(folder) / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and (about.get("format") == FORMAT or "brh_jax" in about)


def _shards(tensors: dict) -> list[list[str]]:
    """Names in files of at most SHARD_BYTES, or of one tensor."""
    shards, size = [[]], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def read(folder: str | os.PathLike) -> Encoder:
    """Reads an encoder that `save` wrote.

    Raises:
        UserError: not such a folder, a newer format, or a damaged weight file.
    """
    folder = pathlib.Path(folder)
    if not is_encoder_folder(folder):
        raise UserError(f"{folder} holds no encoder: expected model.safetensors and config.json as brh_jax writes them")
    about = json.loads((folder / "config.json").read_text())
    if about["version"] > VERSION:
        raise UserError(
            f"{folder} was written by a newer brh_jax (format {about['version']}, this one reads {VERSION}): upgrade brh-jax"
        )
    try:
        return _read(folder, about)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}" if isinstance(error, KeyError | TypeError) else error
        raise UserError(f"{folder} is damaged or incomplete ({what}): convert or train again") from None


def _read(folder: pathlib.Path, about: dict) -> Encoder:
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    tensors = {}
    for file in files:
        tensors |= load_file(folder / file)
    tree = traverse_util.unflatten_dict(tensors, sep="/")
    told = config_of(about["config"]), tree["params"], Preprocessing(**about["preprocessing"]), about["name"], tree.get("head")
    return Encoder(*told, head_reads=about.get("head_reads", ""))


def config_of(about: dict) -> ViTConfig | RaptorConfig:
    """The architecture that `dataclasses.asdict` and JSON made `about` of; a Raptor's has a teacher."""
    if "teacher" not in about:
        return ViTConfig(**about)
    partition = {key: value and tuple(value) for key, value in about["partition"].items()}
    return RaptorConfig(**about | {"teacher": ViTConfig(**about["teacher"]), "partition": Partition(**partition)})
