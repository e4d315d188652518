"""Every hidden state of randomly initialised reference models against the converted ones."""

import json

import jax
import numpy as np
import pytest
import torch
from references import MODELS, as_torch_hub, make, rewrite, run, tensors
from safetensors.torch import save_file

import brh_jax
from brh_jax.models import pooled_features
from brh_jax.models.head import apply_head
from weights_convert import convert

TOLERANCE = 1e-5
OFF_GRID = {14: (224, 280), 16: (256, 208), 32: (256, 288)}


def images(height, width, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(dtype)


def assert_same_states(encoder, model, pixels, tolerance=TOLERANCE):
    """Embedding, every block and the final norm."""
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(encoder.trajectory(pixels))
        final = np.asarray(encoder.features(ours[-1]))
    out = run(model, pixels)
    theirs = [s.numpy() for s in out.hidden_states]
    assert len(ours) == len(theirs) == encoder.depth + 1
    stages = [(f"a_{layer}", a, b) for layer, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    if "CLIP" in type(model).__name__:  # normalises the class token alone
        stages.append(("final norm", final[:, 0], out.pooler_output.numpy()))
    else:
        stages.append(("final norm", final, out.last_hidden_state.numpy()))
    print(f"largest difference {max(np.abs(a - b).max() for _, a, b in stages):.1e}")
    for stage, a, b in stages:
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.abs(b).max() > 0.1
        difference = np.abs(a - b).max() / max(1.0, np.abs(b).max())
        assert difference <= tolerance, f"{stage} differs by {difference} of its size"


@pytest.mark.parametrize("name", MODELS)
def test_every_state_at_224_and_off_the_grid(name, tmp_path):
    model = make(name, tmp_path)
    encoder, report = convert(str(tmp_path))
    assert report.assumed == [] or all("preprocess" in line for line in report.assumed)
    assert_same_states(encoder, model, images(224, 224))
    assert_same_states(encoder, model, images(*OFF_GRID[encoder.config.patch_size]))


# DINOv3 computes its angles, SigLIP 2 and DINOv2 with registers off the grid their tables, in float32 whatever the precision.
@pytest.mark.parametrize("name", ["dinov2", "dinov2-swiglu", "dinov2-registers", "vit", "deit", "mae", "clip", "siglip"])
def test_float64(name, tmp_path):
    with jax.enable_x64(True):
        grid = {"patch_size": 14, "image_size": 56} if "dinov2" in name else {"patch_size": 16, "image_size": 64}
        model = make(name, tmp_path, dtype=torch.float64, **grid)
        encoder, _ = convert(str(tmp_path), dtype=np.float64)
        side = grid["image_size"]
        assert_same_states(encoder, model, images(side, side, np.float64), 1e-9)


def test_dinov3_in_float64_is_limited_by_its_own_angles(tmp_path):
    with jax.enable_x64(True):
        model = make("dinov3", tmp_path, dtype=torch.float64)
        encoder, _ = convert(str(tmp_path), dtype=np.float64)
        assert_same_states(encoder, model, images(64, 64, np.float64), 1e-6)


def test_siglip_drops_pixels_beyond_whole_patches(tmp_path):
    """As google/siglip-so400m-patch14-384 has them: 384 = 27 x 14 + 6."""
    model = make("siglip", tmp_path, patch_size=14, image_size=230)
    encoder = brh_jax.load(tmp_path)
    assert encoder.layout.grid == (16, 16)
    assert_same_states(encoder, model, images(230, 230))


@pytest.mark.parametrize("name", ["siglip-with-text", "clip-with-text"])
def test_what_a_configuration_leaves_out_has_the_default_of_its_class(name, tmp_path):
    """Hubs' configurations of CLIP and SigLIP leave out what equals the default."""
    folder = make(name, tmp_path, vision_config={"hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 96})
    about = json.loads((tmp_path / "config.json").read_text())
    default = folder.config.vision_config
    for key in ("num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size", "image_size", "num_channels"):
        about["vision_config"].pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(about))
    encoder, _ = convert(str(tmp_path))
    assert encoder.config.num_heads == default.num_attention_heads
    assert_same_states(encoder, folder, images(224, 224))


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
    # Whatever it reads, it is a classifier on [cls, mean patch].
    found = apply_head(encoder.pooled_head, pooled_features(final, encoder.layout))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


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
