"""The probes stage on a teacher and a Raptor that are there already, with folders made here."""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from brh_jax import distill
from brh_jax.errors import UserError
from brh_jax.models import RaptorConfig
from brh_jax.phases import Partition
from brh_jax.train.parallel import make_mesh
from experiments.configuration import check_config
from experiments.context import Context
from experiments.sections import probes as sections
from experiments.stages import probes

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
    config.probe.update({"learning_rates": (1e-4, 1e-2), "held_out": 0.25})
    shared = {"epochs": 12, "batch_size": 8, "learning_rate": 0.05, "warmup_steps": 2, "eval_batch_size": 16}
    masks, depth = (f"{kind}:{root}" for kind in ("masks", "depths"))
    config.segmentation.update({"train": f"{masks}/train", "eval": f"{masks}/test", "image_size": 8, **shared, "epochs": 8})
    config.depth.update({"train": f"{depth}/train", "eval": f"{depth}/test", "num_bins": 16, **shared, "epochs": 6})
    config.depth.update({"crop_size": (8, 8), "eval_size": (12, 16), "eval_crop": (1, 11, 1, 15), "num_eval": 18})
    config.quick.update({"train": "digits:train", "eval": "digits:test", "num_train": 96, "num_eval": 48, "neighbours": (5, 20)})
    config.quick.strengths = (0.1, 1.0)
    return config


@dataclasses.dataclass(frozen=True)
class Given(Context):
    """A run whose models are there already."""

    models: dict = dataclasses.field(default_factory=dict)

    def encoders(self):
        return self.models


@pytest.fixture(scope="module")
def context(folders, tiny_encoder, tmp_path_factory):
    config = RaptorConfig(tiny_encoder.config, Partition((4, 2)), mlp_dim=32)
    blocks = distill.init_blocks(config, tiny_encoder.layout, jax.random.key(0))
    models = {"teacher": tiny_encoder, "k2": distill.raptor_encoder(config, blocks, tiny_encoder, "Raptor")}
    mesh = make_mesh(devices=jax.devices()[:1])
    return Given(complete(folders).lock(), tmp_path_factory.mktemp("run"), mesh, models=models)


@pytest.fixture(scope="module")
def found(context):
    return json.loads(json.dumps(probes.run(context, context.workdir / "probes"), allow_nan=False))


def test_every_probe_of_every_model(context, found):
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
        assert one["rmse"] < 2 and one["num_without"] == 0
    assert set(quick["models"]["k2"]["accuracy"]) == {"5-NN", "20-NN", "logistic"}
    with np.load(context.workdir / "probes" / "depth" / "examples.npz") as arrays:
        assert arrays["predictions/k2"].shape == arrays["targets"].shape == (4, 12, 16)


def test_the_page_shows_them(context, found, tmp_path):
    shown = list(sections.sections(context, {"probes": found}, tmp_path))
    assert [entry.title for entry in shown] == [
        "Linear probes",
        "Linear probes in figures",
        "k-NN and logistic regression",
        "Linear segmentation",
        "Linear segmentation in figures",
        "Segmentation, examples",
        "Linear depth",
        "Linear depth in figures",
        "Depth, examples",
    ]
    assert "Learning rates 0.0001, 0.01" in shown[1].remark
    pictures = {f"{name}{end}" for name in ("segmentation", "depth") for end in ("", "_examples")}
    assert {p.stem for p in tmp_path.glob("*.png")} == {"probes"} | pictures


def test_a_learning_rate_is_chosen_on_held_out_images(context, found):
    """The probe that was trained with it is there already, and is not trained again."""
    config = context.config.copy_and_resolve_references().unlock()
    config.probe.train = config.probe.eval = config.quick.train = config.segmentation.train = ""
    config.depth.update({"learning_rates": (1e-6, 0.05), "num_eval": 8})
    metrics, folder = context.workdir / "probes/depth/teacher/metrics.jsonl", context.workdir / "probes"
    rows, models = metrics.read_text(), {"teacher": context.models["teacher"]}
    again = probes.run(dataclasses.replace(context, config=config, models=models), folder)
    assert metrics.read_text() == rows
    assert set(again) == {"depth", "skipped"} and again["depth"]["num_eval"] == 8
    one = again["depth"]["models"]["teacher"]
    assert one["learning_rate"] == 0.05 and one["held_out"]["0.05"] > one["held_out"]["1e-06"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation.train": "masks:x"}, "config.segmentation.train and config.segmentation.eval go together"),
        ({"segmentation.train": "masks:nowhere", "segmentation.eval": "masks:nowhere"}, "no folder nowhere/images: expected"),
        ({"depth.eval_crop": (45, 471, 41, 601)}, "does not lie in images of"),
        ({"depth.max_depth": 0.9}, "the wrong unit"),
        ({"quick.held_out": 1.0}, "config.quick.held_out is 1.0: expected a share"),
        ({"probe.learning_rates": (0.0,)}, "config.probe.learning_rates is"),
    ],
)
def test_faults_are_said_at_once(context, tmp_path, changes, message):
    config = context.config.copy_and_resolve_references().unlock()
    config.probe.train = config.probe.eval = config.segmentation.train = config.segmentation.eval = ""
    for name, value in changes.items():
        section, _, key = name.partition(".")
        config[section][key] = value
    with pytest.raises(UserError, match=message):
        check_config(config)
        probes.run(dataclasses.replace(context, config=config), tmp_path)
