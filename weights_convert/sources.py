"""Where weights come from: hub snapshots, safetensors, torch .pth files (weights only), ONNX graphs -> name: array."""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable

import numpy as np
from safetensors import SafetensorError, safe_open

from brh_jax.errors import UserError

WRAPPERS = ("state_dict", "model", "teacher", "module")  # keys under which training scripts keep the weights


@dataclasses.dataclass(frozen=True)
class Source:
    """Named tensors, read one at a time, and what lies beside them.

    Attributes:
        origin: what the user asked for.
        format: "safetensors", "torch" or "onnx".
        readers: tensor name -> function that reads it as a numpy array.
        config: config.json of transformers, or None.
        preprocessor: preprocessor_config.json of transformers, or None.
    """

    origin: str
    format: str
    readers: dict[str, Callable[[], np.ndarray]]
    config: dict | None = None
    preprocessor: dict | None = None


def open_source(spec: str) -> Source:
    """Opens weights.

    Args:
        spec: `hf:organisation/model[@revision]`, a folder in the hub's layout, or a .safetensors, .pth or .onnx file.

    Raises:
        UserError: nothing there, the hub cannot be reached, the file is damaged or of an unknown kind.
    """
    path = _snapshot(spec.removeprefix("hf:")) if spec.startswith("hf:") else pathlib.Path(spec).expanduser()
    if not path.exists():
        raise UserError(
            f"no weights at {spec}: expected a .safetensors, .pth or .onnx file, a folder with config.json and weights, "
            "or hf:organisation/model for the hub"
        )
    folder = path if path.is_dir() else path.parent
    files = _weight_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{spec} holds no weights: expected *.safetensors, pytorch_model.bin, *.pth or *.onnx in it")
    readers, kind = {}, None
    for file in files:
        kind, found = _open_file(file)
        readers.update(found)
    config = _json(folder / "config.json")
    if config is not None and "model_type" not in config:
        config = None
    return Source(str(spec), kind, readers, config, _json(folder / "preprocessor_config.json"))


def _snapshot(spec: str) -> pathlib.Path:
    """A hub model's files, from the local cache where they are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    repo, _, revision = spec.partition("@")
    hint = (
        f"check the network, or download {repo} elsewhere and give the folder instead of hf:{spec}; "
        "a copy in the hub's cache (HF_HOME) is used without a network"
    )
    try:
        for weights in ("*.safetensors", "pytorch_model.bin"):  # the second only where the first is not there
            patterns = ["config.json", "preprocessor_config.json", weights]
            path = pathlib.Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
            if list(path.glob(weights)):
                break
        return path
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
    """The folder's weights: all safetensors shards, else one torch or ONNX file."""
    shards = sorted(folder.glob("*.safetensors"))
    if shards:
        return shards
    others = sorted(p for pattern in ("*.bin", "*.pth", "*.pt", "*.onnx") for p in folder.glob(pattern))
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
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}): download it again") from None

    def read(name):
        # Opened anew for each tensor: nothing but the tensor stays in memory.
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    return {name: (lambda name=name: read(name)) for name in names}


def _open_torch(path):
    try:
        import torch
    except ImportError:
        raise UserError(f"reading {path} needs PyTorch: pip install 'brh-jax[convert]'") from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as plain tensors ({_first_line(error)}): it is damaged, or a pickle of more than a state "
            "dict, which is never unpickled here; save model.state_dict() instead"
        ) from None
    while isinstance(tensors, dict) and (inner := [k for k in WRAPPERS if isinstance(tensors.get(k), dict)]):
        tensors = tensors[inner[0]]
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path} holds {type(tensors).__name__}, expected a state dict (name -> tensor)")
    tensors = {name: t for name, t in tensors.items() if isinstance(t, torch.Tensor)}

    def read(tensor):
        return tensor.detach().to(torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy()

    return {name: (lambda t=t: read(t)) for name, t in tensors.items()}


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
    tensors = {t.name: t for t in graph.initializer}
    readers = {}
    for name, tensor in tensors.items():
        if not name.startswith("onnx::"):
            readers[name] = lambda t=tensor: numpy_helper.to_array(t)
    position_parts = {}
    for node in graph.node:
        for name in (i for i in node.input if i.startswith("onnx::") and i in tensors):
            tensor = tensors[name]
            module = node.name.strip("/").split("/")[:-1]
            if node.op_type == "MatMul" and len(tensor.dims) == 2:
                readers[".".join([*module, "weight"])] = lambda t=tensor: numpy_helper.to_array(t).T
            elif module and module[-1] == "embeddings" and len(tensor.dims) == 3:
                position_parts.setdefault(".".join([*module, "position_embeddings"]), {})[name] = tensor
    for name, parts in position_parts.items():
        ordered = sorted(parts.values(), key=lambda t: t.dims[1])
        readers.setdefault(name, lambda ts=ordered: np.concatenate([numpy_helper.to_array(t) for t in ts], axis=1))
    if not readers:
        raise UserError(f"{path} holds no named weights: export it with its initialisers (export_params=True)")
    return readers


def _json(path: pathlib.Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): download it again") from None


def _first_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error).strip().split(os.linesep)[0])
    return text[:200] or type(error).__name__
