"""DINOv3 ViT: rotary positions, registers, no position table. transformers (both spellings), torch hub and timm."""

import numpy as np

from brh_jax.models import rotary
from brh_jax.models.vit import ViTConfig
from brh_jax.preprocessing import Preprocessing
from weights_convert.facts import Facts
from weights_convert.families.rules import (
    Family,
    Place,
    attention,
    first_layer,
    fused_attention,
    gated,
    half_of_first_layer,
    linear,
    norm,
    part_bias,
    patch_projection,
    plain,
    tokens,
    unused,
    vector,
)

# transformers: layer.N, in memory model.layer.N; torch hub and timm: blocks.N
B = r"(?:(?:model\.)?layer|blocks)\.(?P<layer>\d+)"
HF = "layer.{layer}"
REGISTERS = r"embeddings\.register_tokens|storage_tokens|reg_token"
PATCH = r"embeddings\.patch_embeddings|patch_embed\.proj"
PERIODS = r"rope_embed\.periods"
QKV_BIAS = "blocks/attn/qkv/bias"
EPSILON = 1e-5  # "layernormbf16" of the authors' code
THETA = 100.0

RULES = (
    tokens(r"(?:embeddings\.)?cls_token", "embedding/cls_token", "embeddings.cls_token"),
    tokens(REGISTERS, "embedding/register_tokens", "embeddings.register_tokens"),
    *patch_projection(PATCH, "embeddings.patch_embeddings"),
    *norm(rf"{B}\.norm1", "blocks/norm1", f"{HF}.norm1"),
    *attention(
        tuple(rf"{B}\.attention\.{part}_proj" for part in "qkv"),
        rf"{B}\.attention\.o_proj",
        tuple(f"{HF}.attention.{part}_proj" for part in "qkv"),
        f"{HF}.attention.o_proj",
    ),
    *fused_attention(rf"{B}\.attn\.qkv\.weight", rf"{B}\.attn\.qkv\.bias", rf"{B}\.attn\.proj"),
    part_bias(rf"{B}\.attn\.q_bias", 0),
    part_bias(rf"{B}\.attn\.v_bias", 2),
    vector(rf"{B}\.(?:layer_scale1\.lambda1|ls1\.gamma|gamma_1)", "blocks/ls1/scale", f"{HF}.layer_scale1.lambda1"),
    *norm(rf"{B}\.norm2", "blocks/norm2", f"{HF}.norm2"),
    *plain(*first_layer(rf"{B}\.mlp\.(?:up_proj|fc1)", f"{HF}.mlp.up_proj")),
    *gated(*half_of_first_layer(rf"{B}\.mlp\.(?:gate_proj|w1|fc1_g)", 0, f"{HF}.mlp.gate_proj")),
    *gated(*half_of_first_layer(rf"{B}\.mlp\.(?:up_proj|w2|fc1_x)", 1, f"{HF}.mlp.up_proj")),
    *linear(rf"{B}\.mlp\.(?:down_proj|w3|fc2)", "blocks/mlp/fc2", f"{HF}.mlp.down_proj"),
    vector(rf"{B}\.(?:layer_scale2\.lambda1|ls2\.gamma|gamma_2)", "blocks/ls2/scale", f"{HF}.layer_scale2.lambda1"),
    *norm(r"norm", "norm", "norm"),
    *linear("classifier", "head"),
    unused(r"(?:embeddings\.)?mask_token", "stands for masked patches in pretraining only"),
    unused(PERIODS, "taken into the configuration"),
    unused(r"rope_embeddings\.inv_freq", "follows from rope_theta"),
    unused(rf"{B}\.attn\.qkv\.bias_mask", "takes the keys' bias away, which is zero"),
    unused(r"local_cls_norm\.(?:weight|bias)", "of small crops in pretraining only"),
)


def recognises(facts: Facts) -> bool:
    """Registers or the rotary embedding's periods, and no position table."""
    return (
        facts.find(rf"{B}\.(?:layer_scale1\.lambda1|ls1\.gamma|gamma_1)") is not None
        and facts.find(rf"{REGISTERS}|{PERIODS}") is not None
        and facts.find("pos_embed|embeddings.position_embeddings") is None
    )


def config(facts: Facts) -> ViTConfig:
    """The architecture."""
    dim = facts.need(r"(?:embeddings\.)?cls_token", "class token")[-1]
    registers = facts.find(REGISTERS)
    fc2 = facts.need(rf"{B}\.mlp\.(?:down_proj|w3|fc2)\.weight", "second feed-forward layer")
    hf = facts.transformers(layer_norm_eps=EPSILON, hidden_act="gelu", rope_theta=THETA, use_gated_mlp=False)
    heads = facts.heads(dim, {1280: 64, 4096: 128}, default=6)
    if hf is None:
        facts.assume(f"LayerNorm epsilon {EPSILON:g}, as all published DINOv3 have")
        _check_masks(facts, dim)
        if facts.find(PERIODS):
            periods = tuple(float(p) for p in facts.read("rope_embed.periods").reshape(-1))
        else:
            facts.assume(f"rotary embedding with base {THETA:g}, as all published DINOv3 have")
            periods = rotary.periods(dim // heads, THETA)
        hf = {"layer_norm_eps": EPSILON, "use_gated_mlp": facts.find(rf"{B}\.mlp\.(?:w1|fc1_g)\.weight") is not None}
    else:
        wanted = "silu" if hf["use_gated_mlp"] else "gelu"
        if hf["hidden_act"] != wanted:
            raise ValueError(f"hidden_act {hf['hidden_act']!r} in config.json, expected {wanted!r} (DINOv3's)")
        rope = hf.get("rope_parameters") or {}
        periods = rotary.periods(dim // heads, rope.get("rope_theta", hf["rope_theta"]))
    return ViTConfig(
        dim=dim,
        depth=hf.get("num_hidden_layers") or facts.layers(B),
        num_heads=heads,
        mlp_dim=fc2[1],
        mlp="swiglu" if hf["use_gated_mlp"] else "gelu",
        patch_size=facts.need(rf"(?:{PATCH})\.weight", "patch projection")[-1],
        position_grid=None,
        num_registers=registers[1] if registers else 0,
        rope_periods=periods,
        layer_scale=facts.find(rf"{B}\.(?:layer_scale1\.lambda1|ls1\.gamma|gamma_1)") is not None,
        layer_norm_eps=hf["layer_norm_eps"],
    )


def _check_masks(facts: Facts, dim: int) -> None:
    """Torch hub multiplies the fused bias by a mask that takes the keys' part away; here that part must be zero already."""
    for name in facts.shapes:
        if name.endswith("attn.qkv.bias_mask"):
            bias = facts.read(name.removesuffix("_mask"))
            if np.any(bias[dim : 2 * dim] != 0):
                raise ValueError(f"{name} masks a bias that is not zero: multiply {name.removesuffix('_mask')} by it first")


def zeros(facts: Facts, c: ViTConfig):
    """Biases that the model does not have: those of the keys as a rule, the 7B's of queries and values too."""
    hf = facts.transformers(query_bias=True, key_bias=False, value_bias=True, proj_bias=True, mlp_bias=True)
    if hf is None:
        fused = facts.find(rf"{B}\.attn\.qkv\.bias")
        parts = {0: rf"{B}\.attn\.q_bias", 1: r"(?!)", 2: rf"{B}\.attn\.v_bias"}
        return tuple(Place(QKV_BIAS, (part,)) for part, pattern in parts.items() if not fused and not facts.find(pattern))
    found = [Place(QKV_BIAS, (i,)) for i, part in enumerate(("query", "key", "value")) if not hf[f"{part}_bias"]]
    found += [] if hf["proj_bias"] else [Place("blocks/attn/proj/bias")]
    found += [] if hf["mlp_bias"] else [Place("blocks/mlp/fc1/bias"), Place("blocks/mlp/fc2/bias")]
    return tuple(found)


def to_transformers(c: ViTConfig) -> dict | None:
    """dinov3_vit, where the periods are those of one base."""
    if c.rope_periods is None or c.position_grid is not None or not c.layer_scale or c.num_cls != 1 or c.pre_norm:
        return None
    head_dim = c.dim // c.num_heads
    theta = float(c.rope_periods[1] ** (head_dim / 4)) if len(c.rope_periods) > 1 else THETA
    theta = round(theta, 6)
    if c.mlp not in ("gelu", "swiglu") or rotary.periods(head_dim, theta) != c.rope_periods:
        return None
    return {
        "model_type": "dinov3_vit",
        "architectures": ["DINOv3ViTModel"],
        "intermediate_size": c.mlp_dim,
        "hidden_act": "silu" if c.mlp == "swiglu" else "gelu",
        "use_gated_mlp": c.mlp == "swiglu",
        "num_register_tokens": c.num_registers,
        "rope_theta": theta,
        "query_bias": c.qkv_bias,
        "key_bias": c.qkv_bias,
        "value_bias": c.qkv_bias,
    }


def preprocessing(facts: Facts, c: ViTConfig) -> Preprocessing:
    """Stretched to 14 x 14 patches (224 px), bilinear, as the published processor has it."""
    size = (14 * c.patch_size,) * 2
    if "sat493m" in facts.origin:  # trained on satellite images
        return Preprocessing(size, None, (0.430, 0.411, 0.296), (0.213, 0.156, 0.143), "bilinear")
    return Preprocessing(size, None, interpolation="bilinear")


FAMILY = Family(
    name="DINOv3",
    model_types=("dinov3_vit",),
    recognises=recognises,
    config=config,
    preprocessing=preprocessing,
    rules=RULES,
    zeros=zeros,
    to_transformers=to_transformers,
)
