"""CLIP's vision tower: transformers, open_clip (and OpenAI's names), timm. A norm before the first block, no patch bias."""

from brh_jax.models.vit import ViTConfig
from brh_jax.preprocessing import Preprocessing
from weights_convert.facts import Facts, square_grid
from weights_convert.families.rules import (
    Family,
    Place,
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
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# transformers: encoder.layers.N; open_clip: transformer.resblocks.N; timm: blocks.N
B = r"(?:encoder\.layers|transformer\.resblocks|blocks)\.(?P<layer>\d+)"
HF = "vision_model.encoder.layers.{layer}"
CLS = r"(?:embeddings\.)?class_embedding|cls_token"
POSITION = r"embeddings\.position_embedding\.weight|positional_embedding|pos_embed"
PATCH = r"embeddings\.patch_embedding|conv1|patch_embed\.proj"
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}  # transformers' names
# timm's tags of weights that were trained with quick GELU.
QUICK_TAGS = ("openai", "dfn", "metaclip")

RULES = (
    tokens(CLS, "embedding/cls_token", "vision_model.embeddings.class_embedding")._replace(
        join=lambda parts, c: parts[0].reshape(-1)
    ),
    position_table(POSITION, "vision_model.embeddings.position_embedding.weight", batched=False),
    *patch_projection(PATCH, "vision_model.embeddings.patch_embedding"),
    *norm(r"pre_layrnorm|ln_pre|norm_pre", "embedding/pre_norm", "vision_model.pre_layrnorm"),
    *norm(rf"{B}\.(?:layer_norm1|ln_1|norm1)", "blocks/norm1", f"{HF}.layer_norm1"),
    *attention(
        tuple(rf"{B}\.self_attn\.{part}_proj" for part in "qkv"),
        rf"{B}\.self_attn\.out_proj",
        tuple(f"{HF}.self_attn.{part}_proj" for part in "qkv"),
        f"{HF}.self_attn.out_proj",
    ),
    *fused_attention(
        rf"{B}\.attn\.(?:in_proj_weight|qkv\.weight)", rf"{B}\.attn\.(?:in_proj_bias|qkv\.bias)", rf"{B}\.attn\.(?:out_proj|proj)"
    ),
    *norm(rf"{B}\.(?:layer_norm2|ln_2|norm2)", "blocks/norm2", f"{HF}.layer_norm2"),
    *first_layer(rf"{B}\.mlp\.(?:fc1|c_fc)", f"{HF}.mlp.fc1"),
    *linear(rf"{B}\.mlp\.(?:fc2|c_proj)", "blocks/mlp/fc2", f"{HF}.mlp.fc2"),
    *norm(r"post_layernorm|ln_post|norm", "norm", "vision_model.post_layernorm"),
    *linear("classifier", "head"),
    unused(r"embeddings\.position_ids", "the numbers 0, 1, 2, ..."),
    unused(
        r"proj|head\.(?:weight|bias)", "on the class token alone: the projection to the space shared with text, or a classifier"
    ),
)


def recognises(facts: Facts) -> bool:
    """The norm before the first block."""
    return facts.find(r"(?:pre_layrnorm|ln_pre|norm_pre)\.weight") is not None


def config(facts: Facts) -> ViTConfig:
    """The architecture."""
    dim = facts.need(CLS, "class token")[-1]
    table = facts.need(POSITION, "position table")
    fc1 = facts.need(rf"{B}\.mlp\.(?:fc1|c_fc)\.weight", "feed-forward layer")
    hf = facts.transformers(layer_norm_eps=1e-5, hidden_act="quick_gelu")
    resampling = "cubic"
    if hf is not None:
        mlp, epsilon = activation(hf), hf["layer_norm_eps"]
    else:
        mlp, epsilon, resampling = _without_transformers(facts), 1e-5, "cubic-antialias"
    return ViTConfig(
        dim=dim,
        depth=(hf or {}).get("num_hidden_layers") or facts.layers(B),
        num_heads=facts.heads(dim),
        mlp_dim=fc1[0],
        mlp=mlp,
        patch_size=facts.need(rf"(?:{PATCH})\.weight", "patch projection")[-1],
        position_grid=square_grid(table[-2] - 1, table),
        pre_norm=True,
        layer_norm_eps=epsilon,
        position_resampling=resampling,
    )


def activation(hf: dict) -> str:
    """Ours for transformers' `hidden_act`."""
    if hf["hidden_act"] not in ACTIVATIONS:
        raise ValueError(f"hidden_act {hf['hidden_act']!r} in config.json, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[hf["hidden_act"]]


def _without_transformers(facts: Facts) -> str:
    """The activation, which no tensor tells."""
    if facts.open_clip is not None:
        cfg = facts.open_clip.get("model_cfg") or {}
        return "quick_gelu" if cfg.get("quick_gelu") else "gelu"
    if facts.timm is not None:
        given = (facts.timm.get("model_args") or {}).get("act_layer")
        if given == "quick_gelu" or "quickgelu" in facts.architecture:
            return "quick_gelu"
        tag = str((facts.timm.get("pretrained_cfg") or {}).get("tag", ""))
        if tag.startswith(QUICK_TAGS) and "_ft_" not in tag:
            facts.assume(f"exact GELU, as timm's {facts.architecture} has; {tag} was trained with quick GELU")
        return "gelu"
    if facts.find("norm_pre.weight"):
        facts.assume("exact GELU, as timm's models have unless their name says quickgelu (no config.json)")
        return "gelu"
    facts.assume("quick GELU, as OpenAI's models have (no open_clip_config.json; LAION's have the exact one)")
    return "quick_gelu"


def zeros(facts: Facts, c: ViTConfig):
    """The patch projection has no bias."""
    return () if facts.find(rf"(?:{PATCH})\.bias") else (Place("embedding/patch/bias"),)


def preprocessing(facts: Facts, c: ViTConfig) -> Preprocessing:
    """Resized and cropped to the table's size, with OpenAI's mean and deviation."""
    size = table_size(c)
    return Preprocessing(size, min(size), MEAN, STD)


def to_transformers(c: ViTConfig) -> dict | None:
    """clip_vision_model."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    if not c.pre_norm or c.mlp not in names or c.num_cls != 1 or c.position_grid is None or not c.qkv_bias:
        return None
    if c.num_registers or c.layer_scale:
        return None
    return {
        "model_type": "clip_vision_model",
        "architectures": ["CLIPVisionModel"],
        "intermediate_size": c.mlp_dim,
        "hidden_act": names[c.mlp],
    }


FAMILY = Family(
    name="CLIP",
    model_types=("clip", "clip_vision_model"),
    recognises=recognises,
    config=config,
    preprocessing=preprocessing,
    rules=RULES,
    zeros=zeros,
    to_transformers=to_transformers,
)
