"""Every hidden state of randomly initialised reference models against the converted ones."""

import jax
import numpy as np
import pytest
import torch
from references import MODELS, as_torch_hub, hidden_states, make, rewrite, tensors
from safetensors.torch import save_file

import brh_jax
from brh_jax.models import pooled_features
from weights_convert import convert

TOLERANCE = 1e-5
OFF_GRID = {"dinov2": (224, 280), "vit": (256, 208), "deit": (256, 208)}


def images(height, width):
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)


def assert_same_states(encoder, model, pixels):
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(encoder.trajectory(pixels))
    theirs = hidden_states(model, pixels)
    assert len(ours) == len(theirs) == encoder.depth + 1
    print(f"largest difference {max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)):.1e}")
    for layer, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        assert np.abs(b).max() > 0.1
        difference = np.abs(a - b).max()
        assert difference <= TOLERANCE, f"a_{layer} differs by {difference}"


@pytest.mark.parametrize("name", MODELS)
def test_every_state_at_224_and_off_the_grid(name, tmp_path):
    model = make(name, tmp_path)
    encoder, report = convert(str(tmp_path))
    assert report.assumed == [] or all("preprocess" in line for line in report.assumed)
    assert_same_states(encoder, model, images(224, 224))
    assert_same_states(encoder, model, images(*OFF_GRID[name.split("-")[0]]))


@pytest.mark.parametrize("name", ["dinov2", "vit", "deit"])
def test_final_norm(name, tmp_path):
    model = make(name, tmp_path)
    encoder = brh_jax.load(tmp_path)
    pixels = images(224, 224)
    with torch.no_grad():
        expected = model(torch.tensor(pixels).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    np.testing.assert_allclose(encoder.features(encoder.trajectory(pixels)[-1]), expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["vit-classifier", "dinov2-classifier"])
def test_classifier_head(name, tmp_path):
    model = make(name, tmp_path)
    encoder = brh_jax.load(tmp_path)
    pixels = images(224, 224)
    with torch.no_grad():
        expected = model(torch.tensor(pixels).permute(0, 3, 1, 2)).logits.numpy()
    final = encoder.features(encoder.trajectory(pixels)[-1])
    features = pooled_features(final, encoder.layout) if name.startswith("dinov2") else final[:, 0]
    np.testing.assert_allclose(features @ encoder.head["kernel"] + encoder.head["bias"], expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["dinov2", "dinov2-registers", "vit"])
def test_old_and_new_spelling_of_the_keys(name, tmp_path):
    """save_pretrained writes the older names; the modules in memory, and checkpoints to come, have the newer ones."""
    model = make(name, tmp_path)
    old = tensors(tmp_path)
    new = {k: v for k, v in model.state_dict().items()}
    assert set(old) != set(new)
    encoder = brh_jax.load(tmp_path)
    rewrite(tmp_path, new)
    jax.tree.map(np.testing.assert_array_equal, brh_jax.load(tmp_path).params, encoder.params)


@pytest.mark.parametrize("name", ["dinov2", "dinov2-swiglu", "dinov2-registers"])
@pytest.mark.parametrize("stored", ["hub.pth", "wrapped.pth", "hub.safetensors"])
def test_torch_hub_layout(name, stored, tmp_path):
    # Heads of width 64, which a state dict without config.json does not tell.
    model = make(name, tmp_path / "hf", hidden_size=128, num_attention_heads=2, image_size=224)
    state = as_torch_hub(tensors(tmp_path / "hf"))
    if stored.endswith(".pth"):
        torch.save({"model": state} if stored == "wrapped.pth" else state, tmp_path / stored)
    else:
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / stored)
    encoder, report = convert(str(tmp_path / stored))
    assert any("heads of width 64" in line for line in report.assumed)
    # At the table's own size the two codebases agree; elsewhere the hub's offsets the grid by 0.1.
    assert_same_states(encoder, model, images(224, 224))


def test_half_precision_weights_are_read_exactly(tmp_path):
    for dtype, name in ((torch.float16, "half"), (torch.bfloat16, "brain")):
        model = make("dinov2", tmp_path / name, dtype=dtype)
        assert_same_states(brh_jax.load(tmp_path / name), model.float(), images(224, 224))


def test_sharded_checkpoint(tmp_path):
    model = make("dinov2", tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert_same_states(brh_jax.load(tmp_path / "shards"), model, images(224, 224))
