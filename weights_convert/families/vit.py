"""Supervised ViT, AugReg and DeiT, DINO v1, MAE's encoder, DeiT III: one table, as their blocks are the same.

transformers' layouts (old and new spelling), and that of timm and of the authors' own checkpoints (`blocks.N`, fused qkv).
"""

import dataclasses
import re

from brh_jax.models.vit import ViTConfig
from brh_jax.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from weights_convert.facts import Facts, square_grid
from weights_convert.families.rules import (
    Family,
    attention,
    first_layer,
    fused_attention,
    linear,
    norm,
    patch_projection,
    position_table,
    table_size,
    tokens,
    unused,
    vector,
)

# transformers: encoder.layer.N, since version 5 also layers.N; timm and the authors: blocks.N
B = r"(?:(?:encoder\.)?layers?|blocks)\.(?P<layer>\d+)"
HF = "encoder.layer.{layer}"
CLS = r"(?:embeddings\.)?cls_token"
DISTILLATION = r"embeddings\.distillation_token|dist_token"
POSITION = r"embeddings\.position_embeddings|pos_embed"
PATCH = r"embeddings\.patch_embeddings\.projection|patch_embed\.proj"

RULES = (
    tokens(CLS, "embedding/cls_token", "embeddings.cls_token", row=0),
    tokens(DISTILLATION, "embedding/cls_token", "embeddings.distillation_token", row=1)._replace(when=lambda c: c.num_cls == 2),
    position_table(POSITION, "embeddings.position_embeddings"),
    *patch_projection(PATCH, "embeddings.patch_embeddings.projection"),
    *norm(rf"{B}\.(?:layernorm_before|norm1)", "blocks/norm1", f"{HF}.layernorm_before"),
    *attention(
        tuple(rf"{B}\.attention\.(?:attention\.{old}|{new}_proj)" for old, new in (("query", "q"), ("key", "k"), ("value", "v"))),
        rf"{B}\.attention\.(?:output\.dense|o_proj)",
        tuple(f"{HF}.attention.attention.{part}" for part in ("query", "key", "value")),
        f"{HF}.attention.output.dense",
    ),
    *fused_attention(rf"{B}\.attn\.qkv\.weight", rf"{B}\.attn\.qkv\.bias", rf"{B}\.attn\.proj"),
    vector(rf"{B}\.(?:ls1\.gamma|gamma_1)", "blocks/ls1/scale"),
    *norm(rf"{B}\.(?:layernorm_after|norm2)", "blocks/norm2", f"{HF}.layernorm_after"),
    *first_layer(rf"{B}\.(?:intermediate\.dense|mlp\.fc1)", f"{HF}.intermediate.dense"),
    *linear(rf"{B}\.(?:output\.dense|mlp\.fc2)", "blocks/mlp/fc2", f"{HF}.output.dense"),
    vector(rf"{B}\.(?:ls2\.gamma|gamma_2)", "blocks/ls2/scale"),
    *norm(r"(?:layernorm|norm)", "norm", "layernorm"),
    *linear(r"(?:classifier|cls_classifier|head)", "head", "classifier"),
    unused(r"pooler\.dense\.(?:weight|bias)", "the pooler is not part of the trajectory"),
    unused(r"(?:distillation_classifier|head_dist)\.(?:weight|bias)", "the classifier on the distillation token"),
    unused(r"(?:embeddings\.)?mask_token", "stands for masked patches in pretraining only"),
    unused(r"decoder_(?:embed|blocks|norm|pred|pos_embed)\b.*", "MAE's decoder"),
)


def config(facts: Facts) -> ViTConfig:
    """The architecture."""
    dim = facts.need(CLS, "class token")[-1]
    table = facts.need(POSITION, "position table")
    fc1 = facts.need(rf"{B}\.(?:intermediate\.dense|mlp\.fc1)\.weight", "feed-forward layer")
    num_cls = 2 if facts.find(DISTILLATION) else 1
    layer_scale = facts.find(rf"{B}\.(?:ls1\.gamma|gamma_1)") is not None
    hf = facts.transformers(layer_norm_eps=1e-12, hidden_act="gelu", qkv_bias=True)
    if hf is None:
        facts.assume("LayerNorm epsilon 1e-6 and exact GELU, as timm's and the authors' code have")
        hf = {"layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    if hf["hidden_act"] != "gelu":
        raise ValueError(f"hidden_act {hf['hidden_act']!r} in config.json, expected 'gelu'")
    cls_position = table[1] - num_cls == int((table[1] - num_cls) ** 0.5) ** 2  # DeiT III: patches only
    return ViTConfig(
        dim=dim,
        depth=hf.get("num_hidden_layers") or facts.layers(B),
        num_heads=facts.heads(dim),
        mlp_dim=fc1[0],
        patch_size=facts.need(rf"(?:{PATCH})\.weight", "patch projection")[-1],
        position_grid=square_grid(table[1] - num_cls * cls_position, table),
        num_cls=num_cls,
        cls_position=cls_position,
        layer_scale=layer_scale,
        qkv_bias=hf.get("qkv_bias", True),
        layer_norm_eps=hf["layer_norm_eps"],
        position_resampling="cubic" if facts.hf is not None else "cubic-antialias" if facts.timm is not None else "cubic",
    )


def dino_config(facts: Facts) -> ViTConfig:
    """DINO's own code resamples positions as DINOv2's does."""
    return dataclasses.replace(config(facts), position_resampling="cubic-offset")


def preprocessing(facts: Facts, c: ViTConfig) -> Preprocessing:
    """google/vit's (stretched, mean and deviation 1/2) in transformers' layout; else that of DeiT, DINO and MAE."""
    size = table_size(c)
    if facts.hf is not None and facts.hf.get("model_type") == "vit":
        return Preprocessing(size, None, (0.5,) * 3, (0.5,) * 3, "bilinear")
    return Preprocessing(size, round(min(size) * 256 / 224), IMAGENET_MEAN, IMAGENET_STD)


def to_transformers(c: ViTConfig) -> dict | None:
    """vit, or deit where there is a distillation token."""
    if c.layer_scale or c.num_registers or c.mlp != "gelu" or c.pre_norm or c.position_grid is None or not c.num_cls:
        return None
    about = {"model_type": "vit", "architectures": ["ViTModel"]}
    if c.num_cls == 2:
        about = {"model_type": "deit", "architectures": ["DeiTModel"]}
    return about | {"intermediate_size": c.mlp_dim, "hidden_act": "gelu", "qkv_bias": c.qkv_bias}


def _plain_blocks(facts: Facts) -> bool:
    return bool(facts.find(CLS)) and bool(facts.find(POSITION)) and not facts.find(r"norm_pre\.weight|reg_token")


def _is_deit3(facts: Facts) -> bool:
    return _plain_blocks(facts) and bool(facts.find(rf"{B}\.(?:ls1\.gamma|gamma_1)"))


def _named(facts: Facts, pattern: str) -> bool:
    return re.match(pattern, facts.origin.replace("\\", "/").rpartition("/")[2]) is not None


DEIT3 = Family(
    name="DeiT III",
    model_types=(),
    recognises=_is_deit3,
    config=config,
    preprocessing=preprocessing,
    rules=RULES,
)
DINO = Family(
    name="DINO",
    model_types=(),
    # Of what training left (student and teacher, each with its backbone), or of the published backbones, by their file names.
    recognises=lambda facts: _plain_blocks(facts) and ("backbone." in facts.prefix or _named(facts, r"dino_(?:deit|vit)")),
    config=dino_config,
    preprocessing=preprocessing,
    rules=RULES,
)
MAE = Family(
    name="MAE encoder",
    model_types=("vit_mae",),
    # Without the decoder its tensors are those of a ViT without classifier: by the published file names.
    recognises=lambda facts: _plain_blocks(facts) and _named(facts, r"mae_"),
    config=config,
    preprocessing=preprocessing,
    rules=RULES,
)
FAMILY = Family(
    name="ViT",
    model_types=("vit", "deit"),
    recognises=lambda facts: _plain_blocks(facts) and not _is_deit3(facts),
    config=config,
    preprocessing=preprocessing,
    rules=RULES,
    to_transformers=to_transformers,
)
