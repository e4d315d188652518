"""Architectures by name."""

import dataclasses
from typing import Any, NamedTuple

from brh_jax.errors import UserError, did_you_mean
from brh_jax.models import rotary
from brh_jax.models.vit import ViTConfig


class Architecture(NamedTuple):
    """A named architecture: its configuration, the hub id of its published weights, and the image size they are used at."""

    config: ViTConfig
    hub_id: str
    image_size: int


# dim, depth, heads
_SIZES = {
    "t": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
    "g": (1536, 40, 24),
    "so400m": (1152, 27, 16),
    "7b": (4096, 40, 32),
}
_LONG = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant", "so400m": "so400m"}


def _vit(size: str, patch_size: int, image_size: int, **changes: Any) -> ViTConfig:
    dim, depth, heads = _SIZES[size]
    grid = (image_size // patch_size,) * 2
    config = ViTConfig(dim=dim, depth=depth, num_heads=heads, mlp_dim=4 * dim, patch_size=patch_size, position_grid=grid)
    return dataclasses.replace(config, **changes)


def _dinov2(size: str, registers: bool) -> Architecture:
    changes: dict[str, Any] = {"layer_scale": True}
    if size == "g":
        changes |= {"mlp": "swiglu", "mlp_dim": 4096}
    if registers:
        changes |= {"num_registers": 4, "position_resampling": "cubic-antialias"}
    hub = f"facebook/dinov2-{'with-registers-' if registers else ''}{_LONG[size]}"
    return Architecture(_vit(size, 14, 518, **changes), hub, 224)


def _dinov3(size: str, plus: bool = False) -> Architecture:
    dim, _, heads = _SIZES[size]
    heads = 20 if size == "h" else heads
    changes: dict[str, Any] = {
        "layer_scale": True,
        "num_registers": 4,
        "layer_norm_eps": 1e-5,
        "position_grid": None,
        "num_heads": heads,
    }
    changes["rope_periods"] = rotary.periods(dim // heads, 100.0)
    if plus or size == "7b":
        changes |= {"mlp": "swiglu", "mlp_dim": 2 * dim if size == "7b" else 4 * dim}
    hub = f"facebook/dinov3-vit{size}16{'plus' if plus else ''}-pretrain-lvd1689m"
    return Architecture(_vit(size, 16, 224, **changes), hub, 224)


def _clip(size: str, patch: int, pixels: int) -> Architecture:
    changes = {"pre_norm": True, "mlp": "quick_gelu", "layer_norm_eps": 1e-5}
    hub = f"openai/clip-vit-{_LONG[size]}-patch{patch}{'-336' if pixels == 336 else ''}"
    return Architecture(_vit(size, patch, pixels, **changes), hub, pixels)


def _siglip(size: str, patch: int, pixels: int, version: str = "") -> Architecture:
    changes: dict[str, Any] = {"num_cls": 0, "mlp": "gelu_tanh", "drop_remainder": pixels % patch != 0}
    if size == "so400m":
        changes["mlp_dim"] = 4304
    hub = f"google/siglip{version}-{_LONG[size]}-patch{patch}-{pixels}"
    return Architecture(_vit(size, patch, pixels, **changes), hub, pixels)


ARCHITECTURES = {
    **{f"dinov2_vit{size}14": _dinov2(size, False) for size in "sblg"},
    **{f"dinov2_vit{size}14_reg": _dinov2(size, True) for size in "sblg"},
    **{
        f"vit_{size}{patch}_{pixels}": Architecture(
            _vit(size, patch, pixels, layer_norm_eps=1e-12), f"google/vit-{_LONG[size]}-patch{patch}-{pixels}", pixels
        )
        for size, patch, pixels in [("b", 16, 224), ("b", 32, 384), ("b", 16, 384), ("l", 16, 224), ("l", 16, 384)]
    },
    **{
        f"augreg_{size}16_224": Architecture(
            _vit(size, 16, 224, layer_norm_eps=1e-12), f"WinKawaks/vit-{_LONG[size]}-patch16-224", 224
        )
        for size in "ts"
    },
    **{
        f"deit_{size}16_224": Architecture(
            _vit(size, 16, 224, layer_norm_eps=1e-12), f"facebook/deit-{_LONG[size]}-patch16-224", 224
        )
        for size in "tsb"
    },
    **{
        f"deit3_{size}16_{pixels}": Architecture(
            _vit(size, 16, pixels, layer_scale=True, cls_position=False),
            f"timm/deit3_{_LONG[size]}_patch16_{pixels}.fb_in22k_ft_in1k",
            pixels,
        )
        for size in "sbl"
        for pixels in (224, 384)
    },
    **{
        f"dino_{size}{patch}": Architecture(_vit(size, patch, 224, layer_norm_eps=1e-12), f"facebook/dino-vit{size}{patch}", 224)
        for size in "sb"
        for patch in (16, 8)
    },
    **{
        f"mae_{size}{patch}": Architecture(_vit(size, patch, 224, layer_norm_eps=1e-12), f"facebook/vit-mae-{_LONG[size]}", 224)
        for size, patch in (("b", 16), ("l", 16), ("h", 14))
    },
    **{f"dinov3_vit{size}16": _dinov3(size) for size in ("s", "b", "l", "7b")},
    **{f"dinov3_vit{size}16plus": _dinov3(size, plus=True) for size in ("s", "h")},
    **{
        f"clip_{size}{patch}_{pixels}": _clip(size, patch, pixels)
        for size, patch, pixels in (("b", 32, 224), ("b", 16, 224), ("l", 14, 224), ("l", 14, 336))
    },
    **{
        f"siglip{version}_{size}{patch}_{pixels}": _siglip(size, patch, pixels, version)
        for version in ("", "2")
        for size, patch, pixels in (
            ("b", 16, 224),
            ("b", 16, 256),
            ("b", 16, 384),
            ("b", 16, 512),
            ("l", 16, 256),
            ("l", 16, 384),
            ("so400m", 14, 224),
            ("so400m", 14, 384),
        )
    },
}


def architecture(name: str) -> Architecture:
    """The architecture of that name; DINOv2's may be given short, `vits14` or `vitb14_reg`.

    Raises:
        UserError: unknown name, with the nearest known ones.
    """
    for candidate in (name, f"dinov2_{name}"):
        if candidate in ARCHITECTURES:
            return ARCHITECTURES[candidate]
    short = [known.removeprefix("dinov2_") for known in ARCHITECTURES]
    hint = did_you_mean(name.removeprefix("dinov2_"), short, most=3)
    raise UserError(f"unknown architecture {name!r}: {hint}known are {', '.join(sorted(ARCHITECTURES))}")


def differences(found: ViTConfig, expected: ViTConfig) -> list[str]:
    """What tells two architectures apart, `field: found x, expected y`; training options and image size do not count."""
    ignored = {"drop_path", "position_grid", "position_resampling", "layer_norm_eps", "rope_periods"}
    return [
        f"{f.name}: found {getattr(found, f.name)}, expected {getattr(expected, f.name)}"
        for f in dataclasses.fields(ViTConfig)
        if f.name not in ignored and getattr(found, f.name) != getattr(expected, f.name)
    ]


def check_architecture(origin: Any, config: ViTConfig, name: str) -> None:
    """Raises UserError unless the weights at `origin` are of the architecture of that name."""
    if faults := differences(config, architecture(name).config):
        raise UserError(
            f"{origin} is not {name}: {'; '.join(faults)}. Give the weights of {name}, or the name of their architecture"
        )
