"""How a source's images are made ready: from its processor's configuration, or what its family publishes, said aloud."""

import dataclasses
import json
import math

from brh_jax.errors import UserError
from brh_jax.models.vit import ViTConfig
from brh_jax.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from weights_convert.facts import Facts, section
from weights_convert.families import clip
from weights_convert.families.rules import Family, table_size
from weights_convert.sources import Source

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
_HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
_IMAGENET = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
_CLIP = {"image_mean": clip.MEAN, "image_std": clip.STD}
# What transformers' processors do where their configuration does not say, by the start of their name.
DEFAULTS = {
    "ViT": _HALF | {"resample": 2, "do_center_crop": False},
    "DeiT": _HALF | {"resample": 3, "do_center_crop": True},
    "CLIP": _CLIP | {"resample": 3, "do_center_crop": True},
    "Bit": _CLIP | {"resample": 3, "do_center_crop": True},
    "Siglip": _HALF | {"resample": 3, "do_center_crop": False},
    "DINOv3": _IMAGENET | {"resample": 2, "do_center_crop": False},
}
# Processors of old configurations, whose size is one number: for these the length of the shorter side, else a square.
SHORTER_SIDE = ("CLIP", "Bit", "ConvNext")


def preprocessing_of(source: Source, facts: Facts, family: Family, config: ViTConfig) -> Preprocessing:
    """The deterministic preprocessing that goes with the weights.

    Raises:
        UserError: a configuration that asks for what is not done here.
    """
    if source.preprocessor is not None:
        return _of_transformers(source.origin, source.preprocessor, facts, config)
    if source.timm is not None and source.timm.get("pretrained_cfg"):
        return _of_timm(source.timm["pretrained_cfg"])
    default = family.preprocessing(facts, config)
    if source.open_clip is not None:
        return _of_open_clip(source.open_clip, config, default)
    facts.assume(f"preprocessing {json.dumps(dataclasses.asdict(default))} (no preprocessor_config.json)")
    return default


def _of_transformers(origin: str, p: dict, facts: Facts, config: ViTConfig) -> Preprocessing:
    processor = p.get("image_processor_type") or p.get("feature_extractor_type") or ""
    default = next((d for prefix, d in DEFAULTS.items() if processor.startswith(prefix)), DEFAULTS["ViT"])
    p = default | {key: value for key, value in p.items() if value is not None}
    if p["resample"] not in FILTERS:
        raise UserError(f"{origin}: preprocessor_config.json asks for the filter {p['resample']}, known are {FILTERS}")
    if processor.startswith("Siglip2"):
        height, width = table_size(config)
        facts.assume(
            f"images stretched to {height // config.patch_size} x {width // config.patch_size} patches; the source's own "
            "processor keeps their aspect ratio within a number of patches"
        )
        p = p | {"size": {"height": height, "width": width}}
    if p.get("do_rescale", True) and not math.isclose(p.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise UserError(f"{origin}: preprocessor_config.json scales pixels by {p['rescale_factor']}, expected 1/255")

    def size_of(value, what):
        if isinstance(value, int):
            square = what == "crop_size" or not processor.startswith(SHORTER_SIDE)
            return (value, value) if square else value
        try:
            return (value["height"], value["width"]) if "height" in value else value["shortest_edge"]
        except (KeyError, TypeError):
            raise UserError(
                f"{origin}: preprocessor_config.json gives the {what} {value}, expected height and width or shortest_edge"
            ) from None

    crop = size_of(p["crop_size"], "crop_size") if p["do_center_crop"] and "crop_size" in p else None
    crop = (crop, crop) if isinstance(crop, int) else crop
    resize = size_of(p["size"], "size") if p.get("do_resize", True) and "size" in p else None
    if crop is None and isinstance(resize, tuple):
        crop, resize = resize, None
    elif crop is None:
        side = resize or (config.position_grid or (14,))[0] * config.patch_size
        crop = (side, side)
        facts.assume(f"a centre crop of {side} x {side}: the source's processor lets the size vary")
    mean, std = (p["image_mean"], p["image_std"]) if p.get("do_normalize", True) else ((0.0,) * 3, (1.0,) * 3)
    if not p.get("do_rescale", True):  # pixels stay in 0 ... 255, and mean and std are of those
        mean, std = ([float(value) / 255 for value in values] for values in (mean, std))
    return Preprocessing(crop, resize, tuple(mean), tuple(std), FILTERS[p["resample"]])


def _of_timm(cfg: dict) -> Preprocessing:
    height, width = cfg.get("input_size", (3, 224, 224))[1:]
    share, mode = cfg.get("crop_pct", 0.875), cfg.get("crop_mode", "center")
    if mode == "squash":
        resize = None if share == 1.0 else (math.floor(height / share), math.floor(width / share))
    else:
        resize = math.floor(min(height, width) / share)
    return Preprocessing(
        (height, width),
        resize,
        tuple(cfg.get("mean", IMAGENET_MEAN)),
        tuple(cfg.get("std", IMAGENET_STD)),
        cfg.get("interpolation", "bicubic"),
    )


def _of_open_clip(config: dict, vit: ViTConfig, default: Preprocessing) -> Preprocessing:
    p = section(config, "preprocess_cfg")
    size = p.get("size") or section(section(config, "model_cfg"), "vision_cfg").get("image_size") or default.crop
    crop = (size, size) if isinstance(size, int) else tuple(size[-2:])
    stretched = p.get("resize_mode", "shortest") == "squash"
    return Preprocessing(
        crop,
        None if stretched else min(crop),
        tuple(p.get("mean", clip.MEAN)),
        tuple(p.get("std", clip.STD)),
        p.get("interpolation", "bicubic"),
    )
