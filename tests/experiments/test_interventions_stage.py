"""The stage on a tiny run: every sort of intervention, with and without Raptors, and whose classifier is used."""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from brh_jax import distill
from brh_jax.errors import UserError
from brh_jax.models import RaptorConfig
from brh_jax.report.html import FigureEntry
from brh_jax.train.parallel import make_mesh
from experiments import pipeline
from experiments.context import Context, write_json
from experiments.sections.interventions import sections
from experiments.stages import interventions

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny


def small(*stages):
    config = tiny.get_config().unlock()
    config.stages = stages
    config.phases.k = (2,)
    config.interventions.update({"num_images": 20, "batch_size": 16, "num_layers": (1, 2), "num_swaps": 12})
    config.interventions.num_permutations = 50
    return config.lock()


def summary_of(workdir):
    return json.loads((workdir / "interventions" / "record.json").read_text())["summary"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run whose Raptor was not trained, which would take longest."""
    workdir, config = tmp_path_factory.mktemp("swaps"), small("teacher", "phases", "probes")
    pipeline.run(config, workdir)
    context = Context(config, workdir, make_mesh(**config.mesh))
    teacher, partition = context.teacher(), context.partitions()[2]
    raptor_config = RaptorConfig(teacher.config, partition, layer_scale_init=0.5)
    blocks = distill.init_blocks(raptor_config, teacher.layout, jax.random.key(0))
    context.save(distill.raptor_encoder(raptor_config, blocks, teacher, "untrained"), workdir / "distill" / "k2" / "raptor", {})
    made_with = pipeline.dependencies(config, pipeline.STAGES["distill"].depends)
    write_json(workdir / "distill" / "record.json", {"done": True, "seconds": 0.0, "config": made_with, "summary": {}})
    pipeline.run(small("interventions"), workdir)
    return workdir


def test_every_sort_of_intervention_is_measured(done):
    found = summary_of(done)
    assert (found["num_images"], found["head"]) == (20, "the teacher's classifier")
    assert set(found["swaps"]) == {"1 layer", "2 layers", "attention", "mlp"}
    for name, group in found["swaps"].items():
        kinds = group["partitions"]["k2"]
        assert sum(p["num_swaps"] for kind in ("intra", "inter") for p in kinds[kind]) == group["num_swaps"] > 0
        assert {p["distance"] for p in kinds["inter"]} <= {1, 2, 3}
        assert set(kinds["tests"]) == set(interventions.MEASURES)
        assert name == "2 layers" or set(kinds["tests"]["error"]) == {"distance", "place_and_distance", "boundaries"}
    matrix = np.array(found["swaps"]["1 layer"]["matrix"]["change"], float)
    np.testing.assert_array_equal(np.isnan(matrix), np.eye(4, dtype=bool))
    assert set(found["layers"]) == {f"{a} {p}" for a in ("delete", "repeat") for p in ("layer", "attention", "mlp")}
    assert len(found["layers"]["delete mlp"]["token_distance"]["mean"]) == 4
    (hybrid,) = found["hybrids"].values()
    assert len(hybrid["phases"]) == 2
    # With two phases the Raptor's block in one is the teacher's layers in the other.
    assert hybrid["phases"][0]["raptor_in_teacher"] == hybrid["phases"][1]["teacher_in_raptor"]
    assert found["unchanged"]["token_distance"]["mean"] == [0.0]
    arrays = np.load(done / "interventions" / "arrays.npz")
    assert arrays["1 layer/error"].shape == (12, 20) and arrays["2 layers/places"].shape[1] == 2
    np.testing.assert_allclose(arrays["1 layer/change"].mean(), np.nanmean(matrix), atol=1e-5)


def test_the_page_has_its_figures_and_tables(done, tmp_path):
    records = {name: json.loads((done / name / "record.json").read_text())["summary"] for name in ("phases", "interventions")}
    made = list(sections(None, records, tmp_path))
    figures = {s.png.stem for s in made if isinstance(s, FigureEntry)}
    assert figures == {"swaps", "swaps_by_distance", "layer_effects", "hybrids"}
    tables = [s for s in made if not isinstance(s, FigureEntry)]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows) and len(tables) == 2
    assert list(sections(None, {}, tmp_path)) == []


def test_a_run_without_raptors_and_labels(done, tmp_path):
    for stage in ("teacher", "phases"):
        shutil.copytree(done / stage, tmp_path / stage)
    config = small("interventions").unlock()
    config.interventions.update({"parts": ("mlp",), "images": f"folder:{tmp_path / 'flat'}"})
    (tmp_path / "flat").mkdir()
    for n in range(3):
        Image.fromarray(np.full((8, 8, 3), 60 * n, np.uint8)).save(tmp_path / "flat" / f"{n}.png")
    pipeline.run(config, tmp_path)
    found = summary_of(tmp_path)
    assert (found["hybrids"], found["head"], found["num_images"]) == ({}, "", 3)
    assert list(found["swaps"]) == ["mlp"] and "error" not in found["unchanged"]
    records = {"interventions": found, "phases": json.loads((tmp_path / "phases" / "record.json").read_text())["summary"]}
    assert len(list(sections(None, records, tmp_path))) == 4


def test_whose_classifier(done):
    config = small("interventions")
    context = Context(config, done, make_mesh(**config.mesh))
    teacher, source = context.teacher(), context.source(config.data.eval)
    head, origin = interventions._head(context, teacher.replace(head=None), source)
    assert origin == "the linear probe" and head["kernel"].shape == (32, 10)
    config = config.unlock()
    config.eval.num_images = 400
    head, origin = interventions._head(
        Context(config, done / "nowhere", context.mesh), teacher.replace(head={"kernel": np.zeros((16, 10))}), source
    )
    assert origin == "the nearest class mean" and head["kernel"].shape == (32, 10)


def test_the_nearest_class_mean_as_a_linear_classifier():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 6)), np.arange(40) % 4
    head = interventions._class_means(features, labels, 4)
    means = np.stack([features[labels == c].mean(0) for c in range(4)])
    nearest = np.argmin(np.linalg.norm(features[:, None] - means, axis=-1), -1)
    np.testing.assert_array_equal(np.argmax(features @ head["kernel"] + head["bias"], -1), nearest)
    with pytest.raises(UserError, match="class 4 has none of the 40 images that class means are taken of"):
        interventions._class_means(features, labels, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 1}, "num_images is 1: expected 0, or two or more"),
        ({"num_swaps": -1}, "num_swaps is -1: expected 0 or more"),
        ({"num_layers": (0,)}, r"num_layers is \(0,\): expected numbers such as"),
        ({"parts": ("norm",)}, "parts names 'norm': expected some of layer, attention, mlp"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, change, message):
    config = small("interventions").unlock()
    config.interventions.update(change)
    with pytest.raises(UserError, match=message):
        pipeline.run(config, tmp_path)


def test_it_can_be_left_out(tmp_path, capsys):
    config = tiny.get_config()
    assert interventions.run(Context(config, tmp_path, None), tmp_path) == {}
    assert "num_images is 0, nothing to do" in capsys.readouterr().out
