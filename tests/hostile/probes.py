"""Labelled folders, classifiers and settings of probes that do not go together."""

import numpy as np
from hostile.case import Case
from PIL import Image
from safetensors.numpy import save_file

from brh_jax import phases
from brh_jax.data.classes import balanced, check_labels, matched
from brh_jax.data.sources import ArraySource, ImageFolder
from brh_jax.probes.depth import DepthSettings
from brh_jax.tokens import TokenLayout
from experiments.stages.dynamics.run import DynamicsSettings
from experiments.stages.probes.feature_probe import FeatureProbeSettings
from weights_convert.heads import find_linear_head, read_linear_head


def _folders(folder, **sets):
    """Folders of one image for each class, by name."""
    for part, names in sets.items():
        for name in names:
            (folder / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / part / name / "0.png")
    return [ImageFolder(folder / part) for part in sets]


def _other_names(folder):
    matched(*_folders(folder, train=("ant", "bee"), eval=("bee", "cat")))


def _fewer_classes(folder):
    found = matched(*_folders(folder, train=("ant", "bee", "cat"), eval=("bee", "cat")))
    assert [found.label(i) for i in range(2)] == [1, 2]


def _one_class(folder):
    check_labels(_folders(folder, train=("ant",))[0])


def _rare_class(folder):
    source = ArraySource(np.zeros((101, 4, 4), np.uint8), [0] * 100 + [1])
    assert len(balanced(source, source.classes, 10, seed=0)) == 11


def _published_head(folder):
    find_linear_head("dinov2_vitg14_reg4_linear_head.pth")


def _head(folder, weight, bias):
    save_file({"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}, folder / "head.safetensors")
    read_linear_head(str(folder / "head.safetensors"), 8, 3)


def _few_photographs(folder):
    states = np.random.default_rng(0).normal(size=(3, 32, 3, 4)).astype(np.float32)
    phases.layer_samples([(states, np.ones(32, bool), np.arange(32) % 4)], TokenLayout(1, 0, (1, 2)), ("cka",))


CASES = [
    Case("eval has classes that train lacks", _other_names, "have different classes: no cat in .*train; no ant in .*eval"),
    Case("eval has fewer classes", _fewer_classes),
    Case("one class", _one_class, "has 1 classes: labelled images are needed"),
    Case("a class with one image of a hundred", _rare_class),
    Case("Meta's head is not there", _published_head, "no file dinov2_vitg14_reg4_linear_head.pth, Meta's classifier: download"),
    Case("no such head", lambda folder: find_linear_head(str(folder / "head.pth")), "no classifier at .*head.pth"),
    Case("a head of other features", lambda folder: _head(folder, np.ones((3, 5)), np.ones(3)), r"expected \(3, 8\)"),
    Case("a head that is not finite", lambda folder: _head(folder, np.full((3, 8), np.nan), np.ones(3)), "NaN or infinity"),
    Case("four photographs, eight views each", _few_photographs, "32 images of 4 photographs: kernel alignment"),
    Case(
        "a recipe that is none",
        lambda folder: DepthSettings(recipe="adabins"),
        "recipe is 'adabins': expected one of paper, ours",
    ),
    Case("a hue beyond the circle", lambda folder: DepthSettings(hue=2.0), "hue is 2.0: expected a share of the circle"),
    Case("a jitter below zero", lambda folder: DepthSettings(jitter=-0.1), "jitter is -0.1: expected 0 or more"),
    Case("crops from large to small", lambda folder: DepthSettings(crop_scale=(1.0, 0.5)), r"crop_scale is \(1.0, 0.5\)"),
    Case("three shares of a crop", lambda folder: DepthSettings(crop_scale=(0.1, 0.2, 0.3)), r"crop_scale is \(0.1, 0.2, 0.3\)"),
    Case("a probe of one class", lambda folder: FeatureProbeSettings(classes=1), "classes is 1: expected two classes or more"),
    Case("basins of one image each", lambda folder: DynamicsSettings(per_class=1), "per_class is 1: expected two or more"),
]
