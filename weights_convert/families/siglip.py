"""SigLIP's and SigLIP 2's vision tower: transformers and timm (also inside open_clip). No class token.

Features are means over patches here; the attention pooling of the source is not part of the trajectory and is left out.
"""

import re

from brh_jax.models.vit import ViTConfig
from brh_jax.preprocessing import Preprocessing
from weights_convert.facts import Facts, square_grid
from weights_convert.families.clip import ACTIVATIONS, activation
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
    unused,
)

# transformers: encoder.layers.N; timm: blocks.N
B = r"(?:encoder\.layers|blocks)\.(?P<layer>\d+)"
HF = "vision_model.encoder.layers.{layer}"
POSITION = r"embeddings\.position_embedding\.weight|pos_embed"
PATCH = r"embeddings\.patch_embedding|patch_embed\.proj"
HEAD_WIDTHS = {1536: 96}  # giant-opt
POOLING = "attention pooling, after the trajectory: features are means over patches"

RULES = (
    position_table(POSITION, "vision_model.embeddings.position_embedding.weight", batched=False),
    *patch_projection(PATCH, "vision_model.embeddings.patch_embedding"),
    *norm(rf"{B}\.(?:layer_norm1|norm1)", "blocks/norm1", f"{HF}.layer_norm1"),
    *attention(
        tuple(rf"{B}\.self_attn\.{part}_proj" for part in "qkv"),
        rf"{B}\.self_attn\.out_proj",
        tuple(f"{HF}.self_attn.{part}_proj" for part in "qkv"),
        f"{HF}.self_attn.out_proj",
    ),
    *fused_attention(rf"{B}\.attn\.qkv\.weight", rf"{B}\.attn\.qkv\.bias", rf"{B}\.attn\.proj"),
    *norm(rf"{B}\.(?:layer_norm2|norm2)", "blocks/norm2", f"{HF}.layer_norm2"),
    *first_layer(rf"{B}\.mlp\.fc1", f"{HF}.mlp.fc1"),
    *linear(rf"{B}\.mlp\.fc2", "blocks/mlp/fc2", f"{HF}.mlp.fc2"),
    *norm(r"post_layernorm|norm", "norm", "vision_model.post_layernorm"),
    *linear("classifier", "head"),
    unused(r"embeddings\.position_ids", "the numbers 0, 1, 2, ..."),
    unused(r"(?:head|attn_pool)\..*", POOLING),
)


def recognises(facts: Facts) -> bool:
    """Blocks and a position table, and no class token."""
    named = "siglip" in facts.architecture or "siglip" in facts.origin.lower()
    return (
        facts.find(rf"{B}\.(?:layer_norm1|norm1)\.weight") is not None
        and facts.find(POSITION) is not None
        and facts.find(r".*(?:cls_token|class_embedding|reg_token)") is None
        and (named or facts.find(r"attn_pool\.latent|head\.probe|embeddings\.patch_embedding\.weight") is not None)
    )


def config(facts: Facts) -> ViTConfig:
    """The architecture."""
    table = facts.need(POSITION, "position table")
    patch = facts.need(rf"(?:{PATCH})\.weight", "patch projection")
    fc1 = facts.need(rf"{B}\.mlp\.fc1\.weight", "feed-forward layer")
    hf = facts.transformers(layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh", num_channels=3)
    resampling, channels = "cubic", 3
    if hf is not None:
        mlp, epsilon, channels = activation(hf), hf["layer_norm_eps"], hf["num_channels"]
    else:
        mlp, epsilon, resampling = _activation(facts), 1e-6, "cubic-antialias"
    if len(patch) == 2:  # SigLIP 2 of any aspect ratio projects flattened patches
        patch_size, resampling = round((patch[1] / channels) ** 0.5), "linear-antialias"
    else:
        patch_size = patch[-1]
    return ViTConfig(
        dim=table[-1],
        depth=(hf or {}).get("num_hidden_layers") or facts.layers(B),
        num_heads=facts.heads(table[-1], HEAD_WIDTHS),
        mlp_dim=fc1[0],
        mlp=mlp,
        patch_size=patch_size,
        position_grid=square_grid(table[-2], table),
        num_cls=0,
        layer_norm_eps=epsilon,
        drop_remainder=facts.image_size() % patch_size != 0,
        position_resampling=resampling,
    )


def _activation(facts: Facts) -> str:
    """timm has the exact GELU for the first SigLIPs, and the tanh form for the sizes that came with SigLIP 2."""
    given = ((facts.timm or {}).get("model_args") or {}).get("act_layer")
    if given is not None:
        return {"gelu": "gelu", "gelu_tanh": "gelu_tanh"}[given]
    name = facts.architecture
    if not name:
        facts.assume("the tanh form of GELU, as SigLIP was trained with (no config.json)")
        return "gelu_tanh"
    newer = r"base_patch32|large_patch16_siglip(?:_gap)?_512|so400m_patch16|giantopt"
    return "gelu_tanh" if re.search(newer, name) else "gelu"


def preprocessing(facts: Facts, c: ViTConfig) -> Preprocessing:
    """Stretched to the table's size."""
    size = table_size(c)
    return Preprocessing(size, None, (0.5,) * 3, (0.5,) * 3)


def to_transformers(c: ViTConfig) -> dict | None:
    """siglip_vision_model, without its pooling."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    if c.num_cls or c.num_registers or c.mlp not in names or c.position_grid is None or c.pre_norm or not c.qkv_bias:
        return None
    if c.layer_scale:
        return None
    return {
        "model_type": "siglip_vision_model",
        "architectures": ["SiglipVisionModel"],
        "intermediate_size": c.mlp_dim,
        "hidden_act": names[c.mlp],
        "vision_use_head": False,
    }


FAMILY = Family(
    name="SigLIP",
    model_types=("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"),
    recognises=recognises,
    config=config,
    preprocessing=preprocessing,
    rules=RULES,
    to_transformers=to_transformers,
)
