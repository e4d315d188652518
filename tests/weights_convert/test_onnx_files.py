"""ONNX graphs that keep their tensors in other files: all of them belong to the weights, none may lie elsewhere."""

import pathlib

import numpy as np
import onnx
import pytest

from brh_jax.errors import UserError
from weights_convert import cache
from weights_convert.onnx_graph import external_files, open_onnx


def graph_with_data(path: pathlib.Path, tensors: dict[str, np.ndarray], location: str, **about) -> None:
    """An ONNX graph whose tensors lie one after the other in another file."""
    held = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    data = b""
    for tensor in held:
        entries = {"location": location, "offset": str(len(data)), "length": str(len(tensor.raw_data))} | about
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    graph = onnx.helper.make_graph([], "g", [], [], held)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    if location and ".." not in location and not location.startswith("/"):
        (path.parent / location).parent.mkdir(exist_ok=True)
        (path.parent / location).write_bytes(data)


@pytest.mark.parametrize("location", ["model.onnx_data", "weights.bin.0", "below/tensors"])
def test_data_of_any_name_are_read_and_belong_to_the_fingerprint(tmp_path, location):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
    graph_with_data(tmp_path / "model.onnx", tensors, location)
    found = open_onnx(tmp_path / "model.onnx")
    for name, array in tensors.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, "float32")
        np.testing.assert_array_equal(found[name].read(), array)
    spec = str(tmp_path / "model.onnx")
    before = cache.fingerprint(spec), cache.key(spec, {})
    tensors["a"] += 1  # as many bytes, the graph is the same
    graph = (tmp_path / "model.onnx").read_bytes()
    graph_with_data(tmp_path / "model.onnx", tensors, location)
    assert (tmp_path / "model.onnx").read_bytes() == graph
    assert not set(before) & {cache.fingerprint(spec), cache.key(spec, {})}


def test_data_of_constants_and_inner_graphs_belong_to_it_too(tmp_path):
    (tmp_path / "inner.data").write_bytes(bytes(8))
    tensor = onnx.numpy_helper.from_array(np.zeros(2, np.float32), "c")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="inner.data")
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    inner = onnx.helper.make_graph([constant], "inner", [], [])
    branch = onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    graph = onnx.helper.make_graph([branch], "g", [], [])
    (tmp_path / "w.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    assert external_files(tmp_path / "w.onnx") == [tmp_path / "inner.data"]


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "below/../../secret", "", "..\\secret"])
def test_nothing_outside_the_folder_is_read(tmp_path, location):
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "model").mkdir()
    graph_with_data(tmp_path / "model" / "w.onnx", {"a": np.ones(2, np.float32)}, location)
    for read in (external_files, open_onnx, lambda path: cache.fingerprint(str(path))):
        with pytest.raises(UserError, match=r"w.onnx names '.*': expected a file in its own folder; nothing outside is read"):
            read(tmp_path / "model" / "w.onnx")


def test_data_that_are_not_there_or_too_short(tmp_path):
    graph_with_data(tmp_path / "w.onnx", {"a": np.ones(8, np.float32)}, "w.data", offset="16")
    with pytest.raises(ValueError, match=r"bytes 16 to 48 of .*w.data, which has 32"):
        open_onnx(tmp_path / "w.onnx")["a"].read()
    (tmp_path / "w.data").unlink()
    with pytest.raises(UserError, match="w.data cannot be read"):
        open_onnx(tmp_path / "w.onnx")
