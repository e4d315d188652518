"""Which image files there are below a folder, and what is in them."""

import os
import random
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from brh_jax.data.dense import open_depths, open_masks
from brh_jax.data.files import CorruptImage, files_below, printable, read_image
from brh_jax.data.sources import ImageFolder
from brh_jax.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def write(path, size=(16, 12), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(NOISE).resize(size).save(path, **options)
    return path


def names(folder, found):
    return [path.relative_to(folder).as_posix() for path in found]


# Which there are.


@pytest.fixture
def cats(tmp_path):
    for name in ("a.png", "b.JPG", "c.JPEG", "d.Tiff"):
        write(tmp_path / "cats" / name)
    return tmp_path


ALL = ["cats/a.png", "cats/b.JPG", "cats/c.JPEG", "cats/d.Tiff"]


def test_what_systems_leave_is_no_image(cats):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "readme.jpg.txt", "png"):
        (cats / "cats" / name).write_bytes(b"\0")
    (cats / "cats" / "._a.png").write_bytes(b"\0\5\x16\7")
    for name in (".thumbnails/a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/cats/a.png", "@eaDir/a.png/THUMB_M.jpg"):
        write(cats / "cats" / name)
    write(cats / ".hidden.png")
    assert names(cats, files_below(cats).files) == ALL
    assert ImageFolder(cats).classes == ("cats",)


def test_a_hidden_folder_may_be_asked_for(cats):
    assert len(files_below((cats / "cats").rename(cats / ".cats")).files) == 4


def test_a_folder_may_have_an_images_name(cats):
    write(cats / "dogs.jpg" / "a.png")
    source = ImageFolder(cats)
    assert source.classes == ("cats", "dogs.jpg") and len(source) == 5


def test_links_are_followed_and_loops_end(cats):
    """A class folder is often a link into a larger set."""
    elsewhere = cats.parent / f"{cats.name}_elsewhere"
    write(elsewhere / "x.png")
    (cats / "dogs").symlink_to(elsewhere)
    for name, target in {"up": cats, "here": cats / "cats", "self": cats / "self"}.items():
        (cats / "cats" / name).symlink_to(target)
    (elsewhere / "back").symlink_to(cats)
    (cats / "cats" / "z.png").symlink_to(elsewhere / "x.png")
    below = files_below(cats)
    assert names(cats, below.files) == [*ALL, "cats/z.png", "dogs/x.png"]
    assert ImageFolder(cats).classes == ("cats", "dogs")


def test_links_that_lead_nowhere_are_named(cats, capsys):
    (cats / "cats" / "e.png").symlink_to(cats / ".git" / "annex" / "objects" / "e.png")
    (cats / "cats" / "f.png").symlink_to(cats / "cats" / "f.png")
    assert len(ImageFolder(cats)) == 4
    assert "has links to images that lead nowhere, left out: cats/e.png, cats/f.png\n" in capsys.readouterr().out


def test_pipes_and_devices_are_not_waited_for(cats, tmp_path):
    os.mkfifo(cats / "cats" / "x.png")
    (cats / "cats" / "y.png").symlink_to(cats / "cats" / "x.png")
    (cats / "cats" / "z.png").symlink_to("/dev/zero")
    assert names(cats, files_below(cats).files) == ALL
    write(tmp_path / "pairs" / "images" / "1.png")
    (tmp_path / "pairs" / "masks").mkdir()
    os.mkfifo(tmp_path / "pairs" / "masks" / "1.png")
    os.mkfifo(tmp_path / "pairs" / "classes.txt")
    with pytest.raises(UserError, match="have nothing of their name"):
        open_masks(f"masks:{tmp_path / 'pairs'}", num_classes=2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(cats):
    (cats / "cats" / "a.png").chmod(0)
    with pytest.raises(CorruptImage, match="Permission denied"):
        ImageFolder(cats).read(0)
    (cats / "cats").chmod(0)
    with pytest.raises(UserError, match="cannot list .*cats: Permission denied"):
        ImageFolder(cats)
    (cats / "cats").chmod(0o700)


def test_few_images_beside_classes_are_left_out_aloud(cats, capsys):
    write(cats / "montage.png")
    source = ImageFolder(cats)
    assert source.classes == ("cats",) and set(source.labels) == {0} and len(source) == 4
    assert "has images beside the sub-folders that are its classes, left out: montage.png\n" in capsys.readouterr().out


def test_many_images_beside_few_are_without_classes_aloud(cats, capsys):
    for i in range(6):
        write(cats / f"{i}.png")
    source = ImageFolder(cats)
    assert source.classes == () and set(source.labels) == {-1} and len(source) == 10
    assert "is one without classes, as 6 images lie beside sub-folders of 4: cats\n" in capsys.readouterr().out


def test_equal_files_are_as_many_images(cats):
    """Copies, hard links, links: a set may hold an image several times."""
    for name in ("e.png", "f.png"):
        os.link(cats / "cats" / "a.png", cats / "cats" / name)
    write(cats / "dogs" / "a.png")
    source = ImageFolder(cats)
    assert len(source) == 7 and source.labels == [0] * 6 + [1]
    assert np.array_equal(source.read(0)["image"], source.read(4)["image"])


def test_many_empty_folders_are_quick(tmp_path):
    for i in range(2000):
        (tmp_path / f"{i:04}").mkdir()
    write(tmp_path / "0000" / "a.png")
    assert ImageFolder(tmp_path).classes == ("0000",)


# What is in them.

DAMAGED = {
    "an empty file": (lambda path: path.write_bytes(b""), "the file is empty"),
    "a text": (lambda path: path.write_text("not an image"), "no image, or of a format that is not read"),
    "Git LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "a Git LFS pointer"),
    "a cut JPEG": (lambda path: cut(path, "JPEG"), "truncated"),
    "a cut PNG": (lambda path: cut(path, "PNG"), "truncated"),
    "a bomb": (lambda path: path.write_bytes(bomb()), r"decompression bomb"),
    "floats beyond 1": (lambda path: Image.new("F", (4, 4), 200).save(path, "TIFF"), "floats from 200 to 200"),
    "a file that is gone": (lambda path: path.unlink(), "No such file or directory"),
}


def cut(path, kind):
    write(path, (64, 64), format=kind)
    path.write_bytes(path.read_bytes()[:-200])


def bomb():
    """A small PNG that says it has 20,000 x 20,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\4IDAT1234"


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_said_in_one_line(kind, tmp_path):
    damage, reason = DAMAGED[kind]
    path = write(tmp_path / "x: y.jpg")
    damage(path)
    with pytest.raises(CorruptImage, match=reason) as caught:
        read_image(path)
    assert caught.value.name == str(path)
    assert "\n" not in caught.value.reason and str(path) not in caught.value.reason


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_whatever_is_damaged_is_an_image_or_corrupt(kind, tmp_path):
    """Bytes changed, cut off and repeated at random: nothing but CorruptImage comes out."""
    path, rng = tmp_path / "x.img", random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(NOISE).save(path, kind, **({} if kind in ("BMP", "PPM", "GIF") else {"exif": exif}))
    whole, outcomes = path.read_bytes(), set()
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            content[rng.randrange(min(len(content), rng.choice((40, 10_000))))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        try:
            outcomes.add(read_image(path).mode)
        except CorruptImage as error:
            outcomes.add("corrupt")
            assert error.reason and "\n" not in str(error)
    assert "corrupt" in outcomes and outcomes <= {"RGB", "corrupt"}


def test_too_many_open_files_are_no_damage(tmp_path):
    path = write(tmp_path / "a.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        while True:
            held.append(os.open(path, os.O_RDONLY))
    except OSError:
        with pytest.raises(UserError, match="too many files are open: allow more"):
            read_image(path)
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Pairs of them.


def test_two_files_of_one_name_are_refused(tmp_path):
    write(tmp_path / "images" / "1.png")
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "1.npy", np.ones((12, 16)))
    Image.fromarray(np.full((12, 16), 1500, np.uint16)).save(tmp_path / "depth" / "1.png")
    with pytest.raises(UserError, match=r"depth/1.npy and 1.png are of one name: expected one file"):
        open_depths(f"depths:{tmp_path}")
    (tmp_path / "depth" / "1.npy").unlink()
    assert open_depths(f"depths:{tmp_path}").read(0)["target"][0, 0] == 1.5
    write(tmp_path / "images" / "1.jpg")
    with pytest.raises(UserError, match=r"images/1.jpg and 1.png are of one name"):
        open_depths(f"depths:{tmp_path}")


@pytest.mark.parametrize("drawn_on", ["what is seen", "what is stored"])
def test_a_target_lies_on_its_image_however_that_is_turned(drawn_on, tmp_path):
    """A mark in the image and one in its mask, at the same place."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((12, 16, 3), np.uint8)
    pixels[:3, :5] = 255
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "1.png", exif=exif)
    mask = (pixels[..., 0] > 0).astype(np.uint8)
    Image.fromarray(np.rot90(mask, -1).copy() if drawn_on == "what is seen" else mask).save(tmp_path / "masks" / "1.png")
    record = open_masks(f"masks:{tmp_path}", num_classes=2).read(0)
    np.testing.assert_array_equal(np.asarray(record["image"])[..., 0] > 0, record["target"] == 1)


@pytest.mark.parametrize("values", [np.ones((12, 16), complex), np.full((12, 16), "far"), np.ones((12, 16, 1))])
def test_a_depth_map_is_of_numbers(values, tmp_path):
    write(tmp_path / "images" / "1.png")
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "1.npy", values)
    with pytest.raises(UserError, match=r"1.npy is .* of shape .*: expected a depth map \[height, width\] of numbers"):
        open_depths(f"depths:{tmp_path}").read(0)


# Names.


def test_names_are_printed_in_one_line_of_text():
    assert printable("caf\udce9/\x1b[2J\nnaïve 猫.png") == r"caf\xe9/\x1b[2J\x0anaïve 猫.png"


def test_names_that_are_not_utf8(tmp_path, capsys):
    """Latin-1, of an old archive."""
    root = tmp_path / os.fsdecode(b"caf\xe9")
    for name in (b"chat\xe9/1.png", b"chat\xe9/\xff.png", b"chien/\xe9.png"):
        write(root / os.fsdecode(name))
    (root / "chien" / os.fsdecode(b"\xe8.png")).write_text("no image")
    source = ImageFolder(root)
    assert source.classes == (r"chat\xe9", "chien") and source.name.endswith(r"caf\xe9")
    before = source.fingerprint()
    assert source.read_or_skip(2) is None and source.read(3)["label"] == 1
    assert source.skipped[2].name.endswith(r"caf\xe9/chien/\xe8.png")
    (root / "chien" / os.fsdecode(b"\xe9.png")).rename(root / "chien" / os.fsdecode(b"\xea.png"))
    assert ImageFolder(root).fingerprint() != before
    capsys.readouterr().out.encode("utf-8", "strict")


def test_classes_of_masks_that_are_not_utf8(tmp_path):
    write(tmp_path / "images" / "1.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(tmp_path / "masks" / "1.png")
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfciel\r\nrivi\xe8re\r\n")
    assert open_masks(f"masks:{tmp_path}").classes == ("ciel", r"rivi\xe8re")
