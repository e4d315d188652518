"""Encoders on disk: a folder with `model.safetensors` (or its shards) and `config.json`, written whole or not at all.

`SHA256SUMS` beside them holds what was written, and is compared when they are read.
"""

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
from brh_jax.files import check_sums, inside, own_folder, plain_file, read_json, write_sums
from brh_jax.models.encoder import Encoder, param_shapes
from brh_jax.models.raptor import RaptorConfig
from brh_jax.models.vit import ViTConfig
from brh_jax.partition import Partition
from brh_jax.preprocessing import Preprocessing
from brh_jax.types import PathLike

FORMAT = "brh_jax encoder"
VERSION = 1
SHARD_BYTES = 2**30
INDEX = "model.safetensors.index.json"


def is_encoder_folder(path: str | os.PathLike) -> bool:
    """Whether `path` is a folder that `save` wrote."""
    return _configuration(path).get("format") == FORMAT


def _configuration(folder) -> dict:
    """What config.json holds; nothing where there is none that can be read."""
    try:
        return read_json(pathlib.Path(folder) / "config.json") or {}
    except UserError:
        return {}


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
        "classes": encoder.classes,
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
        OSError: it cannot be written, for example for want of room.
    """
    folder = own_folder(folder).absolute()
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
            _save_file({name: jax.block_until_ready(jnp.asarray(tensors[name])) for name in names}, temporary / file, metadata)
            index |= dict.fromkeys(names, file)
        if len(shards) > 1:
            total = sum(tensor.nbytes for tensor in tensors.values())
            about = {"metadata": {"total_size": total}, "weight_map": index}
            files = {INDEX: json.dumps(about, indent=2) + "\n"} | files
        for name, text in files.items():
            (temporary / name).write_text(text)
        # What people may complete by hand, a model card, is not summed.
        write_sums(temporary, [*sorted(set(index.values())), *(name for name in files if name.endswith("config.json"))])
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


def _save_file(tensors, path, metadata):
    try:
        save_file(tensors, path, metadata)
        path.chmod(0o644)  # as its folder and the files beside it: safetensors lets nobody else read it
    except SafetensorError as error:  # it is a full disk or the like, under a name of its own
        raise OSError(f"{path.name} could not be written ({error})") from None


def _is_ours(folder) -> bool:
    about = _configuration(folder)
    return about.get("format") == FORMAT or "brh_jax" in about


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
        UserError: not such a folder, a newer format, files that are not what was written, or, where nothing tells that, arrays
            that do not fit the configuration.
    """
    folder = pathlib.Path(folder)
    if not is_encoder_folder(folder):
        check(folder)
        raise UserError(f"{folder} holds no encoder: expected model.safetensors and config.json as brh_jax writes them")
    about = _configuration(folder)
    if isinstance(version := about.get("version"), int) and version > VERSION:
        raise UserError(f"{folder} was written by a newer brh_jax (format {version}, this one reads {VERSION}): upgrade brh-jax")
    compared = check(folder)
    try:
        encoder = _read(folder, about)
        if not compared:
            _check_shapes(encoder)
        return encoder
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = error if isinstance(error, OSError | ValueError | SafetensorError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{folder} is damaged or incomplete: {what}; convert it again, or train again") from None


def check(folder: str | os.PathLike) -> bool:
    """Compares an encoder's files with what was written; folders without SHA256SUMS pass.

    Returns:
        whether all of them were compared.

    Raises:
        UserError: they are not the same, or not all there.
    """
    try:
        return check_sums(folder, [*_weight_files(pathlib.Path(folder)), "config.json"])
    except (UserError, OSError) as error:
        raise UserError(f"{folder} is damaged or incomplete: {error}; convert it again, or train again") from None


def _weight_files(folder: pathlib.Path) -> list[str]:
    """Names of the weight files, by the index where there is one."""
    index = read_json(folder / INDEX)
    return ["model.safetensors"] if index is None else shard_names(folder, index)


def shard_names(folder: PathLike, index: dict) -> list[str]:
    """The files that an index of shards names.

    Args:
        index: what model.safetensors.index.json holds.

    Raises:
        UserError: not an index, or one that names something else than .safetensors files in its folder.
    """
    path, names = pathlib.Path(folder) / INDEX, index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{path} has a weight_map that is {type(names).__name__}: expected an object, tensor -> file")
    for name in names.values():
        inside(folder, name, path)
        if not name.endswith(".safetensors"):
            raise UserError(f"{path} names {name!r}: expected .safetensors files")
    return sorted(set(names.values()))


def _read(folder: pathlib.Path, about: dict) -> Encoder:
    tensors = {}
    for file in _weight_files(folder):
        tensors |= load_file(plain_file(folder / file))
    tree = traverse_util.unflatten_dict(tensors, sep="/")
    told = config_of(about["config"]), tree["params"], Preprocessing(**about["preprocessing"]), about["name"], tree.get("head")
    classes = about.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("config.json has classes that are no list of names")
    return Encoder(*told, head_reads=about.get("head_reads", ""), classes=tuple(classes))


def _check_shapes(encoder: Encoder) -> None:
    """Raises ValueError where the parameters are not those of the configuration, by name, shape and kind."""
    if not isinstance(encoder.params, dict):
        raise ValueError("its arrays are not those of its config.json: expected several, by name")
    vit = encoder.config.vit
    image = jax.ShapeDtypeStruct((1, vit.patch_size, vit.patch_size, vit.channels), jnp.float32)
    expected: dict[str, object] = {**param_shapes(encoder.module, image)}
    found = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(encoder.params, sep="/").items()}
    if isinstance(encoder.config, RaptorConfig):  # one of blocks alone is whole without what its teacher gives
        lent = tuple(f"{part}/" for part in ("embedding", "norm") if part not in encoder.params)
        expected = {path: shape for path, shape in expected.items() if not path.startswith(lent)}
    if (head := encoder.head) is not None:
        found |= {f"head/{name}": leaf.shape for name, leaf in head.items()}
        outputs = head["bias"].shape[:1]
        expected |= {"head/bias": outputs, "head/kernel": head["kernel"].shape[:1] + outputs}
    faults = [
        f"{path} is {found.get(path, 'not there')}, expected {expected.get(path, 'nothing of that name')}"
        for path in dict.fromkeys([*expected, *found])
        if found.get(path) != expected.get(path)
    ]
    arrays = jax.tree.leaves_with_path({"params": encoder.params, "head": encoder.head})
    faults += [
        f"{jax.tree_util.keystr(path)} is {leaf.dtype}, expected floats"
        for path, leaf in arrays
        if not jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise ValueError(f"its arrays are not those of its config.json: {'; '.join(faults[:3])}{more}")


def config_of(about: dict) -> ViTConfig | RaptorConfig:
    """The architecture that `dataclasses.asdict` and JSON made `about` of; a Raptor's has a teacher."""
    if "teacher" not in about:
        return ViTConfig.read(about)
    partition = {key: value and tuple(value) for key, value in about["partition"].items()}
    return RaptorConfig(**about | {"teacher": ViTConfig.read(about["teacher"]), "partition": Partition(**partition)})
