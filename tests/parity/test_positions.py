"""Position tables off their own grid: the authors' DINOv2 scales by (grid + 0.1) / table, transformers resamples to a size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from references import as_torch_hub, make, tensors
from safetensors.torch import save_file

from weights_convert import convert

PATCH, SIDE = 14, 37
GRIDS = [(16, 16), (8, 11), (40, 30), (24, 36)]


def authors_table(table: torch.Tensor, grid: tuple[int, int], offset: float, antialias: bool) -> np.ndarray:
    """`[rows, columns, dim]`: what the authors' interpolate_pos_encoding calls, with its two settings."""
    square = table.reshape(1, SIDE, SIDE, -1).permute(0, 3, 1, 2)
    if offset:
        scale = tuple(float(n + offset) / SIDE for n in grid)
        out = F.interpolate(square, mode="bicubic", antialias=antialias, scale_factor=scale)
    else:
        out = F.interpolate(square, mode="bicubic", antialias=antialias, size=grid)
    assert out.shape[2:] == grid
    return out[0].permute(1, 2, 0).numpy()


def positions(encoder, grid) -> np.ndarray:
    """`[rows, columns, dim]`: a_0 of black images less what a patch is without its place."""
    encoder = encoder.replace(params=encoder.params | {"embedding": dict(encoder.params["embedding"])})
    embedding = encoder.params["embedding"]
    embedding["patch"] = {name: 0 * leaf for name, leaf in embedding["patch"].items()}
    state = encoder.embed(np.zeros((1, grid[0] * PATCH, grid[1] * PATCH, 3), np.float32))
    return np.asarray(state[0, -grid[0] * grid[1] :]).reshape(*grid, -1)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["dinov2", "dinov2-registers"])
def test_each_code_base_has_its_own(name, grid, tmp_path):
    model = make(name, tmp_path / "hf", hidden_size=128, num_attention_heads=2)
    state = as_torch_hub(tensors(tmp_path / "hf"))
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    table = state["pos_embed"][:, 1:]
    # Published with interpolate_antialias=True, interpolate_offset=0.0 where there are registers, with False and 0.1 elsewhere.
    registers = name == "dinov2-registers"
    theirs = authors_table(table, grid, 0.0 if registers else 0.1, antialias=registers)
    hub, report = convert(str(tmp_path / "dinov2_vits14_pretrain.pth"))
    np.testing.assert_allclose(positions(hub, grid), theirs, atol=1e-5)
    assert not any("position" in line for line in report.assumed)

    own = convert(str(tmp_path / "hf"))[0]
    embeddings = model.embeddings
    with torch.no_grad():
        whole = torch.zeros(1, 1 + grid[0] * grid[1], 128)
        expected = embeddings.interpolate_pos_encoding(whole, grid[0] * PATCH, grid[1] * PATCH)[0, 1:].numpy()
    np.testing.assert_allclose(positions(own, grid), expected.reshape(*grid, -1), atol=1e-5)
    if not registers:  # the tenth of a patch is no rounding error
        assert np.abs(positions(hub, grid) - expected.reshape(*grid, -1)).max() > 1e-3


def test_without_a_mask_token_it_is_said_what_is_assumed(tmp_path):
    """A bare file of timm's looks the same, and its library resamples to a size."""
    make("dinov2", tmp_path / "hf", hidden_size=128, num_attention_heads=2)
    state = as_torch_hub(tensors(tmp_path / "hf"))
    del state["mask_token"]
    save_file(state, tmp_path / "bare.safetensors")
    encoder, report = convert(str(tmp_path / "bare.safetensors"))
    assert encoder.config.position_resampling == "cubic-offset"
    assert any("position table resampled as in the authors' code" in line for line in report.assumed)
