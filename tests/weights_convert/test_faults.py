"""What is wrong with a source is said in one message, and nothing is written."""

import pathlib
import pickle
import sys

import numpy as np
import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
from references import edit_config, make, rewrite, tensors

import brh_jax
from brh_jax.errors import UserError
from weights_convert.__main__ import main


@pytest.fixture
def folder(tmp_path):
    make("dinov2", tmp_path / "hf")
    return tmp_path / "hf"


def test_all_missing_surplus_and_misshapen_tensors_in_one_message(folder):
    state = tensors(folder)
    del state["encoder.layer.1.norm1.weight"]
    del state["encoder.layer.2.attention.attention.key.weight"]
    state["encoder.layer.0.adapter.weight"] = torch.zeros(3)
    state["encoder.layer.0.mlp.fc2.bias"] = torch.zeros(5)
    rewrite(folder, state)
    with pytest.raises(UserError) as error:
        brh_jax.load(folder)
    text = str(error.value)
    assert "surplus: encoder.layer.0.adapter.weight" in text
    assert "missing: blocks/norm1/scale (3, 48), 48 of 144 values unfilled" in text
    assert "missing: blocks/attn/qkv/kernel" in text
    assert "shape: encoder.layer.0.mlp.fc2.bias (5,) gives (5,), blocks/mlp/fc2/bias takes (48,)" in text


def test_a_place_filled_twice_does_not_hide_one_that_is_empty(folder):
    state = tensors(folder)
    parts = [state.pop(f"encoder.layer.1.attention.attention.{p}.weight") for p in ("query", "key", "value")]
    state["blocks.0.attn.qkv.weight"] = torch.cat(parts)
    rewrite(folder, state)
    with pytest.raises(UserError) as error:
        brh_jax.load(folder)
    assert "fills a part of blocks/attn/qkv/kernel that another tensor has filled" in str(error.value)
    assert "missing: blocks/attn/qkv/kernel" in str(error.value)


def test_missing_patch_projection(folder):
    state = tensors(folder)
    del state["embeddings.patch_embeddings.projection.weight"]
    rewrite(folder, state)
    with pytest.raises(UserError, match="no ViT that is known here: no patch projection"):
        brh_jax.load(folder)


def test_nan_weights(folder):
    state = tensors(folder)
    state["layernorm.weight"][3] = float("nan")
    rewrite(folder, state)
    with pytest.raises(UserError, match="not finite: layernorm.weight"):
        brh_jax.load(folder)


def test_weights_of_another_architecture(folder, tmp_path, capsys):
    assert main([str(folder), str(tmp_path / "out"), "--arch=vits14"]) == 2
    text = capsys.readouterr().err
    assert "is not vits14" in text
    assert "dim: found 48, expected 384" in text
    assert not (tmp_path / "out").exists()


def test_config_that_contradicts_the_weights(folder):
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(UserError, match=r"surplus: encoder.layer.2.* has no place in 2 layers"):
        brh_jax.load(folder)


def test_truncated_and_missing_files(folder, tmp_path):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        brh_jax.load(folder)
    with pytest.raises(UserError, match="no weights at .*nowhere"):
        brh_jax.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no weights"):
        brh_jax.load(tmp_path / "empty")
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserError, match="damaged or no ONNX graph"):
        brh_jax.load(tmp_path / "bad.onnx")
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read .*\.npz"):
        brh_jax.load(tmp_path / "weights.npz")


class Bomb:
    def __reduce__(self):
        return (open, ("bomb-went-off", "w"))


def test_pickled_code_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Bomb()}, "bomb.pth")
    with pytest.raises(UserError, match="never unpickled"):
        brh_jax.load("bomb.pth")
    pathlib.Path("raw.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="never unpickled"):
        brh_jax.load("raw.pth")
    assert not pathlib.Path("bomb-went-off").exists()


def test_a_model_that_is_no_known_vit(folder, tmp_path):
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"no ViT that is known here.*conv.weight.*CLIP, DINOv3, DINOv2"):
        brh_jax.load(tmp_path / "net.pth")
    edit_config(folder, model_type="swin")
    with pytest.raises(UserError, match="model_type 'swin' is of no family"):
        brh_jax.load(folder)


def test_unreachable_hub_says_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"could not get hf:facebook/dinov2-small.*give the folder instead"):
        brh_jax.load("hf:facebook/dinov2-small")


def test_command_line_writes_a_folder_that_loads(folder, tmp_path, capsys):
    assert main([str(folder), str(tmp_path / "out"), "--image-size=56"]) == 0
    assert "3 layers, dim 48" in capsys.readouterr().out
    encoder = brh_jax.load(tmp_path / "out")
    assert encoder.layout.grid == (4, 4)
    images = np.zeros((1, 56, 56, 3), np.float32)
    np.testing.assert_array_equal(encoder.trajectory(images), brh_jax.load(folder, image_size=56).trajectory(images))
