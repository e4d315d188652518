"""The conversion: family and architecture are found, every tensor goes through its one rule, every place is filled once."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from brh_jax.errors import UserError
from brh_jax.models import registry
from brh_jax.models.encoder import Encoder, count_params
from brh_jax.models.vit import ViTConfig
from brh_jax.partition import Partition
from brh_jax.types import Size
from weights_convert import export, raptor
from weights_convert.class_names import class_names
from weights_convert.facts import Facts
from weights_convert.families import FAMILIES
from weights_convert.families.rules import Family
from weights_convert.preprocessing import preprocessing_of
from weights_convert.sources import Source, open_source
from weights_convert.table import fill, wanted_shapes
from weights_convert.tensors import floats

# The patch projection: what every ViT has, and where its names begin.
ANCHOR = (
    r"(?P<prefix>(?:.*\.)?)"
    r"(?:embeddings\.patch_embeddings(?:\.projection)?|embeddings\.patch_embedding|patch_embed\.proj|conv1)\.weight"
)
# timm's architectures whose tensors look like those of a family known here, and that compute something else.
OTHERS = r"rope|eva|beit|_pe_|ijepa|intern|naflex|aimv2|xcit|cait|swin|test_vit"
CLASSIFIERS = ("classifier", "cls_classifier", "distillation_classifier")  # beside the ViT, not inside it


# What comes of a configuration whose values are of another kind than expected.
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


class Report(NamedTuple):
    """What a conversion found.

    Attributes:
        source, format, family: where the weights came from.
        tensors: how many source tensors were used.
        unused: names that were recognised and left out, with the reason.
        assumed: what the source does not say and was taken as published.
    """

    source: str
    format: str
    family: str
    tensors: int
    unused: dict[str, str]
    assumed: list[str]

    def lines(self, encoder: Encoder) -> list[str]:
        """What was found, a line each, for people."""
        c, layout = encoder.config, encoder.layout
        height, width = encoder.preprocessing.crop
        vit = c.vit
        position = "rotary positions" if vit.rope_periods else f"positions {' x '.join(map(str, vit.position_grid or ()))}"
        lines = [
            f"{self.source}: {self.family} ({self.format}), {self.tensors} tensors, {count_params(encoder.params):,} parameters",
            f"  {c.depth} layers{'' if c is vit else f' as {c.partition}'}, dim {c.dim}, {vit.num_heads} heads, "
            f"patch {vit.patch_size}, {c.mlp} of width {c.mlp_dim}, {position}",
            f"  at {height} x {width}: {layout.num_cls} cls + {layout.num_registers} registers + "
            f"{layout.grid[0]} x {layout.grid[1]} patches = {layout.num_tokens} tokens",
        ]
        for why in dict.fromkeys(self.unused.values()):
            names = [n for n, w in self.unused.items() if w == why]
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            lines.append(f"  left out: {shown} ({why})")
        return lines + [f"  assumed: {what}" for what in self.assumed]


def convert(
    spec: str,
    *,
    arch: str = "",
    image_size: Size | None = None,
    dtype: DTypeLike = jnp.float32,
    num_heads: int | None = None,
    partition: Partition | Sequence[int] | None = None,
    teacher: Encoder | None = None,
) -> tuple[Encoder, Report]:
    """Reads weights of any known family, or a Raptor, into an Encoder.

    Args:
        spec: see `sources.open_source`.
        arch: a registry name that the weights must be of; empty to take what comes.
        image_size: int or (height, width) that the encoder is used at; the source's own by default.
        dtype: of the parameters.
        num_heads: attention heads, where the source cannot tell and published models of its width have others.
        partition: of a Raptor's bare state dict, phase lengths or a Partition, where its file name does not tell.
        teacher: of a Raptor's bare state dict, the ViT that it was distilled from.

    Raises:
        UserError: weights that cannot be read, of no known family, of another architecture, or with missing, surplus,
            misshapen or non-finite tensors; all faults of the table in one message.
    """
    if num_heads is not None and num_heads < 1:
        raise UserError(f"num_heads is {num_heads}: expected 1 or more")
    source = open_source(spec)
    exported, bare = export.is_raptor(source), raptor.recognises(source)
    if arch and (exported or bare):
        raise UserError(f"{spec} is a Raptor, so it is not {arch}: leave that out, it says what a ViT must be")
    if not bare and (teacher is not None or partition is not None):
        raise UserError(f"{spec} is no bare state dict of a Raptor, so it takes no partition and no teacher: leave them out")
    unused: dict[str, str] = {}
    assumed: list[str] = []
    if exported:
        encoder, family = export.read_raptor(source, dtype), "Raptor"
    elif bare:
        try:
            encoder, assumed = raptor.read(source, partition, num_heads, dtype)
        except UserError:
            raise
        except UNREADABLE as error:
            raise UserError(f"{source.origin} is not a Raptor that can be read: {_words(error)}") from None
        family = "Raptor state dict"
        if teacher is not None:
            encoder, assumed = raptor.with_teacher(encoder, teacher), [a for a in assumed if "teacher=" not in a]
    else:
        encoder, family, unused, assumed = _convert_vit(source, arch, dtype, num_heads)
    if image_size is not None:
        encoder = encoder.at_size(image_size)
    used, assumed = len(source.tensors) - len(unused), [*source.notes, *assumed]
    return encoder, Report(str(spec), _format(source), family, used, unused, assumed)


def _convert_vit(source: Source, arch, dtype, num_heads):
    prefix, names, outside = strip_prefix(source)
    facts = Facts(
        {short: source.tensors[full].shape for short, full in names.items()},
        lambda short: _numbers(source, names[short]),
        source.origin,
        prefix,
        _vision_config(source.hf),
        source.timm,
        source.open_clip,
        num_heads,
    )
    family, about = _family(source, facts), export.section(source)
    try:
        config = export.vit_config(about) if about else family.config(facts)
        zeros = family.zeros(facts, config)
    except UNREADABLE as error:
        raise UserError(f"{source.origin} is not a {family.name} that can be read: {_words(error)}") from None
    if arch:
        registry.check_architecture(source.origin, config, arch)
    shapes = wanted_shapes(config)
    tree, head, unused = fill(
        source,
        names,
        family.rules,
        shapes,
        config,
        dtype,
        zeros,
        about=family.name,
        contradictions=_contradictions(facts, config),
    )
    unused |= {name: f"outside {prefix!r}, where the ViT is" for name in outside}
    try:
        preprocessing = export.preprocessing(about) if about else preprocessing_of(source, facts, family, config)
    except UNREADABLE as error:
        what = f"its preprocessing cannot be read ({_words(error)}): mend the configuration beside the weights"
        raise UserError(f"{source.origin}: {what}") from None
    name = str(about.get("name")) if about else _name(source.origin)
    # timm says what its classifiers read where that is not the class token; other layouts' widths tell.
    pooled = (source.timm or {}).get("global_pool") or ((source.timm or {}).get("model_args") or {}).get("global_pool")
    reads = about.get("head_reads", "") if about else {"token": "cls", "avg": "patches"}.get(str(pooled), "")
    encoder = Encoder(config, tree, preprocessing, name=name)
    if head is not None:
        encoder = encoder.replace(head=head, head_reads=reads, classes=class_names(source, len(head["bias"])))
    return encoder, family.name, unused, facts.assumed


def _numbers(source: Source, name: str) -> np.ndarray:
    """A tensor that the architecture depends on. Raises ValueError where it holds no finite floats."""
    array, fault = floats(source.tensors[name], np.float64)
    if fault:
        raise ValueError(f"{name} {fault.what}")
    return array


def _words(error: Exception) -> str:
    """An error as the end of a sentence: those of Python's own say little without their kind."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _format(source: Source) -> str:
    library = "brh_jax" if export.section(source) else None
    for name, there in (("transformers", source.hf), ("timm", source.timm), ("open_clip", source.open_clip)):
        library = library or (name if there else None)
    return f"{source.format}, {library or 'no configuration'}"


def strip_prefix(source: Source):
    """Names relative to the module that holds the ViT, found by its patch projection; tensors of other modules apart."""
    anchors = {m["prefix"]: name for name in source.tensors if (m := re.fullmatch(ANCHOR, name))}
    if len(anchors) != 1:
        some = ", ".join(list(source.tensors)[:5])
        found = f"{len(anchors)} patch projections ({', '.join(anchors.values())})" if anchors else "no patch projection"
        kind = f", model_type {source.hf['model_type']!r}," if source.hf else ""
        raise UserError(
            f"{source.origin}{kind} holds no ViT that is known here: {found} among {len(source.tensors)} tensors ({some}, ...); "
            f"known families are {', '.join(FAMILIES)}"
        )
    prefix = next(iter(anchors))
    inside = {n.removeprefix(prefix): n for n in source.tensors if n.startswith(prefix)}
    outside = [n for n in source.tensors if not n.startswith(prefix)]
    for name in [n for n in outside if n.split(".")[0] in CLASSIFIERS]:
        outside.remove(name)
        inside[name] = name
    return prefix, inside, outside


def _vision_config(hf: dict | None) -> dict | None:
    """The vision tower's part of a configuration, under the whole model's type."""
    if hf is None or not isinstance(hf.get("vision_config"), dict):
        return hf
    return hf["vision_config"] | {"model_type": hf["model_type"]}


def _family(source: Source, facts: Facts) -> Family:
    model_type = (facts.hf or {}).get("model_type")
    try:
        architecture = facts.architecture
    except ValueError as error:
        raise UserError(f"{source.origin}: {error}") from None
    if re.search(OTHERS, architecture):
        raise UserError(
            f"{source.origin}: timm's {architecture} is of no family known here, though it may look like one; known are "
            + ", ".join(FAMILIES)
        )
    for family in FAMILIES.values():
        if model_type in family.model_types or (model_type is None and family.recognises(facts)):
            return family
    what = f"model_type {model_type!r}" if model_type else "its tensor names"
    some = "" if model_type else f" ({', '.join(list(facts.shapes)[:5])}, ...)"
    raise UserError(f"{source.origin}: {what}{some} is of no family known here; known are {', '.join(FAMILIES)}")


def _contradictions(facts: Facts, config: ViTConfig) -> list[str]:
    """Where config.json and the tensors' shapes do not agree."""
    hf = facts.hf or {}
    found = {"hidden_size": config.dim, "patch_size": config.patch_size, "intermediate_size": config.mlp_dim}
    return [
        f"config.json says {key} {hf[key]}, the tensors have {value}"
        for key, value in found.items()
        if isinstance(hf.get(key), int) and hf[key] != value and not (key == "intermediate_size" and "mlp_ratio" in hf)
    ]


def _name(origin: str) -> str:
    name = origin.removeprefix("hf:").rstrip("/").split("/")[-1].partition("@")[0]
    return re.sub(r"\.(safetensors|onnx|pth|pt|bin)$", "", name)
