"""A table applied: from named tensors to a parameter tree that is filled whole and once, and back."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from brh_jax.errors import UserError
from brh_jax.models.encoder import param_shapes
from brh_jax.models.vit import ViT, ViTConfig
from weights_convert.families.rules import Place, Rule
from weights_convert.sources import Source
from weights_convert.tensors import floats

Locate = Callable[[Place, Any], tuple[str, tuple]]  # a rule's place and what it matched -> path of a leaf, index into it


def wanted_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by path."""
    p = config.patch_size
    image = jax.ShapeDtypeStruct((1, p, p, config.channels), jnp.float32)
    return param_shapes(ViT(config), image)


def fill(
    source: Source,
    names: Mapping[str, str],
    rules: Sequence[Rule],
    wanted: Mapping[str, tuple[int, ...]],
    config: ViTConfig,
    dtype: DTypeLike,
    zeros: Sequence[Place] = (),
    *,
    locate: Locate | None = None,
    about: str = "",
    contradictions: Sequence[str] = (),
) -> tuple[dict, dict | None, dict[str, str]]:
    """Takes every tensor through its one rule; every place is filled once.

    One tensor is in memory at a time, beside the parameters themselves.

    Args:
        names: the name that rules know -> name in the source.
        wanted: shape by path.
        config: what the rules' transforms ask for heads, patch size and MLP.
        zeros: places that the family does not have.
        locate: `(place, match) -> (path, index)`; by default those under `blocks` get the layer as first index.
        about: the family, for messages.
        contradictions: faults found before.

    Returns:
        The parameter tree, the classifier or None, and the names left out with the reason.

    Raises:
        UserError: all faults in one message.
    """
    locate = locate or _stacked
    _expect_enough(source, names, wanted, config, about)
    leaves = {path: np.zeros(shape, dtype) for path, shape in wanted.items()}
    filled = {path: np.zeros(shape, bool) for path, shape in wanted.items()}
    faults, unused, head = Faults(), {}, {}
    for path, index in zeros:
        filled[path][(slice(None), *index) if path.startswith("blocks/") else index] = True

    for short, full in names.items():
        matches = [(rule, m) for rule in rules if rule.when(config) and (m := rule.match(short))]
        if len(matches) != 1:
            faults.add("surplus" if not matches else f"fits {len(matches)} rules", full)
            continue
        rule, match = matches[0]
        if not rule.places:
            unused[full] = rule.why
            continue
        try:
            array, fault = floats(source.tensors[full], dtype)
        except Exception as error:
            raise UserError(f"{source.origin}: {full} cannot be read ({error}): the file is damaged, download it again") from None
        if fault:
            faults.add(fault.kind, full, fault.what)
        try:
            parts = rule.split(array, config)
        except (ValueError, IndexError, TypeError):
            faults.add("shape", full, f"{array.shape} does not fit {describe(config)}")
            continue
        for place, value in zip(rule.places, parts, strict=True):
            if place.path.startswith("head/"):
                name = place.path.removeprefix("head/")
                if name in head:
                    faults.add("twice", full, f"is a second {name} of the classifier")
                head[name] = value
            elif value.size:
                path, index = locate(place, match)
                _put(faults, leaves, filled, path, index, full, array, value, config)
    for path, mask in filled.items():
        if not mask.all():
            open_places = f", {mask.size - mask.sum()} of {mask.size} values unfilled" if mask.any() else ""
            faults.add("missing", path, f"{wanted[path]}{open_places}")
    if head and set(head) != {"kernel", "bias"}:
        faults.add("missing", "classifier", f"has no {'bias' if 'kernel' in head else 'weight'}")
    if faults or contradictions:
        lines = [*contradictions, *faults.lines()]
        all_of_them = lines[0] if len(lines) == 1 else f"{len(lines)} faults:\n  " + "\n  ".join(lines)
        raise UserError(f"{source.origin} does not convert as {about} ({describe(config)}); nothing was written. {all_of_them}")
    del filled
    # Popped and waited for, one by one: never all of them twice in memory.
    params = {path: jax.block_until_ready(jax.device_put(leaves.pop(path))) for path in list(leaves)}
    return traverse_util.unflatten_dict(params, sep="/"), {k: jnp.asarray(v) for k, v in head.items()} or None, unused


def empty(
    params: Mapping, rules: Sequence[Rule], config: ViTConfig, *, depth: int, locate: Locate | None = None, about: str = ""
) -> dict[str, np.ndarray]:
    """The way back: tensors under the names that the rules write.

    Args:
        params: the parameter tree.
        depth: number of blocks that the rules' `{layer}` counts.

    Raises:
        UserError: parameters that the table has no name for.
    """
    leaves = traverse_util.flatten_dict(params, sep="/")
    written = {path: np.zeros(leaf.shape, bool) for path, leaf in leaves.items()}
    tensors = {}
    for rule in rules:
        if not rule.name or not rule.when(config):
            continue
        for layer in range(depth) if "{layer}" in rule.name else (0,):
            match = {"layer": layer}
            parts = []
            for place in rule.places:
                path, index = (locate or _stacked)(place, match)
                parts.append(np.asarray(leaves[path][index]) if path in leaves else None)
                if path in leaves:
                    written[path][index] = True
            if any(part is not None for part in parts):
                tensors[rule.name.format(layer=layer)] = rule.join(parts, config)
    if lost := [path for path, mask in written.items() if not mask.all()]:
        raise UserError(f"{about} has no place for {', '.join(lost)}: nothing was written")
    return tensors


def _expect_enough(source, names, wanted, config, about) -> None:
    """Refuses a configuration that asks for much more than there is, before there is memory taken for it."""
    needed = sum(math.prod(shape) for shape in wanted.values())
    there = sum(math.prod(source.tensors[full].shape) for full in names.values())
    if needed > 4 * there + 10**7:
        raise UserError(
            f"{source.origin} does not convert as {about} ({describe(config)}): that has {needed:,} parameters, "
            f"the source {there:,}. Give the weights with their own config.json"
        )


def _stacked(place, match):
    return place.path, (int(match["layer"]), *place.index) if place.path.startswith("blocks/") else place.index


def describe(config: ViTConfig) -> str:
    """The architecture in a few words."""
    return f"{config.depth} layers, dim {config.dim}, {config.num_heads} heads, patch {config.patch_size}"


def _put(faults, leaves, filled, path, index, full, array, value, config):
    try:
        place = leaves[path][index]
    except (KeyError, IndexError):
        faults.add("surplus", full, f"{array.shape} has no place in {describe(config)}")
        return
    if value.shape != place.shape:
        faults.add("shape", full, f"{array.shape} gives {value.shape}, {path} takes {place.shape}")
    elif filled[path][index].any():
        faults.add("twice", full, f"fills a part of {path} that another tensor has filled, or that the family does not have")
    else:
        if value.ndim > 1:
            _copy(place, value)
        else:
            leaves[path][index] = value
        filled[path][index] = True


def _copy(place, value):
    """`place[...] = value`, in strips: a large transposed matrix goes through the cache about eight times as fast."""
    for start in range(0, place.shape[-1], 64):
        place[..., start : start + 64] = value[..., start : start + 64]


class Faults(dict):
    """What is wrong, tensors that differ only in their layer taken together."""

    def add(self, kind: str, name: str, what: str = "") -> None:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        template = name if number is None else f"{name[: number.start()]}\0{name[number.end() :]}"
        self.setdefault((kind, template, what), []).append(number and int(number.group()))

    def lines(self) -> list[str]:
        """One for each kind of fault and tensor."""
        lines = []
        for (kind, template, what), layers in self.items():
            name = template if layers[0] is None else template.replace("\0", _ranges(layers))
            lines.append(f"{kind}: {name} {what}".rstrip())
        return lines


def _ranges(numbers: list[int]) -> str:
    """1, 2, 3, 5 -> [1-3,5]; a single number as it is."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(numbers) == 1 else f"[{text}]"
