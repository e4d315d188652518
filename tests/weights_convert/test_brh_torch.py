"""The PyTorch module of the `--to-hf` folder: every state as ours to 1e-5 of its size, for every feature of the blocks."""

import dataclasses
import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import brh_jax
from brh_jax.models import Encoder, RaptorConfig, ViTConfig
from brh_jax.models.encoder import init_params
from brh_jax.models.rotary import periods
from brh_jax.partition import Partition
from brh_jax.preprocessing import Preprocessing
from weights_convert import export

BASE = ViTConfig(dim=16, depth=3, num_heads=2, mlp_dim=64, patch_size=4, position_grid=(4, 4), layer_scale=True)
SWIGLU = 48  # of width 16, what transformers computes for DINOv2
VITS = {
    "layer scale": BASE,
    "registers, positions resampled": dataclasses.replace(BASE, num_registers=2, position_resampling="cubic-antialias"),
    "swiglu": dataclasses.replace(BASE, mlp="swiglu", mlp_dim=SWIGLU),
    "swiglu of another width, two cls": dataclasses.replace(BASE, mlp="swiglu", mlp_dim=40, num_cls=2),
    "rotary": dataclasses.replace(BASE, position_grid=None, num_registers=1, rope_periods=periods(8, 100.0)),
    "rotary, gated": dataclasses.replace(BASE, position_grid=None, rope_periods=periods(8, 100.0), mlp="swiglu"),
    "as CLIP": dataclasses.replace(BASE, pre_norm=True, mlp="quick_gelu", layer_scale=False),
    "as SigLIP": dataclasses.replace(BASE, num_cls=0, mlp="gelu_tanh", layer_scale=False, drop_remainder=True),
    "as ViT": dataclasses.replace(BASE, layer_scale=False, layer_norm_eps=1e-12),
    "no position of cls": dataclasses.replace(BASE, cls_position=False),
    "no bias, positions offset": dataclasses.replace(BASE, qkv_bias=False, position_resampling="cubic-offset"),
    "any aspect, linear": dataclasses.replace(BASE, position_grid=(4, 5), position_resampling="linear-antialias"),
    "no transformers class": dataclasses.replace(BASE, layer_scale=False, num_registers=3),
}
RAPTORS = {
    "as the paper": RaptorConfig(VITS["registers, positions resampled"], Partition((1, 2))),
    "rotary": RaptorConfig(VITS["rotary"], Partition((2, 1)), mlp="gelu"),
    "fragmented, no depth scaling": RaptorConfig(BASE, Partition((1, 1, 1), (0, 1, 0)), depth_scaling=False),
    "once": RaptorConfig(VITS["no transformers class"], Partition((2, 1)), once=True, mlp_dim=24),
    "of CLIP": RaptorConfig(VITS["as CLIP"], Partition((3,)), mlp="quick_gelu"),
}


def random_encoder(config, size=(16, 16), head_width=None) -> Encoder:
    """Every parameter drawn, so that none of them is zero or one."""
    params = init_params(config.module(), jax.random.key(0), jnp.zeros((1, *size, 3)))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    drawn = [(0.3 * rng.normal(size=leaf.shape)).astype(np.float32) for leaf in leaves]
    head = None
    if head_width:
        head = {"kernel": rng.normal(size=(head_width, 3)).astype(np.float32), "bias": np.arange(3, dtype=np.float32)}
    params = jax.tree.unflatten(tree, drawn)
    if config.vit.pre_norm:  # CLIP's patch projection has no bias
        params["embedding"]["patch"]["bias"] *= 0
    return Encoder(config, params, Preprocessing(size, None), name="random", head=head)


def module_of(folder):
    """The written file, imported from its folder."""
    spec = importlib.util.spec_from_file_location("brh_torch_written", folder / "brh_torch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same_states(encoder, model, size):
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    ours = np.asarray(encoder.trajectory(images))
    with torch.no_grad():
        theirs = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        normed = model.norm(torch.tensor(ours[-1])).numpy()
    assert theirs.shape == ours.shape
    sizes = np.linalg.norm(ours, axis=-1).max((1, 2))
    assert (np.abs(theirs - ours).max((1, 2, 3)) < 1e-5 * sizes).all()
    np.testing.assert_allclose(normed, encoder.features(ours[-1]), atol=1e-5)


@pytest.mark.parametrize("name", VITS)
def test_a_vit_in_pytorch(name, tmp_path):
    encoder = random_encoder(VITS[name])
    model = module_of(export.write(encoder, tmp_path / "out")).load()
    assert_same_states(encoder, model, (16, 16))
    if name in ("registers, positions resampled", "as SigLIP", "no bias, positions offset", "any aspect, linear", "rotary"):
        size = (22, 13) if encoder.config.drop_remainder else (24, 12)
        assert_same_states(encoder, model, size)
        assert_same_states(encoder, module_of(tmp_path / "out").load(image_size=size), size)


@pytest.mark.parametrize("name", RAPTORS)
def test_a_raptor_in_pytorch(name, tmp_path):
    encoder = random_encoder(RAPTORS[name])
    assert_same_states(encoder, module_of(export.write(encoder, tmp_path / "out")).load(), (16, 16))


@pytest.mark.parametrize("name", ["no transformers class", "swiglu of another width, two cls", "any aspect, linear"])
def test_what_no_class_of_transformers_computes_comes_back_under_names_of_our_own(name, tmp_path):
    encoder = random_encoder(VITS[name], head_width=16)
    back = brh_jax.load(export.write(encoder, tmp_path / "out"))
    jax.tree.map(np.testing.assert_array_equal, back.params, encoder.params)
    np.testing.assert_array_equal(back.head["kernel"], encoder.head["kernel"])
    assert (back.config, back.preprocessing) == (encoder.config, encoder.preprocessing)
    assert "AutoModel" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("width", "reads"), [(16, ""), (32, ""), (16, "patches")])
def test_the_classifier_in_pytorch(width, reads, tmp_path):
    encoder = random_encoder(BASE, head_width=width).replace(head_reads=reads)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    model = module_of(export.write(encoder, tmp_path / "out")).load()
    with torch.no_grad():
        theirs = model.logits(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(theirs, encoder.logits(images), atol=1e-4)


def test_it_needs_neither_jax_nor_this_package(tmp_path):
    folder = export.write(random_encoder(RAPTORS["as the paper"]), tmp_path / "out")
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('jax', 'flax', 'brh_jax', 'weights_convert', 'pickle_of_weights'))\n"
        "from brh_torch import load\nimport torch\n"
        "print(tuple(load()(torch.zeros(1, 3, 16, 16)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.stdout.strip() == "(4, 1, 19, 16)", done.stderr


def test_a_file_that_lacks_a_tensor_says_so(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = export.write(random_encoder(BASE), tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith("mlp.fc2.weight"))]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises((KeyError, ValueError), match=r"mlp\.fc2\.weight"):
        module_of(folder).load()
    with pytest.raises(ValueError, match="image size 16 x 15 is not a multiple of the patch size 4"):
        module_of(export.write(random_encoder(BASE), tmp_path / "whole")).load()(torch.zeros(1, 3, 16, 15))


@pytest.mark.slow
@pytest.mark.parametrize("config", [VITS["rotary"], RAPTORS["as the paper"]], ids=["rotary ViT", "Raptor"])
def test_onnx_by_pytorch_own_exporter(config, tmp_path):
    """At one image size: the exporter has no operator for resampling with antialiasing, so positions are worked out before."""
    pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    encoder = random_encoder(config)
    size = (12, 20)
    model = module_of(export.write(encoder, tmp_path / "out")).load(image_size=size)
    images = np.random.default_rng(1).normal(size=(2, 3, *size)).astype(np.float32)
    torch.onnx.export(model, (torch.from_numpy(images),), tmp_path / "model.onnx", dynamo=True)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images})[0]
    ours = np.asarray(encoder.trajectory(images.transpose(0, 2, 3, 1)))
    assert np.abs(found - ours).max() < 1e-5 * np.linalg.norm(ours, axis=-1).max()
