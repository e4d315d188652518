import gzip
import io

import numpy as np
import pytest
from PIL import Image

from brh_jax.data.pipeline import TrainingBatches, measuring_batches, training_batches
from brh_jax.data.sources import ArraySource, ImageFolder, Subset, open_source
from brh_jax.data.transforms import CenterCrop, RandomResizedCrop
from brh_jax.errors import UserError
from brh_jax.preprocessing import Preprocessing

CENTER = CenterCrop(Preprocessing((8, 8)))


def write_image(path, value, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        write_image(tmp_path / "cats" / f"{i}.png", i)
        write_image(tmp_path / "dogs" / "brown" / f"{i}.JPG", 100 + i)
    return tmp_path


def test_sub_folders_are_classes(folder):
    source = open_source(f"folder:{folder}")
    assert source.classes == ("cats", "dogs/brown")
    assert len(source) == 10
    assert sorted(source.read(i)["label"] for i in range(10)) == [0] * 5 + [1] * 5


def test_classes_without_images_are_named(folder, capsys):
    (folder / "birds").mkdir()
    assert ImageFolder(folder).classes == ("cats", "dogs/brown")
    assert "has classes without images, left out: birds\n" in capsys.readouterr().out


def test_a_flat_folder_has_no_classes(tmp_path):
    write_image(tmp_path / "a.png", 1)
    (tmp_path / "notes.txt").write_text("not an image")
    source = ImageFolder(tmp_path)
    assert len(source) == 1
    assert source.classes == ()
    assert source.read(0)["label"] == -1


def test_folders_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(UserError, match="no image folder at"):
        open_source(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match=r"holds no images: expected files ending in .*\.jpg"):
        open_source(f"folder:{tmp_path}")


@pytest.mark.parametrize("spec", ["nonsense", "folder", "mnist:train", "tfds:imagenet2012"])
def test_unknown_descriptions(spec):
    with pytest.raises(UserError, match="unknown data"):
        open_source(spec)


def test_corrupt_images_are_skipped_and_counted(folder, capsys):
    (folder / "cats" / "2.png").write_bytes(b"not an image")
    truncated = (folder / "dogs" / "brown" / "3.JPG").read_bytes()[:300]
    (folder / "dogs" / "brown" / "3.JPG").write_bytes(truncated)
    source = ImageFolder(folder)
    batches = list(measuring_batches(source, CENTER, 4))
    assert sum(int(b["valid"].sum()) for b in batches) == 8
    assert len(source.skipped) == 2
    assert "warning: skipped" in capsys.readouterr().out
    training = training_batches(ImageFolder(folder), CENTER, 4, seed=0)
    seen = {int(v) for _ in range(10) for v in next(training)["image"][:, 0, 0, 0]}
    assert 2 not in seen
    assert {0, 1, 3, 4} <= seen


def test_nothing_but_corrupt_images_is_an_error(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no")
    with pytest.raises(UserError, match="none of the 3 images"):
        next(training_batches(ImageFolder(tmp_path), CENTER, 2, seed=0))


def numbered(n=10):
    return ArraySource(np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8), np.arange(n) % 2)


def test_training_goes_through_every_image_each_epoch_in_a_new_order():
    batches = training_batches(numbered(), CENTER, 5, seed=1)
    epochs = [np.concatenate([next(batches)["image"][:, 0, 0, 0] for _ in range(2)]).tolist() for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]
    again = training_batches(numbered(), CENTER, 5, seed=1)
    assert np.concatenate([next(again)["image"][:, 0, 0, 0] for _ in range(2)]).tolist() == epochs[0]


@pytest.mark.parametrize("process", [(0, 1), (1, 2)])
def test_a_batch_may_be_of_one_image_in_each_process(process):
    batches = TrainingBatches(numbered(), CENTER, process[1], seed=1, process=process)
    assert len({int(next(batches)["image"][0, 0, 0, 0]) for _ in range(10 // process[1])}) == 10 // process[1]


def test_training_goes_on_where_it_was():
    crop = RandomResizedCrop((8, 8), scale=(0.3, 1.0))
    source = ArraySource(np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8))
    first = training_batches(source, crop, 4, seed=1)
    for _ in range(3):
        next(first)
    expected = [next(first)["image"] for _ in range(4)]
    second = training_batches(source, crop, 4, seed=1)
    second.seek(3)
    for images in expected:
        np.testing.assert_array_equal(next(second)["image"], images)
    assert second.step == 7


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_processes_and_workers(workers):
    crop = RandomResizedCrop((8, 8), scale=(0.3, 1.0))
    source = ArraySource(np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8), np.arange(10))
    whole = training_batches(source, crop, 4, seed=1)
    parts = [TrainingBatches(source, crop, 4, seed=1, threads=2, workers=workers, process=(i, 2)) for i in range(2)]
    whole.seek(2)
    for part in parts:
        part.seek(2)
    for _ in range(4):
        together, pieces = next(whole), [next(part) for part in parts]
        for i, piece in enumerate(pieces):
            np.testing.assert_array_equal(piece["image"], together["image"][2 * i : 2 * i + 2])
            np.testing.assert_array_equal(piece["label"], together["label"][2 * i : 2 * i + 2])
    with pytest.raises(UserError, match="a batch of 3 images does not divide over 2 processes"):
        TrainingBatches(source, crop, 3, seed=1, process=(0, 2))


@pytest.mark.parametrize("num_images", [7, 8, 1])
def test_measuring_on_several_processes_sees_every_image_once(num_images):
    seen = []
    for i in range(2):
        for batch in measuring_batches(numbered(), CENTER, 4, num_images=num_images, process=(i, 2)):
            assert batch["image"].shape == (2, 8, 8, 3)
            seen += batch["image"][batch["valid"], 0, 0, 0].tolist()
    alone = [b["image"][b["valid"], 0, 0, 0] for b in measuring_batches(numbered(), CENTER, 4, num_images=num_images)]
    assert sorted(seen) == sorted(np.concatenate(alone).tolist())
    assert len(seen) == num_images


def test_measuring_pads_the_last_batch_and_repeats_nothing():
    batches = list(measuring_batches(numbered(), CENTER, 4))
    assert [b["image"].shape for b in batches] == [(4, 8, 8, 3)] * 3
    values = np.concatenate([b["image"][b["valid"], 0, 0, 0] for b in batches])
    assert sorted(values) == list(range(10))
    some = np.concatenate([b["image"][b["valid"], 0, 0, 0] for b in measuring_batches(numbered(), CENTER, 4, num_images=6)])
    assert len(set(some)) == 6


def test_measuring_with_random_crops_makes_more_views_than_images():
    crop = RandomResizedCrop((8, 8), scale=(0.2, 0.6))
    source = ArraySource(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    views = [b["image"][b["valid"]] for b in measuring_batches(source, crop, 4, num_images=7)]
    views = np.concatenate(views)
    assert len(views) == 7
    assert len({v.tobytes() for v in views}) == 7


def test_digits():
    train, test = open_source("digits:train"), open_source("digits:test")
    assert (len(train), len(test), len(train.classes)) == (1437, 360, 10)
    image = train.read(0)["image"]
    assert image.shape == (8, 8)
    assert image.max() > 200
    with pytest.raises(UserError, match="digits has no split 'valid'"):
        open_source("digits:valid")


def test_idx_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    header = b"\0\0\x08\x03" + np.array(images.shape, ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    labels = b"\0\0\x08\x01" + np.array([6], ">u4").tobytes() + bytes([0, 1, 2, 0, 1, 2])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    source = open_source(f"idx:{tmp_path / 'train'}")
    np.testing.assert_array_equal(source.read(4)["image"], images[4])
    assert source.read(4)["label"] == 1
    assert len(source.classes) == 3
    with pytest.raises(UserError, match="no file .*t10k"):
        open_source(f"idx:{tmp_path / 't10k'}")
    whole = (tmp_path / "train-images-idx3-ubyte.gz").read_bytes()
    for file, content in (
        ("train-labels-idx1-ubyte", labels[:-2]),
        ("train-labels-idx1-ubyte", b""),
        ("train-images-idx3-ubyte.gz", whole[: len(whole) // 2]),
        ("train-images-idx3-ubyte.gz", b"not gzip"),
    ):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            open_source(f"idx:{tmp_path / 'train'}")


def test_a_subset_is_a_reproducible_part():
    source = Subset(numbered(), 4, seed=1)
    values = [int(source.read(i)["image"][0, 0]) for i in range(len(source))]
    assert len(set(values)) == 4
    assert values == [int(Subset(numbered(), 4, seed=1).read(i)["image"][0, 0]) for i in range(4)]


def test_tfds_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class BrhTiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = None

        def _info(self):
            features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=["a", "b"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                png = io.BytesIO()
                Image.new("RGB", (12 + i, 10), (i, i, i)).save(png, "PNG")
                png.seek(0)
                yield i, {"image": png, "label": i % 2}

    BrhTiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = open_source("tfds:brh_tiny:train", str(tmp_path))
    assert source.classes == ("a", "b")
    (batch,) = measuring_batches(source, CENTER, 6)
    assert sorted(batch["image"][:, 0, 0, 0]) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] % 2, batch["label"])
    with pytest.raises(UserError, match=r"is not ready in .*tfds build imagenet2012 --file_format=array_record"):
        open_source("tfds:imagenet2012:train", str(tmp_path))


def test_sorted_folders_are_measured_in_random_order():
    """All images once, no batch of one class: kernel alignment over groups of one class would not be that of all images."""
    images = np.zeros((80, 8, 8, 3), np.uint8)
    source = ArraySource(images, np.repeat(np.arange(5), 16))
    batches = [b["label"][b["valid"]] for b in measuring_batches(source, CENTER, 16)]
    assert sorted(np.concatenate(batches)) == sorted(np.repeat(np.arange(5), 16))
    assert all(len(set(labels)) > 2 for labels in batches)
