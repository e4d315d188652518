import dataclasses
import json
import resource

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import brh_jax
from brh_jax.errors import UserError
from brh_jax.models import Encoder, Raptor, RaptorConfig, ViT, ViTConfig, architecture, store
from brh_jax.models.encoder import init_params
from brh_jax.models.registry import ARCHITECTURES, differences
from brh_jax.phases import Partition
from brh_jax.preprocessing import Preprocessing


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


def flip(file, at=-3):
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)


def test_a_flipped_bit_is_noticed(tiny_encoder, tmp_path, monkeypatch):
    def saved():
        return store.save(tiny_encoder, tmp_path / "saved")

    flip(saved() / "model.safetensors")
    with pytest.raises(UserError, match="saved is damaged or incomplete: model.safetensors is not what was written") as error:
        brh_jax.load(tmp_path / "saved")
    assert "\n" not in str(error.value)
    config = saved() / "config.json"
    config.write_text(config.read_text().replace("1e-06", "1e-16"))
    with pytest.raises(UserError, match="config.json is not what was written, by the SHA256SUMS beside it"):
        store.read(tmp_path / "saved")
    (tmp_path / "saved" / "SHA256SUMS").unlink()  # edited on purpose
    assert store.read(tmp_path / "saved").config.layer_norm_eps == 1e-16
    monkeypatch.setattr(store, "SHARD_BYTES", 4000)
    shard = sorted(saved().glob("model-*.safetensors"))[1]
    chex.assert_trees_all_equal(store.read(tmp_path / "saved").params, tiny_encoder.params)
    flip(shard)
    with pytest.raises(UserError, match=f"{shard.name} is not what was written"):
        store.read(tmp_path / "saved")
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} cannot be read"):
        store.read(tmp_path / "saved")


def rewrite(folder, change):
    """Another hand's weights in a folder, whose SHA256SUMS it took away."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    (folder / "SHA256SUMS").unlink()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("params/norm/scale"), r"json: norm/scale is not there, expected \(16,\)"),
        (lambda t: t.update({"params/more": np.zeros(3, np.float32)}), r"json: more is \(3,\), expected nothing of that name"),
        (
            lambda t: t.update({"params/norm/bias": np.zeros(31, np.float32)}),
            r"norm/bias is \(31,\), expected \(16,\); conv",
        ),
        (lambda t: t.update({"params/norm/bias": np.zeros(16, np.int8)}), "norm.*bias.* is int8, expected floats"),
        (lambda t: t.update({"head/bias": np.zeros(4, np.float32)}), r"head/kernel is \(32, 3\), expected \(32, 4\)"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("params/embedding/")], "embedding/.*and [0-9]+ more"),
        (lambda t: [t.pop(name) for name in list(t) if name != "head/bias"], "KeyError: 'params'"),
        (lambda t: [t.clear(), t.update(params=np.zeros(3, np.float32))], "expected several, by name"),
    ],
)
def test_without_sums_shapes_are_checked(tiny_encoder, tmp_path, change, message):
    head = {"kernel": np.zeros((32, 3), np.float32), "bias": np.zeros(3, np.float32)}
    folder = store.save(tiny_encoder.replace(head=head), tmp_path / "saved")
    rewrite(folder, change)
    with pytest.raises(UserError, match=message) as error:
        brh_jax.load(folder)
    assert str(error.value).startswith(f"{folder} is damaged or incomplete: ") and "\n" not in str(error.value)


def test_without_sums_what_fits_is_read(tiny_encoder, tiny_images, tmp_path):
    config = RaptorConfig(tiny_encoder.config, Partition((4, 2)))
    params = init_params(Raptor(config), jax.random.key(0), tiny_images)
    for parts in (("blocks", "embedding", "norm"), ("blocks",)):
        raptor = Encoder(config, {part: params[part] for part in parts}, tiny_encoder.preprocessing)
        folder = store.save(raptor, tmp_path / "saved")
        (folder / "SHA256SUMS").unlink()
        chex.assert_trees_all_equal(store.read(folder).params, raptor.params)
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), tiny_encoder.params)
    folder = store.save(tiny_encoder.replace(params=half), tmp_path / "saved")
    (folder / "SHA256SUMS").unlink()
    assert store.read(folder).params["norm"]["scale"].dtype == "bfloat16"


@pytest.mark.parametrize(
    "weight_map, message",
    [
        (["model.safetensors"], "has a weight_map that is list: expected an object"),
        ({}, "has a weight_map that is dict: expected an object"),
        ({"a": 3}, "names 3: expected a file in its own folder"),
        ({"a": "../model.safetensors"}, r"names '../model.safetensors': expected a file in its own folder"),
        ({"a": "/model.safetensors"}, "names '/model.safetensors': expected a file in its own folder"),
        ({"a": "model.pth"}, r"names 'model.pth': expected .safetensors files"),
    ],
)
def test_an_index_names_files_of_its_folder(tiny_encoder, tmp_path, weight_map, message):
    folder = store.save(tiny_encoder, tmp_path / "saved")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message):
        store.read(folder)


@pytest.mark.parametrize(
    "changes",
    [{"version": None}, {"config": [1]}, {"config": {"dim": 3}}, {"preprocessing": {"crop": 3}}, {"preprocessing": None}],
)
def test_a_configuration_that_cannot_be(tiny_encoder, tmp_path, changes):
    config = store.save(tiny_encoder, tmp_path / "saved") / "config.json"
    (tmp_path / "saved" / "SHA256SUMS").unlink()
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    if changes == {"version": None}:
        assert store.read(tmp_path / "saved").depth == 6
    else:
        with pytest.raises(UserError, match="saved is damaged or incomplete"):
            store.read(tmp_path / "saved")


def test_a_full_disk_is_an_error_of_the_system(tiny_encoder, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="model.safetensors could not be written"):
            store.save(tiny_encoder, tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_heads": 0}, "num_heads is 0: expected a whole number, 1 or more"),
        ({"depth": -1}, "depth is -1: expected"),
        ({"dim": 16.0}, "dim is 16.0: expected"),
        ({"num_heads": True}, "num_heads is True: expected"),
        ({"num_registers": -1}, "num_registers is -1: expected a whole number, 0 or more"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan: expected a positive number"),
        ({"layer_norm_eps": -1e-6}, "layer_norm_eps is -1e-06: expected"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0: expected"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps is '1e-6': expected"),
        ({"drop_path": 1.0}, "drop_path is 1.0: expected 0 or more, below 1"),
        ({"position_grid": (0, 4)}, r"position_grid is \(0, 4\): expected"),
        ({"rope_periods": (1.0, float("inf"))}, "rope_periods is .*: expected positive numbers"),
    ],
)
def test_architectures_that_cannot_be(tiny_config, changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(tiny_config, **changes)
    if "layer_norm_eps" in changes:
        with pytest.raises(UserError, match=message):
            RaptorConfig(tiny_config, Partition((2, 4)), **changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"std": (0.5, 0.0, 0.5)}, r"std is \(0.5, 0.0, 0.5\): expected three positive numbers"),
        ({"std": (0.5, float("nan"), 0.5)}, "std is .*: expected three positive numbers"),
        ({"mean": (float("nan"),) * 3}, r"mean is \(nan, nan, nan\): expected three numbers"),
        ({"mean": (0.5,)}, r"mean is \(0\.5,\): expected three numbers"),
        ({"mean": (123.7, 116.3, 103.5)}, "mean is .*: expected three numbers from 0 to 1, .*divide those of 0 ... 255 by 255"),
        ({"std": (58.4, 57.1, 57.4)}, "std is .*: expected three positive numbers up to 1"),
        ({"std": (1e-40,) * 3}, "std is .*: expected three positive numbers"),
        ({"crop": (8, 0)}, r"crop is \(8, 0\): expected \(height, width\) in pixels"),
        ({"crop": (8,)}, r"crop is \(8,\): expected"),
        ({"resize": -3}, "resize is -3: expected"),
        ({"resize": (8, 8, 8)}, r"resize is \(8, 8, 8\): expected"),
    ],
)
def test_preprocessing_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        Preprocessing(**{"crop": (8, 8)} | changes)


def test_nothing_else_is_written_over(tiny_encoder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep me")
    with pytest.raises(UserError, match="holds no encoder: nothing is written over it"):
        store.save(tiny_encoder, tmp_path / "mine")
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep me"
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.wrong_types
def test_other_image_sizes(tiny_encoder):
    assert tiny_encoder.at_size(12).layout.grid == (6, 6)
    assert tiny_encoder.at_size((4, 16)).layout.grid == (2, 8)
    with pytest.raises(UserError, match="7 x 7 is not a multiple of the patch size 2"):
        tiny_encoder.at_size(7)
    for size in ("8x", (8, 8, 8), (8,), 8.5, float("nan")):
        with pytest.raises(UserError, match="image size is .*: expected pixels"):
            tiny_encoder.at_size(size)


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
