"""The conversion: family and architecture are found, every tensor goes through its one rule, every place is filled once."""

import dataclasses
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from brh_jax.data.transforms import Preprocessing
from brh_jax.errors import UserError
from brh_jax.models import registry
from brh_jax.models.encoder import Encoder
from brh_jax.models.vit import ViT, ViTConfig
from weights_convert.families import FAMILIES
from weights_convert.families.rules import Family
from weights_convert.sources import Source, open_source


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
        """For people."""
        c, layout = encoder.config, encoder.layout
        height, width = encoder.preprocessing.crop
        yield f"{self.source}: {self.family} ({self.format}), {self.tensors} tensors"
        yield f"  {c.depth} layers, dim {c.dim}, {c.num_heads} heads, patch {c.patch_size}, {c.mlp} of width {c.mlp_dim}"
        yield (
            f"  at {height} x {width}: {layout.num_cls} cls + {layout.num_registers} registers + "
            f"{layout.grid[0]} x {layout.grid[1]} patches"
        )
        for why in dict.fromkeys(self.unused.values()):
            names = [n for n, w in self.unused.items() if w == why]
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            yield f"  left out: {shown} ({why})"
        for what in self.assumed:
            yield f"  assumed: {what}"


def convert(spec: str, *, arch: str = "", image_size=None, dtype=jnp.float32) -> tuple[Encoder, Report]:
    """Reads weights of any known family into an Encoder.

    Args:
        spec: see `sources.open_source`.
        arch: a registry name that the weights must be of; empty to take what comes.
        image_size: int or (height, width) that the encoder is used at; the source's own by default.
        dtype: of the parameters.

    Raises:
        UserError: weights that cannot be read, of no known family, of another architecture, or with missing, surplus,
            misshapen or non-finite tensors; all faults of the table in one message.
    """
    source = open_source(spec)
    prefix, names, outside = _strip_prefix(source)
    family = _family(source, names)
    shapes = {short: np.shape(source.readers[full]()) for short, full in names.items()}
    try:
        config, assumed = family.config(shapes, source.config)
    except (ValueError, KeyError) as error:
        raise UserError(f"{spec} is not a {family.name} that can be read: {error}") from None
    if arch:
        _check_architecture(spec, config, arch)
    params, head, unused = _fill(source, family, config, names, dtype)
    unused |= {name: f"outside {prefix!r}, where the ViT is" for name in outside}

    preprocessing, note = _preprocessing(source, family, config, names)
    encoder = Encoder(config, params, preprocessing, name=_name(spec), head=head)
    if image_size is not None:
        encoder = encoder.at_size(image_size)
    report = Report(str(spec), source.format, family.name, len(names), unused, assumed + note)
    return encoder, report


def _strip_prefix(source: Source):
    """Names relative to the module that holds the ViT, found by its class token; tensors of other modules apart."""
    anchors = [n for n in source.readers if n.endswith("cls_token")]
    if len(anchors) != 1:
        some = ", ".join(list(source.readers)[:5])
        found = f"{len(anchors)} tensors named cls_token" if anchors else "no tensor named cls_token"
        raise UserError(
            f"{source.origin} holds no ViT that is known here: {found} among {len(source.readers)} ({some}, ...); "
            f"known families are {', '.join(FAMILIES)}"
        )
    prefix = anchors[0].removesuffix("cls_token").removesuffix("embeddings.")
    inside = {n.removeprefix(prefix): n for n in source.readers if n.startswith(prefix)}
    outside = [n for n in source.readers if not n.startswith(prefix)]
    # Classifiers lie beside the ViT, not inside it: vit.layernorm.weight, classifier.weight.
    for name in [n for n in outside if n.split(".")[0] in ("classifier", "cls_classifier", "distillation_classifier")]:
        outside.remove(name)
        inside[name] = name
    return prefix, inside, outside


def _family(source: Source, names) -> Family:
    model_type = (source.config or {}).get("model_type")
    for family in FAMILIES.values():
        if model_type in family.model_types or (model_type is None and family.recognises(set(names))):
            return family
    what = f"model_type {model_type!r}" if model_type else "its tensor names"
    raise UserError(f"{source.origin}: {what} is of no family known here; known are {', '.join(FAMILIES)}")


def _check_architecture(spec, config: ViTConfig, arch: str):
    faults = registry.differences(config, registry.architecture(arch).config)
    if faults:
        raise UserError(
            f"{spec} is not {arch}: {'; '.join(faults)}. Give the weights of {arch}, or the name of their architecture"
        )


def _fill(source: Source, family: Family, config: ViTConfig, names, dtype):
    """The parameter tree, the head or None, and the tensors left out on purpose."""
    p = config.patch_size
    image = jax.ShapeDtypeStruct((1, p, p, config.channels), jnp.float32)
    wanted = jax.eval_shape(ViT(config).init, jax.random.key(0), image)["params"]
    wanted = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(wanted, sep="/").items()}
    leaves = {path: np.empty(shape, dtype) for path, shape in wanted.items()}
    filled = {path: np.zeros(shape, bool) for path, shape in wanted.items()}
    faults, unused, head = [], {}, {}

    for short, full in names.items():
        matches = [(rule, m) for rule in family.rules if (m := rule.match(short))]
        if len(matches) != 1:
            faults.append(f"surplus: {full}" if not matches else f"fits {len(matches)} rules: {full}")
            continue
        rule, match = matches[0]
        if not rule.targets:
            unused[full] = rule.why
            continue
        array = source.readers[full]()
        if not np.isfinite(array).all():
            faults.append(f"not finite: {full} holds NaN or infinity")
        for target in rule.targets:
            if target.path.startswith("head/"):
                name = target.path.removeprefix("head/")
                if name in head:
                    faults.append(f"twice: {full} is a second {name} of the classifier")
                head[name] = np.asarray(target.transform(array, config), dtype)
                continue
            index = target.index
            if target.path.startswith("blocks/"):
                index = (int(match["layer"]), *index)
            try:
                place = leaves[target.path][index]
                value = target.transform(array, config)
            except (KeyError, IndexError, ValueError):
                faults.append(f"surplus: {full} {array.shape} has no place in {_describe(config)}")
                continue
            if value.shape != place.shape:
                faults.append(f"shape: {full} {array.shape} gives {value.shape}, {target.path} takes {place.shape}")
                continue
            if filled[target.path][index].any():
                faults.append(f"twice: {full} fills a part of {target.path} that another tensor has filled")
                continue
            leaves[target.path][index] = value
            filled[target.path][index] = True
    for path, mask in filled.items():
        if not mask.all():
            open_places = f", {mask.size - mask.sum()} of {mask.size} values unfilled" if mask.any() else ""
            faults.append(f"missing: {path} {wanted[path]}{open_places}")
    if head and set(head) != {"kernel", "bias"}:
        faults.append(f"missing: {'bias' if 'kernel' in head else 'weight'} of the classifier")
    if faults:
        listed = "\n  ".join(faults[:40] + ([f"... and {len(faults) - 40} more"] if len(faults) > 40 else []))
        raise UserError(
            f"{source.origin} does not convert as {family.name} ({_describe(config)}); nothing was written. "
            f"{len(faults)} faults:\n  {listed}"
        )
    params = traverse_util.unflatten_dict({path: jnp.asarray(leaf) for path, leaf in leaves.items()}, sep="/")
    return params, {k: jnp.asarray(v) for k, v in head.items()} or None, unused


def _describe(config: ViTConfig) -> str:
    return f"{config.depth} layers, dim {config.dim}, {config.num_heads} heads, patch {config.patch_size}"


def _preprocessing(source: Source, family: Family, config: ViTConfig, names) -> tuple[Preprocessing, list[str]]:
    """From preprocessor_config.json; the family's default, said aloud, where there is none."""
    default = family.preprocessing(config, names)
    p = source.preprocessor
    if p is None:
        how = json.dumps(dataclasses.asdict(default))
        return default, [f"preprocessing {how} (no preprocessor_config.json)"]

    def pair(size):
        if isinstance(size, int):
            return size, size
        try:
            return (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],) * 2
        except (KeyError, TypeError):
            raise UserError(
                f"{source.origin}: preprocessor_config.json gives the size {size}, expected height and width or shortest_edge"
            ) from None

    size = p.get("size", default.resize or default.crop[0])
    crop, resize = pair(size), None
    if p.get("do_center_crop", "crop_size" in p):
        resize, crop = min(crop), pair(p.get("crop_size", size))
    return Preprocessing(
        crop,
        resize,
        tuple(p.get("image_mean", default.mean)),
        tuple(p.get("image_std", default.std)),
        {2: "bilinear", 3: "bicubic"}.get(p.get("resample"), default.interpolation),
    ), []


def _name(spec: str) -> str:
    name = spec.removeprefix("hf:").rstrip("/").split("/")[-1].partition("@")[0]
    return name.removesuffix(".safetensors").removesuffix(".onnx").removesuffix(".pth")
