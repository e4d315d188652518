"""Layouts of timm and open_clip against the states that those libraries computed (see make_golden.py), through --check's code
where they are installed."""

import hashlib
import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from brh_jax.models.vit import ViTConfig
from weights_convert import convert
from weights_convert.check import compare

GOLDEN = pathlib.Path(__file__).parent / "golden"
FAMILIES = {
    "timm-augreg": "ViT",
    "timm-deit-distilled": "ViT",
    "timm-deit3": "DeiT III",
    "timm-dinov2": "DINOv2",
    "timm-dinov2-registers": "DINOv2",
    "timm-dinov2-swiglu": "DINOv2",
    "timm-dinov3": "DINOv3",
    "timm-dinov3-gated": "DINOv3",
    "timm-dinov3-biases": "DINOv3",
    "timm-clip": "CLIP",
    "timm-clip-quick": "CLIP",
    "timm-siglip": "SigLIP",
    "timm-siglip2": "SigLIP",
    "open_clip-clip": "CLIP",
    "open_clip-clip-gelu": "CLIP",
    "open_clip-siglip": "SigLIP",
}
# The timm model inside an open_clip tower is named in its configuration, this small one's number of heads is not.
OPTIONS = {"open_clip-siglip": {"num_heads": 2}}


def test_files_are_those_that_were_made():
    sums = json.loads((GOLDEN / "checksums.json").read_text())["sha256"]
    assert {p.parent.name for p in GOLDEN.glob("*/states.golden")} == set(FAMILIES)
    for name, expected in sums.items():
        assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == expected, name


@pytest.mark.parametrize("name", FAMILIES)
def test_every_state(name):
    encoder, report = convert(str(GOLDEN / name), **OPTIONS.get(name, {}))
    assert report.family == FAMILIES[name]
    assert name.split("-")[0] in report.format
    golden = load_file(GOLDEN / name / "states.golden")
    sizes = sorted({key.split(".")[0] for key in golden})
    assert len(sizes) == (2 if name.startswith("timm") else 1)
    for size in sizes:
        image, states, final = (golden[f"{size}.{part}"] for part in ("image", "states", "final"))
        with jax.default_matmul_precision("highest"):
            ours = np.asarray(encoder.trajectory(image))
            ours_final = np.asarray(encoder.features(ours[-1]))
        if final.ndim == 2:  # open_clip normalises the class token alone
            ours_final = ours_final[:, 0]
        pairs = [*zip(ours, states, strict=True), (ours_final, final)]
        print(f"largest difference {max(np.abs(a - b).max() for a, b in pairs):.1e}")
        for layer, (a, b) in enumerate(pairs):
            assert a.shape == b.shape and np.abs(b).max() > 0.3
            assert np.abs(a - b).max() <= 1e-5, f"a_{layer} at size {size}"


def test_what_a_configuration_says_is_not_assumed():
    for name in FAMILIES:
        _, report = convert(str(GOLDEN / name), **OPTIONS.get(name, {}))
        assert not [line for line in report.assumed if "heads" in line or "preprocessing" in line], name


def test_preprocessing_of_timm_and_open_clip():
    timm, _ = convert(str(GOLDEN / "timm-augreg"))
    assert timm.preprocessing.crop == (32, 32)
    assert timm.preprocessing.resize == int(32 / 0.9)
    assert timm.preprocessing.mean == (0.5, 0.5, 0.5)
    clip, _ = convert(str(GOLDEN / "open_clip-clip"))
    assert clip.preprocessing.resize == 32
    assert clip.preprocessing.mean[0] == pytest.approx(0.48145466)
    siglip, _ = convert(str(GOLDEN / "open_clip-siglip"), num_heads=2)
    assert siglip.preprocessing.resize is None
    assert siglip.layout.num_cls == 0


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "open_clip-siglip"])
def test_check_with_the_library_itself(name):
    library = name.split("-")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    encoder, _ = convert(str(GOLDEN / name))
    comparison = compare(str(GOLDEN / name), encoder)
    assert comparison.passed, "\n".join(comparison.lines())
    assert isinstance(encoder.config, ViTConfig)
    assert len(comparison.stages) >= encoder.depth + 1
