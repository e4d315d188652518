"""The small-scale study: its runs, what gathers them, and one from end to end."""

import csv
import json
import pathlib
import sys

import numpy as np
import pytest

import brh_jax
from experiments import study, sweep, tables
from experiments.configs import ablation, small_scale

sys.path.insert(0, str(pathlib.Path(__file__).parent))

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
    runs = small_scale._training("p0.2-seed0", changes, "trained", 10, (4,))
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
    fit = {"r2": {"cls": [clear, clear], "registers": [], "patches": [0.0, clear]}, "relative_error_all": [1 - clear, 1 - clear]}
    results = {
        "config": {"study": {"group": group, "step": step}, "seed": seed, "teacher": {"vit": {"drop_path": p}}},
        "teacher": {"accuracy": accuracy, "train_accuracy": min(1.0, accuracy + 0.1 * (group != "trained"))},
        "phases": {"partitions": {"3": {"structure": structure}}},
        "distill": {"fits": {"k3": fit, "identity": fit}},
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def made_up(tmp_path):
    rng = np.random.default_rng(0)
    for seed in range(3):
        for p in (0.0, 0.4, 0.8):
            for step in (0, 100, 200)[p > 0 :]:
                clear = 0.2 + 0.3 * p + 0.001 * step + 0.02 * rng.normal()
                write_run(tmp_path / f"p{p}-seed{seed}-step{step}", "trained", step, p, seed, clear, 0.1 + 0.004 * step)
        write_run(tmp_path / f"overfit-seed{seed}", "over-fitted", 400, 0.0, seed, 0.1 + 0.02 * rng.normal(), 0.6)
    (tmp_path / "p0.9-seed0.log").write_text("going on")
    return tmp_path


def test_a_study_is_gathered(made_up, capsys):
    assert study.main([str(made_up)]) == 0
    assert "| trained |    200 | 0.8 | k = 3 |" in capsys.readouterr().out
    out = made_up / "study"
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
    (tmp_path / "results.json").write_text("{}")
    assert study.main([str(tmp_path)]) == 2
    assert "no run of a small-scale study" in capsys.readouterr().err


def test_the_runs_of_the_small_scale_study(tmp_path):
    runs = small_scale.sweep("digits")
    assert len(runs) == 60
    assert sweep.needs_of(runs)["p0.2-seed1-step50"] == {"p0.2-seed1"}
    command = sweep.command_of("x.py", tmp_path, "p0.2-seed1-step50", runs["p0.2-seed1-step50"])
    assert f"--config.teacher.source={tmp_path}/p0.2-seed1/teacher/snapshots/step50" in command
    assert len(small_scale.sweep("cifar100,seeds=1")) == 10 * 3 + 1 + 4
    assert small_scale.get_config("fashion=data/fashion").data.eval == "idx:data/fashion/t10k"
    with pytest.raises(ValueError, match="does not know 'mnist'"):
        small_scale.get_config("mnist")


def test_the_runs_of_the_ablation():
    runs = ablation.sweep("seeds=2")
    assert len(runs) == 1 + 2 * 10
    assert sweep.needs_of(runs)["6-gelu-seed1"] == {"teacher"}
    first, last = runs["1-teacher-forcing-seed0"], runs["5-stage-2-seed0"]
    assert set(first) - set(last) == set(ablation._WITHOUT)
    assert runs["2-autoregression-seed1"].keys() == first.keys() - {"distill.stage1.teacher_forcing"}
    dinov2 = ablation.get_config("dinov2,arch=vits14,k=2,seeds=1")
    assert (dinov2.teacher.arch, dinov2.phases.k) == ("vits14", (2,))
    assert len(ablation.sweep("dinov2,seeds=1")) == 10
    with pytest.raises(ValueError, match="does not know 'vits14'"):
        ablation.get_config("vits14")


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device: compiles faster
    config, runs = tmp_path / "study.py", tmp_path / "runs"
    config.write_text(TINY)
    assert sweep.main([f"--config={config}", f"--workdir={runs}", "--jobs=2"]) == 0
    assert "all 2 runs are done" in capsys.readouterr().out  # without a page each, and the snapshot after its training
    results = {name: json.loads((runs / name / "results.json").read_text()) for name in ("p0.2-seed0", "p0.2-seed0-step4")}
    assert not (runs / "p0.2-seed0" / "report").exists()
    assert results["p0.2-seed0"]["teacher"]["snapshots"]["4"]["accuracy"] == results["p0.2-seed0-step4"]["teacher"]["accuracy"]
    assert brh_jax.load(runs / "p0.2-seed0-step4" / "teacher").name.endswith("step 4 of 10")
    found = study.read_study(runs)
    assert [(run.step, run.p, run.kind) for run in found] == [(10, 0.2, "trained"), (4, 0.2, "")]
    assert set(found[0].values) == set(study.LABELS)
    assert tables.main([str(runs), "--by=name"]) == 0
    assert "| p0.2-step4 | k2 |" in capsys.readouterr().out
