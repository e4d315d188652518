import sys
import types

import numpy as np
from PIL import Image

from brh_jax.data.dense import check_depths, open_depths, open_masks
from experiments import dense_samples


def test_masks_lie_where_objects_were_pasted(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(128, 256, (150, 130, 4), dtype=np.uint8)
        pixels[..., 3] = 0
        pixels[30:120, 20:110, 3] = 255
        (tmp_path / "cutouts").mkdir(exist_ok=True)
        Image.fromarray(pixels, "RGBA").save(tmp_path / "cutouts" / f"{i}.png")
    for part in ("train", "test"):
        (tmp_path / "photos" / part).mkdir(parents=True)
        Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(tmp_path / "photos" / part / "black.png")
    given = [str(tmp_path / "out"), f"--cutouts={tmp_path / 'cutouts'}", f"--photographs={tmp_path / 'photos'}"]
    assert dense_samples.main(given) == 0
    train, test = (open_masks(f"masks:{tmp_path}/out/masks/{part}") for part in ("train", "test"))
    assert (len(train), len(test), train.classes) == (6, 2, ("background", "object"))
    for record in (train.read(0), test.read(1)):
        bright = np.asarray(record["image"]).mean(-1) > 64
        assert (bright == (record["target"] == 1)).mean() > 0.97  # edges are interpolated
    assert dense_samples.main(given[:2]) == 2
    assert "give --cutouts and --photographs" in capsys.readouterr().err
    assert dense_samples.main([*given[:2], f"--photographs={tmp_path / 'cutouts'}"]) == 2
    assert "holds no images: expected photographs in train/ and test/" in capsys.readouterr().err


def test_damaged_pictures_are_passed_over(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 256, (130, 130, 4), dtype=np.uint8)
        pixels[..., 3] = np.where(np.arange(130) < 60, 255, 0)
        (tmp_path / "cutouts").mkdir(exist_ok=True)
        Image.fromarray(pixels, "RGBA").save(tmp_path / "cutouts" / f"{i}.png")
    (tmp_path / "cutouts" / "._0.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "cutouts" / "4.png").write_bytes(b"")
    for part in ("train", "test"):
        (tmp_path / "photos" / part).mkdir(parents=True)
        Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "photos" / part / "small.png")
        (tmp_path / "photos" / part / "gone.jpg").write_text("no image")
    given = [str(tmp_path / "out"), f"--cutouts={tmp_path / 'cutouts'}", f"--photographs={tmp_path / 'photos'}"]
    assert dense_samples.main(given) == 0
    assert "4.png: the file is empty\n" in capsys.readouterr().out
    assert [len(open_masks(f"masks:{tmp_path}/out/masks/{part}")) for part in ("train", "test")] == [3, 1]
    (tmp_path / "photos" / "train" / "small.png").write_bytes(b"")
    assert dense_samples.main(given) == 2
    assert "train holds no images: expected photographs in train/ and test/" in capsys.readouterr().err
    assert dense_samples.main([given[0], "--cutouts=nowhere", given[2]]) == 2
    assert capsys.readouterr().err == "error: cannot list nowhere: No such file or directory\n"


def test_depths_are_metres(tmp_path, monkeypatch):
    """Tiles of training and test parts, without overlap between the two; unknown disparities are no measurement."""
    disparity = np.full((500, 741), 50.0)
    disparity[0, 0] = np.inf
    image = np.broadcast_to(np.arange(741)[None, :, None] % 256, (500, 741, 3)).astype(np.uint8)
    module = types.ModuleType("skimage")
    module.data = types.SimpleNamespace(stereo_motorcycle=lambda: (image, image, disparity))
    monkeypatch.setitem(sys.modules, "skimage", module)
    assert dense_samples.main([str(tmp_path), "--depths"]) == 0
    train, test = (open_depths(f"depths:{tmp_path}/depths/{part}") for part in ("train", "test"))
    assert (len(train), len(test)) == (49, 14)
    target = train.read(0)["target"]
    assert target[0, 0] == 0
    np.testing.assert_allclose(target[5, 5], 994.978 * 0.193001 / (50 + 31.086), rtol=1e-6)
    check_depths(test, 1e-3, 10.0, "depth")
