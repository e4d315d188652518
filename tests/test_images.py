"""Whatever an image is made of, a model sees it as people do."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from brh_jax.errors import UserError
from brh_jax.images import as_image
from brh_jax.preprocessing import Preprocessing

RAMP = np.arange(64 * 64).reshape(64, 64)  # 0 ... 4095
GREY = RAMP / RAMP.max()  # 0 ... 1


def stored(image, kind, **options):
    """An image as it comes out of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


def png(width, height, depth, colour, rows):
    """A PNG of kinds that Pillow does not write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")))


def white_is_zero(image):
    """A TIFF whose values count from white: Pillow writes none of these but of 8 bits, so the tag is set in the file."""
    file = io.BytesIO()
    image.save(file, "TIFF")
    tag = struct.pack("<HHI", 262, 3, 1)
    assert file.getvalue().count(tag + b"\1\0") == 1
    return Image.open(io.BytesIO(file.getvalue().replace(tag + b"\1\0", tag + b"\0\0")))


SIXTEEN = np.round(GREY * 65535).astype(np.uint16)
GREYS = {
    "16-bit PNG": lambda: stored(Image.fromarray(SIXTEEN), "PNG"),
    "16-bit TIFF": lambda: stored(Image.fromarray(SIXTEEN), "TIFF"),
    "16-bit TIFF, big-endian": lambda: stored(Image.frombytes("I;16B", (64, 64), SIXTEEN.astype(">u2").tobytes()), "TIFF"),
    "16-bit PGM": lambda: stored(Image.fromarray(SIXTEEN), "PPM"),
    "16-bit RGB PNG": lambda: png(64, 64, 16, 2, [np.repeat(row.astype(">u2"), 3).tobytes() for row in SIXTEEN]),
    "16-bit grey PNG with alpha": lambda: png(
        64, 64, 16, 4, [np.stack([row, np.full(64, 65535)], -1).astype(">u2").tobytes() for row in SIXTEEN]
    ),
    "float TIFF": lambda: stored(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
    "16-bit TIFF, white is zero": lambda: white_is_zero(Image.fromarray(65535 - SIXTEEN)),
    "float TIFF, white is zero": lambda: white_is_zero(Image.fromarray((1 - GREY).astype(np.float32))),
    "8-bit TIFF, white is zero": lambda: white_is_zero(Image.fromarray(255 - (GREY * 255).astype(np.uint8))),
    "8 bits": lambda: stored(Image.fromarray((GREY * 255).astype(np.uint8)), "PNG"),
    "bool array": lambda: GREY > 0.5,
    "uint16 array": lambda: SIXTEEN,
    "uint16 array, big-endian": lambda: SIXTEEN.astype(">u2"),
    "uint16 array of three channels": lambda: np.repeat(SIXTEEN[..., None], 3, -1),
    "float array": lambda: GREY,
    "float16 array of one channel": lambda: GREY.astype(np.float16)[..., None],
    "grey and alpha array": lambda: np.stack([GREY * 255, np.full((64, 64), 255)], -1).astype(np.uint8),
    "RGBA array": lambda: np.stack([GREY * 255] * 3 + [np.full((64, 64), 255)], -1).astype(np.uint8),
}


@pytest.mark.parametrize("kind", GREYS)
def test_grey_is_as_bright_as_it_was(kind):
    image = as_image(GREYS[kind]())
    assert (image.mode, image.size) == ("RGB", (64, 64))
    pixels = np.asarray(image).astype(float)
    assert abs(pixels.mean() - 127.5) < 1
    if kind != "bool array":
        assert np.abs(pixels - 255 * GREY[..., None]).max() <= 1


RED = (255, 0, 0)


def palette(**options):
    image = Image.new("P", (4, 4))
    image.putpalette([*RED, 0, 255, 0] + [0] * 762)
    image.putpixel((3, 3), 1)
    return stored(image, options.pop("kind", "PNG"), **options)


def frames(kind):
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), "blue")
    return stored(first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {}))


REDS = {
    "palette": palette,
    "palette of a GIF": lambda: palette(kind="GIF"),
    "CMYK TIFF": lambda: stored(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"),
    "CMYK JPEG": lambda: stored(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG", quality=100),
    "YCbCr": lambda: Image.new("RGB", (4, 4), RED).convert("YCbCr"),
    "HSV": lambda: Image.new("HSV", (4, 4), (0, 255, 255)),
    "opaque": lambda: stored(Image.new("RGBA", (4, 4), (*RED, 255)), "PNG"),
    **{f"animated {kind}": (lambda kind=kind: frames(kind)) for kind in ("GIF", "PNG", "WEBP", "TIFF")},
}


@pytest.mark.parametrize("kind", REDS)
def test_red_is_red(kind):
    pixels = np.asarray(as_image(REDS[kind]()))
    assert np.abs(pixels[0, 0].astype(int) - RED).max() <= 3
    assert pixels.shape == (4, 4, 3)


def keyed(mode, colour, key):
    return stored(Image.new(mode, (4, 4), colour), "PNG", transparency=key)


TRANSPARENT = {
    "RGBA": lambda: stored(Image.new("RGBA", (4, 4), (*RED, 0)), "PNG"),
    "grey and alpha": lambda: stored(Image.new("LA", (4, 4), (7, 0)), "PNG"),
    "palette": lambda: palette(transparency=0),
    "palette with several": lambda: palette(transparency=bytes([0, 128])),
    "GIF": lambda: palette(kind="GIF", transparency=0),
    "colour key": lambda: keyed("RGB", RED, RED),
    "grey key": lambda: keyed("L", 7, 7),
    "array": lambda: np.zeros((4, 4, 4), np.uint8),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
@pytest.mark.filterwarnings("error")
def test_what_is_transparent_is_white(kind):
    """And not the colour that lies hidden there."""
    assert np.asarray(as_image(TRANSPARENT[kind]()))[0, 0].tolist() == [255] * 3


def test_half_transparent_is_half_white():
    assert np.asarray(as_image(Image.new("RGBA", (1, 1), (0, 0, 0, 127))))[0, 0].tolist() == [128] * 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(kind, orientation):
    """Stored turned, as cameras do it; seen as it was taken: light left, dark right, its top-left corner black."""
    upright = np.tile(np.linspace(250, 50, 24, dtype=np.uint8), (16, 1))
    upright[:6, :6] = 0
    undo = {2: 0, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5, 8: 6}
    turns = [np.fliplr, lambda x: np.rot90(x, 2), np.flipud, np.transpose, np.rot90, lambda x: np.rot90(x, 2).T]
    turns.append(lambda x: np.rot90(x, -1))
    pixels = turns[undo[orientation]](upright) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = stored(Image.fromarray(np.repeat(np.ascontiguousarray(pixels)[..., None], 3, -1)), kind, exif=exif)
    for seen in (as_image(image), as_image(as_image(image))):  # once, not twice
        assert seen.size == (24, 16)
        assert np.abs(np.asarray(seen)[..., 0].astype(int) - upright)[8:].max() < 20 and np.asarray(seen)[:4, :4].max() < 40
    if kind != "TIFF":  # Pillow turns those as it reads them
        assert as_image(image, upright=False).size == pixels.shape[::-1]
        assert as_image(as_image(image, upright=False)).size == pixels.shape[::-1]


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense", b"Exif\0\0" + bytes(40)])
def test_exif_that_cannot_be_read_turns_nothing(exif):
    image = Image.new("RGB", (6, 4))
    image.info["exif"] = exif
    assert as_image(image).size == (6, 4)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("I", (4, 4), 70000), "type int32 have no known scale: expected 8 or 16 bits"),
        (Image.new("F", (4, 4), 200), "floats from 200 to 200 have no known scale: expected floats from 0 to 1"),
        (np.full((4, 4), np.nan), "floats from nan to nan"),
        (np.full((4, 4), -0.5), "floats from -0.5"),
        (np.zeros((4, 4), np.int64), "type int64"),
        (np.zeros((4, 4), complex), "type complex128"),
        (np.zeros((0, 4), np.uint8), r"an image of shape \(0, 4\)"),
        (np.zeros((3, 32, 32), np.uint8), r"an image of shape \(3, 32, 32\)"),
        (np.zeros(7, np.uint8), r"an image of shape \(7,\)"),
    ],
)
def test_what_no_one_knows_the_scale_of(image, message):
    with pytest.raises(UserError, match=message):
        as_image(image)


@pytest.mark.parametrize("size", [(50_000, 1), (1, 50_000), (50_001, 2)])
def test_a_strip_takes_no_gigabytes(size, monkeypatch):
    """As a whole, 256 pixels high, it would have 13 GB."""
    made = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *args: made.append(size) or resize(self, size, *args))
    image = Image.new("RGB", size, "red")
    centre = (size[0] // 2, size[1] // 2)
    image.paste("blue", (centre[0], centre[1], centre[0] + 1, centre[1] + 1))
    seen = Preprocessing((224, 224), 256).resize_and_crop(image)
    assert seen.shape == (224, 224, 3) and max(made[0]) <= 102 * 256
    assert (seen[..., 2] > 200).any() and (seen[..., 0] > 200).any()


def test_an_ordinary_image_is_whole():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 1999, 3), dtype=np.uint8))
    seen = Preprocessing((32, 3198), 32).resize_and_crop(image)
    np.testing.assert_array_equal(seen, np.asarray(image.resize((3198, 32), Image.Resampling.BICUBIC)))


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Image.new("RGB", (8, 8)), r"takes several images, and was given one: preprocess\(\[image\]\)"),
        ("cat.jpg", r"cat\.jpg is the name of a file: open it first, preprocess\(\[PIL\.Image\.open\('cat\.jpg'\)\]\)"),
        (["cat.jpg"], r"cat\.jpg is the name of a file: open it first"),
    ],
)
def test_preprocess_says_how_it_is_called(tiny_encoder, given, says):
    with pytest.raises(UserError, match=says):
        tiny_encoder.preprocess(given)
