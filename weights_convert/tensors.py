"""Files of named tensors, safetensors and torch's: opened without running anything, read one tensor at a time, as floats."""

import argparse
import functools
import pathlib
import re
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from brh_jax.errors import UserError
from brh_jax.files import plain_file

WRAPPERS = ("state_dict", "model", "teacher", "module")  # keys under which training scripts keep the weights
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # as safetensors calls them, and numpy


class Tensor(NamedTuple):
    """A tensor that is read when it is asked for: its shape, the name of its type, and a function that gives it as an array."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Fault(NamedTuple):
    """Why a tensor is not taken: in a word, and in a clause whose subject is its name."""

    kind: str
    what: str


def floats(tensor: Tensor, dtype: DTypeLike) -> tuple[np.ndarray, Fault | None]:
    """A tensor in the type that is wanted, and what is wrong with it where something is.

    Raises:
        ValueError: what is read is not of the shape that the file says; or whatever reading raises.
    """
    wanted = np.dtype(dtype)
    if tensor.dtype not in FLOATS.values():
        fault = Fault("type", f"is {tensor.dtype}, expected {', '.join(FLOATS.values())}")
        return np.broadcast_to(np.zeros((), wanted), tensor.shape), fault
    array = tensor.read()
    if array.shape != tensor.shape:
        raise ValueError(f"it has the shape {array.shape}, its file says {tensor.shape}")
    with np.errstate(over="ignore"):
        cast = array.astype(wanted, copy=False)
    if np.isfinite(cast).all():
        return cast, None
    if not np.isfinite(array).all():
        return cast, Fault("not finite", "holds NaN or infinity")
    return cast, Fault("not finite", f"holds {np.abs(array).max():.3g}, beyond {wanted.name}")


def open_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. Raises UserError where it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            slices = {name: file.get_slice(name) for name in names}
            heads = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}): download it again") from None

    def read(name):
        # Opened anew for each tensor: nothing but the tensor stays in memory.
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)

    return {
        name: Tensor(shape, FLOATS.get(dtype, dtype), functools.partial(read, name)) for name, (shape, dtype) in heads.items()
    }


def open_torch(path: pathlib.Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file that torch.save wrote, and what was taken of several state dicts where it holds such.

    Raises:
        UserError: tensors that are not all that there is to read.
    """
    try:
        import torch
    except ImportError:
        raise UserError(f"reading {path} needs PyTorch: pip install 'brh-jax[convert]'") from None
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped and any(entry.compress_type != zipfile.ZIP_STORED for entry in zipfile.ZipFile(path).infolist()):
            raise ValueError("its parts are compressed, which torch.save does not do")
        # Mapped, not read: a tensor comes into memory when it is asked for (files older than torch 1.6 cannot be).
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options that training scripts keep beside the weights
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        refused = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
        why = f"it holds a {refused[1]}" if refused else first_line(error)
        raise UserError(
            f"{path} cannot be read as plain tensors ({why}): it is damaged, or a pickle of more than a state "
            "dict, which is never unpickled here; save model.state_dict() instead"
        ) from None
    inner, notes = _unwrapped(path, tensors, torch.Tensor)
    tensors = {name: t for name, t in inner.items() if isinstance(t, torch.Tensor) and isinstance(name, str)}
    for name, t in tensors.items():
        if t.is_nested or t.is_meta or t.layout != torch.strided:
            kind = "nested" if t.is_nested else "without its values" if t.is_meta else f"of layout {t.layout}"
            raise UserError(
                f"{path}: {name} is a tensor {kind}, expected plain ones: save model.state_dict() of a model in memory"
            )
        if t.numel() * t.element_size() > t.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} says {tuple(t.shape)}, and the file does not hold as many values: save it whole")

    def read(tensor):
        return tensor.detach().to(torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy()

    taken = {
        name: Tensor(tuple(t.shape), str(t.dtype).removeprefix("torch."), functools.partial(read, t))
        for name, t in tensors.items()
    }
    return taken, notes


def _unwrapped(path, tensors, kind: type) -> tuple[dict, list[str]]:
    """The state dict inside what a training script saved, and which was taken where there are several (averages of it, say)."""
    passed, notes = [], []
    while isinstance(tensors, dict) and (inner := [k for k in WRAPPERS if isinstance(tensors.get(k), dict)]):
        passed.append(id(tensors))
        count = {k: sum(isinstance(t, kind) for t in v.values()) for k, v in tensors.items() if isinstance(v, dict)}
        if others := [k for k, n in count.items() if k != inner[0] and n and 2 * n >= count[inner[0]] > 0]:
            notes.append(f"the weights under {inner[0]!r}; the file holds others under {', '.join(map(repr, others))}")
        tensors = tensors[inner[0]]
        if id(tensors) in passed:
            raise UserError(f"{path} holds a dict that contains itself, under {inner[0]!r}: save model.state_dict() instead")
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path} holds {type(tensors).__name__}, expected a state dict (name -> tensor)")
    return tensors, notes


def check_begin(path: pathlib.Path) -> None:
    """Raises UserError for what often lies in the place of weights: an empty file, a pointer of Git LFS, a web page."""
    with open(plain_file(path), "rb") as stream:
        begin = stream.read(64)
    if not begin:
        raise UserError(f"{path} is empty: download it again")
    if begin.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights: run `git lfs pull` in its repository")
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise UserError(f"{path} is a web page, not weights: download the file itself")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for a message of ours."""
    text = re.sub(r"\s+", " ", (str(error).strip().splitlines() or [""])[0])
    return text[:200].rstrip(".:") or type(error).__name__
