"""A whole run, small: everything is there, nothing is done twice, and a run that was killed ends the same."""

import json
import pathlib
import sys

import chex
import numpy as np
import pytest

import brh_jax
from brh_jax.errors import UserError
from experiments import pipeline
from experiments.configs import default
from experiments.stages import distill as distill_stage

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny


def complete():
    """With every measure that tiny leaves out."""
    config = tiny.get_config().unlock()
    config.phases.bootstrap = 20
    config.dynamics.tangent_images = 8
    config.eval.update({"more": ("digits:train",), "baselines": default.get_config().eval.baselines})
    config.interventions.update({"num_images": 16, "batch_size": 16, "num_layers": (1,), "parts": ("layer",), "num_swaps": 6})
    return config.lock()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, pipeline.run(complete(), workdir, command=["python -m experiments.main", "--config=tiny.py"])


def test_results_hold_every_figure(done):
    workdir, results = done
    assert results == json.loads((workdir / "results.json").read_text())
    assert set(results["phases"]["partitions"]) == {"2", "3"}
    assert sum(results["phases"]["partitions"]["3"]["lengths"]) == 4
    fits = results["distill"]["fits"]
    assert set(fits) == {"identity", "mean", "linear", "linear_k2", "linear_k3", "k2_stage1", "k2", "k3_stage1", "k3"}
    for fit in fits.values():
        for measure in ("r2", "cosine", "error", "relative_error"):
            assert {t: len(v) for t, v in fit[measure].items()} == {"cls": 4, "registers": 4, "patches": 4}
        assert len(fit["error_all"]) == 4
        assert fit["num_images"] == 40
        overall = fit["overall"]["relative_error_all"]
        assert overall["low"] < overall["mean"] < overall["high"]
        assert overall["mean"] == pytest.approx(np.mean(fit["relative_error_all"]), abs=1e-5)
        assert (np.array(fit["intervals"]["error_cls"]["low"]) <= fit["error"]["cls"]).all()
    more = results["distill"]["more"]["digits:train"]
    assert set(more["fits"]) == set(fits) and more["fits"]["k2"]["r2"] != fits["k2"]["r2"]
    errors = np.load(workdir / "distill" / "errors.npz")
    np.testing.assert_allclose(errors["k3/relative_error_patches"].mean(1), fits["k3"]["relative_error"]["patches"], atol=1e-5)
    assert set(results["phases"]["bootstrap"]) == {"cosine", "cka"} and set(results["phases"]["random"]) == {"2", "3", "4"}
    assert set(results["probes"]["accuracy"]) == {"teacher", "k2", "k3"}
    assert set(results["seconds"]) == {"teacher", "phases", "distill", "probes", "interventions", "dynamics"}
    found = results["dynamics"]
    assert (found["num_images"], found["tangent_images"]) == (20, 8)
    assert len(found["measures"]["k3"]["speed_cls"]["mean"]) == len(found["measures"]["k3"]["attention_speed_cls"]["mean"]) == 4
    assert set(found["distance"]) == {"k2", "k3"} and found["distance"]["k2"]["speed_cls"]["relative"] > 0
    assert set(found["findings"]) == set(found["modes"]) == set(found["extrapolation"]) == {"teacher", "k2", "k3"}
    assert [len(found["extrapolation"][k]) for k in ("teacher", "k2", "k3")] == [3, 2, 3]
    assert all(sum(run["fate"].values()) == 8 for runs in found["extrapolation"].values() for run in runs.values())
    assert results["environment"]["command"].endswith("--config=tiny.py'") or "tiny.py" in results["environment"]["command"]
    cost = results["distill"]["costs"]
    assert cost["k3"]["block_params"] == 1.5 * cost["k2"]["block_params"]
    assert cost["k3"]["block_bits"] == 32 * cost["k3"]["block_params"]


def test_the_page_and_the_figures_are_there(done):
    workdir, _ = done
    page = (workdir / "report" / "index.html").read_text()
    for title in (
        "Phases of depth",
        "Agreement with the teacher",
        "How sure the phases are",
        "Max cut and random partitions",
        "e in figures",
        "Description length and running time",
        "Training",
        "Dynamics in one figure",
        "Distance of the dynamics",
        "Linear probes",
        "Environment",
    ):
        assert title in page
    names = {p.stem for p in (workdir / "report" / "figures").glob("*.png")}
    fit = {"teacher", "dissimilarity", "boundaries", "cut_weights", "training", "r2", "cosine", "error", "probes"}
    dynamics = {"summary", "dynamics", "coherence", "ranks", "basins", "projections", "growth", "exponents", "jacobians", "modes"}
    dynamics |= {"sublayers", "influence", "extrapolation", "perturbations", "eigenvalues", "horizons"}
    assert names == fit | dynamics | {"swaps", "swaps_by_distance", "layer_effects", "hybrids"}


def test_a_second_run_skips_what_is_done(done, capsys):
    workdir, results = done
    before = (workdir / "distill" / "record.json").stat().st_mtime_ns
    again = pipeline.run(complete(), workdir)
    out = capsys.readouterr().out
    for stage in ("teacher", "phases", "distill", "probes", "dynamics"):
        assert f"{stage}: done before, skipped" in out
    assert (workdir / "distill" / "record.json").stat().st_mtime_ns == before
    assert again["distill"] == results["distill"]


def test_another_configuration_is_refused_and_nothing_lost(done):
    workdir, _ = done
    config = complete().unlock()
    config.distill.stage1.steps = 9
    with pytest.raises(
        UserError, match=r"distill.stage1.steps: 8 there, 9 here\n.*--rerun to discard .*distill, probes, interventions, dynamics"
    ):
        pipeline.run(config, workdir)
    assert (workdir / "distill" / "k3" / "raptor" / "model.safetensors").exists()


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

    real = distill_stage.distill.train_stage

    def dies_in_stage_two(stage, *args, **kwargs):
        if stage == 2:
            raise Killed
        return real(stage, *args, **kwargs)

    monkeypatch.setattr(distill_stage.distill, "train_stage", dies_in_stage_two)
    config = tiny.get_config().unlock()
    config.stages = ("teacher", "phases", "distill")
    with pytest.raises(Killed):
        pipeline.run(config, tmp_path)
    assert not (tmp_path / "distill" / "k2" / "raptor").exists()
    assert not json.loads((tmp_path / "distill" / "record.json").read_text())["done"]
    monkeypatch.setattr(distill_stage.distill, "train_stage", real)
    again = pipeline.run(config, tmp_path)
    chex.assert_trees_all_equal(brh_jax.load(tmp_path, k=2).params, whole)
    for name, fit in again["distill"]["fits"].items():
        assert fit == results["distill"]["fits"][name]


def test_rerun_discards_what_differs_and_keeps_the_rest(tmp_path):
    config = tiny.get_config().unlock()
    config.stages = ("teacher", "phases")
    pipeline.run(config, tmp_path)
    teacher = (tmp_path / "teacher" / "record.json").read_text()
    config.phases.k = (4,)
    results = pipeline.run(config, tmp_path, rerun=True)
    assert (tmp_path / "teacher" / "record.json").read_text() == teacher
    assert list(results["phases"]["partitions"]) == ["4"] and results["distill"] == {}
    record = json.loads((tmp_path / "phases" / "record.json").read_text())
    assert list(record["summary"]["partitions"]) == ["4"]


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
    from experiments.stages.phases import partitions_of

    _, results = done
    config = tiny.get_config().unlock()
    config.phases.update({"method": method, "lengths": (3, 1)})
    found = partitions_of(np.asarray(results["phases"]["dissimilarity"]), config.phases)
    assert all(p.depth == 4 and p.k == k for k, p in found.items())
    if text:
        assert str(found[2]) == text
