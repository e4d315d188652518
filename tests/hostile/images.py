"""Images and folders of them that are not what they should be."""

import os
import struct
import zlib

import numpy as np
from hostile.case import Case
from PIL import Image

from brh_jax.data.dense import open_depths, open_masks
from brh_jax.data.pipeline import measuring_batches, training_batches
from brh_jax.data.sources import ArraySource, ImageFolder, Selection, open_source
from brh_jax.data.transforms import CenterCrop
from brh_jax.preprocessing import Preprocessing
from experiments.configs import quickstart
from experiments.pipeline import read_settings, run

CENTER = CenterCrop(Preprocessing((8, 8)))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
RED = [255, 0, 0]


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (12, 12), "red")).save(path, **options)
    return path


def folder_of(content):
    """What happens to someone who trains on a folder of one file."""

    def act(folder):
        (folder / "1.png").write_bytes(content)
        train(folder)

    return act


def train(folder):
    return next(training_batches(ImageFolder(folder), CENTER, 1, seed=0))["image"][0]


def pointers_in_a_folder_with_a_colon(folder):
    place = folder / "photos: 2024"
    place.mkdir()
    for i in range(4):
        (place / f"{i}.png").write_bytes(LFS)
    train(place)


def forty(folder, damaged):
    for i in range(40):
        save(folder / f"{i:02}.png")
    for i in damaged:
        (folder / f"{i:02}.png").write_bytes(b"damaged")
    return ImageFolder(folder)


def a_part_with_one_damaged_of_five(folder):
    source = forty(folder, [3, 10, 20, 30, 35])
    list(measuring_batches(Selection(source, np.arange(5, 40)), CENTER, 5))
    (batch,) = measuring_batches(Selection(source, np.arange(5)), CENTER, 5)
    assert batch["valid"].sum() == 4


def a_part_that_is_all_damaged(folder):
    source = forty(folder, [3, 10, 20, 30, 35])
    list(measuring_batches(source, CENTER, 5))
    next(training_batches(Selection(source, [3, 10]), CENTER, 2, seed=0))


def bomb():
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\4IDAT1234"


def looks(image, expected, **options):
    """An image in a file, and the mean colour that is seen of it."""

    def act(folder):
        seen = train(save(folder / "1.png", image, **options).parent)
        assert np.abs(seen.reshape(-1, 3).mean(0) - expected).max() < 3, seen

    return act


def a_strip(folder):
    image = Image.open(save(folder / "1.png", Image.new("L", (50_000, 1), 127)))
    assert (Preprocessing((224, 224), 256).resize_and_crop(image) == 127).all()


def a_photograph_on_its_side(folder):
    exif, pixels = Image.Exif(), np.zeros((4, 8), np.uint8)
    exif[0x0112], pixels[:, :4] = 6, 255  # stored left is above
    seen = train(save(folder / "1.jpg", Image.fromarray(pixels), exif=exif, quality=100).parent)
    assert seen[:4].mean() > 240 and seen[4:].mean() < 15


def a_stray_image(folder):
    for name in ("cats/1.png", "cats/2.png", "dogs/1.png", "montage.png"):
        save(folder / name)
    source = ImageFolder(folder)
    assert source.classes == ("cats", "dogs") and source.labels == [0, 0, 1]


def things_that_are_no_images(folder):
    save(folder / "cats" / "1.PNG")
    save(folder / "dogs.jpg" / "1.png")
    save(folder / "cats" / ".thumbnails" / "1.png")
    for name in (".DS_Store", "Thumbs.db", "._1.png"):
        (folder / "cats" / name).write_bytes(b"\0\5\x16\7")
    (folder / "birds").mkdir()
    os.mkfifo(folder / "cats" / "x.png")
    (folder / "cats" / "zero.png").symlink_to("/dev/zero")
    source = ImageFolder(folder)
    assert source.classes == ("cats", "dogs.jpg") and len(source) == 2


def links_in_a_circle(folder):
    save(folder / "cats" / "1.png")
    (folder / "cats" / "up").symlink_to(folder)
    (folder / "cats" / "self").symlink_to(folder / "cats" / "self")
    assert len(ImageFolder(folder)) == 1


def links_that_lead_nowhere(folder):
    (folder / "1.png").symlink_to(folder / ".git" / "annex" / "1.png")
    ImageFolder(folder)


def names_that_are_no_utf8(folder):
    root = folder / os.fsdecode(b"caf\xe9")
    save(root / os.fsdecode(b"chat\xe9") / os.fsdecode(b"\xff.png"))
    source = ImageFolder(root)
    assert source.classes == (r"chat\xe9",) and source.fingerprint() and train(root)[0, 0].tolist() == RED


def two_targets_of_one_name(folder):
    save(folder / "images" / "1.png")
    save(folder / "depth" / "1.png", Image.fromarray(np.full((12, 12), 1500, np.uint16)))
    np.save(folder / "depth" / "1.npy", np.ones((12, 12)))
    open_depths(f"depths:{folder}")


def a_pipe_for_names_of_classes(folder):
    save(folder / "images" / "1.png")
    save(folder / "masks" / "1.png", Image.new("L", (12, 12)))
    os.mkfifo(folder / "classes.txt")
    open_masks(f"masks:{folder}")


def photographs_of_a_telephone(folder):
    save(folder / "1.jpg")
    for name in ("2.HEIC", "3.heic", "4.avif"):
        (folder / name).write_bytes(b"of a format that is not read")
    assert len(ImageFolder(folder)) == 1


def only_a_telephones(folder):
    (folder / "2.HEIC").write_bytes(b"")
    ImageFolder(folder)


def images_of_one_size(folder):
    """Other pixels in files of as many bytes are another set of images."""
    prints = set()
    for name in ("bmp", "ppm", "tif"):
        for colour in ("red", "blue"):
            place = folder / name
            save(place / f"1.{name}", Image.new("RGB", (300, 300), colour))
            prints.add(ImageFolder(place).fingerprint())
    assert len(prints) == 6


def labels(given, **more):
    return lambda folder: ArraySource(np.zeros((3, 8, 8), np.uint8), given, **more)


def setting(name, value):
    def act(folder):
        config = quickstart.get_config().unlock()
        config.data[name] = value
        read_settings(config)

    return act


def a_work_directory_that_is_no_utf8(folder):
    run(quickstart.get_config(), folder / os.fsdecode(b"r\xe9sultats"))


CASES = [
    Case("pointers in a folder with a colon", pointers_in_a_folder_with_a_colon, r"none of the 4 images .*Git LFS pointer"),
    Case("a part with one damaged of five", a_part_with_one_damaged_of_five),
    Case("a part that is all damaged", a_part_that_is_all_damaged, "none of the 2 images"),
    Case("an empty file", folder_of(b""), "none of the 1 images .*the file is empty"),
    Case("a text named .png", folder_of(b"hello"), "none of the 1 images .*no image, or of a format that is not read"),
    Case("a decompression bomb", folder_of(bomb()), "none of the 1 images .*decompression bomb"),
    Case("16-bit grey", looks(Image.fromarray(np.full((8, 8), 32639, np.uint16)), 127)),
    Case("float TIFF", looks(Image.fromarray(np.full((8, 8), 0.5, np.float32)), 127.5, format="TIFF")),
    Case(
        "float TIFF beyond 1", looks(Image.new("F", (8, 8), 200), 0, format="TIFF"), "floats from 200 to 200 have no known scale"
    ),
    Case("1 bit", looks(Image.new("1", (8, 8), 1), 255)),
    Case("CMYK", looks(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), RED, format="JPEG", quality=100)),
    Case("palette", looks(Image.new("RGB", (8, 8), "red").quantize(4), RED)),
    Case("transparent, black below", looks(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), 255)),
    Case(
        "animated",
        looks(Image.new("RGB", (8, 8), "red"), RED, format="GIF", save_all=True, append_images=[Image.new("RGB", (8, 8))]),
    ),
    Case("a photograph on its side", a_photograph_on_its_side),
    Case("a strip of 50,000 x 1", a_strip),
    Case("a stray image beside classes", a_stray_image),
    Case("things that are no images", things_that_are_no_images),
    Case("links in a circle", links_in_a_circle),
    Case("links that lead nowhere", links_that_lead_nowhere, "holds no images"),
    Case("names that are no UTF-8", names_that_are_no_utf8),
    Case("a work directory that is no UTF-8", a_work_directory_that_is_no_utf8, r"r\\xe9sultats is no name in UTF-8"),
    Case("two targets of one name", two_targets_of_one_name, "are of one name: expected one file"),
    Case("a pipe for names of classes", a_pipe_for_names_of_classes, "has 0 classes: expected 2 to 255"),
    Case("photographs of a telephone", photographs_of_a_telephone),
    Case("only a telephone's", only_a_telephones, r"holds no images: .*, not in \.heic: convert them"),
    Case("images of one size", images_of_one_size),
    Case("a bucket for a folder", lambda folder: open_source("folder:gs://bucket/images"), "addresses are not read, download it"),
    Case("labels in a column", labels([[0], [1], [0]]), r"3 images but labels of shape \(3, 1\): expected one label for each"),
    Case("labels that are no numbers", labels(["cat", "dog", "cat"]), "labels such as cat, dog: expected whole numbers from 0"),
    Case("labels between classes", labels([0, 0.5, 1]), "labels such as 0.0, 1.0: expected whole numbers from 0"),
    Case(
        "labels below zero", labels([-5, 1, 1]), "labels such as -5, 1: expected whole numbers from 0 to 999999, or -1 for none"
    ),
    Case("labels beyond all bounds", labels([0, 1, 2**40]), "expected whole numbers from 0 to 999999"),
    Case("labels beyond the classes", labels([0, 1, 2], classes=("cat", "dog")), "expected whole numbers from 0 to 1"),
    Case("workers=-1", setting("workers", -1), "config.data.workers is -1: expected 0 or more"),
    Case("crop_scale=(1.0, 0.5)", setting("crop_scale", (1.0, 0.5)), r"config.data.crop_scale is \(1.0, 0.5\): expected two"),
    Case("crop_ratio with infinity", setting("crop_ratio", (1.0, float("inf"))), r"config.data.crop_ratio is \(1.0, inf\)"),
    Case("image_size=-3", setting("image_size", -3), "config.data.image_size is -3: expected 0 or more"),
]
