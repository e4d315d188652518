"""Supervised ViT: google/vit, AugReg and DeiT, in transformers' layout (old and new spelling) and with fused qkv."""

from brh_jax.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
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
)

# transformers: encoder.layer.N, since version 5 also layers.N; DeiT's and timm's own: blocks.N
B = r"(?:(?:encoder\.)?layers?|blocks)\.(?P<layer>\d+)"

RULES = (
    tokens(r"(?:embeddings\.)?cls_token", "embedding/cls_token", first=0),
    tokens(r"embeddings\.distillation_token|dist_token", "embedding/cls_token", first=1),
    position_table(POSITION),
    *patch_projection(PATCH),
    *norm(rf"{B}\.(?:layernorm_before|norm1)", "blocks/norm1"),
    *attention(B),
    *norm(rf"{B}\.(?:layernorm_after|norm2)", "blocks/norm2"),
    *linear(rf"{B}\.(?:intermediate\.dense|mlp\.fc1)", "blocks/mlp/fc1"),
    *linear(rf"{B}\.(?:output\.dense|mlp\.fc2)", "blocks/mlp/fc2"),
    *norm(r"(?:layernorm|norm)", "norm"),
    *linear(r"(?:classifier|cls_classifier|head)", "head"),
    unused(r"pooler\.dense\.(?:weight|bias)", "the pooler is not part of the trajectory"),
    unused(r"(?:distillation_classifier|head_dist)\.(?:weight|bias)", "the classifier on the distillation token"),
    unused(r"embeddings\.mask_token", "stands for masked patches in pretraining only"),
)


def config(shapes, hf):
    """The architecture from tensor shapes and, where it is there, config.json (heads, epsilon)."""
    assumed = []
    dim = need_shape(shapes, r"(?:embeddings\.)?cls_token", "class token")[-1]
    num_cls = 2 if find_shape(shapes, r"embeddings\.distillation_token|dist_token") else 1
    table = need_shape(shapes, POSITION, "position table")
    fc1 = find_shape(shapes, rf"{B}\.(?:intermediate\.dense|mlp\.fc1)\.weight")
    if hf is None:
        assumed.append(f"{dim // 64} heads of width 64 and LayerNorm epsilon 1e-6, as timm and DeiT have (no config.json)")
        hf = {"layer_norm_eps": 1e-6}
    if hf.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"hidden_act {hf['hidden_act']!r} in config.json, expected 'gelu'")
    return ViTConfig(
        dim=dim,
        depth=hf.get("num_hidden_layers") or count_layers(shapes, B),
        num_heads=hf.get("num_attention_heads") or max(dim // 64, 1),
        mlp_dim=fc1[0] if fc1 else 4 * dim,
        patch_size=need_shape(shapes, rf"{PATCH}\.weight", "patch projection")[-1],
        position_grid=square_grid(table[1] - num_cls, table),
        num_cls=num_cls,
        qkv_bias=hf.get("qkv_bias", True),
        layer_norm_eps=hf.get("layer_norm_eps", 1e-12),
    ), assumed


def preprocessing(c, names):
    """google/vit's (stretched, mean and deviation 1/2); DeiT's for a distillation token or the names of its own checkpoints."""
    size = tuple(n * c.patch_size for n in c.position_grid)
    if c.num_cls == 2 or any(name.startswith("blocks.") for name in names):
        return Preprocessing(size, round(min(size) * 256 / 224), IMAGENET_MEAN, IMAGENET_STD)
    return Preprocessing(size, None, (0.5,) * 3, (0.5,) * 3, "bilinear")


FAMILY = Family(
    name="ViT",
    model_types=("vit", "deit"),
    recognises=lambda names: (
        any(n.endswith("cls_token") for n in names) and not any(n.endswith(("lambda1", "gamma", "gamma_1")) for n in names)
    ),
    config=config,
    preprocessing=preprocessing,
    rules=RULES,
)
