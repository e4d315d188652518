"""Segmentation, depth and quick probes of a whole run, on folders made here."""

import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from brh_jax.errors import UserError
from experiments import pipeline

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Light squares on dark ground: the mask is the square, the depth its nearness."""
    root = tmp_path_factory.mktemp("dense")
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        for name in ("images", "masks", "depth"):
            (root / part / name).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((12, 16), np.uint8)
            top, left = rng.integers(0, 6), rng.integers(0, 10)
            mask[top : top + 6, left : left + 6] = 1
            pixels = (rng.integers(0, 90, (12, 16, 3)) + 150 * mask[..., None]).astype(np.uint8)
            Image.fromarray(pixels).save(root / part / "images" / f"{i}.png")
            Image.fromarray(mask).save(root / part / "masks" / f"{i}.png")
            np.save(root / part / "depth" / f"{i}.npy", np.where(mask, 2.0, 6.0))
        (root / part / "classes.txt").write_text("ground\nsquare\n")
    return root


def complete(root):
    config = tiny.get_config().unlock()
    config.stages = ("teacher", "phases", "distill", "probes", "report")
    config.phases.k = (2,)
    config.probe.update({"learning_rates": (1e-4, 1e-2), "held_out": 0.25})
    shared = {"epochs": 12, "batch_size": 8, "learning_rate": 0.05, "warmup_steps": 2, "eval_batch_size": 16}
    masks, depth = (f"{kind}:{root}" for kind in ("masks", "depths"))
    config.segmentation.update({"train": f"{masks}/train", "eval": f"{masks}/test", "image_size": 8, **shared})
    config.depth.update({"train": f"{depth}/train", "eval": f"{depth}/test", "num_bins": 16, **shared})
    config.depth.update({"crop_size": (8, 8), "eval_size": (12, 16), "eval_crop": (1, 11, 1, 15), "num_eval": 18})
    config.depth.learning_rates = (1e-6, 0.05)
    config.quick.update({"train": "digits:train", "eval": "digits:test", "num_train": 96, "num_eval": 48, "neighbours": (5, 20)})
    config.quick.strengths = (0.1, 1.0)
    return config


@pytest.fixture(scope="module")
def done(folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, pipeline.run(complete(folders).lock(), workdir)


def test_every_probe_of_every_model(done):
    workdir, results = done
    found = results["probes"]
    models = {"teacher", "k2"}
    assert set(found["accuracy"]) == set(found["interval"]) == set(found["held_out"]) == models
    assert found["learning_rate"]["teacher"] in (1e-4, 1e-2) and set(found["held_out"]["teacher"]) == {"0.0001", "0.01"}
    masks, depth, quick = found["segmentation"], found["depth"], found["quick"]
    assert set(masks["models"]) == set(depth["models"]) == set(quick["models"]) == models
    assert (masks["num_train"], masks["num_eval"], depth["num_eval"], quick["num_eval"]) == (40, 20, 18, 48)
    assert masks["classes"] == ["ground", "square"]
    for one in masks["models"].values():
        assert 0 <= one["low"] <= one["miou"] <= one["high"] <= 1 and len(one["iou"]) == 2
    assert masks["models"]["teacher"]["miou"] > 0.6
    for one in depth["models"].values():
        assert one["learning_rate"] == 0.05 and one["held_out"]["0.05"] > one["held_out"]["1e-06"]
        assert one["rmse"] < 2 and one["num_without"] == 0
    assert set(quick["models"]["k2"]["accuracy"]) == {"5-NN", "20-NN", "logistic"}
    with np.load(workdir / "probes" / "depth" / "examples.npz") as arrays:
        assert arrays["predictions/k2"].shape == arrays["targets"].shape == (4, 12, 16)


def test_the_page_shows_them(done):
    workdir, _ = done
    page = (workdir / "report" / "index.html").read_text()
    for title in ("Linear segmentation in figures", "Depth, examples", "k-NN and logistic regression", "chose"):
        assert title in page
    names = {p.stem for p in (workdir / "report" / "figures").glob("*.png")}
    assert {"probes", "segmentation", "segmentation_examples", "depth", "depth_examples"} <= names


def test_probes_that_were_done_are_not_trained_again(done, folders, capsys):
    workdir, results = done
    (workdir / "probes" / "record.json").unlink()
    again = pipeline.run(complete(folders).lock(), workdir)
    assert "loss" not in capsys.readouterr().out
    assert again["probes"] == results["probes"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation.train": ""}, "config.segmentation.train and config.segmentation.eval go together"),
        ({"segmentation.train": "masks:nowhere"}, "no folder nowhere/images: expected"),
        ({"depth.eval_crop": (45, 471, 41, 601)}, "does not lie in images of"),
        ({"depth.max_depth": 0.9}, "the wrong unit"),
        ({"quick.held_out": 1.0}, "config.quick.held_out is 1.0: expected a share"),
        ({"probe.learning_rates": (0.0,)}, "config.probe.learning_rates is"),
    ],
)
def test_faults_are_said_at_once(done, folders, tmp_path, changes, message):
    workdir, _ = done
    config = complete(folders)
    config.teacher.source = str(workdir / "teacher" / "model")
    config.stages, config.probe.train, config.probe.eval = ("teacher", "phases", "probes"), "", ""
    config.distill.stage1.steps = 8
    for name, value in changes.items():
        section, _, key = name.partition(".")
        config[section][key] = value
        if key == "max_depth":
            config.segmentation.update({"train": "", "eval": ""})
    with pytest.raises(UserError, match=message):
        pipeline.run(config, tmp_path / "run")
