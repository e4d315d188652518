"""A ViT family of known layers takes what docs/extending.md says: one file of rules and one line."""

import chex
import jax
import numpy as np
from safetensors.numpy import save_file

from brh_jax.models import ViTConfig
from brh_jax.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from weights_convert.convert import convert
from weights_convert.families import FAMILIES
from weights_convert.families.rules import (
    Family,
    first_layer,
    fused_attention,
    linear,
    norm,
    patch_projection,
    position_table,
    table_size,
    tokens,
)

B = r"tower\.(?P<layer>\d+)"


def config(facts):
    dim = facts.need("acme_cls", "class token")[-1]
    return ViTConfig(
        dim=dim,
        depth=facts.layers(B),
        num_heads=2,
        mlp_dim=facts.need(rf"{B}\.up\.weight", "feed-forward layer")[0],
        patch_size=2,
        position_grid=(4, 4),
    )


ACME = Family(
    name="Acme",
    model_types=(),
    recognises=lambda facts: facts.find("acme_cls") is not None,
    config=config,
    preprocessing=lambda facts, c: Preprocessing(table_size(c), None, IMAGENET_MEAN, IMAGENET_STD),
    rules=(
        tokens("acme_cls", "embedding/cls_token", row=0),
        position_table("acme_positions"),
        *patch_projection(r"patch_embed\.proj"),
        *norm(rf"{B}\.n1", "blocks/norm1"),
        *fused_attention(rf"{B}\.qkv\.weight", rf"{B}\.qkv\.bias", rf"{B}\.out"),
        *norm(rf"{B}\.n2", "blocks/norm2"),
        *first_layer(rf"{B}\.up"),
        *linear(rf"{B}\.down", "blocks/mlp/fc2"),
        *norm("last_norm", "norm"),
    ),
)


def tensors(dim=16, depth=3):
    rng = np.random.default_rng(0)
    shapes = {"acme_cls": (1, 1, dim), "acme_positions": (1, 17, dim), "patch_embed.proj.weight": (dim, 3, 2, 2)}
    shapes |= {"patch_embed.proj.bias": (dim,), "last_norm.weight": (dim,), "last_norm.bias": (dim,)}
    for n in range(depth):
        layer = {"qkv": (3 * dim, dim), "out": (dim, dim), "up": (32, dim), "down": (dim, 32)}
        shapes |= {f"tower.{n}.{name}.weight": shape for name, shape in layer.items()}
        shapes |= {f"tower.{n}.{name}.bias": shape[:1] for name, shape in layer.items()}
        shapes |= {f"tower.{n}.{name}.{part}": (dim,) for name in ("n1", "n2") for part in ("weight", "bias")}
    return {name: 0.1 * rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_family_is_one_file_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "Acme", ACME)
    made = tensors()
    save_file(made, tmp_path / "acme.safetensors")
    encoder, report = convert(str(tmp_path / "acme.safetensors"))
    assert (report.family, encoder.depth, encoder.dim, encoder.layout.num_tokens) == ("Acme", 3, 16, 17)
    blocks = encoder.params["blocks"]
    np.testing.assert_array_equal(blocks["mlp"]["fc1"]["kernel"][1], made["tower.1.up.weight"].T)
    states = encoder.trajectory(np.zeros((2, 8, 8, 3), np.float32))
    assert states.shape == (4, 2, 17, 16)
    chex.assert_tree_all_finite(jax.device_get(states))
