import io
import re
import sys
import tracemalloc
import types

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from brh_jax.data.dense import IGNORED, check_depths, check_mask, open_depths, open_masks
from brh_jax.data.pipeline import measuring_batches, training_batches
from brh_jax.data.sources import Source
from brh_jax.data.transforms import RandomCrop, RandomResizedCrop, Resize
from brh_jax.errors import UserError


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


def noise(height=12, width=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def masks(tmp_path):
    for i in range(4):
        save(tmp_path / "images" / f"{i}.png", noise(seed=i))
        save(tmp_path / "masks" / f"{i}.png", np.full((12, 16), i % 3, np.uint8))
    (tmp_path / "classes.txt").write_text("sky\nsea\nsand\n")
    return tmp_path


@pytest.fixture
def depths(tmp_path):
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", noise(seed=i))
    save(tmp_path / "depth" / "0.png", np.full((12, 16), 1500, np.uint16))
    save(tmp_path / "depth" / "1.npy", np.full((12, 16), 2.5))
    save(tmp_path / "depth" / "2.npy", np.array([[np.nan, -1.0, np.inf, 0.0] * 4] * 12))
    return tmp_path


def test_ade20k_counts_from_one_and_ignores_background(tmp_path):
    save(tmp_path / "images" / "training" / "ADE_train_1.jpg", noise())
    values = np.full((12, 16), 150, np.uint8)
    values[0, 0], values[0, 1] = 0, 1
    save(tmp_path / "annotations" / "training" / "ADE_train_1.png", values)
    header = "Idx\tRatio\tTrain\tVal\tName\n"
    rows = "".join(f"{i}\t0.1\t1\t1\tthing {i}, other name\n" for i in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text(header + rows)
    source = open_masks(f"ade20k:{tmp_path}:training")
    assert (len(source), len(source.classes), source.classes[149]) == (1, 150, "thing 150")
    target = source.read(0)["target"]
    assert target.dtype == np.uint8
    assert (target[0, 0], target[0, 1], target[1, 0]) == (IGNORED, 0, 149)
    with pytest.raises(UserError, match=r"no folder .*images/validation: expected\n  ade20k:PATH:training"):
        open_masks(f"ade20k:{tmp_path}:validation")
    with pytest.raises(UserError, match="has no split 'train'"):
        open_masks(f"ade20k:{tmp_path}:train")


def test_a_value_beyond_the_classes_is_no_missing_label():
    with pytest.raises(UserError, match="mask has the value 256 in 1 pixels: expected classes from 1 to 150, and 0 for no label"):
        check_mask(np.array([[0, 256]]), "mask", 150, from_one=True)


def test_mask_folders(masks):
    source = open_masks(f"masks:{masks}")
    assert source.classes == ("sky", "sea", "sand")
    assert [int(source.read(i)["target"][0, 0]) for i in range(4)] == [0, 1, 2, 0]
    (batch,) = measuring_batches(source, Resize((6, 8)), 4)
    assert batch["image"].shape == (4, 6, 8, 3) and batch["target"].shape == (4, 6, 8)
    assert sorted(batch["target"][:, 0, 0]) == [0, 0, 1, 2]
    (masks / "classes.txt").unlink()
    assert open_masks(f"masks:{masks}", num_classes=3).classes == ("0", "1", "2")
    with pytest.raises(UserError, match="has 0 classes: expected 2 to 255; give their number as num_classes"):
        open_masks(f"masks:{masks}")


def test_bad_masks_are_named(masks):
    path = masks / "masks" / "1.png"
    values = np.full((12, 16), 1, np.uint8)
    values[3, 3:5] = 7
    save(path, values)
    with pytest.raises(UserError, match=r"masks/1.png has the value 7 in 2 pixels: expected classes from 0 to 2, and 255"):
        next(training_batches(open_masks(f"masks:{masks}"), Resize((4, 4)), 4, seed=0))
    save(path, np.zeros((10, 16), np.uint8))
    with pytest.raises(UserError, match=r"masks/1.png has 16 x 10 pixels, its image .*1.png 16 x 12"):
        list(measuring_batches(open_masks(f"masks:{masks}"), Resize((4, 4)), 4))
    save(path, noise())
    with pytest.raises(UserError, match="has 3 channels: expected a mask of one channel"):
        open_masks(f"masks:{masks}").read(1)
    many = masks / "classes.txt"
    many.write_text("\n".join(f"class {i}" for i in range(300)))
    with pytest.raises(UserError, match="has 300 classes: expected 2 to 255"):
        open_masks(f"masks:{masks}")
    many.write_text("sky\nsea\nsand\n")
    path.unlink()
    with pytest.raises(UserError, match=r"1 of 4 images in .* have nothing of their name in .*masks .*, 1.png for one: expected"):
        open_masks(f"masks:{masks}")
    with pytest.raises(UserError, match=r"unknown data 'folder:x': expected\n  ade20k"):
        open_masks("folder:x")
    with pytest.raises(UserError, match=r"no folder .*nowhere/images: expected"):
        open_masks("masks:nowhere", num_classes=3)
    with pytest.raises(UserError, match=r"no folder .*nowhere/images: expected"):
        open_masks("masks:nowhere")


def test_damaged_pairs_are_skipped(masks):
    (masks / "masks" / "1.png").write_bytes(b"not a mask")
    source = open_masks(f"masks:{masks}")
    (batch,) = measuring_batches(source, Resize((4, 4)), 4)
    assert batch["valid"].sum() == 3 and len(source.skipped) == 1


def npy(shape, data=b"", descr="<f4", fortran=False):
    """An .npy file whose header may lie."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": fortran, "shape": shape})
    return file.getvalue() + data


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            npy((50_000, 50_000), bytes(768)),
            r"its header says float32 \(50000, 50000\), which is 10,000,000,000 bytes, and 768",
        ),
        (npy((2**40, 2**40), bytes(768)), "which is 4,8[0-9,]+ bytes, and 768 are there"),
        (npy((-12, -16), bytes(768)), r"its header says float32 \(-12, -16\)"),
        (npy((12, 16), bytes(500)), "which is 768 bytes, and 500 are there"),
        (npy((12, 16), bytes(800)), "which is 768 bytes, and 800 are there"),
        (npy((12, 16), bytes(768), "|O"), "Python objects, which are not unpickled"),
        (npy((12, 16), bytes(768))[:50], "no array in .npy format"),
        (b"\x93NUMPY\x09\x00" + bytes(100), r"no array in .npy format"),
        (b"PK\x03\x04 an archive", "no array in .npy format"),
        (b"", "the file is empty"),
    ],
    ids=["large", "overflowing", "negative", "short", "long", "objects", "cut header", "version", "archive", "empty"],
)
def test_a_damaged_npy_is_named_and_no_more_is_held_than_is_there(depths, content, reason):
    path = depths / "depth" / "1.npy"
    path.write_bytes(content)
    source = open_depths(f"depths:{depths}")
    tracemalloc.start()
    try:
        assert source.read_or_skip(1) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert source.skipped[1].name == str(path)
    assert re.search(reason, source.skipped[1].reason), source.skipped[1].reason


def test_an_npy_is_read_as_numpy_reads_it(depths):
    values = np.random.default_rng(0).uniform(0.5, 9, (12, 16))
    for array in (values, np.asfortranarray(values), values.astype(">f4"), (100 * values).astype(np.uint16)):
        np.save(depths / "depth" / "1.npy", array)
        np.testing.assert_array_equal(open_depths(f"depths:{depths}").read(1)["target"], array.astype(np.float32))
    np.save(depths / "depth" / "1.npy", np.full((12, 16), "x"))
    with pytest.raises(UserError, match=r"1.npy is <U1 of shape \(12, 16\): expected a depth map \[height, width\] of numbers"):
        open_depths(f"depths:{depths}").read(1)


def test_depth_is_in_metres_and_zero_where_there_is_none(depths):
    source = open_depths(f"depths:{depths}")
    values = [source.read(i)["target"] for i in range(3)]
    assert [v.dtype for v in values] == [np.float32] * 3
    np.testing.assert_allclose([v[0, 0] for v in values], [1.5, 2.5, 0.0])
    assert not values[2].any()
    check_depths(source, 0.001, 10, "config.depth.train")
    save(depths / "depth" / "0.png", np.zeros((12, 16), np.uint8))
    with pytest.raises(UserError, match=r"0.png is not of 16 bits \(mode L\): expected depth in millimetres"):
        source.read(0)
    with pytest.raises(UserError, match=r"unknown data 'x': expected\n  nyu:PATH:train"):
        open_depths("x")


@pytest.mark.parametrize("scale", [1000.0, 0.001])
def test_depth_in_the_wrong_unit(depths, scale):
    for i in range(3):
        (depths / "depth" / f"{i}.png").unlink(missing_ok=True)
        save(depths / "depth" / f"{i}.npy", np.full((12, 16), 2.0 * scale))
    message = rf"config.depth.train .*: depths go from {2 * scale:g} to {2 * scale:g}, the range is 0.001 to 10 m .* unit\?"
    with pytest.raises(UserError, match=message):
        check_depths(open_depths(f"depths:{depths}"), 0.001, 10, "config.depth.train")


def test_depth_without_measurements(depths):
    for i in range(3):
        (depths / "depth" / f"{i}.png").unlink(missing_ok=True)
        save(depths / "depth" / f"{i}.npy", np.zeros((12, 16)))
    with pytest.raises(UserError, match="hold no measurement"):
        check_depths(open_depths(f"depths:{depths}"), 0.001, 10, "config.depth.train")


class Dataset:
    """As much of an h5py data set as is read."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index]


@pytest.fixture
def nyu(tmp_path, monkeypatch):
    """The release in small: by h5py where it is installed, else by a stand-in."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 12, 16, 3), dtype=np.uint8)
    depth = rng.uniform(0.5, 9, (5, 12, 16)).astype(np.float32)
    stored = {"images": images.transpose(0, 3, 2, 1), "depths": depth.transpose(0, 2, 1)}
    file = tmp_path / "nyu_depth_v2_labeled.mat"
    try:
        import h5py

        with h5py.File(file, "w") as written:
            for name, values in stored.items():
                written[name] = values
    except ImportError:
        file.write_bytes(b"stand-in")

        class File(dict):
            def __init__(self, path):
                super().__init__({name: Dataset(values) for name, values in stored.items()})

            def __enter__(self):
                return self

            def __exit__(self, *args):
                pass

        monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=File))
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[1], [3], [4]]), "testNdxs": np.array([[2], [5]])})
    return tmp_path, images, depth


def test_nyu_release(nyu):
    folder, images, depth = nyu
    train, test, everything = (open_depths(f"nyu:{folder}:{split}") for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (3, 2, 5)
    np.testing.assert_array_equal(train.read(1)["image"], images[2])
    np.testing.assert_array_equal(test.read(1)["target"], depth[4])
    (batch,) = measuring_batches(test, Resize((12, 16)), 2)
    np.testing.assert_array_equal(sorted(batch["target"].tolist()), sorted(depth[[1, 4]].tolist()))
    (folder / "splits.mat").unlink()
    with pytest.raises(UserError, match=r"no file .*splits.mat, which says what is train and test: expected\n  nyu:PATH"):
        open_depths(f"nyu:{folder}:train")
    assert len(open_depths(f"nyu:{folder}:all")) == 5
    assert len({source.fingerprint() for source in (train, test, everything)}) == 3
    with pytest.raises(UserError, match=r"no file .*nowhere/nyu_depth_v2_labeled.mat: expected"):
        open_depths("nyu:nowhere:test")


def test_a_damaged_nyu_release(nyu):
    folder, images, depth = nyu
    for junk in (b"", b"MATLAB 5.0 MAT-file" + b" " * 105 + b"\0\1IM\x0f\0\0\0\xff\xff\xff\x7f" + b"\x78\x9c" * 20):
        (folder / "splits.mat").write_bytes(junk)
        with pytest.raises(UserError, match="splits.mat is damaged or not NYU's"):
            open_depths(f"nyu:{folder}:train")
    h5py = pytest.importorskip("h5py")
    file = folder / "nyu_depth_v2_labeled.mat"
    with h5py.File(file, "w") as written:
        written.create_dataset("images", (2, 3, 2**20, 2**20), np.uint8, chunks=(1, 1, 8, 8))
        written.create_dataset("depths", (2, 2**20, 2**20), np.float32, chunks=(1, 8, 8))
    with pytest.raises(UserError, match=r"holds images of \(3, 1048576, 1048576\) and depths .*: expected \(3, 640, 480\)"):
        open_depths(f"nyu:{folder}:all")
    with h5py.File(file, "w") as written:
        for name, values in (("images", images.transpose(0, 3, 2, 1)), ("depths", depth.transpose(0, 2, 1))):
            written.create_dataset(name, data=values, chunks=(1, *values.shape[1:][:-2], 16, 12), compression="gzip")
        place = written["depths"].id.get_chunk_info(2).byte_offset
    with file.open("r+b") as damaged:
        damaged.seek(place)
        damaged.write(bytes(64))
    source = open_depths(f"nyu:{folder}:all")
    assert [source.read_or_skip(i) is None for i in range(5)] == [False, False, True, False, False]
    assert source.skipped[2].name == f"{file} record 2"


class Centred(Source):
    """Pixels, mask and depth all tell their place."""

    def __init__(self):
        super().__init__("places")

    def __len__(self):
        return 8

    def read(self, index):
        rows, columns = np.mgrid[:32, :48]
        return {"image": np.stack([4 * rows, 4 * columns, 0 * rows], -1).astype(np.uint8), "target": self.target(rows, columns)}

    @staticmethod
    def target(rows, columns):
        return (rows + columns / 100).astype(np.float32)


@pytest.mark.parametrize("transform", [RandomResizedCrop((16, 24), (0.3, 1.0)), RandomCrop((16, 24), jitter=0.0)])
def test_image_and_target_go_through_the_same_crop_and_flip(transform):
    batch = next(training_batches(Centred(), transform, 8, seed=0))
    target = batch["target"].astype(np.float64)
    rows, columns = np.floor(target + 1e-3), 100 * (target % 1)
    inside = (slice(None), slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(batch["image"][..., 0][inside] / 4, rows[inside], atol=1.3)
    flipped = columns[:, 8, 0] > columns[:, 8, -1]
    assert 0 < flipped.sum() < 8
    np.testing.assert_allclose(batch["image"][..., 1][inside] / 4, columns[inside], atol=1.6)


def test_crops_keep_the_scale_of_depth_and_pad_what_is_too_small():
    image, depth = np.full((10, 12, 3), 200, np.uint8), np.full((10, 12), 3.0, np.float32)
    pixels, target = RandomCrop((16, 8), jitter=0.0)(image, np.random.default_rng(0), depth)
    assert pixels.shape == (16, 8, 3) and target.dtype == np.float32
    np.testing.assert_array_equal(target > 0, np.arange(16)[:, None].repeat(8, 1) < 10)
    np.testing.assert_array_equal(pixels[..., 0], np.where(target > 0, 200, 0))
    jittered, _ = RandomCrop((8, 8), jitter=0.5)(noise(), np.random.default_rng(0), np.ones((12, 16), np.float32))
    assert not np.isin(jittered.reshape(-1, 3), noise().reshape(-1, 3)).all()


def test_masks_are_resized_by_nearest_neighbour():
    mask = np.where(np.arange(16) < 8, 3, 200).astype(np.uint8)[None].repeat(12, 0)
    _, target = Resize((6, 5))(noise(), None, mask)
    assert set(np.unique(target)) == {3, 200}


def test_tfds_masks_and_depths(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    def png(values):
        file = io.BytesIO()
        Image.fromarray(values).save(file, "PNG")
        file.seek(0)
        return file

    class BrhDense(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                "depth": tfds.features.Tensor(shape=(12, 16), dtype=np.float16),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                depth = np.full((12, 16), i + 0.5, np.float16)
                yield i, {"image": png(noise()), "segmentation_mask": png(np.full((12, 16), i, np.uint8)), "depth": depth}

    BrhDense(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    (batch,) = measuring_batches(open_masks("tfds:brh_dense:train", num_classes=3, data_dir=str(tmp_path)), Resize((6, 8)), 3)
    assert sorted(batch["target"][:, 2, 2]) == [0, 1, 2]
    (batch,) = measuring_batches(open_depths("tfds:brh_dense:train", data_dir=str(tmp_path)), Resize((6, 8)), 3)
    assert sorted(batch["target"][:, 2, 2]) == [0.5, 1.5, 2.5]
    parts = [open_depths(f"tfds:brh_dense:{split}", data_dir=str(tmp_path)) for split in ("train", "train[:2]", "train[1:]")]
    assert len({part.fingerprint() for part in parts}) == 3
    with pytest.raises(UserError, match="brh_dense:train record . has the value 2 in 192 pixels: expected classes from 0 to 1"):
        list(measuring_batches(open_masks("tfds:brh_dense:train", num_classes=2, data_dir=str(tmp_path)), Resize((6, 8)), 3))
    for source in (
        open_masks("tfds:brh_dense:train", num_classes=3, data_dir=tmp_path),
        open_depths("tfds:brh_dense:train", data_dir=tmp_path),
    ):
        record = source.record(1)
        source.record = lambda index, record=record: record | {"image": record["image"][:10]}
        with pytest.raises(UserError, match="brh_dense:train record 1 has 16 x 12 pixels, its image of the same record 16 x 10"):
            source.read(1)
