"""What is wrong with a source is said in one message, and nothing is written."""

import argparse
import dataclasses
import pathlib
import pickle
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
from references import edit_config, make, rewrite, tensors

import brh_jax
from brh_jax.errors import UserError
from weights_convert import convert
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


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.double() * 1e300, r"not finite: layernorm.weight holds .*e\+300, beyond float32"),
        (lambda t: t.to(torch.int8), "type: layernorm.weight is I8, expected float16, bfloat16, float32, float64"),
        (lambda t: t.bool(), "type: layernorm.weight is BOOL, expected"),
        (lambda t: t.to(torch.complex64), "type: layernorm.weight is C64, expected"),
        (lambda t: t.to(torch.float8_e4m3fn), "type: layernorm.weight is F8_E4M3, expected"),
    ],
)
def test_tensors_that_are_no_floats_of_this_range(folder, change, message, tmp_path):
    state = tensors(folder)
    state["layernorm.weight"] = change(state["layernorm.weight"])
    rewrite(folder, state)
    with pytest.raises(UserError, match=message) as error:
        brh_jax.load(folder)
    assert "\n" not in str(error.value)
    torch.save(state, tmp_path / "w.pth")  # torch has other names for its types
    with pytest.raises(UserError, match=message.partition(" is ")[0]):
        brh_jax.load(tmp_path / "w.pth", num_heads=4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_every_precision_are_taken(folder, dtype):
    exact = brh_jax.load(folder).params
    rewrite(folder, {name: tensor.to(dtype) for name, tensor in tensors(folder).items()})
    params = brh_jax.load(folder).params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-6), params, exact)


def test_parameters_beyond_half_precision(folder, tmp_path, capsys):
    state = tensors(folder)
    state["layernorm.weight"][3] = 1e6
    rewrite(folder, state)
    assert main([str(folder), str(tmp_path / "out"), "--dtype=float16"]) == 2
    assert "norm/scale hold values beyond float16: nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([str(folder), str(tmp_path / "out"), "--dtype=bfloat16"]) == 0


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


def test_command_line_writes_a_folder_that_loads(folder, tmp_path, capsys):
    assert main([str(folder), str(tmp_path / "out"), "--image-size=56"]) == 0
    assert "3 layers, dim 48" in capsys.readouterr().out
    encoder = brh_jax.load(tmp_path / "out")
    assert encoder.layout.grid == (4, 4)
    images = np.zeros((1, 56, 56, 3), np.float32)
    np.testing.assert_array_equal(encoder.trajectory(images), brh_jax.load(folder, image_size=56).trajectory(images))


def test_a_text_model_is_not_a_vision_model(tmp_path):
    import transformers

    about = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.CLIPTextModel(transformers.CLIPTextConfig(**about)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model_type 'clip_text_model', holds no ViT that is known here: no patch projection"):
        brh_jax.load(tmp_path)


def test_patch_size_that_contradicts_the_weights(folder):
    edit_config(folder, patch_size=16, hidden_size=64)
    with pytest.raises(UserError) as error:
        brh_jax.load(folder)
    assert "config.json says patch_size 16, the tensors have 14" in str(error.value)
    assert "config.json says hidden_size 64, the tensors have 48" in str(error.value)


def test_a_tensor_that_fits_two_rules(folder, monkeypatch):
    from weights_convert.families import FAMILIES
    from weights_convert.families.rules import vector

    family = FAMILIES["DINOv2"]
    monkeypatch.setitem(FAMILIES, "DINOv2", family._replace(rules=(*family.rules, vector("layernorm.bias", "norm/bias"))))
    with pytest.raises(UserError, match="fits 2 rules: layernorm.bias"):
        convert(str(folder))


def test_architectures_close_to_known_ones(tmp_path):
    """Blocks with norms of queries and keys, as some newer ViTs have: every layer's surplus keys in one line."""
    make("vit", tmp_path)
    state = tensors(tmp_path)
    for layer in range(3):
        state[f"encoder.layer.{layer}.attention.attention.q_norm.weight"] = torch.ones(12)
    rewrite(tmp_path, state)
    with pytest.raises(UserError, match=r"surplus: encoder.layer.\[0-2\].attention.attention.q_norm.weight"):
        brh_jax.load(tmp_path)
    edit_config(tmp_path, hidden_act="relu")
    with pytest.raises(UserError, match="hidden_act 'relu' in config.json, expected 'gelu'"):
        brh_jax.load(tmp_path)


def test_two_vision_towers(tmp_path):
    state = {f"{side}.patch_embed.proj.weight": torch.zeros(8, 3, 4, 4) for side in ("left", "right")}
    torch.save(state, tmp_path / "two.pth")
    with pytest.raises(UserError, match="2 patch projections"):
        brh_jax.load(tmp_path / "two.pth")


@pytest.mark.parametrize("kind", ["pth", "onnx", "safetensors"])
def test_truncated_files_leave_nothing_behind(kind, folder, tmp_path, capsys):
    if kind == "pth":
        torch.save(tensors(folder), tmp_path / "w.pth")
    elif kind == "onnx":
        import onnx

        graph = onnx.helper.make_graph(
            [], "g", [], [], [onnx.numpy_helper.from_array(np.zeros((50, 50), np.float32), "cls_token")]
        )
        onnx.save(onnx.helper.make_model(graph), tmp_path / "w.onnx")
    else:
        (tmp_path / "w.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    file = tmp_path / f"w.{kind}"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    before = sorted(tmp_path.iterdir())
    assert main([str(file), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_faults_leave_nothing_behind(folder, tmp_path, capsys):
    state = tensors(folder)
    state["layernorm.weight"][0] = float("inf")
    del state["layernorm.bias"]
    rewrite(folder, state)
    before = sorted(tmp_path.iterdir())
    assert main([str(folder), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "not finite: layernorm.weight" in error and "missing: norm/bias" in error
    assert sorted(tmp_path.iterdir()) == before


def test_check_prints_every_stage(folder, tmp_path, capsys):
    assert main([str(folder), str(tmp_path / "out"), "--check", "--image-size=56x84"]) == 0
    out = capsys.readouterr().out
    for stage in ("compared with transformers", "embedding", "block 3", "final norm", "agrees"):
        assert stage in out
    assert brh_jax.load(tmp_path / "out").layout.grid == (4, 6)
    torch.save(tensors(folder), tmp_path / "bare.pth")
    assert main([str(tmp_path / "bare.pth"), str(tmp_path / "out2"), "--check"]) == 2
    assert "no implementation to compare with" in capsys.readouterr().err


def test_check_notices_what_the_table_cannot(folder, tmp_path, capsys, monkeypatch):
    """A configuration that the weights do not contradict, and that is wrong."""
    from weights_convert.families import FAMILIES

    family = FAMILIES["DINOv2"]
    wrong = family._replace(config=lambda facts: dataclasses.replace(family.config(facts), layer_norm_eps=1e-2))
    monkeypatch.setitem(FAMILIES, "DINOv2", wrong)
    assert main([str(folder), str(tmp_path / "out"), "--check"]) == 1
    captured = capsys.readouterr()
    assert "DOES NOT AGREE" in captured.out and "nothing was written" in captured.err
    assert not (tmp_path / "out").exists()


def test_dtype_of_the_parameters(folder, tmp_path):
    assert main([str(folder), str(tmp_path / "half"), "--dtype=bfloat16", "--check"]) == 0
    half = brh_jax.load(tmp_path / "half")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}
    exact = brh_jax.load(folder)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), half.params, exact.params)


def test_half_precision_is_checked_before_it_is_rounded(folder, tmp_path, monkeypatch):
    from weights_convert.families import FAMILIES

    family = FAMILIES["DINOv2"]
    wrong = family._replace(config=lambda facts: dataclasses.replace(family.config(facts), layer_norm_eps=1e-2))
    monkeypatch.setitem(FAMILIES, "DINOv2", wrong)
    assert main([str(folder), str(tmp_path / "out"), "--check", "--dtype=float16"]) == 1
    assert not (tmp_path / "out").exists()


def test_timm_models_that_only_look_like_a_known_family(tmp_path):
    golden = pathlib.Path(__file__).parents[1] / "parity" / "golden" / "timm-deit3"
    shutil.copytree(golden, tmp_path / "rope")
    edit_config(tmp_path / "rope", architecture="vit_small_patch16_rope_ape_224")
    with pytest.raises(UserError, match="vit_small_patch16_rope_ape_224 is of no family known here"):
        brh_jax.load(tmp_path / "rope")


def test_options_of_training_scripts_are_read_past(folder, tmp_path):
    torch.save({"model": tensors(folder), "args": argparse.Namespace(lr=0.1), "epoch": 3}, tmp_path / "checkpoint.pth")
    encoder = brh_jax.load(tmp_path / "checkpoint.pth", num_heads=4)
    jax.tree.map(np.testing.assert_array_equal, encoder.params, brh_jax.load(folder).params)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_attention_heads": "4"}, "num_attention_heads in its configuration is '4', expected a number"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps in config.json is '1e-6', expected a number above zero"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps in config.json is nan, expected a number above zero"),
        ({"layer_norm_eps": -1e-6}, "layer_norm_eps in config.json is -1e-06, expected"),
        ({"num_attention_heads": 0}, "num_attention_heads in its configuration is 0, expected a number, 1 or more"),
        ({"num_hidden_layers": 0}, "num_hidden_layers in its configuration is 0, expected"),
        ({"num_hidden_layers": -2}, "num_hidden_layers in its configuration is -2, expected"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers.*has [0-9,]+ parameters, the source"),
        ({"num_attention_heads": 5}, "dim 48 is not a multiple of num_heads 5"),
    ],
)
def test_configurations_that_are_not_what_they_should_be(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        brh_jax.load(folder)


def test_position_table_of_another_shape(folder):
    state = tensors(folder)
    state["embeddings.position_embeddings"] = torch.zeros(7)
    state["strange.3.{x}.b"] = torch.zeros(2)
    rewrite(folder, state)
    with pytest.raises(UserError, match="is not a DINOv2 that can be read|does not convert"):
        brh_jax.load(folder)


def test_masked_biases_of_dinov3_must_be_zero(tmp_path):
    from references import as_dinov3_hub

    make("dinov3", tmp_path / "hf", hidden_size=128, num_attention_heads=2)
    state = as_dinov3_hub(tensors(tmp_path / "hf"), 64)
    state["blocks.1.attn.qkv.bias"] += 1.0
    torch.save(state, tmp_path / "hub.pth")
    with pytest.raises(UserError, match="blocks.1.attn.qkv.bias_mask masks a bias that is not zero"):
        brh_jax.load(tmp_path / "hub.pth")


@pytest.mark.parametrize("option", ["--num-heads=0", "--num-heads=-3", "--image-size=abc", "--partition=x"])
def test_options_that_make_no_sense(folder, tmp_path, option, capsys):
    assert main([str(folder), str(tmp_path / "out"), option]) == 2
    assert "expected" in capsys.readouterr().err


def test_a_stale_folder_beside_the_target_does_not_matter(folder, tmp_path):
    (tmp_path / ".out.old" / "x").mkdir(parents=True)
    for _ in range(2):
        assert main([str(folder), str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir() if "out" in p.name) == [".out.old", "out"]


def test_a_raptor_on_the_command_line(tmp_path, capsys):
    from references import AuthorsRaptor

    torch.save(AuthorsRaptor((2, 1), dim=48, heads=4).state_dict(), tmp_path / "blocks.pt")
    make("dinov3", tmp_path / "teacher")
    bare = [str(tmp_path / "blocks.pt"), str(tmp_path / "out"), "--partition=2,1"]
    assert main([*bare, f"--teacher={tmp_path / 'teacher'}", "--image-size=64"]) == 0
    assert "teacher= says otherwise" not in capsys.readouterr().out
    raptor = brh_jax.load(tmp_path / "out")
    assert raptor.layout.grid == (4, 4)
    assert raptor.trajectory(np.zeros((1, 64, 64, 3), np.float32)).shape[0] == 4
    assert main([*bare, "--arch=vitb14"]) == 2
    assert "is a Raptor, so it is not vitb14" in capsys.readouterr().err
    assert main([str(tmp_path / "teacher"), str(tmp_path / "out2"), "--partition=2,1"]) == 2
    assert "takes no partition" in capsys.readouterr().err
