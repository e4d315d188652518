"""What a classifier's outputs are called goes with it: into the conversion, the cache, a run's models, and back to the hub."""

import json
import pathlib
import shutil

import pytest
from parity.references import make

import brh_jax
from weights_convert import export

GOLDEN = pathlib.Path(__file__).parents[1] / "parity" / "golden" / "timm-augreg"
WNIDS = ["n01", "n02", "n03", "n04", "n05"]


def timm(folder, **about):
    shutil.copytree(GOLDEN, folder)
    config = json.loads((folder / "config.json").read_text()) | about
    (folder / "config.json").write_text(json.dumps(config))
    return brh_jax.load(folder)


@pytest.mark.parametrize(
    ("about", "classes"),
    [
        ({}, ()),
        ({"label_names": WNIDS}, tuple(WNIDS)),
        (
            {"label_names": WNIDS, "label_descriptions": {"n01": "tench, Tinca tinca", "n02": 3}},
            ("n01, tench, Tinca tinca", *WNIDS[1:]),
        ),
        ({"label_names": WNIDS[:4]}, ()),  # of another classifier
        ({"label_names": [1, 2, 3, 4, 5]}, ()),
        ({"label_names": "abcde", "label_descriptions": ["n01"]}, ()),
    ],
    ids=["none", "names", "descriptions", "too few", "numbers", "text"],
)
def test_timm(about, classes, tmp_path):
    assert timm(tmp_path / "model", **about).classes == classes


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ({"0": "ant", "1": "bee", "2": "cat\n"}, ("ant", "bee", "cat\\x0a")),
        ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, ()),  # transformers' own
        ({str(n): "abcdefghijkl"[n] for n in sorted(range(12), key=str)}, tuple("abcdefghijkl")),  # sorted, as they write it
        ({"1": "ant", "2": "bee", "3": "cat"}, ()),
        (["ant", "bee", "cat"], ()),
    ],
    ids=["names", "no names", "sorted", "from one", "list"],
)
def test_transformers(labels, classes, tmp_path):
    make("vit-classifier", tmp_path / "source", num_labels=len(labels))
    about = tmp_path / "source" / "config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"id2label": labels}))
    encoder = brh_jax.load(tmp_path / "source")
    assert len(encoder.head["bias"]) == len(labels) and encoder.classes == classes
    export.write(encoder, tmp_path / "out")
    assert brh_jax.load(tmp_path / "out").classes == classes
