"""A run on a folder as people have them: names in Latin-1, a file that is damaged, one that lies beside the classes."""

import os
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from brh_jax.command import print_any_name
from brh_jax.errors import UserError
from experiments import pipeline
from experiments.runs import read_results

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny


@pytest.mark.slow
def test_a_run_says_what_it_skipped(tmp_path, capsys):
    root = tmp_path / os.fsdecode(b"photos \xe9t\xe9: 2024")
    for number, name in enumerate((b"chat\xe9", b"chien")):
        folder = root / os.fsdecode(name)
        folder.mkdir(parents=True)
        for i in range(20):
            Image.fromarray(np.full((8, 8), 100 * number + i, np.uint8)).save(folder / os.fsdecode(b"\xe9%d.png" % i))
    (root / os.fsdecode(b"chien/\xe97.png")).write_bytes(b"damaged")
    Image.new("L", (8, 8)).save(root / os.fsdecode(b"\xe0.png"))
    config = tiny.get_config().unlock()
    config.stages = ("teacher", "report")
    config.data.train = config.data.eval = f"folder:{root}"
    print_any_name()  # as the command does
    with pytest.raises(UserError, match=r"/r\\xe9sultats is no name in UTF-8: give another --workdir"):
        pipeline.run(config, tmp_path / os.fsdecode(b"r\xe9sultats"))
    workdir = tmp_path / "résultats"
    pipeline.run(config, workdir)
    out = capsys.readouterr().out
    assert r"skipped " + str(tmp_path) + r"/photos \xe9t\xe9: 2024/chien/\xe97.png: no image" in out
    assert r"left out: \xe0.png" in out
    skipped = read_results(workdir / "results.json").about["skipped_images"]  # which the teacher's training alone has read
    assert list(skipped.values()) == ["no image, or of a format that is not read"]
    page = (workdir / "report" / "index.html").read_text()
    assert "1 images could not be decoded and were skipped" in page and "t\\udce9: 2024" in page
    pipeline.run(config, workdir)
    assert "teacher: done before, skipped" in capsys.readouterr().out
