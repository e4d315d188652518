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
from brh_jax.partition import Partition
from brh_jax.train.parallel import make_mesh
from experiments import pipeline
from experiments.page import Page
from experiments.results import Results, from_json, to_json
from experiments.settings import flat
from experiments.stage import Context
from experiments.stages.distill.run import DistillResult, RaptorResult
from experiments.stages.probes import ProbesResult, merits, page, run
from experiments.stages.teacher.run import cost_of

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
    config.feature_probe.update(
        {"train": "digits:train", "eval": "digits:test", "num_train": 96, "num_eval": 48, "neighbours": (5, 20)}
    )
    config.feature_probe.strengths = (0.1, 1.0)
    return config


def settings_of(config):
    return pipeline.read_settings(config)[1]["probes"]


@pytest.fixture(scope="module")
def context(tiny_encoder, tmp_path_factory):
    """A run whose models are there already."""
    config = RaptorConfig(tiny_encoder.config, Partition((4, 2)), mlp_dim=32)
    blocks = distill.init_blocks(config, tiny_encoder.layout, jax.random.key(0))
    raptor, workdir = distill.raptor_encoder(config, blocks, tiny_encoder, "Raptor"), tmp_path_factory.mktemp("run")
    context = Context(workdir, workdir / "probes", make_mesh(devices=jax.devices()[:1]))
    context.save(tiny_encoder, workdir / "teacher" / "model", {})
    context.save(raptor, workdir / "distill" / "k2" / "raptor", {})
    raptors = DistillResult({"k2": RaptorResult(2, "1-4 | 5-6", cost_of(raptor), {})})
    return dataclasses.replace(context, results=Results({"distill": raptors}))


@pytest.fixture(scope="module")
def found(context, folders):
    """As it is read from results.json."""
    written = json.dumps(to_json(run(context, settings_of(complete(folders)))), allow_nan=False)
    return from_json(ProbesResult, json.loads(written), context.workdir)


def test_every_probe_of_every_model(context, found):
    models = {"teacher", "k2"}
    linear, masks, depth, quick = found.linear, found.segmentation, found.depth, found.feature_probe
    assert set(linear.models) == set(masks.models) == set(depth.models) == set(quick.models) == models
    for probe in linear.models.values():
        assert probe.accuracy.low <= probe.accuracy.value <= probe.accuracy.high
        assert probe.learning_rate.value in (1e-4, 1e-2) and set(probe.learning_rate.held_out) == {1e-4, 1e-2}
        assert probe.accuracy_of_given_head is None
    assert (linear.num_train, linear.num_eval, linear.head) == (64, 40, "")
    assert (masks.num_train, masks.num_eval, depth.num_eval, quick.num_eval) == (40, 20, 18, 48)
    assert (masks.classes, masks.unseen) == (["ground", "square"], [])
    for probe in masks.models.values():
        assert 0 <= probe.miou.low <= probe.miou.value <= probe.miou.high <= 1 and len(probe.iou) == 2
    assert masks.models["teacher"].miou.value > 0.6
    for probe in depth.models.values():
        assert probe.rmse.value < 2 and probe.num_without == 0
    assert set(quick.models["k2"].nearest) == {5, 20} and set(quick.models["k2"].strength.held_out) == {0.1, 1.0}
    with np.load(context.folder / "depth" / "examples.npz") as arrays:
        assert arrays["predictions/k2"].shape == arrays["targets"].shape == (4, 12, 16)
    with np.load(context.folder / "k2" / "head.npz") as head:
        assert head["kernel"].shape == (32, 10) and list(head["classes"]) == [str(n) for n in range(10)]


def test_what_is_measured_elsewhere_is_no_setting_of_probes(folders):
    used = flat(settings_of(complete(folders)))
    assert {"probe.num_eval", "depth.eval", "feature_probe.neighbours", "compute_dtype"} <= set(used)
    assert not any(name.startswith(("data.", "eval.")) or name.endswith("eval_batch_size") for name in used)


def test_merits_are_of_every_model(found):
    teacher = merits(found)["teacher"]
    assert set(merits(found)) == {"teacher", "k2"}
    assert set(teacher) == {"probe %", "top-1 %", "mIoU %", "RMSE", "RMSE per image"}
    assert teacher["RMSE"] == found.depth.models["teacher"].rmse.value  # beside the paper's, which is pooled too
    assert teacher["probe %"] == teacher["top-1 %"] == 100 * found.linear.models["teacher"].accuracy.value
    assert teacher["mIoU %"] == 100 * found.segmentation.models["teacher"].miou.value
    linear = found.linear.models
    given = {name: dataclasses.replace(probe, accuracy_of_given_head=0.5) for name, probe in linear.items()}
    started = dataclasses.replace(found.linear, head="published.pth", models=given)
    assert merits(ProbesResult(linear=started))["k2"]["head as it is %"] == 50
    assert merits(ProbesResult()) == {}


def test_the_page_shows_them(context, found, tmp_path):
    shown = list(page(Page(Results({"probes": found}), context.workdir, tmp_path)))
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


def test_a_learning_rate_is_chosen_on_held_out_images(context, found, folders):
    """The probe that was trained with it is there already, and is not trained again."""
    config = complete(folders)
    config.probe.train = config.probe.eval = config.feature_probe.train = config.feature_probe.eval = ""
    config.segmentation.train = config.segmentation.eval = ""
    config.depth.update({"learning_rates": (1e-6, 0.05), "num_eval": 8})
    metrics = context.folder / "depth/teacher/metrics.jsonl"
    rows = metrics.read_text()
    again = run(dataclasses.replace(context, results=Results()), settings_of(config))
    assert metrics.read_text() == rows
    assert (again.linear, again.segmentation, again.feature_probe) == (None, None, None)
    assert again.depth.num_eval == 8 and set(again.depth.models) == {"teacher"}
    rate = again.depth.models["teacher"].learning_rate
    assert rate.value == 0.05 and rate.held_out[0.05] > rate.held_out[1e-6]


def test_the_run_as_a_whole_may_name_no_probe(context, capsys):
    config = tiny.get_config().unlock()
    config.probe.train = config.probe.eval = ""
    assert run(context, settings_of(config)) == ProbesResult()
    assert "name no training set, nothing to do" in capsys.readouterr().out


# One that reads [cls, mean patch], and a supervised ViT's, of the class token alone.
@pytest.mark.parametrize(("cache", "width"), [(False, 32), (True, 32), (True, 16)])
def test_a_probe_starts_from_the_teachers_own_classifier(context, tiny_encoder, tmp_path, cache, width):
    kernel = np.random.default_rng(0).normal(size=(width, 10)).astype(np.float32)
    head = {"kernel": kernel, "bias": np.zeros(10, np.float32)}
    own = dataclasses.replace(context, workdir=tmp_path, folder=tmp_path / "probes", results=Results())
    own.save(tiny_encoder.replace(head=head), tmp_path / "teacher" / "model", {})
    config = tiny.get_config().unlock()
    config.probe.update({"head": "teacher", "cache": cache, "learning_rate": 1e-30, "final_learning_rate": 0.0, "epochs": 1})
    linear = run(own, settings_of(config)).linear
    assert linear.head == "teacher"
    probe = linear.models["teacher"]
    assert probe.accuracy_of_given_head == probe.accuracy.value  # nothing was learned
    own.save(tiny_encoder, tmp_path / "teacher" / "model", {})
    with pytest.raises(UserError, match="config.probe.head is teacher, but tiny has no classifier for the 10 classes"):
        run(own, settings_of(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation.train": "masks:x"}, "config.segmentation.train and eval go together"),
        ({"segmentation.train": "masks:nowhere", "segmentation.eval": "masks:nowhere"}, "no folder nowhere/images: expected"),
        ({"depth.eval_crop": (45, 471, 41, 601)}, "config.depth.eval_crop .* does not lie in images of"),
        ({"depth.max_depth": 0.9}, "config.depth.train.* the wrong unit"),
        ({"feature_probe.held_out": 1.0}, "config.feature_probe.held_out is 1.0: expected a share"),
        ({"feature_probe.strengths": ()}, r"config.feature_probe.strengths is \(\): expected positive"),
        ({"probe.learning_rates": (0.0,)}, "config.probe.learning_rates is"),
        ({"depth.eval_batch_size": 0}, "config.depth.eval_batch_size is 0: expected a positive number"),
    ],
)
def test_faults_are_said_at_once(context, folders, tmp_path, changes, message):
    config = complete(folders)
    config.probe.train = config.probe.eval = config.segmentation.train = config.segmentation.eval = ""
    for name, value in changes.items():
        section, _, key = name.partition(".")
        config[section][key] = value
    with pytest.raises(UserError, match=message):
        run(dataclasses.replace(context, folder=tmp_path), settings_of(config))
