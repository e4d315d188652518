"""The accuracy of a teacher that is there already, through its own classifier."""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from brh_jax.data.sources import open_source
from brh_jax.errors import UserError
from brh_jax.train.parallel import make_mesh
from experiments import pipeline
from experiments.results import Results
from experiments.stage import Context
from experiments.stages.accuracy.run import head_for, own_head, run
from experiments.stages.teacher.run import LayoutResult, TeacherResult, cost_of

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny


@pytest.fixture
def context(tiny_encoder, tmp_path):
    made = Context(tmp_path, tmp_path / "accuracy", make_mesh(devices=jax.devices()[:1]))
    layout, cost = LayoutResult(**dataclasses.asdict(tiny_encoder.layout)), cost_of(tiny_encoder)
    teacher = TeacherResult("tiny", [], tiny_encoder.depth, tiny_encoder.dim, layout, cost, [])
    return dataclasses.replace(made, results=Results({"teacher": teacher}))


def settings_of(**changes):
    config = tiny.get_config().unlock()
    for name, value in changes.items():
        section, _, key = name.partition("__")
        config[section][key] = value
    return pipeline.read_settings(config)[1]["accuracy"]


def head_on(width, outputs=10):
    kernel = np.random.default_rng(0).normal(size=(width, outputs)).astype(np.float32)
    return {"kernel": kernel, "bias": np.zeros(outputs, np.float32)}


@pytest.mark.parametrize(("width", "reads"), [(32, ""), (16, ""), (16, "patches")])
def test_a_classifier_is_asked_for_what_it_reads(context, tiny_encoder, width, reads):
    """[cls, mean patch], the class token alone (as supervised ViTs have it) and the mean patch alone."""
    encoder = tiny_encoder.replace(head=head_on(width), head_reads=reads)
    context.save(encoder, context.workdir / "teacher" / "model", {})
    found = run(context, settings_of(eval__num_images=360, teacher__source="somewhere.pth")).teacher
    test = open_source("digits:test")
    pixels = encoder.normalize_pixels(np.repeat(test.images[..., None], 3, -1))
    by_token = encoder.layout.split(np.asarray(encoder.features(encoder.trajectory(pixels)[-1])))
    parts = {"cls": by_token.cls[:, 0], "patches": by_token.patches.mean(1)}
    read = np.concatenate([parts[p] for p in ((reads,) if reads else ("cls", "patches")[: width // 16])], -1)
    expected = np.mean(np.argmax(read @ encoder.head["kernel"], -1) == test.labels)
    assert found.test == pytest.approx(expected, abs=0.004)


def test_what_a_classifier_is_not_of_is_left_out_and_said(context, tiny_encoder, capsys):
    for head, why in ((head_on(16, 7), "7 outputs for 10 classes"), (head_on(24), "reads 24 features, not of")):
        context.save(tiny_encoder.replace(head=head), context.workdir / "teacher" / "model", {})
        assert run(context, settings_of(teacher__source="somewhere.pth")).teacher.test is None
        assert why in capsys.readouterr().out


@pytest.mark.parametrize("source", ["train", "somewhere.pth"])
def test_classes_are_compared_by_their_names(context, tiny_encoder, tmp_path, source):
    """By number `bee` would be the class that `ant` is in training."""
    for part, names in (("train", ("ant", "bee", "cat")), ("fewer", ("bee", "cat")), ("other", ("bee", "cat", "dog"))):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "0.png")
    encoder = tiny_encoder.replace(head={"kernel": np.zeros((32, 3), np.float32), "bias": np.array([0, 0, 1], np.float32)})
    context.save(encoder, context.workdir / "teacher" / "model", {})
    folders = {"teacher__source": source, "data__train": f"folder:{tmp_path}/train"}
    with pytest.raises(UserError, match=r"config.data: .*train and .*other have different classes: no dog in .*; no ant in"):
        run(context, settings_of(**folders, data__eval=f"folder:{tmp_path}/other"))
    train, fewer = (open_source(f"folder:{tmp_path}/{part}") for part in ("train", "fewer"))
    assert own_head(encoder, train, train) is not None and own_head(encoder, train, fewer) is None
    if source == "train":  # every image is a cat to this classifier, the third class trained on and one of the two tested
        assert run(context, settings_of(**folders, data__eval=f"folder:{tmp_path}/fewer")).teacher.test == 0.5


def test_outputs_with_names_are_told_by_them(context, tiny_encoder, tmp_path, capsys):
    """In order `wasp` would be a cat; and sets that are called otherwise than each other both have these classes."""
    for part, names in (("train", ("n01", "n02", "n03")), ("eval", ("ant", "cat", "wasp")), ("odd", ("x", "y", "z"))):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "0.png")
    head = {"kernel": np.zeros((32, 3), np.float32), "bias": np.array([0, 1, 2], np.float32)}
    encoder = tiny_encoder.replace(head=head, classes=("n02, cat", "n03, bee, wasp", "n01, ant"))
    sources = {part: open_source(f"folder:{tmp_path}/{part}") for part in ("train", "eval", "odd")}
    assert head_for(encoder, sources["eval"])["bias"].tolist() == [2, 0, 1]
    assert own_head(encoder, sources["train"], sources["eval"])["bias"].tolist() == [2, 0, 1]
    assert not capsys.readouterr().out
    assert head_for(encoder, sources["odd"])["bias"].tolist() == [0, 1, 2]
    said = "odd: tiny's outputs (n02, cat, ...) have other names than its classes (x, ...): they are taken for them in order"
    assert said in capsys.readouterr().out
    assert own_head(encoder, sources["train"], sources["odd"]) is None
    context.save(encoder, context.workdir / "teacher" / "model", {})
    folders = {f"data__{part}": f"folder:{tmp_path}/{part}" for part in ("train", "eval")}
    found = run(context, settings_of(**folders, teacher__source="somewhere.pth")).teacher
    assert found.test == found.train == pytest.approx(1 / 3)
    assert "in order" not in capsys.readouterr().out
