"""What a newcomer mistypes or forgets: each is answered before anything is trained, with the nearest thing that there is."""

import argparse
import pathlib

from hostile.case import Case, change
from PIL import Image

import brh_jax
from brh_jax.files import nearest_path
from experiments import main, pipeline, report, sweep
from experiments.configs import quickstart
from experiments.explain import explain
from experiments.pipeline import settings_kinds
from experiments.summarize import read_runs

_QUICK = "configs/quickstart.py"


def photographs(folder: pathlib.Path) -> None:
    """Two folders of one image each, without classes."""
    for part in ("train", "test"):
        (folder / "photos" / part).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "photos" / part / "a.png")


def run(**changes):
    """The quickstart beside these photographs, with `section__name` set; nothing may be left of it."""

    def act(folder):
        photographs(folder)
        config = quickstart.get_config().unlock()
        change(config, changes)
        try:
            pipeline.run(config, folder / "run")
        finally:
            assert not [path for path in (folder / "run").rglob("*") if path.is_file()]

    return act


def run_on_classes(train, test, section):
    """The same with images of these classes to train and to test on, for the teacher or for a probe."""

    def act(folder):
        for part, names in {"train": train, "test": test}.items():
            for name in names:
                (folder / part / name).mkdir(parents=True)
                Image.new("RGB", (8, 8)).save(folder / part / name / "a.png")
        run(**{f"{section}__train": "folder:train", f"{section}__eval": "folder:test"})(folder)

    return act


def flags(*given):
    return lambda folder: main.check_flags(given, _QUICK)


def a_study_with(*more):
    given = argparse.Namespace(config="configs/ablation.py", workdir="study", list=True, index=None, jobs=1, more=list(more))
    return lambda folder: sweep._study(given)


def stages_as_one_text(folder):
    assert pipeline.RunSettings(stages=("teacher, phases",)).stages == ("teacher", "phases")


def a_section_alone(folder):
    said = explain(settings_kinds(), "config.distill.stage1")
    assert said.startswith("--config.distill.stage1.") and "--config.distill.stage2." not in said


def a_path_that_is_there(folder):
    assert nearest_path(folder) == "" and nearest_path("x").startswith("looked in ")


CASES = [
    Case(
        "configuration mistyped",
        lambda folder: main.find_config("configs/quikstart.py"),
        r"did you mean configs/quickstart\.py\?",
    ),
    Case(
        "section mistyped", flags("--config.distil.batch_size=3"), r"config\.distil\.batch_size: did you mean config\.distill\.b"
    ),
    Case("setting mistyped", flags("--config.distill.batch_sise=3"), r"did you mean config\.distill\.batch_size\? "),
    Case("setting of another section", flags("--config.save_every=3"), r"did you mean config\.loop\.save_every\? "),
    Case("setting like no other", flags("--config.qqq=3"), r"unknown setting config\.qqq: python -m experiments\.explain"),
    Case("setting without config", flags("--distill.batch_size=3"), r"did you mean --config\.distill\.batch_size\? "),
    Case("flag mistyped", flags("--wrkdir=x"), r"unknown flag --wrkdir: did you mean --workdir\? "),
    Case("setting that has moved", flags("--config.distill.log_every=3")),
    Case(
        "study with a mistyped setting", a_study_with("--config.distil.batch_size=3"), r"did you mean config\.distill\.batch_size"
    ),
    Case("study with a mistyped flag", a_study_with("--jbs=2"), r"unknown flag --jbs: did you mean --jobs\? "),
    Case("stage mistyped", run(stages=("teacher", "phase")), r"unknown stage phase in config\.stages: did you mean phases\? "),
    Case("stages as one text", stages_as_one_text),
    Case("folder mistyped", run(data__train="folder:photo/train"), r"config\.data\.train: .* did you mean photos/train\? "),
    Case("folder without its kind", run(data__eval="photos/test"), r"config\.data\.eval: .* did you mean folder:photos/test\? "),
    Case("kind of images mistyped", run(data__eval="digit:test"), r"did you mean digits\? "),
    Case("no images named", run(data__eval=""), r"config\.data\.eval is empty: expected tfds:NAME:SPLIT"),
    Case(
        "no images of a further set", run(eval__more=("folder:gone",)), r"config\.eval\.more: no image folder at gone: looked in "
    ),
    Case(
        "no labels for a probe",
        run(probe__train="folder:photos/train", probe__eval="folder:photos/test"),
        r"config\.probe\.train: photos/train has 0 classes: labelled images.*; or leave config\.probe\.train and \.eval empty",
    ),
    Case("no labels for a teacher", run(data__train="folder:photos/train"), r"config\.data\.train: photos/train has 0 classes"),
    Case(
        "other classes to test on",
        run_on_classes(("ant", "bee"), ("bee", "cat"), "data"),
        r"config\.data: train and test have different classes: no cat in train; no ant in test\. Classes are compared by",
    ),
    Case(
        "other classes to test a probe on",
        run_on_classes(("ant", "bee"), ("bee", "cat"), "probe"),
        r"config\.probe: train and test have different classes: no cat in train; no ant in test\.",
    ),
    Case("no weights named", run(teacher__source=""), r"config\.teacher\.source is empty: expected hf:organisation/model"),
    Case("no weights there", run(teacher__source="gone.onnx"), r"config\.teacher\.source: no weights at gone\.onnx: looked in "),
    Case(
        "hub model without hf:",
        lambda folder: brh_jax.load("facebook/dinov2-small"),
        r"no weights at facebook/dinov2-small: did you mean hf:facebook/dinov2-small\? ",
    ),
    Case("section to explain mistyped", lambda folder: explain(settings_kinds(), "distil"), r"did you mean distill\? there are "),
    Case("section to explain", a_section_alone),
    Case(
        "page of no run", lambda folder: report._write_all(argparse.Namespace(runs=[folder / "x"])), r"no results\.json in \S+x: "
    ),
    Case("tables of no run", lambda folder: read_runs([pathlib.Path("gone")]), r"in or below gone: looked in \S+; expected work"),
    Case("path that is there", a_path_that_is_there),
]
