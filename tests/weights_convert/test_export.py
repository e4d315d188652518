"""--to-hf and back: the same parameters here, the same states in transformers."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
from references import hidden_states, make

import brh_jax
from brh_jax.distill.objectives import init_blocks
from brh_jax.distill.trainer import raptor_encoder
from brh_jax.errors import UserError
from brh_jax.models import RaptorConfig, store
from brh_jax.phases import Partition
from weights_convert import export
from weights_convert.__main__ import main

# In transformers' own class; DeiT III, say, becomes a DINOv2 whose class token has no position.
CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2-swiglu": "Dinov2Model",
    "dinov2-registers": "Dinov2WithRegistersModel",
    "vit": "ViTModel",
    "deit": "DeiTModel",
    "mae": "ViTModel",
    "dinov3": "DINOv3ViTModel",
    "dinov3-gated": "DINOv3ViTModel",
    "clip": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
}


def same_params(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert a.config == b.config
    assert a.preprocessing == b.preprocessing
    assert a.name == b.name


@pytest.mark.parametrize("name", CLASSES)
def test_round_trip_of_every_family(name, tmp_path):
    make(name, tmp_path / "source")
    encoder = brh_jax.load(tmp_path / "source")
    assert main([str(tmp_path / "source"), str(tmp_path / "out"), "--to-hf"]) == 0
    same_params(brh_jax.load(tmp_path / "out"), encoder)
    model = getattr(transformers, CLASSES[name]).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    for ours, theirs in zip(encoder.trajectory(images), hidden_states(model, images), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n") and CLASSES[name] in card


@pytest.mark.parametrize("golden", ["timm-deit3", "timm-dinov2-registers", "timm-siglip2"])
def test_round_trip_of_what_transformers_does_not_have(golden, tmp_path):
    source = pathlib.Path(__file__).parents[1] / "parity" / "golden" / golden
    encoder = brh_jax.load(source)
    export.write(encoder, tmp_path / "out")
    same_params(brh_jax.load(tmp_path / "out"), encoder)


@pytest.mark.parametrize("family", ["dinov2-registers", "dinov3", "siglip"])
def test_round_trip_of_a_raptor(family, tmp_path):
    make(family, tmp_path / "source")
    teacher = brh_jax.load(tmp_path / "source")
    config = RaptorConfig(teacher.config, Partition((1, 1, 1), (0, 1, 0)))
    raptor = raptor_encoder(config, init_blocks(config, teacher.layout, jax.random.key(0)), teacher, "a Raptor")
    store.save(raptor, tmp_path / "raptor")
    assert main([str(tmp_path / "raptor"), str(tmp_path / "out"), "--to-hf"]) == 0
    back = brh_jax.load(tmp_path / "out")
    same_params(back, raptor)
    images = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
    if teacher.config.patch_size == 16:
        np.testing.assert_array_equal(back.trajectory(images), raptor.trajectory(images))
    assert str(config.partition) in (tmp_path / "out" / "README.md").read_text()
    names = json.loads((tmp_path / "out" / "config.json").read_text())
    assert names["model_type"] == "raptor"


def test_the_classifier_goes_along(tmp_path):
    make("vit", tmp_path / "source")
    encoder = brh_jax.load(tmp_path / "source").replace(
        head={"kernel": np.ones((48, 3), np.float32), "bias": np.zeros(3, np.float32)}
    )
    export.write(encoder, tmp_path / "out")
    np.testing.assert_array_equal(brh_jax.load(tmp_path / "out").head["kernel"], encoder.head["kernel"])


def test_nothing_is_written_over(tmp_path):
    make("vit", tmp_path / "source")
    encoder = brh_jax.load(tmp_path / "source")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds no encoder: nothing is written over it"):
        export.write(encoder, tmp_path / "mine")
    export.write(encoder, tmp_path / "out")
    export.write(encoder, tmp_path / "out")  # its own is replaced


def test_large_models_go_into_several_files(tmp_path, monkeypatch):
    make("vit", tmp_path / "source")
    encoder = brh_jax.load(tmp_path / "source")
    monkeypatch.setattr(store, "SHARD_BYTES", 100_000)
    export.write(encoder, tmp_path / "out")
    store.save(encoder, tmp_path / "own")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    same_params(brh_jax.load(tmp_path / "out"), encoder)
    same_params(brh_jax.load(tmp_path / "own"), encoder)
    next((tmp_path / "own").glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match="own is damaged or incomplete"):
        brh_jax.load(tmp_path / "own")
    missing = next((tmp_path / "out").glob("*.safetensors"))
    missing.unlink()
    with pytest.raises(UserError, match=f"lacks {missing.name}"):
        brh_jax.load(tmp_path / "out")
