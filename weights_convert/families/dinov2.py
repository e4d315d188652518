"""DINOv2 with and without registers: transformers (old and new spelling), torch hub and timm."""

from brh_jax.models.vit import ViTConfig
from brh_jax.preprocessing import Preprocessing
from weights_convert.facts import Facts, square_grid
from weights_convert.families.rules import (
    Family,
    attention,
    first_layer,
    fused_attention,
    gated,
    half_of_first_layer,
    linear,
    norm,
    patch_projection,
    plain,
    position_table,
    tokens,
    unused,
    vector,
)

# transformers: encoder.layer.N; torch hub and timm: blocks.N, in the hub's chunked models blocks.M.N
B = r"(?:encoder\.layers?|blocks(?:\.\d+)?)\.(?P<layer>\d+)"
HF = "encoder.layer.{layer}"
REGISTERS = r"(?:embeddings\.)?register_tokens|reg_token"
POSITION = r"embeddings\.position_embeddings|pos_embed"
PATCH = r"embeddings\.patch_embeddings\.projection|patch_embed\.proj"

RULES = (
    tokens(r"(?:embeddings\.)?cls_token", "embedding/cls_token", "embeddings.cls_token"),
    tokens(REGISTERS, "embedding/register_tokens", "embeddings.register_tokens"),
    position_table(POSITION, "embeddings.position_embeddings"),
    *patch_projection(PATCH, "embeddings.patch_embeddings.projection"),
    *norm(rf"{B}\.norm1", "blocks/norm1", f"{HF}.norm1"),
    *attention(
        tuple(rf"{B}\.attention\.(?:attention\.{old}|{new}_proj)" for old, new in (("query", "q"), ("key", "k"), ("value", "v"))),
        rf"{B}\.attention\.(?:output\.dense|o_proj)",
        tuple(f"{HF}.attention.attention.{part}" for part in ("query", "key", "value")),
        f"{HF}.attention.output.dense",
    ),
    *fused_attention(rf"{B}\.attn\.qkv\.weight", rf"{B}\.attn\.qkv\.bias", rf"{B}\.attn\.proj"),
    vector(rf"{B}\.(?:layer_scale1\.lambda1|ls1\.gamma)", "blocks/ls1/scale", f"{HF}.layer_scale1.lambda1"),
    *norm(rf"{B}\.norm2", "blocks/norm2", f"{HF}.norm2"),
    *plain(*first_layer(rf"{B}\.mlp\.fc1", f"{HF}.mlp.fc1")),
    *plain(*linear(rf"{B}\.mlp\.fc2", "blocks/mlp/fc2", f"{HF}.mlp.fc2")),
    *gated(*first_layer(rf"{B}\.mlp\.(?:weights_in|w12|fc1)", f"{HF}.mlp.weights_in")),
    *half_of_first_layer(rf"{B}\.mlp\.gate_proj", 0),
    *half_of_first_layer(rf"{B}\.mlp\.up_proj", 1),
    *gated(*linear(rf"{B}\.mlp\.(?:weights_out|w3|down_proj|fc2)", "blocks/mlp/fc2", f"{HF}.mlp.weights_out")),
    vector(rf"{B}\.(?:layer_scale2\.lambda1|ls2\.gamma)", "blocks/ls2/scale", f"{HF}.layer_scale2.lambda1"),
    *norm(r"(?:layernorm|norm)", "norm", "layernorm"),
    *linear(r"classifier|head", "head", "classifier"),  # on [cls, mean patch] after the norm
    unused(r"(?:embeddings\.)?mask_token", "stands for masked patches in pretraining only"),
)


def recognises(facts: Facts) -> bool:
    """LayerScale and a position table; DeiT III has no registers, and a table without the class token."""
    if not facts.find(rf"{B}\.(?:layer_scale1\.lambda1|ls1\.gamma)"):
        return False
    table = facts.find(POSITION)
    return table is not None and (facts.find(REGISTERS) is not None or int(table[1] ** 0.5) ** 2 != table[1])


def config(facts: Facts) -> ViTConfig:
    """The architecture."""
    dim = facts.need(r"(?:embeddings\.)?cls_token", "class token")[-1]
    registers, table = facts.find(REGISTERS), facts.need(POSITION, "position table")
    gate = facts.find(rf"{B}\.mlp\.gate_proj\.weight")
    fc1 = gate or facts.need(rf"{B}\.mlp\.(?:fc1|weights_in|w12)\.weight", "feed-forward layer")
    fc2 = facts.need(rf"{B}\.mlp\.(?:fc2|weights_out|w3|down_proj)\.weight", "second feed-forward layer")
    hf = facts.transformers(layer_norm_eps=1e-6, hidden_act="gelu", qkv_bias=True)
    if hf is None:
        facts.assume("LayerNorm epsilon 1e-6, as all published DINOv2 have")
        hf = {"layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    if hf["hidden_act"] != "gelu":
        raise ValueError(f"hidden_act {hf['hidden_act']!r} in config.json, expected 'gelu' (DINOv2's)")
    # timm adds the class token's position to the token where there are registers.
    cls_position = int((table[1] - 1) ** 0.5) ** 2 == table[1] - 1
    timm = facts.timm is not None or facts.find("reg_token")
    offset = facts.find("pos_embed") and not timm and not registers  # the authors' own code
    if offset and not facts.find("mask_token"):  # which theirs have, and timm's do not
        facts.assume("position table resampled as in the authors' code for other image sizes; with timm's config.json as in timm")
    return ViTConfig(
        dim=dim,
        depth=hf.get("num_hidden_layers") or facts.layers(B),
        num_heads=facts.heads(dim),
        mlp_dim=fc2[1],
        mlp="swiglu" if gate or fc1[0] == 2 * fc2[1] else "gelu",
        patch_size=facts.need(rf"(?:{PATCH})\.weight", "patch projection")[-1],
        position_grid=square_grid(table[1] - cls_position, table),
        num_registers=registers[1] if registers else 0,
        cls_position=cls_position,
        layer_scale=True,
        qkv_bias=hf.get("qkv_bias", True),
        layer_norm_eps=hf["layer_norm_eps"],
        position_resampling="cubic-antialias" if registers or timm else "cubic-offset" if offset else "cubic",
    )


def preprocessing(facts: Facts, c: ViTConfig) -> Preprocessing:
    """Resize 256, crop 224, for every published size."""
    return Preprocessing((224, 224) if c.patch_size == 14 else (16 * c.patch_size,) * 2, 256)


def to_transformers(c: ViTConfig) -> dict | None:
    """dinov2 or dinov2_with_registers."""
    hidden = int(int(c.dim * 4) * 2 / 3 + 7) // 8 * 8  # the width that transformers computes for SwiGLU
    if not c.layer_scale or c.mlp not in ("gelu", "swiglu") or (c.mlp == "swiglu" and c.mlp_dim != hidden):
        return None
    if c.num_cls != 1 or c.position_grid is None or c.pre_norm or (c.mlp == "gelu" and c.mlp_dim % c.dim):
        return None
    about = {
        "model_type": "dinov2",
        "architectures": ["Dinov2Model"],
        "use_swiglu_ffn": c.mlp == "swiglu",
        "use_mask_token": False,
    }
    if c.num_registers:
        about |= {
            "model_type": "dinov2_with_registers",
            "architectures": ["Dinov2WithRegistersModel"],
            "num_register_tokens": c.num_registers,
        }
    return about | {"mlp_ratio": 4 if c.mlp == "swiglu" else c.mlp_dim // c.dim, "qkv_bias": c.qkv_bias}


FAMILY = Family(
    name="DINOv2",
    model_types=("dinov2", "dinov2_with_registers"),
    recognises=recognises,
    config=config,
    preprocessing=preprocessing,
    rules=RULES,
    to_transformers=to_transformers,
)
