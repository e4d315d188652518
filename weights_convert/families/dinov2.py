"""DINOv2 with and without registers: transformers (old and new spelling) and torch-hub names."""

from brh_jax.data.transforms import Preprocessing
from brh_jax.models.vit import ViTConfig
from weights_convert.families.rules import (
    PATCH,
    POSITION,
    Family,
    attention,
    count_layers,
    find_shape,
    linear,
    need_shape,
    norm,
    patch_projection,
    position_table,
    square_grid,
    tokens,
    unused,
    vector,
)

# transformers: encoder.layer.N; torch hub: blocks.N
B = r"(?:encoder\.layers?|blocks)\.(?P<layer>\d+)"

RULES = (
    tokens(r"(?:embeddings\.)?cls_token", "embedding/cls_token"),
    tokens(r"(?:embeddings\.)?register_tokens", "embedding/register_tokens"),
    position_table(POSITION),
    *patch_projection(PATCH),
    *norm(rf"{B}\.norm1", "blocks/norm1"),
    *attention(B),
    vector(rf"{B}\.(?:layer_scale1\.lambda1|ls1\.gamma)", "blocks/ls1/scale"),
    *norm(rf"{B}\.norm2", "blocks/norm2"),
    *linear(rf"{B}\.mlp\.fc1", "blocks/mlp/fc1"),
    *linear(rf"{B}\.mlp\.fc2", "blocks/mlp/fc2"),
    *linear(rf"{B}\.mlp\.(?:weights_in|w12)", "blocks/mlp/fc1", parts=2),
    *linear(rf"{B}\.mlp\.(?:weights_out|w3)", "blocks/mlp/fc2"),
    vector(rf"{B}\.(?:layer_scale2\.lambda1|ls2\.gamma)", "blocks/ls2/scale"),
    *norm(r"(?:layernorm|norm)", "norm"),
    *linear("classifier", "head"),  # on [cls, mean patch] after the norm
    unused(r"(?:embeddings\.)?mask_token", "stands for masked patches in pretraining only"),
)


def config(shapes, hf):
    """The architecture from tensor shapes and, where it is there, config.json (heads, epsilon)."""
    assumed = []
    dim = need_shape(shapes, r"(?:embeddings\.)?cls_token", "class token")[-1]
    registers = find_shape(shapes, r"(?:embeddings\.)?register_tokens")
    table = need_shape(shapes, POSITION, "position table")
    swiglu = find_shape(shapes, rf"{B}\.mlp\.(?:weights_out|w3)\.weight")
    gelu = find_shape(shapes, rf"{B}\.mlp\.fc1\.weight")
    hub = any(name.startswith("blocks.") for name in shapes)
    if hf is None:
        assumed.append(f"{dim // 64} heads of width 64 and LayerNorm epsilon 1e-6, as all published DINOv2 have (no config.json)")
        hf = {}
    if hf.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"hidden_act {hf['hidden_act']!r} in config.json, expected 'gelu' (DINOv2's)")
    resampling = "cubic-antialias" if registers else "cubic-offset" if hub else "cubic"
    return ViTConfig(
        dim=dim,
        depth=hf.get("num_hidden_layers") or count_layers(shapes, B),
        num_heads=hf.get("num_attention_heads") or max(dim // 64, 1),
        mlp_dim=swiglu[1] if swiglu else gelu[0] if gelu else 4 * dim,
        mlp="swiglu" if swiglu else "gelu",
        patch_size=need_shape(shapes, rf"{PATCH}\.weight", "patch projection")[-1],
        position_grid=square_grid(table[1] - 1, table),
        num_registers=registers[1] if registers else 0,
        layer_scale=True,
        qkv_bias=hf.get("qkv_bias", True),
        layer_norm_eps=hf.get("layer_norm_eps", 1e-6),
        position_resampling=resampling,
    ), assumed


FAMILY = Family(
    name="DINOv2",
    model_types=("dinov2", "dinov2_with_registers"),
    recognises=lambda names: any(n.endswith(("layer_scale1.lambda1", "ls1.gamma")) for n in names),
    config=config,
    preprocessing=lambda c, names: Preprocessing((224, 224) if c.patch_size == 14 else (16 * c.patch_size,) * 2, 256),
    rules=RULES,
)
