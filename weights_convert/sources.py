"""Where weights come from: hub snapshots, safetensors, torch .pth files (weights only), ONNX graphs -> name: array."""

import dataclasses
import os
import pathlib
import re

from brh_jax.errors import UserError
from brh_jax.files import check_sums, nearest_path, plain_file, read_json
from brh_jax.models import store
from weights_convert.hub import snapshot
from weights_convert.onnx_graph import external_files, open_onnx
from weights_convert.tensors import Tensor, check_begin, open_safetensors, open_torch

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".onnx")
# What is read beside the weights, where it is there.
BESIDE = ("config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json")


@dataclasses.dataclass(frozen=True)
class Source:
    """Named tensors, read one at a time, and what lies beside them.

    Attributes:
        origin: what the user asked for.
        format: "safetensors", "torch" or "onnx".
        files: the weight files.
        tensors: name -> Tensor.
        hf, timm, open_clip: config.json of transformers or of timm, open_clip_config.json; None where it is not there.
        preprocessor: preprocessor_config.json of transformers, or None.
        notes: what was taken where the files hold more than one thing.
    """

    origin: str
    format: str
    files: tuple[pathlib.Path, ...]
    tensors: dict[str, Tensor]
    hf: dict | None = None
    timm: dict | None = None
    open_clip: dict | None = None
    preprocessor: dict | None = None
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> pathlib.Path:
        """Where the weights lie."""
        return self.files[0].parent


def locate(spec: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The folder and the weight files of what `open_source` opens, fetched from the hub where they have to be.

    Raises:
        UserError: nothing there, or the hub cannot be reached.
    """
    path = snapshot(spec.removeprefix("hf:")) if spec.startswith("hf:") else pathlib.Path(os.path.expanduser(spec))
    if not os.path.exists(path):
        on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", spec) and path.suffix not in _SUFFIXES and not path.parent.exists()
        hint = f"did you mean hf:{spec}? " if on_hub else "" if spec.startswith("hf:") else nearest_path(path)
        raise UserError(
            f"no weights at {spec}: {hint}expected a .safetensors, .pth or .onnx file, a folder with config.json and weights, "
            "or hf:organisation/model or hf:organisation/model/file for the hub"
        )
    folder = path if path.is_dir() else path.parent
    files = _weight_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{spec} holds no weights: expected *.safetensors, pytorch_model.bin, *.pth or *.onnx in it")
    for file in (*files, *_beside(folder)):
        plain_file(file)
    return folder, files


def all_files(spec: str) -> list[pathlib.Path]:
    """Every file that a conversion of `spec` reads: the weights, those that a graph names, and what lies beside them.

    Raises:
        UserError: as `locate`, and where a graph names something outside its folder or what is not there.
    """
    folder, files = locate(spec)
    return [*files, *_beside(folder), *(named for file in files if file.suffix == ".onnx" for named in external_files(file))]


def open_source(spec: str) -> Source:
    """Opens weights.

    Args:
        spec: `hf:organisation/model[@revision]`, a folder in the hub's layout, or a .safetensors, .pth or .onnx file.

    Raises:
        UserError: nothing there, the hub cannot be reached, the file is damaged or of an unknown kind.
    """
    folder, files = locate(spec)
    try:
        check_sums(folder, [*(file.name for file in files), *(path.name for path in _beside(folder))])
    except UserError as error:
        raise UserError(f"{spec} is damaged: {error}; download it again") from None
    tensors: dict[str, Tensor] = {}
    kind, notes = "", []
    for file in files:
        kind, found, more = _open_file(file)
        notes += more
        if twice := tensors.keys() & found.keys():
            raise UserError(
                f"{file} holds tensors that another file beside it has too ({min(twice)}, ...): name the file you want"
            )
        tensors.update(found)
    config = read_json(folder / "config.json") or {}
    open_clip = read_json(folder / "open_clip_config.json")
    # Repositories that serve both libraries keep a file for each.
    own = config.keys() & {"model_type", "architecture"}
    for_open_clip = open_clip is not None and (files[0].name.startswith("open_clip") or not own)
    return Source(
        str(spec),
        kind,
        tuple(files),
        tensors,
        hf=config if "model_type" in config and not for_open_clip else None,
        timm=config if "architecture" in config and not for_open_clip else None,
        open_clip=open_clip if for_open_clip else None,
        preprocessor=None if for_open_clip else _preprocessor(folder),
        notes=tuple(notes),
    )


def _beside(folder: pathlib.Path) -> list[pathlib.Path]:
    return [folder / name for name in BESIDE if os.path.lexists(folder / name)]


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder's weights: model.safetensors or its shards, else the one file there is."""
    if (index := read_json(folder / store.INDEX)) is not None:
        shards = [folder / name for name in store.shard_names(folder, index)]
        if missing := [p.name for p in shards if not p.exists()]:
            raise UserError(f"{folder} lacks {', '.join(missing)}, which its index names: download the rest")
        return shards
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1 or (found and all(re.search(r"-\d+-of-\d+", p.name) for p in found)):
        return found
    others = sorted(p for pattern in ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.onnx") for p in folder.glob(pattern))
    if len(others) > 1:
        raise UserError(f"{folder} holds several weight files ({', '.join(p.name for p in others)}): name the one you want")
    return others


def _open_file(path: pathlib.Path):
    openers = {
        ".safetensors": ("safetensors", open_safetensors),
        ".pth": ("torch", open_torch),
        ".pt": ("torch", open_torch),
        ".bin": ("torch", open_torch),
        ".onnx": ("onnx", open_onnx),
    }
    if path.suffix not in openers:
        raise UserError(f"cannot read {path}: expected one of {', '.join(openers)}, got {path.suffix or 'no suffix'!r}")
    check_begin(path)
    kind, opener = openers[path.suffix]
    found = opener(path)
    return kind, *(found if isinstance(found, tuple) else (found, []))


def _preprocessor(folder: pathlib.Path) -> dict | None:
    """transformers' image processor; newer versions keep it inside the configuration of a processor of several kinds."""
    whole = read_json(folder / "processor_config.json") or {}
    inner = whole.get("image_processor")
    return inner if isinstance(inner, dict) else read_json(folder / "preprocessor_config.json")
