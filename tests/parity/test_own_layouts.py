"""The layouts of the authors' own checkpoints: torch hub DINOv3, DINO v1, DeiT, MAE, and the paper's Raptors."""

import jax
import numpy as np
import pytest
import torch
from references import AuthorsRaptor, as_blocks, as_dinov3_hub, make, tensors
from safetensors.torch import save_file
from test_transformers import assert_same_states, images

import brh_jax
from brh_jax import dynamics
from brh_jax.errors import UserError
from brh_jax.interventions import apply_plans
from brh_jax.phases import Partition
from weights_convert import convert


@pytest.mark.parametrize("name", ["dinov3", "dinov3-gated"])
@pytest.mark.parametrize("periods", [torch.float32, torch.bfloat16])
def test_torch_hub_dinov3(name, periods, tmp_path):
    # Heads of width 64, which a state dict does not tell.
    model = make(name, tmp_path / "hf", hidden_size=128, num_attention_heads=2, key_bias=False)
    state = as_dinov3_hub(tensors(tmp_path / "hf"), 64, periods)
    torch.save(state, tmp_path / "hub.pth")
    encoder, report = convert(str(tmp_path / "hub.pth"))
    assert report.family == "DINOv3"
    assert not any("rotary" in line for line in report.assumed)
    # The hub's model turns by the periods that the checkpoint holds, which are rounded to bfloat16 in the published ones.
    model.rope_embeddings.inv_freq = 1 / state["rope_embed.periods"].float()
    assert_same_states(encoder, model, images(64, 64))
    assert_same_states(encoder, model, images(48, 80))


@pytest.mark.parametrize(
    "file, wrap, family, resampling",
    [
        ("dino_vitsmall16_pretrain.pth", lambda s: s, "DINO", "cubic-offset"),
        (
            "checkpoint.pth",
            lambda s: {"student": {}, "teacher": {f"backbone.{k}": v for k, v in s.items()}},
            "DINO",
            "cubic-offset",
        ),
        ("mae_pretrain_vit_base.pth", lambda s: {"model": s}, "MAE encoder", "cubic"),
        ("deit_small_patch16_224.pth", lambda s: {"model": s}, "ViT", "cubic"),
    ],
)
def test_blocks_with_fused_qkv(file, wrap, family, resampling, tmp_path):
    model = make("vit", tmp_path / "hf", hidden_size=128, num_attention_heads=2, layer_norm_eps=1e-6)
    torch.save(wrap(as_blocks(tensors(tmp_path / "hf"))), tmp_path / file)
    encoder, report = convert(str(tmp_path / file))
    assert report.family == family
    assert encoder.config.position_resampling == resampling
    assert_same_states(encoder, model, images(224, 224))


@pytest.mark.parametrize("options", [{}, {"gated": False}, {"depth_scaling": False}])
def test_raptors_of_the_authors(options, tmp_path):
    reference = AuthorsRaptor((2, 3, 1), **options)
    torch.save(reference.state_dict(), tmp_path / "blocks.pt")
    raptor = brh_jax.load(tmp_path / "blocks.pt", partition=(2, 3, 1), num_heads=2)
    assert raptor.config.mlp == ("gelu" if options.get("gated") is False else "swiglu")
    assert raptor.config.depth_scaling == options.get("depth_scaling", True)
    assert raptor.config.partition == Partition((2, 3, 1))
    state = np.random.default_rng(0).normal(size=(2, raptor.layout.num_tokens, 64)).astype(np.float32)
    theirs = reference.rollout(state)
    ours = raptor.rollout(state)
    worst = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True))
    print(f"largest difference {worst:.1e} of a state's size")
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))
    step = raptor.system().step
    np.testing.assert_allclose(step(step(state, 0), 1), theirs[2], atol=1e-5 * max(1, np.abs(theirs[2]).max()))
    assert dynamics.angular_speed(ours, raptor.layout).cls.shape == (6,)


def test_raptors_of_the_authors_under_x64(tmp_path):
    """Blocks that are made anew to be filled are float32 then, too."""
    with jax.enable_x64(True):
        test_raptors_of_the_authors({}, tmp_path)
        raptor = brh_jax.load(tmp_path / "blocks.pt", partition=(2, 3, 1), num_heads=2)
        assert {leaf.dtype for leaf in jax.tree.leaves(raptor.params)} == {np.dtype(np.float32)}
        state = np.ones((1, raptor.layout.num_tokens, 64), np.float32)
        assert raptor.rollout(state).dtype == np.float32


def test_a_raptor_whose_phase_comes_back(tmp_path):
    torch.save(AuthorsRaptor((2, 1)).state_dict(), tmp_path / "blocks.pt")
    partition = Partition((1, 1, 1), (0, 1, 0))
    assert brh_jax.load(tmp_path / "blocks.pt", partition=partition, num_heads=2).config.partition == partition


def test_a_bare_raptor_asks_for_what_it_lacks(tmp_path):
    torch.save(AuthorsRaptor((2, 1)).state_dict(), tmp_path / "blocks.pt")
    with pytest.raises(UserError, match=r"the 2 blocks of a Raptor, but not which layers.*partition=\(7, 3, 2\)"):
        brh_jax.load(tmp_path / "blocks.pt")
    with pytest.raises(UserError, match=r"holds 2 blocks, the partition 1 \| 2 \| 3 has 3 phases"):
        brh_jax.load(tmp_path / "blocks.pt", partition=(1, 1, 1))
    raptor = brh_jax.load(tmp_path / "blocks.pt", partition=(2, 1), num_heads=2)
    with pytest.raises(UserError, match=r"has no embedding: load it with teacher="):
        raptor.trajectory(images(224, 224))
    with pytest.raises(UserError, match="has no norm"):
        raptor.features(np.zeros((1, 261, 64), np.float32))
    with pytest.raises(UserError, match="has no norm"):
        apply_plans(raptor, np.ones((1, 261, 64), np.float32), [(0, 1, 2, 3, 4, 5)])


def test_a_bare_raptor_with_its_teacher(tmp_path):
    make("dinov2-registers", tmp_path / "teacher", hidden_size=64, num_attention_heads=4)
    reference = AuthorsRaptor((2, 1), heads=4)
    save_file(reference.state_dict(), tmp_path / "blocks.safetensors")
    raptor = brh_jax.load(tmp_path / "blocks.safetensors", partition=(2, 1), teacher=tmp_path / "teacher")
    teacher = brh_jax.load(tmp_path / "teacher")
    assert raptor.config.teacher.num_heads == 4  # the teacher's, not the one of width 64 that was taken before
    pixels = images(56, 84)
    states = raptor.trajectory(pixels)
    theirs = reference.rollout(np.array(teacher.embed(pixels)))
    for a, b in zip(states, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))
    np.testing.assert_array_equal(raptor.features(states), teacher.features(states))
    make("dinov2-registers", tmp_path / "other", hidden_size=96)
    with pytest.raises(UserError, match="has width 64 and 3 layers, its teacher other 96 and 3"):
        brh_jax.load(tmp_path / "blocks.safetensors", partition=(2, 1), teacher=tmp_path / "other")


def test_the_partition_of_a_published_raptor_is_in_its_name(tmp_path):
    file = tmp_path / "final_raptor3_weighted_True_seed_1101_step_312500.pt"
    torch.save(AuthorsRaptor((7, 3, 2)).state_dict(), file)
    _, report = convert(str(file))
    assert "partition 1-7 | 8-10 | 11-12 of the published 3-block Raptors, from the file's name" in report.assumed


def test_a_pickled_raptor_module_is_refused(tmp_path):
    torch.save(AuthorsRaptor((1, 1)), tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"never unpickled here; save model.state_dict\(\) instead"):
        brh_jax.load(tmp_path / "whole.pt", partition=(1, 1))
