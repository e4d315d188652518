"""The small-scale study: its runs, what gathers them, and one from end to end."""

import csv
import functools
import os
import pathlib
import sys

import numpy as np
import pytest

import brh_jax
from brh_jax.errors import UserError
from experiments import study, sweep, tables
from experiments.configs import ablation, small_scale
from experiments.runs import read_results
from experiments.stages.accuracy.run import Accuracy, AccuracyResult
from experiments.summarize import read_runs

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import made_up

TINY = f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import tiny
from experiments.configs import small_scale

def get_config(arg=""):
    config = tiny.get_config().unlock()
    config.update({{"stages": ("teacher", "phases", "distill"), "study": {{"group": "trained", "step": 10}}}})
    config.teacher.train.update({{"snapshots": (), "num_images": 0}})
    config.phases.k = (2,)
    config.distill.stage1.update({{"teacher_forcing": "throughout", "token_weights": ()}})
    config.distill.stage2.steps = 0
    return config.lock()

def sweep(arg=""):
    changes = {{"seed": 0, "teacher.vit.drop_path": 0.2}}
    runs = small_scale.training("p0.2-seed0", changes, "trained", 10, (4,))
    return dict(reversed(runs.items()))  # the snapshot first: it has to wait
"""


def write_run(folder, group, step, p, seed, clear, accuracy):
    """Made-up results in which the fit follows the phase structure, `clear`."""
    structure = {
        "mean_similarity": 0.5 + clear,
        "contrast": clear,
        "matched_contrast": clear / 2,
        "modularity": clear / 3,
        "z": 2.0 + clear,
    }
    fit = functools.partial(made_up.fit, r2={"cls": [clear, clear], "patches": [0.0, clear]}, relative_e=[1 - clear, 1 - clear])
    results = {
        "accuracy": AccuracyResult(Accuracy(accuracy, min(1.0, accuracy + 0.1 * (group != "trained"))), {}),
        "phases": made_up.phases(3, **structure),
        "distill": made_up.distilled("k3", 3),
        "agreement": made_up.agreement(fit("identity", kind="baseline"), fit("k3")),
    }
    config = {"study": {"group": group, "step": step}, "seed": seed, "teacher": {"vit": {"drop_path": p}}}
    made_up.write_run(folder, results, config, **{"seed": seed, "teacher.vit.drop_path": p})


@pytest.fixture
def study_folder(tmp_path):
    rng = np.random.default_rng(0)
    for seed in range(3):
        for p in (0.0, 0.4, 0.8):
            for step in (0, 100, 200)[p > 0 :]:
                clear = 0.2 + 0.3 * p + 0.001 * step + 0.02 * rng.normal()
                write_run(tmp_path / f"p{p}-seed{seed}-step{step}", "trained", step, p, seed, clear, 0.1 + 0.004 * step)
        write_run(tmp_path / f"overfit-seed{seed}", "over-fitted", 400, 0.0, seed, 0.1 + 0.02 * rng.normal(), 0.6)
    (tmp_path / "p0.9-seed0.log").write_text("going on")
    return tmp_path


def test_a_study_is_gathered(study_folder, capsys):
    assert study.main([str(study_folder)]) == 0
    assert "| trained | 200 | 0.8 | k = 3 |" in capsys.readouterr().out
    out = study_folder / "study"
    page = (out / "index.html").read_text()
    for text in (
        "Stochastic depth",
        "Untrained, trained, over-fitted",
        "Along training: trained",
        "Phase structure and fit",
        "p0.9-seed0",
    ):
        assert text in page
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    assert figures == {"stochastic_depth", "kinds", "along_training_trained", "structure_and_fit"}
    rows = list(csv.DictReader((out / "correlations.csv").open()))
    clear = [r for r in rows if r["x"] == "contrast" and r["y"] == "r2_cls"]
    assert (
        all(float(r["value"]) == pytest.approx(1) for r in clear) and clear[0]["points"] == "24" and clear[0]["trainings"] == "9"
    )
    along_p = next(r for r in rows if r["x"] == "p" and r["y"] == "relative_e" and r["coefficient"] == "spearman")
    assert float(along_p["value"]) < -0.8 and float(along_p["high"]) < 0
    measures = list(csv.DictReader((out / "measures.csv").open()))
    assert {(r["ViT"], r["steps"].strip(), r["p"]) for r in measures if r["ViT"] != "trained"} == {
        ("untrained", "0", "any"),
        ("over-fitted", "400", "0"),
    }
    assert (out / "measures.tex").read_text().count(r"\\") == 1 + 8


def test_what_is_no_study_is_said(tmp_path, capsys):
    made_up.write_run(tmp_path, {"distill": made_up.distilled("k2", 2)})
    assert study.main([str(tmp_path)]) == 2
    assert f"no run of a small-scale study among 1 finished runs, {tmp_path} and so on" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{}")
    assert study.main([str(tmp_path)]) == 2
    assert "results.json was written by an older brh_jax (schema 1" in capsys.readouterr().err


def test_the_runs_of_the_small_scale_study(tmp_path):
    runs = small_scale.sweep("digits")
    assert len(runs) == 60
    assert sweep.needs_of(runs)["p0.2-seed1-step50"] == {"p0.2-seed1"}
    command = sweep.command_of("x.py", tmp_path, "p0.2-seed1-step50", runs["p0.2-seed1-step50"])
    assert f"--config.teacher.source={tmp_path}/p0.2-seed1/teacher/snapshots/step50" in command
    assert len(small_scale.sweep("cifar100,seeds=1")) == 10 * 3 + 1 + 4
    config = small_scale.get_config("digits").unlock()
    config.teacher.train.steps = 200
    with pytest.raises(UserError, match="steps is 200: the study keeps ViTs on their way, expected more than 200 steps"):
        small_scale.sweep("digits", config)
    assert len(small_scale.sweep("cifar100=data/cifar100,seeds=2")) == 2 * (6 * 2 + 1)
    assert small_scale.get_config("fashion=data/fashion").data.eval == "idx:data/fashion/t10k"
    assert small_scale.get_config("cifar100=data/cifar100").data.train == "folder:data/cifar100/train"
    for argument in ("mnist", "fashion="):
        with pytest.raises(UserError, match=f"small_scale.py does not know '{argument}'"):
            small_scale.get_config(argument)
    with pytest.raises(UserError, match=r"several data sets, digits, cifar100 in folders: expected one of digits"):
        small_scale.get_config("digits,cifar100=data/cifar100")


def test_the_runs_of_the_ablation():
    runs = ablation.sweep("seeds=2")
    assert len(runs) == 1 + 2 * 10
    assert sweep.needs_of(runs)["6-gelu-seed1"] == {"teacher"}
    first, last = runs["1-teacher-forcing-seed0"], runs["5-stage-2-seed0"]
    assert set(first) - set(last) == set(ablation.WITHOUT)
    assert runs["2-autoregression-seed1"].keys() == first.keys() - {"distill.stage1.teacher_forcing"}
    config = ablation.get_config("seeds=1").unlock()
    config.distill.stage1.steps, config.distill.stage2.steps, config.teacher.source = 5, 2, "weights.safetensors"
    runs = ablation.sweep("seeds=1", config)  # settings as flags leave them: as many steps, and no teacher to train
    assert runs["5b-stage-1-for-as-long-seed0"]["distill.stage1.steps"] == 7 and "teacher" not in runs
    assert not any("teacher.source" in changes for changes in runs.values())
    dinov2 = ablation.get_config("dinov2,arch=vits14,k=2,seeds=1")
    assert (dinov2.teacher.arch, dinov2.phases.k) == ("vits14", (2,))
    assert len(ablation.sweep("dinov2,seeds=1")) == 10
    with pytest.raises(UserError, match="does not know 'vits14'"):
        ablation.get_config("vits14")
    with pytest.raises(UserError, match="seeds=0 is no number of seeds: expected seeds=3"):
        ablation.sweep("seeds=0")


@pytest.mark.slow
@pytest.mark.long
def test_a_study_from_end_to_end(tmp_path, capsys, monkeypatch):
    one_device = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"  # compiles faster
    monkeypatch.setenv("XLA_FLAGS", one_device)
    config, runs = tmp_path / "study.py", tmp_path / "runs"
    config.write_text(TINY)
    assert sweep.main([f"--config={config}", f"--workdir={runs}", "--jobs=2"]) == 0
    assert "all 2 runs are done" in capsys.readouterr().out  # without a page each, and the snapshot after its training
    whole, early = (read_results(runs / name / "results.json") for name in ("p0.2-seed0", "p0.2-seed0-step4"))
    assert not (runs / "p0.2-seed0" / "report").exists()
    assert whole.get(AccuracyResult).snapshots[4] == early.get(AccuracyResult).teacher
    assert brh_jax.load(runs / "p0.2-seed0-step4" / "teacher").name.endswith("step 4 of 10")
    found = study.read_study(read_runs([runs]))
    assert [(run.step, run.p, run.kind) for run in found] == [(10, 0.2, "trained"), (4, 0.2, "")]
    assert set(found[0].values) == set(study.LABELS)
    assert tables.main([str(runs), "--by=name"]) == 0
    assert "| p0.2-step4 | k2 |" in capsys.readouterr().out
