"""Published linear heads."""

import pathlib

import numpy as np
import pytest
import torch

from brh_jax.errors import UserError
from weights_convert.heads import find_linear_head, published_head, read_linear_head


def test_metas_layout(tmp_path):
    weight, bias = torch.randn(10, 32), torch.randn(10)
    torch.save({"weight": weight, "bias": bias}, tmp_path / "dinov2_vits14_linear_head.pth")
    head = read_linear_head(str(tmp_path / "dinov2_vits14_linear_head.pth"), 32, 10)
    features = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    expected = torch.nn.functional.linear(torch.tensor(features), weight, bias)
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], expected, atol=1e-5)


def test_metas_heads_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRH_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    name = published_head("vitb14_reg")
    assert (name, published_head("vits14")) == ("dinov2_vitb14_reg4_linear_head.pth", "dinov2_vits14_linear_head.pth")
    where = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/{name} into {tmp_path}/cache/heads"
    with pytest.raises(UserError, match=f"no file {name}, Meta's classifier: download {where}"):
        find_linear_head(name)
    with pytest.raises(UserError, match="no classifier at my_head.pth: expected a .pth or .safetensors file, or the name of one"):
        find_linear_head("my_head.pth")
    for place in ("torch/hub/checkpoints", "cache/heads", "."):  # the nearest one counts
        file = tmp_path / place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weight": torch.ones(10, 32), "bias": torch.zeros(10)}, file)
        assert pathlib.Path(find_linear_head(name)).resolve() == file.resolve()
    assert read_linear_head(name, 32, 10)["kernel"].shape == (32, 10)


def test_other_sizes_say_what_they_are(tmp_path):
    torch.save({"weight": torch.zeros(10, 80), "bias": torch.zeros(10)}, tmp_path / "linear4_head.pth")
    with pytest.raises(UserError, match=r"weight \(10, 80\).*expected \(10, 32\).*a head on four layers"):
        read_linear_head(str(tmp_path / "linear4_head.pth"), 32, 10)
    torch.save({"weight": torch.zeros(10, 32), "bias": torch.zeros(10)}, tmp_path / "head.pth")
    with pytest.raises(UserError, match=r"expected \(7, 32\)"):
        read_linear_head(str(tmp_path / "head.pth"), 32, 7)
    torch.save({"a.weight": torch.zeros(2, 2), "b.weight": torch.zeros(2)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match="no linear classifier: expected one weight and one bias"):
        read_linear_head(str(tmp_path / "net.pth"), 32, 7)


def test_heads_that_are_no_floats_of_this_range(tmp_path):
    for weight, message in (
        (torch.full((3, 4), 1e300, dtype=torch.float64), r"weight holds 1e\+300, beyond float32"),
        (torch.full((3, 4), float("nan")), "weight holds NaN or infinity"),
        (torch.zeros((3, 4), dtype=torch.int8), "weight is int8, expected float16"),
    ):
        torch.save({"weight": weight, "bias": torch.zeros(3)}, tmp_path / "head.pth")
        with pytest.raises(UserError, match=message):
            read_linear_head(str(tmp_path / "head.pth"), 4, 3)
