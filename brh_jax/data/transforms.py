"""Images to pixels: decoding, resizing, cropping, flipping. Everything stays uint8 until the device normalises it."""

import dataclasses
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image, ImageEnhance

from brh_jax.images import ImageLike, as_image
from brh_jax.preprocessing import FILTERS, Preprocessing


class Transform(Protocol):
    """Called with (image, generator) to give pixels, or with (image, generator, target) to give pixels and the target's.

    Attributes:
        random: whether it draws from the generator, so that an image seen again comes out differently.
    """

    random: ClassVar[bool]

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """`Preprocessing.resize_and_crop` as a transform; ignores the random generator."""

    preprocessing: Preprocessing
    random: ClassVar[bool] = False

    def __call__(self, image: ImageLike, rng: np.random.Generator | None) -> np.ndarray:
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
    random: ClassVar[bool] = True

    def __call__(self, image: ImageLike, rng: np.random.Generator, target: np.ndarray | None = None):
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
    random: ClassVar[bool] = False

    def __call__(self, image: ImageLike, rng: np.random.Generator, target: np.ndarray | None = None):
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
    random: ClassVar[bool] = True

    def __call__(self, image: ImageLike, rng: np.random.Generator, target: np.ndarray):
        picture, (height, width) = as_image(image), self.size
        left, top = (int(rng.integers(max(have - want, 0) + 1)) for have, want in zip(picture.size, (width, height), strict=True))
        flip = self.flip and rng.random() < 0.5
        box = (left, top, left + width, top + height)
        picture = picture.crop(box)
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for number in rng.permutation(len(kinds)):
            picture = kinds[number](picture).enhance(rng.uniform(1 - self.jitter, 1 + self.jitter))
        return _pixels(picture, flip), _pixels(Image.fromarray(target).crop(box), flip)


def _resized(image: Image.Image, size, interpolation: str, box=None, flip: bool = False) -> np.ndarray:
    height, width = size
    return _pixels(image.resize((width, height), FILTERS[interpolation], box=box), flip)


def _pixels(image: Image.Image, flip: bool) -> np.ndarray:
    # PIL mirrors ten times as fast as a copy of numpy's reversed view.
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)
