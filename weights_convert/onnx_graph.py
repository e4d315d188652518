"""ONNX graphs: their initialisers under the names that they had in PyTorch, and the files that hold them."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from brh_jax.errors import UserError
from brh_jax.files import inside, plain_file
from brh_jax.types import PathLike
from weights_convert.tensors import Tensor, first_line


def external_files(path: PathLike) -> list[pathlib.Path]:
    """The files in which a graph keeps tensors, by the locations in the graph itself.

    Raises:
        UserError: no graph, or one that names something outside its folder or what is not there.
    """
    path = pathlib.Path(path)
    return _external_files(_load(path).graph, path)


def _external_files(graph, path):
    names = sorted({_external(tensor)["location"] for tensor in _tensors(graph) if _is_external(tensor)})
    return [plain_file(inside(path.parent, name, path)) for name in names]


def open_onnx(path: PathLike) -> dict[str, Tensor]:
    """The initialisers of an ONNX graph by the names that they had in PyTorch.

    The exporter keeps the names of vectors and kernels, but folds `weight.T` of a linear layer into an anonymous constant
    `[in, out]`: its name is that of the MatMul node that uses it. The position table of a DINOv2 is folded into its class and
    patch parts.

    Raises:
        UserError: no graph, or no named weights in it.
    """
    path = pathlib.Path(path)
    graph = _load(path).graph
    _external_files(graph, path)  # before anything is read

    def array(tensor):
        return _array(tensor, path)

    def transposed(tensor):
        return _array(tensor, path).T

    def joined(tensors):
        return np.concatenate([_array(tensor, path) for tensor in tensors], axis=1)

    tensors = {t.name: t for t in graph.initializer}
    readers = {}
    for name, tensor in tensors.items():
        if not name.startswith("onnx::"):
            readers[name] = Tensor(tuple(tensor.dims), _dtype(tensor), functools.partial(array, tensor))
    position_parts: dict[str, dict] = {}
    for node in graph.node:
        for name in (i for i in node.input if i.startswith("onnx::") and i in tensors):
            tensor = tensors[name]
            module = node.name.strip("/").split("/")[:-1]
            if node.op_type == "MatMul" and len(tensor.dims) == 2:
                read = functools.partial(transposed, tensor)
                readers[".".join([*module, "weight"])] = Tensor(tuple(tensor.dims)[::-1], _dtype(tensor), read)
            elif module and module[-1] == "embeddings" and len(tensor.dims) == 3:
                position_parts.setdefault(".".join([*module, "position_embeddings"]), {})[name] = tensor
    for name, parts in position_parts.items():
        ordered = sorted(parts.values(), key=lambda t: t.dims[1])
        whole = (1, sum(t.dims[1] for t in ordered), ordered[0].dims[2])
        readers.setdefault(name, Tensor(whole, _dtype(ordered[0]), functools.partial(joined, ordered)))
    if not readers:
        raise UserError(f"{path} holds no named weights: export it with its initialisers (export_params=True)")
    return readers


def _load(path: pathlib.Path) -> Any:
    try:
        import onnx
    except ImportError:
        raise UserError(f"reading {path} needs onnx: pip install 'brh-jax[convert]'") from None
    try:
        return onnx.load(plain_file(path), load_external_data=False)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged or no ONNX graph ({first_line(error)}): download it again") from None


def _tensors(graph) -> Iterator[Any]:
    """Every tensor of a graph, those of constants and of graphs inside it too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _is_external(tensor) -> bool:
    return tensor.data_location == type(tensor).EXTERNAL


def _external(tensor) -> dict[str, str]:
    return {"location": ""} | {entry.key: entry.value for entry in tensor.external_data}


def _dtype(tensor) -> str:
    from onnx import TensorProto, helper

    try:
        return helper.tensor_dtype_to_np_dtype(tensor.data_type).name
    except (KeyError, ValueError, TypeError):
        known = {number: name for name, number in TensorProto.DataType.items()}
        return known.get(tensor.data_type, f"of the unknown type {tensor.data_type}")


def _array(tensor, path: pathlib.Path) -> np.ndarray:
    """A tensor's values, out of the graph or of the file that it names."""
    from onnx import numpy_helper

    if not _is_external(tensor):
        return numpy_helper.to_array(tensor)
    about = _external(tensor)
    file = plain_file(inside(path.parent, about["location"], path))
    whole = type(tensor)()
    whole.CopyFrom(tensor)
    whole.data_location = type(tensor).DEFAULT
    del whole.external_data[:]
    offset = int(about.get("offset", 0))
    length = int(about.get("length", file.stat().st_size - offset))
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise ValueError(f"bytes {offset} to {offset + length} of {file}, which has {file.stat().st_size}")
    with open(file, "rb") as stream:
        stream.seek(offset)
        whole.raw_data = stream.read(length)
    return numpy_helper.to_array(whole)
