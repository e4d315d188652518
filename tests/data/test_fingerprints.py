"""Fingerprints of sources: of what they hold, not of where it lies."""

import shutil

import numpy as np
import pytest
from PIL import Image

from brh_jax.data.dense import open_depths, open_masks
from brh_jax.data.sources import ArraySource, Selection, Subset, open_source

PIXELS = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)


@pytest.fixture
def folder(tmp_path):
    """Images with masks, depths and classes, which all kinds of folders read."""
    root = tmp_path / "here"
    for name in ("images", "masks", "depth"):
        (root / name).mkdir(parents=True)
    for i in range(3):
        Image.fromarray(PIXELS[0] + i).save(root / "images" / f"{i}.png")
        Image.fromarray(np.full((8, 8), i % 2, np.uint8)).save(root / "masks" / f"{i}.png")
        np.save(root / "depth" / f"{i}.npy", np.full((8, 8), 1.0 + i))
    (root / "classes.txt").write_text("sky\nsea\n")
    return root


FOLDERS = {
    "folder": (lambda root: open_source(f"folder:{root / 'images'}"), "images/1.png"),
    "masks": (lambda root: open_masks(f"masks:{root}"), "masks/1.png"),
    "depths": (lambda root: open_depths(f"depths:{root}"), "depth/1.npy"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_told_by_its_files_not_by_its_place(kind, folder, tmp_path):
    open_it, changed = FOLDERS[kind]
    prints = [open_it(folder).fingerprint()]
    assert prints == [open_it(shutil.copytree(folder, tmp_path / "there")).fingerprint()]
    with (folder / changed).open("ab") as file:
        file.write(b"more")
    prints.append(open_it(folder).fingerprint())
    for side in ("images", "masks", "depth"):
        file = next((folder / side).glob("2.*"))
        shutil.copy(file, file.with_stem("3"))  # one more
    prints.append(open_it(folder).fingerprint())
    for side in ("images", "masks", "depth"):
        file = next((folder / side).glob("3.*"))
        file.rename(file.with_stem("4"))  # renamed
    prints.append(open_it(folder).fingerprint())
    assert len(set(prints)) == 4


def test_other_classes_are_other_masks(folder):
    before = open_masks(f"masks:{folder}").fingerprint()
    (folder / "classes.txt").write_text("sky\nsand\n")
    assert open_masks(f"masks:{folder}").fingerprint() != before


def test_arrays_are_told_by_their_content():
    prints = [
        ArraySource(PIXELS).fingerprint(),
        ArraySource(PIXELS + 1).fingerprint(),
        ArraySource(PIXELS.reshape(2, 4, 16)).fingerprint(),
        ArraySource(PIXELS, [0, 1]).fingerprint(),
        ArraySource(PIXELS, [1, 0]).fingerprint(),
        ArraySource(PIXELS, [0, 1], classes=("a", "b")).fingerprint(),
    ]
    assert len(set(prints)) == 6
    assert ArraySource(PIXELS.copy(), name="another").fingerprint() == prints[0]
    assert len({open_source(f"digits:{split}").fingerprint() for split in ("train", "test")}) == 2


def test_parts_are_told_by_the_whole_and_their_indices():
    whole, other = ArraySource(PIXELS), ArraySource(PIXELS + 1)
    prints = [Selection(source, rows).fingerprint() for source in (whole, other) for rows in ([0], [1], [0, 1], [1, 0])]
    assert len({*prints, whole.fingerprint()}) == 9
    assert Selection(whole, np.array([0])).fingerprint() == prints[0]
    assert Subset(whole, 2, seed=0).fingerprint() in prints
