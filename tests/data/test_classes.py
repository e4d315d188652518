"""Classes by name, and in balance."""

import numpy as np
import pytest
from PIL import Image

from brh_jax.data.classes import OfClasses, balanced, check_labels, draw_classes, matched, outputs_of
from brh_jax.data.sources import ArraySource, ImageFolder, Selection
from brh_jax.errors import UserError


def labelled(labels, classes, name="array"):
    """Images whose pixels are their index."""
    images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None], (len(labels), 4, 4))
    return ArraySource(images, np.array(labels), name, classes)


def test_unlabelled_images_are_refused():
    with pytest.raises(UserError, match="array has 0 classes: labelled images are needed"):
        check_labels(ArraySource(np.zeros((3, 8, 8), np.uint8)))


def test_classes_are_matched_by_name_or_named():
    train = labelled([0, 1, 2, 0], "xyz", "a")
    assert matched(train, train) is train
    fewer = matched(train, labelled([0, 1, 1], "zx", "b"))
    assert fewer.classes == ("x", "y", "z")
    assert [fewer.label(i) for i in range(3)] == [fewer.read(i)["label"] for i in range(3)] == [2, 0, 0]
    with pytest.raises(UserError, match="a and b have different classes: no v, w in a; no x, y in b. Classes are compared by"):
        matched(train, labelled([0, 1, 2], "vwz", "b"))
    many = [f"c{i:02}" for i in range(12)]
    with pytest.raises(UserError, match="no c00, c01, c02, c03, c04 and 7 more in a; no x, y, z in b"):
        matched(train, labelled(range(12), many, "b"))


def test_outputs_are_told_by_their_names():
    outputs = ("n02, tabby, tabby cat", "n01, tiger", "n03, tiger cat, crane", "n04, crane")
    assert outputs_of(outputs, ("n01", "n02", "n03", "n04")) == [1, 0, 2, 3]
    assert outputs_of(outputs, ("Tabby_Cat", "tiger-cat", "tiger")) == [0, 2, 1]
    assert outputs_of(outputs, ("tabby, n02", "n02, tabby, tabby cat")) is None  # twice the same
    assert outputs_of(outputs, ("tiger", "crane")) is None  # one of two
    assert outputs_of(outputs, ("tiger", "dog")) is None
    assert outputs_of(("tiger", "cat, tiger"), ("tiger", "cat")) == [0, 1]  # a whole name goes before a synonym
    assert outputs_of((), ("tiger",)) is None


def test_folders_of_other_names_in_the_same_places(tmp_path):
    """Sorted, `beagle` has the number of `ant` and `cat` that of `bee`: by number they would count as right."""
    for folder, names in (("train", ("ant", "bee", "cat")), ("eval", ("bee", "cat"))):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / folder / name / "0.png")
    found = matched(ImageFolder(tmp_path / "train"), ImageFolder(tmp_path / "eval"))
    assert [found.label(i) for i in range(2)] == [1, 2]


def test_classes_in_balance():
    """Of a few classes as many images of each, though one has a hundred times as many as another."""
    labels = np.repeat(np.arange(5), (300, 3, 30, 30, 30))
    source = labelled(labels, [f"c{i}" for i in range(5)])
    some = balanced(source, ("c0", "c2", "c3"), 8, seed=0)
    assert np.bincount([some.label(i) for i in range(len(some))], minlength=5).tolist() == [8, 0, 8, 8, 0]
    assert len({some.photograph(i) for i in range(len(some))}) == 24
    assert {len(balanced(source, ("c1", "c2"), n, seed=0)) for n in (8, 0)} == {11, 33}  # a class that has no more, all
    first, other = (draw_classes(source, 3, seed) for seed in (0, 1))
    assert len(set(first)) == 3 and list(first) == sorted(first) and first != other
    assert draw_classes(source, 0, 0) == draw_classes(source, 9, 0) == source.classes
    renumbered = OfClasses(some, ("c3", "c2", "c0"))
    assert [renumbered.label(i) for i in range(24)] == [{3: 0, 2: 1, 0: 2}[some.label(i)] for i in range(24)]
    assert renumbered.name == "array, 3 of 5 classes" and matched(source, labelled([0, 1], ("c1", "c2"))).name == "array"
    part = Selection(renumbered, [5, 6])
    assert part.label(0) == renumbered.label(5) and part.photograph(1) == some.photograph(6)
