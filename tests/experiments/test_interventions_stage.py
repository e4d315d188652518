"""The stage on a tiny run: every sort of intervention, with and without Raptors, and whose classifier is used."""

import dataclasses
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
from experiments.page import Page
from experiments.results import Results
from experiments.stage import Context
from experiments.stages.distill.run import DistillResult, RaptorResult
from experiments.stages.interventions import InterventionsResult, page, run
from experiments.stages.interventions.head import class_means, find_head
from experiments.stages.interventions.results import MEASURES
from experiments.stages.phases.run import PhasesResult
from experiments.stages.probes.run import ProbesResult
from experiments.stages.teacher.run import cost_of, read_teacher

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny


def small(*stages):
    config = tiny.get_config().unlock()
    config.stages = stages
    config.phases.k = (2,)
    config.interventions.update({"num_images": 20, "batch_size": 16, "num_layers": (1, 2), "num_swaps": 12})
    config.interventions.num_permutations = 50
    return config.lock()


def settings_of(config):
    return pipeline.read_settings(config)[1]["interventions"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run whose Raptor was not trained, which would take longest; with its results."""
    workdir, config = tmp_path_factory.mktemp("swaps"), small("teacher", "phases", "probes")
    results = pipeline.run(config, workdir)
    context = Context(workdir, workdir / "distill", make_mesh(), results=results)
    teacher, partition = read_teacher(context), results.get(PhasesResult).partition_of(2)
    raptor_config = RaptorConfig(teacher.config, partition, layer_scale_init=0.5)
    blocks = distill.init_blocks(raptor_config, teacher.layout, jax.random.key(0))
    raptor = distill.raptor_encoder(raptor_config, blocks, teacher, "untrained")
    context.save(raptor, context.folder / "k2" / "raptor", {})
    results.stages["distill"] = DistillResult({"k2": RaptorResult(2, str(partition), cost_of(raptor), {})})
    folder = workdir / "interventions"
    folder.mkdir()
    results.stages["interventions"] = run(dataclasses.replace(context, folder=folder), settings_of(small("interventions")))
    return workdir, results


def test_every_sort_of_intervention_is_measured(done):
    workdir, results = done
    found = results.get(InterventionsResult)
    assert (found.num_images, found.head) == (20, "the teacher's classifier")
    assert [(g.name, g.num_layers, g.part) for g in found.swaps] == [
        ("1 layer", 1, "layer"),
        ("2 layers", 2, "layer"),
        ("attention", 1, "attention"),
        ("mlp", 1, "mlp"),
    ]
    for group in found.swaps:
        kinds = group.partitions[2]
        assert sum(point.num_swaps for point in (*kinds.intra, *kinds.inter)) == group.num_swaps > 0
        assert {point.distance for point in kinds.inter} <= {1, 2, 3}
        assert set(kinds.tests) == set(MEASURES)
        for test in kinds.tests.values():
            assert test.distance is not None and (group.num_layers > 1) == (test.boundaries is None)
            assert group.num_layers == 1 or test.place_and_distance is None
    matrix = np.array(found.swaps[0].matrix["change"], float)
    np.testing.assert_array_equal(np.isnan(matrix), np.eye(4, dtype=bool))
    assert found.swaps[1].matrix == {}
    layers = {(group.action, group.part): group for group in found.layers}
    assert set(layers) == {(a, p) for a in ("delete", "repeat") for p in ("layer", "attention", "mlp")}
    assert len(layers["delete", "mlp"].effects["token_distance"]) == 4
    assert found.unchanged["token_distance"].value == 0.0
    arrays = np.load(workdir / "interventions" / "arrays.npz")
    assert arrays["1 layer/error"].shape == (12, 20) and arrays["2 layers/places"].shape[1] == 2
    assert arrays["k2/change"].shape == (5, 20) and arrays["delete mlp/change"].shape == (4, 20)
    np.testing.assert_allclose(arrays["1 layer/change"].mean(), np.nanmean(matrix), atol=1e-5)


def test_hybrids_are_measured_by_phase(done):
    workdir, results = done
    found = results.get(InterventionsResult)
    (hybrid,) = found.hybrids.values()
    assert hybrid.k == len(hybrid.phases) == 2
    # With two phases the Raptor's block in one is the teacher's layers in the other.
    assert hybrid.phases[0].raptor_in_teacher == hybrid.phases[1].teacher_in_raptor
    whole = np.load(workdir / "interventions" / "arrays.npz")["k2/change"].mean(1)
    assert hybrid.raptor["change"].value == pytest.approx(whole[0], abs=1e-5)
    assert hybrid.phases[1].raptor_in_teacher["change"].value == pytest.approx(whole[2], abs=1e-5)


def test_the_page_has_its_figures_and_tables(done, tmp_path):
    workdir, results = done
    made = list(page(Page(results, workdir, tmp_path)))
    figures = {s.png.stem for s in made if isinstance(s, FigureEntry)}
    assert figures == {"swaps", "swaps_by_distance", "layer_effects", "hybrids"}
    tables = [s for s in made if not isinstance(s, FigureEntry)]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows) and len(tables) == 2
    assert [row[0] for row in tables[0].rows] == ["one layer", "two layers", "attention", "feed-forward"]
    assert list(page(Page(Results({"interventions": InterventionsResult()}), workdir, tmp_path))) == []


def test_a_run_without_raptors_and_labels(done, tmp_path):
    for stage in ("teacher", "phases"):
        shutil.copytree(done[0] / stage, tmp_path / stage)
    config = small("interventions").unlock()
    config.interventions.update({"parts": ("mlp",), "images": f"folder:{tmp_path / 'flat'}"})
    (tmp_path / "flat").mkdir()
    for n in range(3):
        Image.fromarray(np.full((8, 8, 3), 60 * n, np.uint8)).save(tmp_path / "flat" / f"{n}.png")
    results = pipeline.run(config, tmp_path)
    found = results.get(InterventionsResult)
    assert (found.hybrids, found.head, found.num_images) == ({}, "", 3)
    assert [group.name for group in found.swaps] == ["mlp"] and "error" not in found.unchanged
    assert len(list(page(Page(results, tmp_path, tmp_path)))) == 4


def test_whose_classifier(done):
    workdir, results = done
    settings = settings_of(small("interventions"))
    context = Context(workdir, workdir / "interventions", make_mesh(), results=results)
    teacher, source = read_teacher(context), context.source(settings.data.eval)

    def found(context, teacher):
        measuring = dataclasses.replace(settings.eval, num_images=400)
        return find_head(context, teacher, source, settings.data, measuring, settings.seed)

    head, origin = found(context, teacher.replace(head=None))
    assert origin == "the linear probe" and head["kernel"].shape == (32, 10)
    cls = teacher.replace(head={"kernel": np.ones((16, 10), np.float32), "bias": np.zeros(10, np.float32)})
    head, origin = found(context, cls)  # of the class token alone
    assert origin == "the teacher's classifier" and head["kernel"].shape == (32, 10) and not head["kernel"][16:].any()
    other = teacher.replace(head={"kernel": np.zeros((24, 10)), "bias": np.zeros(10)})
    # What the stage left counts only where it is done.
    for stages in ({}, {"probes": ProbesResult()}):
        head, origin = found(dataclasses.replace(context, results=Results(stages)), other)
        assert origin == "the nearest class mean" and head["kernel"].shape == (32, 10)


def test_the_nearest_class_mean_as_a_linear_classifier():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 6)), np.arange(40) % 4
    head = class_means(features, labels, 4)
    means = np.stack([features[labels == c].mean(0) for c in range(4)])
    nearest = np.argmin(np.linalg.norm(features[:, None] - means, axis=-1), -1)
    np.testing.assert_array_equal(np.argmax(features @ head["kernel"] + head["bias"], -1), nearest)
    with pytest.raises(UserError, match="class 4 has none of the 40 images that class means are taken of"):
        class_means(features, labels, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 1}, "config.interventions.num_images is 1: expected 0, or two or more"),
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
    context = Context(tmp_path, tmp_path, make_mesh())
    assert run(context, settings_of(tiny.get_config())) == InterventionsResult()
    assert "num_images is 0, nothing to do" in capsys.readouterr().out
