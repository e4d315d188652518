"""A whole run, small: everything is there, nothing is done twice, and a run that was killed ends the same."""

import json
import pathlib
import shutil
import sys

import chex
import jax
import numpy as np
import pytest

import brh_jax
from brh_jax import distill
from brh_jax.errors import UserError
from brh_jax.models import store
from experiments import pipeline, publish
from experiments.configs import default
from experiments.records import read_record
from experiments.stages import STAGES
from experiments.stages.accuracy import AccuracyResult
from experiments.stages.agreement import AgreementResult
from experiments.stages.distill import DistillResult
from experiments.stages.dynamics import DynamicsResult
from experiments.stages.phases import PhasesResult
from experiments.stages.phases.run import PhaseSettings, partitions_of

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny


def complete():
    """With every measure that tiny leaves out."""
    config = tiny.get_config().unlock()
    config.phases.bootstrap = 20
    config.dynamics.update({"tangent_images": 8, "class_images": "digits:train", "classes": 3, "per_class": 40})
    config.eval.update({"more": ("digits:train",), "baselines": default.get_config().eval.baselines})
    config.interventions.update({"num_images": 16, "batch_size": 16, "num_layers": (1,), "parts": ("layer",), "num_swaps": 6})
    return config.lock()


def without_page(config):
    """Its figures are drawn anew in every run, which takes a while."""
    config = config.unlock()
    config.stages = tuple(name for name in config.stages if name != "report")
    return config.lock()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, pipeline.run(complete(), workdir, command=["python -m experiments.main", "--config=tiny.py"])


def test_a_raptor_is_published_with_what_was_measured(done, tmp_path):
    workdir, results = done
    assert publish.main([str(workdir), str(tmp_path / "raptor"), "--k=2"]) == 0
    card = (tmp_path / "raptor" / "README.md").read_text()
    fit = results.get(AgreementResult).fits["k2"]
    cells = (f"{np.mean(values):.3f} / {values[-1]:.3f}" for values in fit.r2.values())
    assert f"| **this Raptor** | {' | '.join(cells)} |" in card and "| mean state | " in card
    assert "stage1" not in card and str(workdir) not in card and "digits:train" in card
    states = np.zeros((1, 8, 8, 3), np.float32)
    chex.assert_trees_all_close(
        brh_jax.load(tmp_path / "raptor").trajectory(states), brh_jax.load(workdir, k=2).trajectory(states)
    )


def test_what_cannot_be_published_is_said(done, tmp_path, capsys):
    workdir, _ = done
    assert publish.main([str(workdir), str(tmp_path / "raptor"), "--k=5"]) == 2
    assert "has no Raptor with k = 5: expected --k=2, --k=3" in capsys.readouterr().err
    assert publish.main([str(tmp_path), str(tmp_path / "raptor")]) == 2
    assert f"no results.json in {tmp_path}" in capsys.readouterr().err and not (tmp_path / "raptor").exists()


def test_results_hold_every_figure(done):
    workdir, results = done
    assert results.as_json() == json.loads((workdir / "results.json").read_text())
    phases, agreement, distilled = (results.get(kind) for kind in (PhasesResult, AgreementResult, DistillResult))
    assert set(phases.partitions) == {2, 3} and sum(phases.partitions[3].lengths) == phases.finest.depth == 4
    fits = agreement.fits
    assert set(fits) == {"identity", "mean", "linear", "linear_k2", "linear_k3", "k2_stage1", "k2", "k3_stage1", "k3"}
    assert {name for name, fit in fits.items() if fit.kind == "baseline"} == {"identity", "mean", "linear"}
    assert fits["k3_stage1"].kind == "blockwise" and fits["linear_k2"].raptor == fits["k2"].raptor == "k2"
    for fit in fits.values():
        lengths = {"cls": 4, "registers": 4, "patches": 4}
        assert {t: len(v) for t, v in fit.r2.items()} == {t: len(v) for t, v in fit.cosine.items()} == lengths
        for measure in ("error", "relative_error"):
            assert {t: len(v) for t, v in getattr(fit, measure).items()} == lengths | {"all": 4}
        assert fit.num_images == 40
        overall = fit.overall["relative_error"]["all"]
        assert overall.low < overall.value < overall.high
        assert overall.value == pytest.approx(np.mean(fit.relative_error["all"]), abs=1e-5)
        assert (np.array(fit.edges["error"]["cls"].low) <= fit.error["cls"]).all()
    more = agreement.sets["digits:train"]
    assert set(more) == set(fits) and more["k2"].r2 != fits["k2"].r2
    errors = np.load(workdir / "agreement" / "errors.npz")
    np.testing.assert_allclose(errors["k3/relative_error_patches"].mean(1), fits["k3"].relative_error["patches"], atol=1e-5)
    assert {(one.metric, one.k) for one in phases.stability} == {("cosine", 2), ("cosine", 3), ("cka", 2), ("cka", 3)}
    assert [one.k for one in phases.random] == [2, 3, 4]
    assert set(results.about["seconds"]) == {stage.name for stage in STAGES}
    assert "tiny.py" in results.about["environment"]["command"]
    k2, k3 = (distilled.raptors[name].cost for name in ("k2", "k3"))
    assert k3.block_params == 1.5 * k2.block_params and k3.block_bits == 32 * k3.block_params
    assert 0 < results.get(AccuracyResult).teacher.test <= 1


def test_results_hold_the_dynamics(done):
    _, results = done
    dynamics = results.get(DynamicsResult)
    assert (dynamics.num_images, dynamics.tangent_images) == (20, 8)
    teacher, k2, k3 = (dynamics.models[name] for name in ("teacher", "k2", "k3"))
    assert (teacher.basins.num_classes, teacher.basins.num_images) == (3, 120)  # the test set has fewer of a class
    assert len(k3.bands["speed_cls"].mean) == len(k3.bands["attention_speed_cls"].mean) == k3.bands["speed_cls"].depth == 4
    assert not teacher.distance and k2.distance["speed_cls"].relative > 0
    assert [len(model.iterated) for model in (teacher, k2, k3)] == [3, 2, 3]
    assert all(sum(block.fates.values()) == 8 for model in (teacher, k2, k3) for block in model.iterated)
    assert set(teacher.tokens) == {"cls", "registers", "patches"} and len(k3.stability.by_phase) == 3


def test_the_page_and_the_figures_are_there(done):
    workdir, _ = done
    page = (workdir / "report" / "index.html").read_text()
    for title in (
        "Phases of depth",
        "Agreement with the teacher",
        "How sure the phases are",
        "Max cut and random partitions",
        "e in figures",
        "What the teacher&#39;s classifier says",
        "accuracy kept",
        "On the way",
        "Description length and running time",
        "Training",
        "Dynamics in one figure",
        "Distance of the dynamics",
        "Linear probes",
        "Environment",
    ):
        assert title in page
    names = {p.stem for p in (workdir / "report" / "figures").glob("*.png")}
    fit = {
        "glance",
        "teacher",
        "dissimilarity",
        "boundaries",
        "cut_weights",
        "training",
        "validation",
        "r2",
        "cosine",
        "error",
        "probes",
    }
    dynamics = {"summary", "dynamics", "coherence", "ranks", "basins", "projections", "growth", "exponents", "jacobians", "modes"}
    dynamics |= {"sublayers", "influence", "extrapolation", "perturbations", "eigenvalues", "horizons"}
    assert names == fit | dynamics | {"swaps", "swaps_by_distance", "layer_effects", "hybrids"}


def files(workdir, *stages):
    """Of every file of these stages, when it was written."""
    return {path: path.stat().st_mtime_ns for stage in stages for path in (workdir / stage).rglob("*") if path.is_file()}


def test_a_second_run_skips_what_is_done(done, capsys):
    workdir, results = done
    names = [stage.name for stage in STAGES]
    before = files(workdir, *names)
    again = pipeline.run(without_page(complete()), workdir)
    out = capsys.readouterr().out
    assert all(f"{name}: done before, skipped" in out for name in names)
    assert files(workdir, *names) == before
    assert again.stages == results.stages


def test_another_configuration_is_refused_and_nothing_lost(done):
    workdir, _ = done
    config = complete().unlock()
    config.distill.stage1.steps = 9
    names = "distill, agreement, probes, interventions, dynamics"
    with pytest.raises(UserError, match=rf"distill.stage1.steps: 8 there, 9 here\n.*--rerun to discard .*\({names}\)"):
        pipeline.run(config, workdir)
    assert (workdir / "distill" / "k3" / "raptor" / "model.safetensors").exists()


def test_further_images_are_measured_and_nothing_else_is_done(done, capsys):
    """Of all that is done, `eval.more` and `eval.baselines` concern the agreement alone."""
    workdir, results = done
    others = [stage.name for stage in STAGES if stage.name != "agreement"]
    before = files(workdir, *others)
    config = complete().unlock()
    config.eval.update({"more": (), "baselines": ("mean",)})
    again = pipeline.run(without_page(config), workdir)
    out = capsys.readouterr().out
    assert "agreement: measured again (eval.more: ['digits:train'] there, [] here" in out
    assert all(f"{name}: done before, skipped" in out for name in others)
    assert files(workdir, *others) == before
    agreement, first = again.get(AgreementResult), results.get(AgreementResult)
    assert list(agreement.sets) == ["digits:test"] and "linear" not in agreement.fits
    assert agreement.fits["k3"] == first.fits["k3"]
    assert pipeline.run(without_page(complete()), workdir).get(AgreementResult) == first


def test_other_weights_at_the_same_path_reach_every_later_stage(done, tmp_path, capsys):
    workdir, _ = done
    weights = tmp_path / "weights"
    shutil.copytree(workdir / "teacher" / "model", weights)
    config = tiny.get_config().unlock()
    config.stages = ("teacher", "phases", "distill")
    config.teacher.source = str(weights)
    config.phases.k = (2,)
    first = pipeline.run(config, tmp_path / "run")
    assert "teacher: done before, skipped" in (pipeline.run(config, tmp_path / "run") and capsys.readouterr().out)
    other = brh_jax.load(weights)
    store.save(other.replace(params=jax.tree.map(lambda p: 1.1 * p, other.params)), weights)
    with pytest.raises(
        UserError, match=rf"weights {weights}: its content has changed since\n.*teacher, accuracy, phases, distill"
    ):
        pipeline.run(config, tmp_path / "run")
    again = pipeline.run(config, tmp_path / "run", rerun=True)
    out = capsys.readouterr().out
    assert "done before" not in out and "distill k=2 stage 2" in out
    assert again.get(AgreementResult).fits["k2"] != first.get(AgreementResult).fits["k2"]
    shutil.rmtree(weights)  # what was made of it stays
    assert pipeline.run(config, tmp_path / "run").stages == again.stages


def test_a_run_of_before_is_refused_with_one_message(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "record.json").write_text('{"config": {"seed": 0}, "done": true, "seconds": 1.0, "summary": {}}')
    with pytest.raises(UserError, match="record.json was written by an older brh_jax .*use another --workdir, or remove"):
        pipeline.run(tiny.get_config(), tmp_path)


def test_a_run_loads_as_an_encoder(done):
    workdir, _ = done
    raptor, teacher = brh_jax.load(workdir), brh_jax.load(workdir / "teacher")
    assert raptor.config.partition.k == 3
    assert brh_jax.load(workdir, k=2).config.partition.k == 2
    images = np.zeros((2, 8, 8, 3), np.float32)
    assert raptor.trajectory(images).shape == teacher.trajectory(images).shape == (5, 2, 18, 16)
    chex.assert_trees_all_equal(raptor.trajectory(images)[0], teacher.trajectory(images)[0])
    with pytest.raises(UserError, match=r"no Raptor with k = 5: there are k = 2, 3"):
        brh_jax.load(workdir, k=5)


def test_killed_after_stage_one_a_run_ends_with_the_same_parameters(done, tmp_path, monkeypatch):
    workdir, results = done
    whole = brh_jax.load(workdir, k=2).params

    class Killed(BaseException):
        pass

    real = distill.train_blocks

    def dies_in_stage_two(objective, *args, **kwargs):
        if isinstance(objective, distill.Joint):
            raise Killed
        return real(objective, *args, **kwargs)

    monkeypatch.setattr(distill, "train_blocks", dies_in_stage_two)
    config = tiny.get_config().unlock()
    config.stages, config.phases.k = ("teacher", "phases", "distill"), (2,)
    with pytest.raises(Killed):
        pipeline.run(config, tmp_path)
    assert not (tmp_path / "distill" / "k2" / "raptor").exists()
    assert not read_record(tmp_path / "distill").done
    monkeypatch.setattr(distill, "train_blocks", real)
    again = pipeline.run(config, tmp_path)
    chex.assert_trees_all_equal(brh_jax.load(tmp_path, k=2).params, whole)
    for name, fit in again.get(AgreementResult).fits.items():
        assert fit == results.get(AgreementResult).fits[name]


def test_rerun_discards_what_differs_and_keeps_the_rest(tmp_path):
    config = tiny.get_config().unlock()
    config.stages = ("teacher", "phases")
    pipeline.run(config, tmp_path)
    before = files(tmp_path, "teacher", "accuracy")
    config.phases.k = (4,)
    results = pipeline.run(config, tmp_path, rerun=True)
    assert files(tmp_path, "teacher", "accuracy") == before
    assert list(results.get(PhasesResult).partitions) == [4] and results.get(DistillResult) is None


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("given", "1-3 | 4"),
        ("contrast_cut", None),
        ("random_contiguous", None),
        ("random_fragmented", None),
        ("recursive_bisection", None),
    ],
)
def test_every_method_of_partition(done, method, text):
    _, results = done
    settings = PhaseSettings(method=method, lengths=(3, 1), k=(2, 3))
    found = partitions_of(np.asarray(results.get(PhasesResult).dissimilarity), settings)
    assert all(p.depth == 4 and p.k == k for k, p in found.items())
    if text:
        assert str(found[2]) == text
    else:
        assert list(found) == [2, 3]


def test_the_page_shows_what_each_objective_gives(done):
    workdir, results = done
    phases = results.get(PhasesResult)
    (mine,) = (one for one in phases.objectives if (one.method, one.min_length, one.k) == ("max_cut", 1, 2))
    assert mine.text == phases.partitions[2].text and mine.cut_weight == phases.partitions[2].cut_weight
    assert {one.method for one in phases.objectives} == {"max_cut", "contrast_cut", "recursive_bisection"}
    assert all((one.threshold is not None) == (one.method == "recursive_bisection") for one in phases.objectives)
    page = (workdir / "report/index.html").read_text()
    assert "What each objective gives" in page and "(this run&#39;s)" in page
