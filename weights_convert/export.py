"""Encoders as repositories of the hub: a torch-style state dict in safetensors, config.json, processor, model card.

A ViT is written under the names of the transformers class that computes it, and both transformers and brh_jax load it; where
none does, under names of our own. A Raptor is written under the names of the paper's authors, its teacher's embedding and norm
under `teacher.`. The section `brh_jax` of config.json holds what transformers has no place for. `brh_torch.py` beside them
computes either in PyTorch alone.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from brh_jax.errors import UserError
from brh_jax.models import store
from brh_jax.models.encoder import Encoder, count_params
from brh_jax.models.vit import ViTConfig
from brh_jax.preprocessing import Preprocessing
from brh_jax.types import PathLike
from weights_convert import raptor
from weights_convert.class_names import class_names
from weights_convert.families import FAMILIES, clip, dinov2, dinov3, own, siglip, vit
from weights_convert.families.rules import Family, Rule
from weights_convert.preprocessing import FILTERS
from weights_convert.sources import Source
from weights_convert.table import empty, fill, wanted_shapes

TEACHER = "teacher."
RAPTOR = "raptor"  # model_type
# In the order in which they are asked whether they can express an architecture.
WRITERS = (vit.FAMILY, dinov2.FAMILY, dinov3.FAMILY, clip.FAMILY, siglip.FAMILY)
TORCH = pathlib.Path(__file__).with_name("brh_torch.py")
# Parameters of the PyTorch module, by the leaf that they are; all others have the names of `families.own`.
_TORCH_NAMES = {
    "embedding/cls_token": "embedding.cls_token",
    "embedding/register_tokens": "embedding.register_tokens",
    "embedding/cls_position": "embedding.patch_position",  # one table, class tokens first
    "embedding/patch_position": "embedding.patch_position",
    "embedding/patch/kernel": "embedding.proj.weight",
    "embedding/patch/bias": "embedding.proj.bias",
    "embedding/pre_norm/scale": "embedding.pre_norm.weight",
    "embedding/pre_norm/bias": "embedding.pre_norm.bias",
}


def section(source: Source) -> dict | None:
    """What this module wrote into config.json, or None. Raises UserError where a newer version wrote it."""
    about = (source.hf or {}).get("brh_jax")
    if about is None:
        return None
    version = about.get("version", 0) if isinstance(about, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{source.origin}: the section brh_jax of its config.json cannot be read: download it again")
    if version > store.VERSION:
        raise UserError(f"{source.origin} was written by a newer brh_jax: upgrade brh-jax")
    return about


def is_raptor(source: Source) -> bool:
    """Whether the source is a Raptor written here."""
    return (source.hf or {}).get("model_type") == RAPTOR and section(source) is not None


def vit_config(about: dict) -> ViTConfig:
    """The architecture out of the section."""
    return ViTConfig.read(about["config"])


def preprocessing(about: dict) -> Preprocessing:
    """The preprocessing out of the section."""
    return Preprocessing(**about["preprocessing"])


def write(encoder: Encoder, folder: PathLike, measured: str = "") -> pathlib.Path:
    """Writes an encoder as a repository of the hub, whole or not at all.

    Args:
        measured: a part of the model card, in Markdown: what is known of the model.

    Raises:
        UserError: something else is there, or a Raptor has no embedding.
    """
    family, about = _writer(encoder.config.vit)
    if encoder.config.kind == "vit":
        tensors = _vit_tensors(encoder.params, encoder.config, family)
        about |= {
            "hidden_size": encoder.dim,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.config.num_heads,
            "patch_size": encoder.config.patch_size,
            "image_size": (encoder.config.position_grid or (14, 14))[0] * encoder.config.patch_size,
            "num_channels": encoder.config.channels,
            "layer_norm_eps": encoder.config.layer_norm_eps,
        }
    else:
        if "embedding" not in encoder.params:
            raise UserError(f"{encoder.name} has no embedding and norm: give it its teacher, load(..., teacher=...)")
        tensors = _raptor_tensors(encoder, family)
        about = {"model_type": RAPTOR, "architectures": ["Raptor"]}
    if encoder.head is not None:
        tensors |= {
            "classifier.weight": np.asarray(encoder.head["kernel"]).T,
            "classifier.bias": np.asarray(encoder.head["bias"]),
        }
    if encoder.classes:
        about["id2label"] = {str(output): name for output, name in enumerate(encoder.classes)}
    about["brh_jax"] = {
        "version": store.VERSION,
        "name": encoder.name,
        "head_reads": encoder.head_reads,
        "teacher_family": family.name,
        "config": dataclasses.asdict(encoder.config),
        "preprocessing": dataclasses.asdict(encoder.preprocessing),
        "tensors": _torch_tensors(tensors, encoder.config, family),
    }
    files = {
        "config.json": json.dumps(about, indent=2) + "\n",
        "preprocessor_config.json": json.dumps(_processor(encoder.preprocessing), indent=2) + "\n",
        "README.md": _card(encoder, about, measured),
        TORCH.name: TORCH.read_text(),
    }
    return store.write_folder(folder, tensors, files, metadata={"format": "pt"})


def read_raptor(source: Source, dtype: DTypeLike) -> Encoder:
    """Reads what `write` wrote for a Raptor."""
    about = section(source) or {}
    try:
        return _read_raptor(source, about, dtype)
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{source.origin}: the section brh_jax of its config.json cannot be read ({error!r})") from None


def _read_raptor(source: Source, about: dict, dtype) -> Encoder:
    config: Any = store.config_of(about["config"])
    teacher = config.teacher
    family = FAMILIES[about["teacher_family"]]
    outside = {path: shape for path, shape in wanted_shapes(teacher).items() if not path.startswith("blocks/")}
    names = {name.removeprefix(TEACHER).removeprefix("vision_model."): name for name in source.tensors}
    rules = (*raptor.RULES, *(r for r in family.rules if "(?P<layer>" not in r.pattern))
    rule_config = dataclasses.replace(teacher, mlp=config.mlp, mlp_dim=config.mlp_dim)
    tree, head, _ = fill(
        source,
        names,
        rules,
        outside | raptor.wanted_shapes(config),
        rule_config,
        dtype,
        locate=raptor.locate,
        about=f"a Raptor of {config.partition}",
    )
    reads = about.get("head_reads", "")
    classes = class_names(source, len(head["bias"])) if head else ()
    return Encoder(config, tree, preprocessing(about), name=about["name"], head=head, head_reads=reads, classes=classes)


def _writer(config: ViTConfig) -> tuple[Family, dict]:
    for family in WRITERS:
        if (about := family.to_transformers(config)) is not None and _square(config):
            return family, dict(about)
    return own.FAMILY, dict(own.FAMILY.to_transformers(config) or {})


def _square(config: ViTConfig) -> bool:
    return config.position_grid is None or config.position_grid[0] == config.position_grid[1]


def _vit_tensors(params, config: ViTConfig, family: Family) -> dict[str, np.ndarray]:
    tensors = empty(params, family.rules, config, depth=config.depth, about=family.name)
    # Biases that the family does not have are zeros here; others cannot be expressed.
    for name in [n for n in tensors if n.endswith("patch_embedding.bias") and family is clip.FAMILY]:
        if tensors.pop(name).any():
            raise UserError("CLIP's patch projection has no bias, this model's is not zero: it cannot be written for the hub")
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _raptor_tensors(encoder: Encoder, family: Family) -> dict[str, np.ndarray]:
    config = encoder.config
    rule_config = dataclasses.replace(config.teacher, mlp=config.mlp, mlp_dim=config.mlp_dim)
    blocks = empty(
        {"blocks": encoder.params["blocks"]},
        raptor.RULES,
        rule_config,
        depth=config.partition.k,
        locate=raptor.locate,
        about="a Raptor",
    )
    outside = {key: encoder.params[key] for key in ("embedding", "norm")}
    rules = tuple(r for r in family.rules if "{layer}" not in r.name)
    rest = empty(outside, rules, config.teacher, depth=config.depth, about=family.name)
    tensors = blocks | {f"{TEACHER}{name}": tensor for name, tensor in rest.items()}
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _torch_tensors(tensors: dict, config: Any, family: Family) -> dict[str, list[str]]:
    """Parameter of `brh_torch.py` -> the tensors that make it up, one below the other; `{layer}` is the block's number."""
    names = {place.path: rule.name for rule in (*raptor.RULES, *own.RULES) for place in rule.places} | _TORCH_NAMES
    found: dict[str, list[str]] = {}

    def add(rules: tuple[Rule, ...], prefix: str = "") -> None:
        for rule in rules:
            there = rule.name and f"{prefix}{rule.name.format(layer=0)}" in tensors
            for parameter in dict.fromkeys(names[place.path] for place in rule.places) if there else ():
                found.setdefault(parameter, []).append(f"{prefix}{rule.name}")

    ours = tuple(rule for rule in family.rules if not any(place.path.startswith("head/") for place in rule.places))
    if config.kind == "vit":
        add(tuple(rule for rule in ours if rule.when(config)))
    else:
        add(raptor.RULES)
        add(tuple(rule for rule in ours if "{layer}" not in rule.name), TEACHER)
    return found


def _processor(p: Preprocessing) -> dict:
    """The preprocessing as transformers' processors are configured."""

    def pair(size):
        return {"height": size[0], "width": size[1]}

    size = p.crop if p.resize is None else p.resize
    about = {
        "image_processor_type": "ViTImageProcessor" if p.resize is None else "BitImageProcessor",
        "do_resize": True,
        "size": pair(size) if isinstance(size, tuple) else {"shortest_edge": size},
        "resample": next(number for number, name in FILTERS.items() if name == p.interpolation),
        "do_center_crop": p.resize is not None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(p.mean),
        "image_std": list(p.std),
    }
    return about | ({"crop_size": pair(p.crop)} if p.resize is not None else {})


def _card(encoder: Encoder, about: dict, measured: str) -> str:
    """The model card."""
    c = encoder.config
    if c.kind == "vit":
        what = f"A vision transformer: {c.depth} layers, width {c.dim}, {c.num_heads} heads, patches of {c.patch_size} pixels."
        also = f"It is also a `{about['architectures'][0]}` of transformers: `AutoModel.from_pretrained(name)`.\n\n"
        also = "" if about["model_type"] == own.MODEL_TYPE else also
    else:
        what = (
            f"A Raptor: {c.partition.k} shared blocks that stand for the {c.depth} layers {c.partition} of a vision transformer "
            f"of width {c.dim} (*Block-Recurrent Dynamics in Vision Transformers*, arXiv 2512.19941). The patch embedding and "
            "the final norm are its teacher's."
        )
        also = ""
    height, width = encoder.preprocessing.crop
    measured = measured and f"{measured}\n\n## Licence\n\n"
    tags = "block-recurrence\n- vision-transformer\n- jax"
    return f"""---
library_name: brh_jax
pipeline_tag: image-feature-extraction
tags:
- {tags}
---

# {encoder.name}

{what} {count_params(encoder.params):,} parameters. Images of {height} x {width} pixels.

```python
import brh_jax

encoder = brh_jax.load("hf:ORGANISATION/NAME")  # or the path of this folder
states = encoder.trajectory(encoder.preprocess([image]))  # [depth + 1, batch, tokens, dim]
```

In PyTorch, without JAX: `brh_torch.py` in this folder holds the module, `load` in it reads the weights beside it.

```python
from brh_torch import load

states = load()(images)  # normalised [batch, channels, height, width] -> [depth + 1, batch, tokens, dim]
```

{also}{measured}The weights are those of the model that this was converted or distilled from, and so is their licence: name it
here before you publish them.
"""
