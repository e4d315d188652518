"""What cannot be decoded is known by its record: told once, counted for the part that holds it, and never waited for."""

import pickle

import numpy as np
import pytest
from PIL import Image

from brh_jax.data.files import CorruptImage
from brh_jax.data.pipeline import TrainingBatches, measuring_batches, training_batches
from brh_jax.data.sources import ArraySource, ImageFolder, Selection, Source, Subset
from brh_jax.data.transforms import CenterCrop
from brh_jax.errors import UserError
from brh_jax.preprocessing import Preprocessing

CENTER = CenterCrop(Preprocessing((8, 8)))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


class Numbered(Source):
    """Images of one colour, their number; some are damaged. What was read is counted."""

    def __init__(self, size, damaged):
        super().__init__("numbered")
        self.size, self.damaged, self.reads = size, set(damaged), []

    def __len__(self):
        return self.size

    def read(self, index):
        self.reads.append(index)
        if index in self.damaged:
            raise CorruptImage(f"a: b: {index}", "torn: in two")
        return {"image": np.full((8, 8), index, np.uint8)}


def values(batches):
    return np.concatenate([batch["image"][batch.get("valid", slice(None)), 0, 0, 0] for batch in batches]).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_pointers_ends_in_one_message(workers, tmp_path):
    """Whatever its path has in it: it is not taken apart."""
    folder = tmp_path / "photos: 2024"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}: x.png").write_bytes(LFS)
    batches = training_batches(ImageFolder(folder), CENTER, 3, seed=0, threads=2, workers=workers)
    with pytest.raises(UserError, match=r"none of the 5 images of .*photos: 2024 can be decoded; the last: .*: x.png: a Git LFS"):
        next(batches)
    with pytest.raises(UserError, match="none of the 5 images"):
        list(measuring_batches(ImageFolder(folder), CENTER, 3))


def test_a_part_is_judged_by_its_own_images():
    """Five of forty are damaged; one of a part of five. And a part that is all damaged beside more of them elsewhere."""
    source = Numbered(40, [3, 10, 20, 30, 35])
    elsewhere = Selection(source, np.arange(5, 40))
    assert len(values(measuring_batches(elsewhere, CENTER, 5))) == 31
    part = Selection(source, np.arange(5))
    assert sorted(values(measuring_batches(part, CENTER, 5))) == [0, 1, 2, 4]
    assert set(values([next(training_batches(part, CENTER, 5, seed=0))])) == {0, 1, 2, 4}
    assert (list(part.skipped), sorted(elsewhere.skipped)) == ([3], [5, 15, 25, 30])
    with pytest.raises(UserError, match="none of the 3 images of numbered can be decoded; the last: a: b: .*: torn: in two"):
        next(training_batches(Selection(source, [10, 20, 35]), CENTER, 3, seed=0))


def test_every_record_counts_and_not_every_name():
    """A part may hold a record twice, and two records may have one name."""
    source = Selection(Numbered(4, [1]), [1, 1, 0, 1])
    assert sorted(values(measuring_batches(source, CENTER, 4))) == [0]
    assert list(source.skipped) == [0, 1, 3]

    class OneName(Numbered):
        def read(self, index):
            raise CorruptImage("all of them", "gone")

    with pytest.raises(UserError, match="none of the 3 images"):
        list(measuring_batches(OneName(3, []), CENTER, 3))


def test_parts_of_parts():
    source = Numbered(10, [7])
    inner = Subset(Selection(source, [7, 8, 9]), 2, seed=0)
    for index in range(2):
        inner.read_or_skip(index)
    expected = [i for i, at in enumerate(np.random.default_rng(0).permutation(3)[:2]) if at == 0]
    assert list(inner.skipped) == expected and list(source.skipped) == ([7] if expected else [])


def test_what_a_part_makes_of_records_is_kept():
    class Labelled(Selection):
        def read(self, index):
            return super().read(index) | {"label": 7}

    part = Labelled(Numbered(4, [1]), [0, 1])
    (batch,) = measuring_batches(part, CENTER, 2)
    assert batch["label"].tolist() == [7, 7] and batch["valid"].sum() == 1 and list(part.skipped) == [1]


def test_a_damaged_image_is_told_once_and_tried_once(capsys):
    source = Numbered(6, [2])
    for part in (source, Selection(source, [2, 3]), Selection(source, [1, 2, 4])):
        batches = training_batches(part, CENTER, 2, seed=0)
        values([next(batches) for _ in range(6)])
        list(measuring_batches(part, CENTER, 2))
    assert source.reads.count(2) == 1
    assert capsys.readouterr().out == "warning: skipped a: b: 2: torn: in two\n"


def test_many_damaged_images_are_counted_and_not_all_named(capsys):
    source = Numbered(100, range(1, 100))
    assert set(values([next(training_batches(source, CENTER, 50, seed=0))])) == {0}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and lines[-1] == "warning: skipped more images of numbered, which are counted and not named here"
    assert len(source.skipped) == 99


def test_workers_tell_what_they_cannot_decode_once(tmp_path, capfd):
    for i in range(6):
        Image.new("RGB", (12, 12), (i, i, i)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    source = ImageFolder(tmp_path)
    batches = TrainingBatches(Selection(source, np.arange(6)), CENTER, 3, seed=0, threads=1, workers=2)
    found = values([next(batches) for _ in range(4)])
    assert 2 not in found and len(found) == 12
    assert [(index, skip.name) for index, skip in source.skipped.items()] == [(2, str(tmp_path / "2.png"))]
    assert capfd.readouterr().out.count("warning: skipped") == 1


def test_sources_can_be_sent_to_processes():
    source = Numbered(4, [1])
    source.read_or_skip(1)
    there = pickle.loads(pickle.dumps(Selection(source, [0, 1])))
    assert list(there.skipped) == [1] and there.read_or_skip(0) is not None
    error = pickle.loads(pickle.dumps(CorruptImage("a: b", "c: d")))
    assert (error.name, error.reason, str(error)) == ("a: b", "c: d", "a: b: c: d")


def test_sets_of_no_images_are_refused():
    with pytest.raises(UserError, match=r"nothing holds no images: its shape is \(0, 8, 8\)"):
        ArraySource(np.zeros((0, 8, 8), np.uint8), [], "nothing")
    empty = Selection(Numbered(4, []), [])
    for batches in (training_batches, measuring_batches):
        with pytest.raises(UserError, match="numbered holds no images"):
            next(batches(empty, CENTER, 2, seed=0))
