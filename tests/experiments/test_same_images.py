"""Images to measure on that were trained on are named aloud: what is measured on them says nothing about others."""

import shutil

import numpy as np
import pytest
from PIL import Image

from experiments.data import ImageSet, warn_of_same_images


@pytest.fixture
def folders(tmp_path):
    """Two folders of the same images, and one of as many others."""
    for name, shade in (("train", 0), ("other", 100)):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(np.full((8 + i, 8), shade + i, np.uint8)).save(tmp_path / name / f"{i}.bmp")
    shutil.copytree(tmp_path / "train", tmp_path / "copy")
    return tmp_path


@pytest.mark.parametrize(("name", "said"), [("train", True), ("copy", True), ("other", False)])
def test_the_same_images_twice(folders, name, said, capsys):
    sets = [ImageSet("data.train", f"folder:{folders / 'train'}", ""), ImageSet("data.eval", f"folder:{folders / name}", "")]
    warn_of_same_images([(one, one.check()) for one in sets])
    assert ("warning: config.data.train and .eval are the same 3 images" in capsys.readouterr().out) == said


def test_sections_of_their_own(folders, capsys):
    """A probe may be trained on what the teacher is measured on."""
    sets = [ImageSet(setting, f"folder:{folders / 'train'}", "") for setting in ("data.eval", "probe.train", "eval.more")]
    warn_of_same_images([(one, one.check()) for one in sets])
    assert not capsys.readouterr().out
