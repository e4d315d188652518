"""Where weights come from: hub snapshots, safetensors, torch .pth files (weights only), ONNX graphs -> name: array."""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from brh_jax.errors import UserError

WRAPPERS = ("state_dict", "model", "teacher", "module")  # keys under which training scripts keep the weights


class Tensor(NamedTuple):
    """A tensor that is read when it is asked for: its shape, and a function that gives it as a numpy array."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


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
    """

    origin: str
    format: str
    files: tuple[pathlib.Path, ...]
    tensors: dict[str, Tensor]
    hf: dict | None = None
    timm: dict | None = None
    open_clip: dict | None = None
    preprocessor: dict | None = None

    @property
    def folder(self) -> pathlib.Path:
        """Where the weights lie."""
        return self.files[0].parent


def locate(spec: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The folder and the weight files of what `open_source` opens, fetched from the hub where they have to be.

    Raises:
        UserError: nothing there, or the hub cannot be reached.
    """
    path = _snapshot(spec.removeprefix("hf:")) if spec.startswith("hf:") else pathlib.Path(spec).expanduser()
    if not path.exists():
        raise UserError(
            f"no weights at {spec}: expected a .safetensors, .pth or .onnx file, a folder with config.json and weights, "
            "or hf:organisation/model or hf:organisation/model/file for the hub"
        )
    folder = path if path.is_dir() else path.parent
    files = _weight_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{spec} holds no weights: expected *.safetensors, pytorch_model.bin, *.pth or *.onnx in it")
    return folder, files


def open_source(spec: str) -> Source:
    """Opens weights.

    Args:
        spec: `hf:organisation/model[@revision]`, a folder in the hub's layout, or a .safetensors, .pth or .onnx file.

    Raises:
        UserError: nothing there, the hub cannot be reached, the file is damaged or of an unknown kind.
    """
    folder, files = locate(spec)
    tensors: dict[str, Tensor] = {}
    kind = ""
    for file in files:
        kind, found = _open_file(file)
        if twice := tensors.keys() & found.keys():
            raise UserError(
                f"{file} holds tensors that another file beside it has too ({min(twice)}, ...): name the file you want"
            )
        tensors.update(found)
    config = _json(folder / "config.json") or {}
    open_clip = _json(folder / "open_clip_config.json")
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
    )


def _snapshot(spec: str) -> pathlib.Path:
    """A hub model's files, from the local cache where they are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    where, _, revision = spec.partition("@")
    repo, file = "/".join(where.split("/")[:2]), "/".join(where.split("/")[2:])
    hint = (
        f"check the network, or download {repo} elsewhere and give the folder instead of hf:{spec}; "
        "a copy in the hub's cache (HF_HOME) is used without a network"
    )
    try:
        # Each only where those before it are not there.
        for weights in [file] if file else ["*.safetensors", "pytorch_model.bin", "*.bin", "*.pth", "*.pt", "*.onnx"]:
            patterns = ["*config.json", "*.safetensors.index.json", weights]
            path = pathlib.Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
            if list(path.glob(weights)):
                break
        return path / file
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"the hub knows no model {repo!r} ({_first_line(error)}): check the name, or log in if it is gated"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(f"could not get hf:{spec} from the hub ({_first_line(error)}): {hint}") from None
    except Exception as error:  # the HTTP client's own connection errors have no common base that is public
        if "connect" in type(error).__name__.lower() or "timeout" in type(error).__name__.lower():
            raise UserError(f"could not reach the hub for hf:{spec} ({_first_line(error)}): {hint}") from None
        raise


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder's weights: model.safetensors or its shards, else the one file there is."""
    if index := _json(folder / "model.safetensors.index.json"):
        shards = sorted({folder / name for name in index.get("weight_map", {}).values()})
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
        ".safetensors": ("safetensors", _open_safetensors),
        ".pth": ("torch", _open_torch),
        ".pt": ("torch", _open_torch),
        ".bin": ("torch", _open_torch),
        ".onnx": ("onnx", _open_onnx),
    }
    if path.suffix not in openers:
        raise UserError(f"cannot read {path}: expected one of {', '.join(openers)}, got {path.suffix or 'no suffix'!r}")
    kind, opener = openers[path.suffix]
    return kind, opener(path)


def _open_safetensors(path):
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}): download it again") from None

    def read(name):
        # Opened anew for each tensor: nothing but the tensor stays in memory.
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    return {name: Tensor(shape, functools.partial(read, name)) for name, shape in shapes.items()}


def _open_torch(path):
    try:
        import torch
    except ImportError:
        raise UserError(f"reading {path} needs PyTorch: pip install 'brh-jax[convert]'") from None
    try:
        # Mapped, not read: a tensor comes into memory when it is asked for (files older than torch 1.6 cannot be).
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options that training scripts keep beside the weights
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        why = f"it holds a {refused[1]}" if refused else _first_line(error)
        raise UserError(
            f"{path} cannot be read as plain tensors ({why}): it is damaged, or a pickle of more than a state "
            "dict, which is never unpickled here; save model.state_dict() instead"
        ) from None
    while isinstance(tensors, dict) and (inner := [k for k in WRAPPERS if isinstance(tensors.get(k), dict)]):
        tensors = tensors[inner[0]]
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path} holds {type(tensors).__name__}, expected a state dict (name -> tensor)")
    tensors = {name: t for name, t in tensors.items() if isinstance(t, torch.Tensor) and isinstance(name, str)}

    def read(tensor):
        return tensor.detach().to(torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy()

    return {name: Tensor(tuple(t.shape), functools.partial(read, t)) for name, t in tensors.items()}


def _open_onnx(path):
    """The initialisers of an ONNX graph by the names that they had in PyTorch.

    The exporter keeps the names of vectors and kernels, but folds `weight.T` of a linear layer into an anonymous constant
    `[in, out]`: its name is that of the MatMul node that uses it. The position table of a DINOv2 is folded into its class and
    patch parts.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UserError(f"reading {path} needs onnx: pip install 'brh-jax[convert]'") from None
    try:
        graph = onnx.load(path).graph
    except Exception as error:
        raise UserError(f"{path} is damaged or no ONNX graph ({_first_line(error)}): download it again") from None

    def transposed(tensor):
        return numpy_helper.to_array(tensor).T

    def joined(tensors):
        return np.concatenate([numpy_helper.to_array(tensor) for tensor in tensors], axis=1)

    tensors = {t.name: t for t in graph.initializer}
    readers = {}
    for name, tensor in tensors.items():
        if not name.startswith("onnx::"):
            readers[name] = Tensor(tuple(tensor.dims), functools.partial(numpy_helper.to_array, tensor))
    position_parts: dict[str, dict] = {}
    for node in graph.node:
        for name in (i for i in node.input if i.startswith("onnx::") and i in tensors):
            tensor = tensors[name]
            module = node.name.strip("/").split("/")[:-1]
            if node.op_type == "MatMul" and len(tensor.dims) == 2:
                readers[".".join([*module, "weight"])] = Tensor(tuple(tensor.dims)[::-1], functools.partial(transposed, tensor))
            elif module and module[-1] == "embeddings" and len(tensor.dims) == 3:
                position_parts.setdefault(".".join([*module, "position_embeddings"]), {})[name] = tensor
    for name, parts in position_parts.items():
        ordered = sorted(parts.values(), key=lambda t: t.dims[1])
        whole = (1, sum(t.dims[1] for t in ordered), ordered[0].dims[2])
        readers.setdefault(name, Tensor(whole, functools.partial(joined, ordered)))
    if not readers:
        raise UserError(f"{path} holds no named weights: export it with its initialisers (export_params=True)")
    return readers


def _json(path: pathlib.Path) -> dict | None:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): download it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected an object: download it again")
    return found


def _preprocessor(folder: pathlib.Path) -> dict | None:
    """transformers' image processor; newer versions keep it inside the configuration of a processor of several kinds."""
    whole = _json(folder / "processor_config.json") or {}
    inner = whole.get("image_processor")
    return inner if isinstance(inner, dict) else _json(folder / "preprocessor_config.json")


def _first_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error).strip().split(os.linesep)[0])
    return text[:200] or type(error).__name__
