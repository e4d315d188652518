"""What a model sees of an image: resizing, cropping and normalising, as published with its weights."""

import dataclasses

import numpy as np
from PIL import Image

from brh_jax.errors import UserError, expect, is_number
from brh_jax.images import ImageLike, as_image
from brh_jax.types import Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FILTERS = {name: Image.Resampling[name.upper()] for name in ("nearest", "lanczos", "bilinear", "bicubic")}
_LEAST_STD = 1e-6  # smaller ones are of no pixels
_LONGEST = 100  # times its shorter side, what is enlarged of an image


def _pixels(sides) -> bool:
    return all(is_number(side) and side == int(side) > 0 for side in sides)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Deterministic preprocessing: resize, centre crop, then (pixels / 255 - mean) / std.

    Attributes:
        crop: (height, width) in pixels of what the model sees.
        resize: before the crop: length of the shorter side, or (height, width) that an image is stretched to; an image is
            stretched to `crop` itself where this is None.
        mean, std: three each, of pixels in 0 ... 1.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
    """

    crop: tuple[int, int]
    resize: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"

    def __post_init__(self):
        for field in ("crop", "mean", "std"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if isinstance(self.resize, list | tuple):
            object.__setattr__(self, "resize", tuple(self.resize))
        resize = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
        expect(len(self.crop) == 2 and _pixels(self.crop), "crop", self.crop, "(height, width) in pixels")
        sides = self.resize is None or (len(resize) == 2 and _pixels(resize))
        expect(sides, "resize", self.resize, "pixels, (height, width) in pixels or None")
        of = "of pixels in 0 ... 1 (divide those of 0 ... 255 by 255)"
        mean = len(self.mean) == 3 and all(is_number(m) and 0 <= m <= 1 for m in self.mean)
        expect(mean, "mean", self.mean, f"three numbers from 0 to 1, {of}")
        std = len(self.std) == 3 and all(is_number(s) and _LEAST_STD <= s <= 1 for s in self.std)
        expect(std, "std", self.std, f"three positive numbers up to 1, {of}")
        if self.interpolation not in FILTERS:
            raise UserError(f"unknown interpolation {self.interpolation!r}: expected one of {', '.join(FILTERS)}")

    def at_size(self, crop: tuple[int, int]) -> "Preprocessing":
        """The same for another crop; the resized side keeps its ratio to the crop's longer side (256 : 224 for DINOv2)."""
        resize = self.resize
        if isinstance(resize, tuple):
            resize = round(resize[0] * crop[0] / self.crop[0]), round(resize[1] * crop[1] / self.crop[1])
        elif resize is not None:
            resize = round(resize * max(crop) / max(self.crop))
        return dataclasses.replace(self, crop=crop, resize=resize)

    def resize_and_crop(self, image: ImageLike) -> np.ndarray:
        """An image to uint8 `[crop height, crop width, 3]`."""
        image = as_image(image)
        height, width = self.crop
        if self.resize is None:
            if image.size != (width, height):
                image = image.resize((width, height), FILTERS[self.interpolation])
            return np.asarray(image)
        if isinstance(self.resize, tuple):
            size = self.resize[::-1]
        else:
            image = _middle(image)
            # The longer side is truncated, as torchvision and transformers do it.
            short, long = sorted(image.size)
            size = (self.resize, int(self.resize * long / short))
            size = size if image.width <= image.height else size[::-1]
        image = image.resize(size, FILTERS[self.interpolation])
        left, top = (image.width - width) // 2, (image.height - height) // 2
        # PIL fills with black where the crop is larger than the image.
        return np.asarray(image.crop((left, top, left + width, top + height)))

    def normalize(self, images: Array) -> Array:
        """uint8 `[..., 3]` to float32; works on numpy and, inside jit, on jax arrays."""
        mean = np.asarray(self.mean, np.float32) * 255
        scale = 1 / (np.asarray(self.std, np.float32) * 255)
        return (images.astype(np.float32) - mean) * scale


def _middle(image: Image.Image) -> Image.Image:
    """Without the far ends of a strip, which no crop sees: enlarged as a whole, 50,000 x 1 pixels would take gigabytes."""
    short, long = sorted(image.size)
    cut = (long - short * _LONGEST) // 2
    if cut <= 0:
        return image
    return image.crop((cut, 0, image.width - cut, short) if image.width == long else (0, cut, short, image.height - cut))
