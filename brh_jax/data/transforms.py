"""Images to pixels: decoding, resizing, cropping, flipping. Everything stays uint8 until the device normalises it."""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance

from brh_jax.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_FILTERS = {name: Image.Resampling[name.upper()] for name in ("nearest", "lanczos", "bilinear", "bicubic")}


def as_image(image) -> Image.Image:
    """A PIL RGB image from one or from a uint8 array `[height, width]` or `[height, width, 1 or 3]`."""
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(array).convert("RGB")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Deterministic preprocessing: resize, centre crop, then (pixels / 255 - mean) / std.

    Attributes:
        crop: (height, width) in pixels of what the model sees.
        resize: before the crop: length of the shorter side, or (height, width) that an image is stretched to; an image is
            stretched to `crop` itself where this is None.
        mean, std: per channel, for pixels in 0 ... 1.
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
        if self.interpolation not in _FILTERS:
            raise UserError(f"unknown interpolation {self.interpolation!r}: expected one of {', '.join(_FILTERS)}")

    def at_size(self, crop: tuple[int, int]) -> "Preprocessing":
        """For another crop; the resized side keeps its ratio to the crop's longer side (256 : 224 for DINOv2)."""
        if isinstance(self.resize, tuple):
            resize = tuple(round(r * new / old) for r, new, old in zip(self.resize, crop, self.crop, strict=True))
        else:
            resize = self.resize and round(self.resize * max(crop) / max(self.crop))
        return dataclasses.replace(self, crop=tuple(crop), resize=resize)

    def resize_and_crop(self, image) -> np.ndarray:
        """An image to uint8 `[crop height, crop width, 3]`."""
        image = as_image(image)
        height, width = self.crop
        if self.resize is None:
            if image.size != (width, height):
                image = image.resize((width, height), _FILTERS[self.interpolation])
            return np.asarray(image)
        if isinstance(self.resize, tuple):
            size = self.resize[::-1]
        else:
            # The longer side is truncated, as torchvision and transformers do it.
            short, long = sorted(image.size)
            size = (self.resize, int(self.resize * long / short))
            size = size if image.width <= image.height else size[::-1]
        image = image.resize(size, _FILTERS[self.interpolation])
        left, top = (image.width - width) // 2, (image.height - height) // 2
        # PIL fills with black where the crop is larger than the image.
        return np.asarray(image.crop((left, top, left + width, top + height)))

    def normalize(self, images):
        """uint8 `[..., 3]` to float32; works on numpy and, inside jit, on jax arrays."""
        mean = np.asarray(self.mean, np.float32) * 255
        scale = 1 / (np.asarray(self.std, np.float32) * 255)
        return (images.astype(np.float32) - mean) * scale


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """`Preprocessing.resize_and_crop` as a transform; ignores the random generator."""

    preprocessing: Preprocessing
    random = False

    def __call__(self, image, rng: np.random.Generator) -> np.ndarray:
        return self.preprocessing.resize_and_crop(image)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A crop of random area and aspect ratio, resized to `size`, flipped left-right half the time.

    Attributes:
        size: (height, width) in pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width : height.
        flip: whether to flip at random.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    interpolation: str = "bicubic"
    random = True

    def __call__(self, image, rng: np.random.Generator, target=None):
        """uint8 `[height, width, 3]`; with a target of the image's size also that, through the same crop and flip."""
        image = as_image(image)
        box = self._box(image.width, image.height, rng)
        flip = self.flip and rng.random() < 0.5
        pixels = _resized(image, self.size, self.interpolation, box, flip)
        return pixels if target is None else (pixels, _resized(Image.fromarray(target), self.size, "nearest", box, flip))

    def _box(self, width, height, rng):
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            aspect = np.exp(rng.uniform(*np.log(self.ratio)))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                return left, top, left + w, top + h
        # An image too long for any draw: its largest centred crop within the ratio.
        w, h = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclasses.dataclass(frozen=True)
class Resize:
    """Image, and target if there is one, stretched to `size`, (height, width) in pixels; the target by nearest neighbour."""

    size: tuple[int, int]
    interpolation: str = "bicubic"
    random = False

    def __call__(self, image, rng: np.random.Generator, target=None):
        pixels = _resized(as_image(image), self.size, self.interpolation)
        return pixels if target is None else (pixels, _resized(Image.fromarray(target), self.size, "nearest"))


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A crop of `size` at the image's own scale, flipped left-right half the time, its colours jittered; for (image, depth).

    The scale is kept since depth is metric. An image smaller than the crop is padded, black, with depth 0: no measurement.

    Attributes:
        size: (height, width) in pixels.
        jitter: brightness, contrast and saturation are each multiplied by a factor within 1 - jitter ... 1 + jitter.
    """

    size: tuple[int, int]
    flip: bool = True
    jitter: float = 0.2
    random = True

    def __call__(self, image, rng: np.random.Generator, target):
        image, (height, width) = as_image(image), self.size
        left, top = (int(rng.integers(max(have - want, 0) + 1)) for have, want in zip(image.size, (width, height), strict=True))
        flip = self.flip and rng.random() < 0.5
        box = (left, top, left + width, top + height)
        image = image.crop(box)
        for enhance in rng.permutation([ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]):
            image = enhance(image).enhance(rng.uniform(1 - self.jitter, 1 + self.jitter))
        return _pixels(image, flip), _pixels(Image.fromarray(target).crop(box), flip)


def _resized(image: Image.Image, size, interpolation: str, box=None, flip: bool = False) -> np.ndarray:
    height, width = size
    return _pixels(image.resize((width, height), _FILTERS[interpolation], box=box), flip)


def _pixels(image: Image.Image, flip: bool) -> np.ndarray:
    # PIL mirrors ten times as fast as a copy of numpy's reversed view.
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)
