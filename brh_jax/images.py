"""Any image as eight-bit RGB, the way a viewer shows it."""

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from brh_jax.errors import UserError

ImageLike = Image.Image | np.ndarray
_SIXTEEN_TO_EIGHT = ((np.arange(2**16) + 128) // 257).astype(np.uint8)
_WHITE_IS_ZERO = 0
_TURN = Image.Transpose
_TURNS = {  # EXIF orientation -> what sets it upright
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}


def as_image(image: ImageLike, upright: bool = True) -> Image.Image:
    """An image as PIL's RGB: 16 bits scaled to 8, what is transparent on white, of an animation the first frame.

    Args:
        image: PIL's, of any mode, or an array `[height, width]` or `[height, width, 1 to 4]` (grey, grey and alpha, RGB, RGBA) of
            uint8, uint16, bool, or floats from 0 to 1.
        upright: whether it is turned as its EXIF orientation says.

    Raises:
        UserError: no pixels, or values whose scale nobody knows: 32-bit integers, floats beyond 0 ... 1.
    """
    if not isinstance(image, Image.Image):
        return _from_array(np.asarray(image))
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        picture = _inverted_where_stored_so(image, _from_array(np.asarray(image).astype(np.uint16)))
    elif image.mode in ("I", "F"):
        picture = _inverted_where_stored_so(image, _from_array(np.asarray(image)))
    elif image.has_transparency_data:
        picture = _on_white(image)
    else:
        picture = image if image.mode == "RGB" else image.convert("RGB")
    turn = _TURNS.get(_orientation(image) or 0)
    if turn is None:
        return picture
    picture = picture.transpose(turn) if upright else picture.copy()
    picture.info = {}  # it is not turned twice
    return picture


def _inverted_where_stored_so(image: Image.Image, picture: Image.Image) -> Image.Image:
    """TIFF may keep white as zero: Pillow minds that up to 8 bits, and hands out what is beyond as it is stored."""
    stored = getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    return ImageOps.invert(picture) if stored == _WHITE_IS_ZERO else picture


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim not in (2, 3) or not pixels.size or (pixels.ndim == 3 and pixels.shape[-1] > 4):
        raise UserError(f"an image of shape {pixels.shape}: expected [height, width] or [height, width, 1 to 4]")
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return as_image(Image.fromarray(_eight_bits(pixels)))


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return np.where(pixels, np.uint8(255), np.uint8(0))
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return _SIXTEEN_TO_EIGHT[pixels]
    if pixels.dtype.kind != "f":
        raise UserError(f"pixels of type {pixels.dtype} have no known scale: expected 8 or 16 bits, or floats from 0 to 1")
    low, high = pixels.min(), pixels.max()
    if not 0 <= low <= high <= 1:
        raise UserError(f"pixels that are floats from {low:g} to {high:g} have no known scale: expected floats from 0 to 1")
    return np.round(pixels * 255).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
        return found if isinstance(found, int) else 1
    except Exception:  # EXIF that cannot be read, with whatever error, turns nothing
        return 1
