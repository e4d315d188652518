"""Any teacher by one configuration: what its argument says, and runs on small saved models of several families."""

import importlib
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from brh_jax.distill import JointSettings
from brh_jax.errors import UserError
from brh_jax.train.metrics import read_metrics
from experiments import pipeline, sweep, tables
from experiments.configs import default, dinov2, pretrained
from experiments.records import read_record
from experiments.stages.agreement import AgreementResult
from experiments.summarize import merits_of

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
from references import make


def test_decisions_of_a_teacher_without_classifier_are_refused_before_anything_is_trained(tiny_encoder, monkeypatch):
    distill = importlib.import_module("experiments.stages.distill.run")  # the package has a function of that name
    monkeypatch.setattr(distill, "read_teacher", lambda context, dtype: tiny_encoder)
    settings = distill.Settings(distill=distill.DistillSettings(stage2=JointSettings(decisions=0.05)))
    with pytest.raises(UserError, match=r"config\.distill\.stage2\.decisions is 0\.05, but .* has no classifier.*set it to 0"):
        distill.run(None, settings)  # nothing of the run is asked before


def test_the_argument_says_teacher_phases_and_budget():
    config = pretrained.get_config("source=hf:org/model@v1:2,arch=deit_t16_224,k=2+4,budget=gpu")
    assert (config.teacher.source, config.teacher.arch) == ("hf:org/model@v1:2", "deit_t16_224")
    assert config.phases.k == (2, 4) and config.phases.method == "max_cut"
    assert config.data.image_size == 0 and config.compute_dtype == "bfloat16"
    crops = config.distill.batch_size * (config.distill.stage1.steps + config.distill.stage2.steps)
    assert crops == pytest.approx(5e6, rel=0.01)
    assert pretrained.get_config("source=a=b.onnx").teacher.source == "a=b.onnx"
    assert not pretrained.get_config().probe.train and not pretrained.get_config().data.train


def test_budgets_are_those_of_dinov2():
    """`paper` is its schedule, `laptop` its runlocal; its teacher's phases are cut as there, others' by max cut."""
    paper, flagship = pretrained.get_config("budget=paper"), dinov2.get_config()
    assert paper.distill == flagship.distill == default.get_config().distill
    local = dinov2.get_config("arch=vitb14_reg,k=2,runlocal").unlock()
    small = pretrained.get_config("source=hf:facebook/dinov2-with-registers-base,k=2,budget=laptop").unlock()
    assert local.phases == small.phases and small.phases.method == "recursive_bisection"
    for config in (local, small):
        config.teacher.arch = config.data.train = config.data.eval = ""
    assert local == small


def test_recipes_train_as_many_steps():
    """One pass of joint training for the paper's two stages; the paper's recipe is what the settings say by themselves."""
    joint, paper = (pretrained.get_config(f"budget=gpu,recipe={name}") for name in ("joint", "paper"))
    assert joint.distill.stage1.steps == 0
    assert joint.distill.stage2.steps == paper.distill.stage1.steps + paper.distill.stage2.steps
    assert (joint.distill.stage2.optimizer, joint.distill.stage2.loss) == ("muon", "log")
    assert pretrained.get_config("budget=paper").raptor == default.get_config().raptor == dinov2.get_config().raptor
    assert dinov2.get_config("runlocal").distill == pretrained.get_config("recipe=joint").distill
    with pytest.raises(UserError, match="recipe=fast is unknown: expected recipe=joint or recipe=paper"):
        pretrained.get_config("recipe=fast")


def test_studies_take_it_for_their_base():
    runs = sweep.runs_of("configs/controls.py:pretrained,source=weights.onnx,budget=gpu,ks=3,seeds=1")
    assert {"max-cut-seed0", "unshared-low-rank-seed0", "relaxed-16-seed0"} < set(runs)
    assert "unshared-narrow-seed0" not in runs  # how deep the ViT is shows in its weights alone
    runs = sweep.runs_of("configs/ablation.py:pretrained,source=weights.onnx,k=3,seeds=1")
    assert "5-stage-2-seed0" in runs and not any("teacher.source" in changes for changes in runs.values())
    assert list(sweep.runs_of("configs/pretrained.py:source=weights.onnx")) == ["seed0", "seed1", "seed2"]


@pytest.mark.parametrize("lacking", ["train", "eval"])
def test_images_that_are_not_given_are_asked_for_at_once(lacking, tmp_path):
    config = pretrained.get_config(f"source={tmp_path}/gone.onnx").unlock()
    config.data.update({"train": "folder:a", "eval": "folder:b"} | {lacking: ""})
    example = "--config.data.train=folder:photos/train --config.data.eval=folder:photos/test"
    with pytest.raises(UserError, match=f"config.data.{lacking} is empty: expected .*folder:PATH.*, as in {example}"):
        pipeline.run(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"config.teacher.source is empty: .*--config.teacher.source=weights.safetensors"):
        pipeline.run(pretrained.get_config(), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*/*"))


def photographs(folder, classes, each):
    """Class folders of noise, about a colour each."""
    rng = np.random.default_rng(len(classes))
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 128, (40, 40, 3)) + 18 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return f"folder:{folder}"


def run_on(family, tmp_path, k=2, **changes):
    """A laptop's run, cut down to seconds, on images of which those to evaluate on are of the classifier's seven classes."""
    make(family, tmp_path / "weights", **changes)
    config = pretrained.get_config(f"source={tmp_path}/weights,k={k},budget=laptop").unlock()
    config.data.train = photographs(tmp_path / "train", ["a"], 8)
    config.data.eval = photographs(tmp_path / "test", [f"n{i}" for i in range(7)], 3)
    config.data.image_size = 2 * changes.get("patch_size", 16)
    config.stages = ("teacher", "phases", "distill", "report")
    config.phases.update({"num_images": 8, "batch_size": 8, "bootstrap": 0})
    config.distill.update({"batch_size": 8, "remat": "none"})
    for stage in (config.distill.stage1, config.distill.stage2):
        stage.update({"steps": 4, "warmup_steps": 1})
    config.distill.validation.update({"times": 2, "num_images": 8})
    config.eval.update({"num_images": 24, "batch_size": 8, "baselines": ()})
    return pipeline.run(config.lock(), tmp_path / "run"), config


@pytest.mark.slow
def test_a_teacher_with_a_classifier(tmp_path, capsys):
    """Accuracy and agreement of every Raptor beside the teacher's, in results, tables and page, and on the way."""
    results, config = run_on("vit-classifier", tmp_path)
    fits = results.get(AgreementResult).fits
    for name in ("k2", "k2_stage1", "identity"):
        fit = fits[name]
        assert 0 <= fit.same_class <= 1 and fit.teacher_accuracy == fits["k2"].teacher_accuracy > 0
        assert fit.kept.value == pytest.approx(fit.accuracy / fit.teacher_accuracy)
        assert fit.kept.low <= fit.kept.value <= fit.kept.high
    fit, said = fits["k2"], merits_of(results)
    assert said["teacher"]["own head %"] == tables.fit_merits(results)["teacher"]["own head %"] == 100 * fit.teacher_accuracy
    for found in (said["k2"], tables.fit_merits(results)["k2"]):
        assert (found["own head %"], found["kept %"]) == (100 * fit.accuracy, 100 * fit.kept.value)
        assert found["same class %"] == 100 * fit.same_class
    page = (tmp_path / "run/report/index.html").read_text()
    assert all(text in page for text in ("teacher&#39;s classifier says", "accuracy kept", "On the way", "of the accuracy"))
    for stage in ("stage1", "stage2"):
        rows = read_metrics(tmp_path / "run/distill/k2" / stage / "validation/metrics.jsonl")
        assert [row["images"] for row in rows] == [16, 32]
        assert {"r2_cls", "r2_patches_last", "relative_error", "same_class", "accuracy", "teacher_accuracy"} < set(rows[0])
    # Nothing that comes out depends on what is measured on the way; what is measured in the end may be without labels.
    assert list(read_record(tmp_path / "run/distill").outside) == [f"images {config.data.train}"]
    config = config.unlock()
    config.distill.validation.times = 0
    assert pipeline.run(config, tmp_path / "run").stages == results.stages
    assert "distill: done before, skipped" in capsys.readouterr().out
    config.data.eval = photographs(tmp_path / "unlabelled", ["a"], 12)
    again = pipeline.run(config, tmp_path / "run", mode="eval").get(AgreementResult).fits["k2"]
    assert (again.accuracy, again.teacher_accuracy, again.kept) == (None, None, None) and 0 <= again.same_class <= 1
    page = (tmp_path / "run/report/index.html").read_text()
    assert "same class as the teacher" in page and "accuracy kept" not in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "tokens"),
    [("siglip", {"patches"}), pytest.param("dinov3", {"cls", "registers", "patches"}, marks=pytest.mark.long)],
)
def test_a_teacher_without_class_token_and_one_with_rotary_positions(family, tokens, tmp_path):
    results, _ = run_on(family, tmp_path, patch_size=16, image_size=32)
    fit = results.get(AgreementResult).fits["k2"]
    assert set(fit.r2) == tokens and fit.accuracy is fit.same_class is None
    rows = read_metrics(tmp_path / "run/distill/k2/stage2/validation/metrics.jsonl")
    assert {f"r2_{token}" for token in tokens} < set(rows[-1]) and "same_class" not in rows[-1]
    assert "classifier says" not in (tmp_path / "run/report/index.html").read_text()
