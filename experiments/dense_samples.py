"""Small sets with masks and depths, to see the segmentation and depth probes run.

    python -m experiments.dense_samples OUT --cutouts=DIR --photographs=DIR --depths

Writes OUT/masks/{train,test}: cut-out pictures (.png with transparency) pasted onto crops of photographs (DIR/train, DIR/test),
two classes, for config.segmentation; and OUT/depths/{train,test}: tiles of one stereo pair of Middlebury 2014, as
scikit-image has it (pip install scikit-image pooch), the left part to train on, for config.depth. A check that the pipelines are
whole: one scene and pasted objects say nothing about a model.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from brh_jax.command import Parser, run_command
from brh_jax.data.files import CorruptImage, decoded, files_below, read_image
from brh_jax.errors import UserError

_SIDE = 224
# Of the pair at half size: focal length in pixels, baseline in metres, offset of the principal points in pixels.
_FOCAL, _BASELINE, _OFFSET = 994.978, 0.193001, 31.086


def masks(out: pathlib.Path, cutouts: pathlib.Path, photographs: pathlib.Path, seed: int = 0) -> dict[str, int]:
    """Three quarters of the cut-outs on training photographs, the rest on test ones; returns how many of each.

    Raises:
        UserError: no such pictures.
    """
    rng = np.random.default_rng(seed)
    usable = [picture for path in files_below(cutouts, (".png",)).files if (picture := _usable(path)) is not None]
    if len(usable) < 4:
        raise UserError(f"{cutouts} holds {len(usable)} cut-outs: expected .png files of 120 pixels and more, partly transparent")
    order = rng.permutation(len(usable))
    cut = int(0.75 * len(usable))
    counts = {}
    for part, chosen in (("train", order[:cut]), ("test", order[cut:])):
        backgrounds = files_below(photographs / part).files if (photographs / part).is_dir() else []
        folder = out / "masks" / part
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / "classes.txt").write_text("background\nobject\n")
        for n, i in enumerate(chosen):
            image, mask = _composed(usable[i], _background(backgrounds, photographs / part, rng), rng)
            image.save(folder / "images" / f"{n:03}.png")
            Image.fromarray(mask).save(folder / "masks" / f"{n:03}.png")
        counts[part] = len(chosen)
    return counts


def _usable(path: pathlib.Path) -> Image.Image | None:
    """A picture, not a drawing of a few colours, of which part is to be seen; None for what is none."""
    try:
        image = decoded(path, lambda: Image.open(path).copy())
    except CorruptImage as error:
        print(f"warning: skipped {error}", flush=True)
        return None
    if image.mode != "RGBA" or min(image.size) < 120:
        return None
    pixels = np.asarray(image)
    colours = len(np.unique(pixels[..., :3].reshape(-1, 3)[::7], axis=0))
    return image if 0.1 < (pixels[..., 3] > 127).mean() < 0.9 and colours > 800 else None


def _background(paths: list[pathlib.Path], folder: pathlib.Path, rng: np.random.Generator) -> Image.Image:
    """One of the photographs, drawn at random; what cannot be decoded is struck off the list."""
    while paths:
        number = int(rng.integers(len(paths)))
        try:
            return read_image(paths[number])
        except CorruptImage as error:
            print(f"warning: skipped {error}", flush=True)
            paths.pop(number)
    raise UserError(f"{folder} holds no images: expected photographs in train/ and test/")


def _composed(cutout: Image.Image, background: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    side = max(1, int(min(background.size) * rng.uniform(0.4, 1)))
    x, y = (int(rng.integers(whole - side + 1)) for whole in background.size)
    image = background.crop((x, y, x + side, y + side)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    scale = rng.integers(120, 200) / max(cutout.size)
    cutout = cutout.resize([max(8, int(n * scale)) for n in cutout.size], Image.Resampling.LANCZOS)
    x, y = (int(rng.integers(_SIDE - length + 1)) for length in cutout.size)
    image.paste(cutout, (x, y), cutout)
    mask = np.zeros((_SIDE, _SIDE), np.uint8)
    mask[y : y + cutout.height, x : x + cutout.width] = np.asarray(cutout)[..., 3] > 127
    return image, mask


def depths(out: pathlib.Path) -> dict[str, int]:
    """Overlapping tiles of the left two thirds and of the rest of the scene; returns how many of each.

    Raises:
        UserError: scikit-image is not installed or cannot get the pair.
    """
    try:
        from skimage import data

        image, _, disparity = data.stereo_motorcycle()
    except (ImportError, OSError) as error:
        raise UserError(f"no stereo pair ({error}): pip install scikit-image pooch, or go without --depths") from None
    known = np.isfinite(disparity) & (disparity > 0)
    metres = np.where(known, _FOCAL * _BASELINE / (np.where(known, disparity, 1) + _OFFSET), 0).astype(np.float32)
    height, width = metres.shape
    counts = {}
    for part, (start, stop, step) in {"train": (0, width * 2 // 3, 45), "test": (width * 2 // 3, width, 23)}.items():
        folder = out / "depths" / part
        for kind in ("images", "depth"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        corners = [(y, x) for y in range(0, height - _SIDE + 1, 46) for x in range(start, stop - _SIDE + 1, step)]
        for n, (y, x) in enumerate(corners):
            Image.fromarray(image[y : y + _SIDE, x : x + _SIDE]).save(folder / "images" / f"{n:03}.png")
            np.save(folder / "depth" / f"{n:03}.npy", metres[y : y + _SIDE, x : x + _SIDE])
        counts[part] = len(corners)
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = Parser("experiments.dense_samples", __doc__)
    parser.add_argument("out", type=pathlib.Path, help="folder for the sets")
    parser.add_argument("--cutouts", type=pathlib.Path, help="folder of .png pictures with transparency")
    parser.add_argument("--photographs", type=pathlib.Path, help="folder with train/ and test/")
    parser.add_argument("--depths", action="store_true", help="the stereo pair's tiles too")
    return run_command(parser, _write, argv)


def _write(arguments: argparse.Namespace) -> None:
    if bool(arguments.cutouts) != bool(arguments.photographs) or not (arguments.cutouts or arguments.depths):
        raise UserError("give --cutouts and --photographs, or --depths, or all of them")
    if arguments.cutouts:
        print(f"{arguments.out / 'masks'}: {masks(arguments.out, arguments.cutouts, arguments.photographs)}")
    if arguments.depths:
        print(f"{arguments.out / 'depths'}: {depths(arguments.out)}")


if __name__ == "__main__":
    sys.exit(main())
