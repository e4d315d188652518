import chex
import jax
import numpy as np
import pytest

import brh_jax
from brh_jax.errors import UserError
from brh_jax.models import Encoder, Raptor, RaptorConfig, ViT, ViTConfig, architecture, store
from brh_jax.models.encoder import init_params
from brh_jax.models.registry import ARCHITECTURES, differences
from brh_jax.phases import Partition


def test_vit_and_raptor_round_trip(tiny_encoder, tiny_images, tmp_path):
    config = RaptorConfig(tiny_encoder.config, Partition((2, 1, 3), (0, 1, 0)))
    params = init_params(Raptor(config), jax.random.key(0), tiny_images)
    head = {"kernel": np.ones((32, 3), np.float32), "bias": np.zeros(3, np.float32)}
    raptor = Encoder(config, params, tiny_encoder.preprocessing, "raptor", head)
    for encoder in (tiny_encoder, raptor):
        store.save(encoder, tmp_path / "saved", {"why": "test"})
        back = brh_jax.load(tmp_path / "saved")
        assert (back.config, back.preprocessing, back.name) == (encoder.config, encoder.preprocessing, encoder.name)
        chex.assert_trees_all_equal(back.params, encoder.params)
        chex.assert_trees_all_equal(back.trajectory(tiny_images), encoder.trajectory(tiny_images))
    chex.assert_trees_all_equal(back.head, head)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]  # nothing half-written lies about


def test_a_damaged_folder_says_so(tiny_encoder, tmp_path):
    folder = store.save(tiny_encoder, tmp_path / "saved")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="saved is damaged or incomplete"):
        brh_jax.load(folder)


def test_nothing_else_is_written_over(tiny_encoder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep me")
    with pytest.raises(UserError, match="holds no encoder: nothing is written over it"):
        store.save(tiny_encoder, tmp_path / "mine")
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep me"
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_other_image_sizes(tiny_encoder):
    assert tiny_encoder.at_size(12).layout.grid == (6, 6)
    assert tiny_encoder.at_size((4, 16)).layout.grid == (2, 8)
    with pytest.raises(UserError, match="7 x 7 is not a multiple of the patch size 2"):
        tiny_encoder.at_size(7)


def test_published_sizes():
    assert architecture("vitb14_reg") is ARCHITECTURES["dinov2_vitb14_reg"]
    small, giant = architecture("vits14").config, architecture("vitg14").config
    assert (small.dim, small.depth, small.num_heads, small.mlp_dim) == (384, 12, 6, 1536)
    assert (giant.dim, giant.depth, giant.num_heads, giant.mlp, giant.mlp_dim) == (1536, 40, 24, "swiglu", 4096)
    assert architecture("vitb14_reg").config.layout(224, 224).num_tokens == 261
    assert architecture("vitl14_reg").hub_id == "facebook/dinov2-with-registers-large"


# Published numbers of parameters of the vision towers in millions (without classifiers and pooling), to a percent.
@pytest.mark.parametrize(
    "name, millions",
    [
        ("dinov2_vits14", 22),
        ("dinov2_vitg14", 1136),
        ("dinov3_vits16", 21.6),
        ("dinov3_vits16plus", 28.7),
        ("dinov3_vith16plus", 840),
        ("dinov3_vit7b16", 6716),
        ("vit_b16_224", 85.8),
        ("mae_h14", 630.8),
        ("clip_b32_224", 87.4),
        ("clip_l14_336", 303.5),
        ("siglip_b16_224", 85.8),
        ("siglip_so400m14_384", 412.4),
    ],
)
def test_published_numbers_of_parameters(name, millions):
    config, hub_id, image_size = architecture(name)
    assert hub_id.count("/") == 1
    image = jax.ShapeDtypeStruct((1, config.patch_size, config.patch_size, 3), np.float32)
    params = jax.eval_shape(ViT(config).init, jax.random.key(0), image)["params"]
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count / 1e6 == pytest.approx(millions, rel=0.01)
    if config.position_grid != (37, 37):  # DINOv2's tables are those of 518 pixels
        assert config.position_grid in (None, config.layout(image_size, image_size).grid)


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown architecture 'vitb41'.*did you mean vitb14"):
        architecture("vitb41")


def test_differences_name_field_and_both_values():
    a = architecture("vits14").config
    assert differences(a, a) == []
    found = differences(a, architecture("vitb14_reg").config)
    assert "dim: found 384, expected 768" in found
    assert "num_registers: found 0, expected 4" in found
    assert isinstance(a, ViTConfig)
