"""ONNX graphs against onnxruntime's own outputs: one exported here, and the real one where it lies on the machine."""

import os
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from references import make
from sklearn.datasets import load_sample_images

import brh_jax
from weights_convert import convert

REAL = pathlib.Path(os.environ.get("BRH_REAL_DATA", pathlib.Path.home() / ".cache" / "real_data")) / "weights/vit_s_focus.onnx"


def states_of(graph: onnx.ModelProto, prefix: str, depth: int, images: np.ndarray) -> list[np.ndarray]:
    """a_0 ... a_L, read out of the graph by onnxruntime."""
    outputs = [f"{prefix}/embeddings/Add_output_0"]
    outputs += [f"{prefix}/encoder/layer.{i}/Add_1_output_0" for i in range(depth)]
    for name in outputs:
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, {graph.graph.input[0].name: images.transpose(0, 3, 1, 2)})


def test_exported_graph(tmp_path):
    class Wrapped(torch.nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone
            self.decoder = torch.nn.Conv2d(128, 3, 1)

        def forward(self, image):
            tokens = self.backbone(image).last_hidden_state[:, 1:]
            return self.decoder(tokens.transpose(1, 2).reshape(1, 128, 4, 4))

    model = make("dinov2", tmp_path / "hf", hidden_size=128, num_attention_heads=2, image_size=56)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Wrapped(model).eval(), (torch.zeros(1, 3, 56, 56),), tmp_path / "x.onnx", dynamo=False)
    encoder, report = convert(str(tmp_path / "x.onnx"), image_size=56)
    assert set(report.unused) >= {"decoder.weight", "decoder.bias"}
    expected = brh_jax.load(tmp_path / "hf", image_size=56)
    images = np.random.default_rng(0).normal(size=(1, 56, 56, 3)).astype(np.float32)
    np.testing.assert_allclose(encoder.trajectory(images), expected.trajectory(images), atol=1e-6)


@pytest.mark.skipif(not REAL.exists(), reason=f"no real weights at {REAL}")
def test_real_vit_s14():
    encoder = brh_jax.load(REAL)
    images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    ours = np.asarray(encoder.trajectory(images))
    theirs = states_of(onnx.load(REAL), "/backbone", 12, images)
    print(f"largest difference {max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True)):.1e}")
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.skipif(not REAL.exists(), reason=f"no real weights at {REAL}")
def test_what_bfloat16_costs_a_real_trajectory():
    """1 - R² against float32 on crops of scikit-learn's two photographs; prints what docs/running.md quotes."""
    encoder = brh_jax.load(REAL, image_size=112)
    crops = [image[y : y + 400, x : x + 400] for image in load_sample_images().images for y in (0, 27) for x in (0, 120, 240)]
    pixels = encoder.preprocess(crops)
    exact = np.asarray(encoder.trajectory(pixels), np.float64)[1:]

    def cost(states):
        residual = np.square(np.asarray(states, np.float64)[1:] - exact).sum((1, 2, 3))
        return residual / np.square(exact - exact.mean((1, 2), keepdims=True)).sum((1, 2, 3))

    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), encoder.params)
    back = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    costs = {
        "matrix products": cost(encoder.replace(dtype=jnp.bfloat16).trajectory(pixels)),
        "weights alone": cost(encoder.replace(params=back).trajectory(pixels)),
        "residual stream too": cost(encoder.replace(params=rounded).trajectory(pixels.astype(jnp.bfloat16)).astype(jnp.float32)),
    }
    for what, values in costs.items():
        print(f"{what}: 1 - R2 at layers 1, 6, 12: " + ", ".join(f"{values[i]:.1e}" for i in (0, 5, 11)))
    assert costs["matrix products"].max() < 1e-3
    assert costs["residual stream too"].max() > costs["matrix products"].max()
