"""Facts: what a source says about its architecture: shapes of its tensors, and the configuration that lies beside them."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from brh_jax.errors import is_number

# Width of an attention head by width of the model, where it is not 64: so400m, ViT-H, the smaller ViT-g, bigG, EVA's E.
HEAD_WIDTHS = {1152: 72, 1280: 80, 1408: 88, 1664: 104, 1792: 112}
# transformers' settings that are read: whole numbers and the least that they may be, and positive numbers.
_WHOLE = {
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "hidden_size": 1,
    "intermediate_size": 1,
    "num_channels": 1,
    "num_register_tokens": 0,
}
_POSITIVE = ("layer_norm_eps", "rope_theta")


@dataclasses.dataclass
class Facts:
    """What is known of a source, and what had to be assumed.

    Attributes:
        shapes: tensor name, relative to the ViT, -> shape.
        read: tensor name -> array.
        origin: what the user asked for.
        prefix: what names had before them, such as `module.backbone.`.
        hf: transformers' config.json (of the vision tower), or None.
        timm: timm's config.json, or None.
        open_clip: open_clip_config.json, or None.
        num_heads: as the user gave it, where the source cannot tell.
        assumed: what the source does not say and was taken as published; filled as questions are asked.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    origin: str = ""
    prefix: str = ""
    hf: dict | None = None
    timm: dict | None = None
    open_clip: dict | None = None
    num_heads: int | None = None
    assumed: list[str] = dataclasses.field(default_factory=list)

    def find(self, pattern: str) -> tuple[int, ...] | None:
        """Shape of the first tensor whose whole name matches."""
        return next((shape for name, shape in self.shapes.items() if re.fullmatch(pattern, name)), None)

    def need(self, pattern: str, what: str) -> tuple[int, ...]:
        """`find`; ValueError naming what is missing where nothing matches."""
        shape = self.find(pattern)
        if shape is None:
            raise ValueError(f"it has no {what}")
        return shape

    def layers(self, block: str) -> int:
        """One more than the largest block number that the pattern's group `layer` finds; ValueError where there is none."""
        found = [int(m["layer"]) for name in self.shapes if (m := re.match(block, name))]
        if not found:
            raise ValueError("it has no blocks")
        return max(found) + 1

    def transformers(self, **defaults) -> dict | None:
        """transformers' configuration, with the defaults that its classes have for what the file leaves out."""
        if self.hf is None:
            return None
        for key, least in _WHOLE.items():
            if (value := self.hf.get(key)) is not None:
                whole_number(key, value, least)
        for key in _POSITIVE:
            value = self.hf.get(key)
            if value is not None and not (is_number(value) and value > 0):
                raise ValueError(f"{key} in config.json is {value!r}, expected a number above zero")
        return defaults | {k: v for k, v in self.hf.items() if v is not None}

    def heads(self, dim: int, widths: dict[int, int] | None = None, default: int = 12) -> int:
        """Number of attention heads, which no tensor's shape tells.

        Args:
            widths: width of a head by `dim`, where the family differs from HEAD_WIDTHS.
            default: of transformers' class, where its config.json leaves it out.
        """
        if self.hf is not None:
            return whole_number("num_attention_heads", self.hf.get("num_attention_heads", default))
        for args in (section(self.timm, "model_args"), _vision(self.open_clip)):
            if "num_heads" in args:
                return whole_number("num_heads", args["num_heads"])
            if "head_width" in args:
                return dim // whole_number("head_width", args["head_width"])
        if self.num_heads:
            return self.num_heads
        width = (HEAD_WIDTHS | (widths or {})).get(dim, 64)
        heads = max(dim // width, 1)
        self.assume(f"{heads} heads of width {dim // heads}, as published models of width {dim} have; num_heads says otherwise")
        return heads

    def image_size(self) -> int:
        """The side of the square images that the configuration names; 0 where it names none."""
        timm = section(self.timm, "pretrained_cfg")
        sizes = ((self.hf or {}).get("image_size"), _vision(self.open_clip).get("image_size"), timm.get("input_size", (0,))[-1])
        return next((size for size in sizes if isinstance(size, int) and size), 0)

    def assume(self, what: str) -> None:
        """Notes what was taken as published."""
        if what not in self.assumed:
            self.assumed.append(what)

    @property
    def architecture(self) -> str:
        """timm's name of the architecture, empty where it is not said."""
        name = (self.timm or {}).get("architecture") or _vision(self.open_clip).get("timm_model_name") or ""
        if not isinstance(name, str):
            raise ValueError(f"the architecture in its configuration is {name!r}, expected a name")
        return name


def section(config: dict | None, name: str) -> dict:
    """A part of a configuration, empty where it is not there. Raises ValueError where it is something else than an object."""
    found = (config or {}).get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{name} in its configuration is {str(found)[:40]!r}, expected an object")
    return found


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A value of a configuration. Raises ValueError unless it is a whole number, large enough."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} in its configuration is {value!r}, expected a number, {least} or more")
    return value


def _vision(open_clip: dict | None) -> dict:
    return section(section(open_clip, "model_cfg"), "vision_cfg")


def square_grid(positions: int, shape: Sequence[int]) -> tuple[int, int]:
    """Side of a square position table, from its number of patch positions."""
    side = int(np.sqrt(max(positions, 0)) + 0.5)
    if side * side != positions or not side:
        raise ValueError(f"a position table {tuple(shape)} is not a square grid of patches after its class tokens")
    return side, side
