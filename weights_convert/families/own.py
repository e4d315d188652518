"""ViTs of any architecture here, in names of our own: what is written for the hub where no class of transformers computes it."""

from brh_jax.models.vit import ViTConfig
from brh_jax.preprocessing import Preprocessing
from weights_convert.facts import Facts
from weights_convert.families.rules import (
    Family,
    Place,
    first_layer,
    fused_attention,
    linear,
    norm,
    patch_projection,
    single,
    tokens,
    vector,
)

B = r"blocks\.(?P<layer>\d+)"
NAME = "blocks.{layer}"
MODEL_TYPE = "brh_jax_vit"

RULES = (
    tokens("cls_token", "embedding/cls_token", "cls_token"),
    tokens("register_tokens", "embedding/register_tokens", "register_tokens"),
    tokens("cls_position", "embedding/cls_position", "cls_position"),
    single("patch_position", Place("embedding/patch_position"), name="patch_position"),
    *patch_projection(r"patch_embed\.proj", "patch_embed.proj"),
    *norm("pre_norm", "embedding/pre_norm", "pre_norm"),
    *norm(rf"{B}\.norm1", "blocks/norm1", f"{NAME}.norm1"),
    *fused_attention(
        rf"{B}\.attn\.qkv\.weight", rf"{B}\.attn\.qkv\.bias", rf"{B}\.attn\.proj", f"{NAME}.attn.qkv.", f"{NAME}.attn.proj"
    ),
    vector(rf"{B}\.ls1\.gamma", "blocks/ls1/scale", f"{NAME}.ls1.gamma"),
    *norm(rf"{B}\.norm2", "blocks/norm2", f"{NAME}.norm2"),
    *first_layer(rf"{B}\.mlp\.fc1", f"{NAME}.mlp.fc1"),
    *linear(rf"{B}\.mlp\.fc2", "blocks/mlp/fc2", f"{NAME}.mlp.fc2"),
    vector(rf"{B}\.ls2\.gamma", "blocks/ls2/scale", f"{NAME}.ls2.gamma"),
    *norm("norm", "norm", "norm"),
    *linear("classifier", "head", "classifier"),
)


def config(facts: Facts) -> ViTConfig:
    """The architecture stands in the section `brh_jax` of config.json. Raises ValueError where that is gone."""
    raise ValueError("its config.json has no section brh_jax, which holds the architecture: download it again")


def preprocessing(facts: Facts, c: ViTConfig) -> Preprocessing:
    """The preprocessing stands there too. Raises ValueError where that is gone."""
    raise ValueError("its config.json has no section brh_jax, which holds the preprocessing: download it again")


FAMILY = Family(
    name="brh_jax's own",
    model_types=(MODEL_TYPE,),
    recognises=lambda facts: False,
    config=config,
    preprocessing=preprocessing,
    rules=RULES,
    to_transformers=lambda config: {"model_type": MODEL_TYPE, "architectures": ["ViT"]},
)
