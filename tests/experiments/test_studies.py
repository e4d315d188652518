"""Sweeps, their summaries, and the modes of a run."""

import csv
import io
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from brh_jax.errors import UserError
from experiments import pipeline, sweep, tables
from experiments.configs import default
from experiments.records import Record
from experiments.stages.agreement.run import AgreementResult
from experiments.stages.phases.run import PhasesResult
from experiments.summarize import read_runs

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import made_up
import tiny

STUDY = """
from experiments.configs import default
def get_config(arg=""):
    return default.get_config()
def sweep(arg="2"):
    return {f"k{k}-seed{s}": {"phases.k": (k,), "seed": s} for k in (2, 3)[: int(arg)] for s in (0, 1)}
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.py"
    path.write_text(STUDY)
    return path


def test_the_runs_of_a_study(study, tmp_path, capsys, monkeypatch):
    assert list(sweep.runs_of(str(study))) == ["k2-seed0", "k2-seed1", "k3-seed0", "k3-seed1"]
    assert list(sweep.runs_of(f"{study}:1")) == ["k2-seed0", "k2-seed1"]
    assert sweep.main([f"--config={study}", f"--workdir={tmp_path / 'runs'}", "--list", "--config.distill.batch_size=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert f"--workdir={tmp_path / 'runs' / 'k3-seed1'}" in lines[3]
    assert "--config.distill.batch_size=8 '--config.phases.k=(3,)' --config.seed=1" in lines[3]  # what a run changes holds
    assert sweep.main([f"--config={study}", f"--workdir={tmp_path}", "--index=4"]) == 2
    assert "there is no run 4" in capsys.readouterr().err
    for text, message in (
        ("def sweep(arg=''): return ['k2']", "returned ['k2'], expected {name of a run"),
        ("def sweep(arg=''): return {2: {}}", "returned {2: {}}, expected"),
        ("def sweep(arg=''): return {'..': {}}", "names a run '..'"),
        ("def sweep(", "study.py, line 1: "),
    ):
        study.write_text(text)
        assert sweep.main([f"--config={study}", f"--workdir={tmp_path}"]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "study.txt").touch()
    assert sweep.main([f"--config={tmp_path / 'study.txt'}", f"--workdir={tmp_path}"]) == 2
    assert "study.txt is no Python file" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "all")
    assert sweep.main([f"--config={study}", f"--workdir={tmp_path}"]) == 2
    study.write_text(STUDY)
    assert sweep.main([f"--config={study}", f"--workdir={tmp_path}"]) == 2
    assert "SLURM_ARRAY_TASK_ID is 'all': expected the number of a run" in capsys.readouterr().err
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    study.write_text("x = 1")
    assert sweep.main([f"--config={study}", f"--workdir={tmp_path}"]) == 2
    assert "has no sweep(arg)" in capsys.readouterr().err


def test_flags_and_what_runs_change(study, tmp_path, capsys):
    """A flag holds where a run does not change its setting; what runs change may depend on flags."""
    changes = '{"a": {"phases.k": (2,)}, "b": {"distill.stage1.steps": 2 * config.distill.stage1.steps}}'
    study.write_text(STUDY.partition("def sweep")[0] + f'def sweep(arg="", config=None):\n    return {changes}')
    command = [f"--config={study}", f"--workdir={tmp_path}", "--list"]
    assert sweep.main([*command, "--config.distill.stage1.steps=7", "--config.phases.k=(3,)", "--config.data.flip=false"]) == 0
    said = capsys.readouterr()
    assert "--config.distill.stage1.steps=7 does not hold for b, which set" in said.err
    assert "--config.phases.k=(3,) does not hold for a, which set" in said.err
    a, b = said.out.splitlines()
    # Tuples given twice would be joined: a run that changes one has the flag no more.
    assert a.endswith("--config.distill.stage1.steps=7 --config.data.flip=false '--config.phases.k=(2,)'")
    assert b.endswith("'--config.phases.k=(3,)' --config.data.flip=false --config.distill.stage1.steps=14")
    assert sweep.main([*command, "--config.distill.stage1.steps=many"]) == 2
    assert "--config.distill.stage1.steps=many" in capsys.readouterr().err
    study.write_text(STUDY)
    assert sweep.main([*command, "--config.seed=3"]) == 2
    assert "--config.seed=3 has no effect: every run of this study sets seed itself" in capsys.readouterr().err


def test_flags_in_every_form_are_one():
    config = default.get_config()
    given = ["-config.seed=1", "--config.data.data_dir", "my folder", "--noconfig.data.flip", "--config.raptor.depth_scaling"]
    given += ["--config.seed=2", "--profile=3:4", "--rerun"]
    assert list(sweep.flags_of(given, config).values()) == [
        "--config.seed=2",
        "--config.data.data_dir=my folder",
        "--config.data.flip=False",
        "--config.raptor.depth_scaling=True",
        "--profile=3:4",
        "--rerun",
    ]
    with pytest.raises(
        UserError, match="--config.distill.stage1 is a section: give its settings one by one, such as --config.dis"
    ):
        sweep.flags_of(["--config.distill.stage1={}"], config)
    with pytest.raises(UserError, match="unexpected word: flags are"):
        sweep.flags_of(["word"], config)


def test_a_sweep_that_wants_both_gets_both(study):
    study.write_text(STUDY.partition("def sweep")[0] + "def sweep(arg, config):\n    return {f'a{arg}': {'seed': config.seed}}")
    assert sweep.runs_of(str(study), ["--config.seed=4"]) == {"a": {"seed": 4}}


def test_runs_go_side_by_side_and_failures_are_named(tmp_path, capsys):
    commands = {
        name: [sys.executable, "-c", f"import sys; print({name!r}); sys.exit({status})"]
        for name, status in (("a", 0), ("b", 3), ("c", 0))
    }
    assert sweep.run_all(commands, tmp_path / "runs", jobs=2) == ["b"]
    out = capsys.readouterr().out
    assert "b: FAILED with status 3, see" in out and "3 of 3" in out
    said = {"a": [sys.executable, "-c", "import sys; print('more'); sys.exit('error: no such folder')"]}
    assert sweep.run_all(said, tmp_path / "said", jobs=1) == ["a"]
    assert "a: FAILED with status 1 (error: no such folder), see" in capsys.readouterr().out
    assert (tmp_path / "runs" / "c.log").read_text() == "c\n"


def test_runs_wait_for_what_they_take_from_others(tmp_path, capsys):
    """Each writes when it began and ended; the one that others need comes last in the study, and one of them fails."""
    script = "import pathlib, sys, time; b = time.time(); time.sleep(0.3); print(b, time.time()); sys.exit({status})"
    status = {"late": 0, "other": 0, "base": 0, "bad": 1, "never": 0, "nor": 0}
    changes = {"late": "{workdir}/base/teacher/model", "other": "", "never": "{workdir}/bad/x", "nor": "{workdir}/never/x"}
    runs = {name: {"teacher.source": changes.get(name, "")} for name in status}
    needs = sweep.needs_of(runs)
    assert needs == {"late": {"base"}, "other": set(), "base": set(), "bad": set(), "never": {"bad"}, "nor": {"never"}}
    commands = {name: [sys.executable, "-c", script.format(status=code)] for name, code in status.items()}
    assert sweep.run_all(commands, tmp_path / "runs", 2, needs) == ["bad", "never", "nor"]
    out = capsys.readouterr().out
    assert "never: not run, as bad failed" in out and "nor: not run, as never failed" in out
    times = {name: [float(t) for t in (tmp_path / "runs" / f"{name}.log").read_text().split()] for name in ("late", "base")}
    assert times["late"][0] >= times["base"][1]
    assert not (tmp_path / "runs" / "never.log").exists()
    with pytest.raises(UserError, match="run a takes something from b, which is no run of this study"):
        sweep.needs_of({"a": {"x": "{workdir}/b/teacher"}})
    with pytest.raises(UserError, match="runs that wait for each other: a, b"):
        sweep.needs_of({"a": {"x": "{workdir}/b/t"}, "b": {"x": "{workdir}/a/t"}})


def test_one_of_an_array_job_needs_what_it_takes(tmp_path, capsys):
    path = tmp_path / "study.py"
    path.write_text('def sweep(arg=""):\n    return {"b": {"teacher.source": "{workdir}/a/teacher/model"}, "a": {}}')
    assert sweep.main([f"--config={path}", f"--workdir={tmp_path}", "--index=0"]) == 2
    assert "run 0, b, takes something from a, which is not done" in capsys.readouterr().err


def test_runs_of_a_place_share_what_they_compile(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "given")
    assert sweep.shared_compilations(tmp_path, 1) == {"JAX_COMPILATION_CACHE_DIR": "given/1"}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert sweep.shared_compilations(tmp_path, 0)["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "compiled" / "0")


def test_a_run_is_done_when_all_that_began_is(tmp_path):
    assert not sweep.is_done(tmp_path)
    made_up.write_run(tmp_path, {"phases": made_up.phases(2)})
    assert sweep.is_done(tmp_path)
    (tmp_path / "distill").mkdir()
    Record({}, done=False).write(tmp_path / "distill")
    assert not sweep.is_done(tmp_path)
    (tmp_path / "distill" / "record.json").write_text('{"config": {}, "done": true}')
    with pytest.raises(UserError, match=r"distill/record.json was written by an older brh_jax"):
        sweep.is_done(tmp_path)


def test_sigterm_reaches_the_runs_of_a_study(tmp_path):
    waits = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(60)"
    )
    study = tmp_path / "study.py"
    study.write_text(
        "import sys, pathlib\nfrom experiments import sweep\n"
        f"commands = {{name: [sys.executable, '-c', {waits!r}] for name in 'abc'}}\n"
        "sweep.runs_of = lambda value, flags: dict.fromkeys(commands, {})\n"
        "sweep.command_of = lambda config, workdir, name, changes, more: commands[name]\n"
        f"sys.exit(sweep.main(['--config=x', '--workdir={tmp_path / 'runs'}', '--jobs=2']))"
    )
    process = subprocess.Popen([sys.executable, study], stdout=subprocess.PIPE, text=True)
    logs = [tmp_path / "runs" / f"{name}.log" for name in "ab"]
    deadline = time.monotonic() + 60
    while not all(log.exists() and log.read_text() for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "of 3 runs to go; the same command goes on with them" in out
    assert not (tmp_path / "runs" / "c.log").exists()


def test_runs_at_a_time_share_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert sweep.gpu_places(1) == [{}]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in sweep.gpu_places(2)] == ["0,2", "1,3"]
    eight = sweep.gpu_places(8)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in eight] == ["0", "1", "2", "3"] * 2
    assert {place["XLA_PYTHON_CLIENT_MEM_FRACTION"] for place in eight} == {"0.45"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sweep.gpu_places(2) == [{}, {}]


def test_one_of_an_array_job(study, tmp_path, monkeypatch):
    ran = {}
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setattr(sweep, "run_all", lambda commands, workdir, jobs, needs, place: ran.update(commands, place=place) or [])
    assert sweep.main([f"--config={study}", f"--workdir={tmp_path}"]) == 0
    assert list(ran) == ["k3-seed0", "place"]
    assert ran["place"] == 2  # a compilation cache that no other of the array writes


def write_run(folder, seed, k, r2, accuracy, **settings):
    """R² of patches is half of that of cls, and zero at the first of two layers."""
    name = f"k{k}"
    results = {
        "teacher": made_up.teacher(),
        "phases": made_up.phases(k),
        "distill": made_up.distilled(name, k),
        "agreement": made_up.agreement(made_up.fit(name, {"cls": [0.0, r2], "patches": [0.0, r2 / 2]}, [0.2, 0.4])),
        "probes": made_up.probed({name: accuracy}),
    }
    made_up.write_run(folder, results, **{"seed": seed, "phases.k": [k], **settings})


def test_summary_has_mean_deviation_and_n(tmp_path, capsys):
    for seed, r2, accuracy in ((0, 0.5, 0.8), (1, 0.7, 0.9)):
        write_run(tmp_path / f"k2-seed{seed}", seed, 2, r2, accuracy)
    write_run(tmp_path / "k3-seed0", 0, 3, 0.75, 0.95)
    made_up.write_run(tmp_path / "teacher", {"distill": made_up.distilled("k2", 2)}, **{"raptor.mlp": "gelu"})  # says nothing
    assert tables.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| phases.k | model | R² cls | R² patches | cosine cls | relative e | probe % | head as it is % |\n" in out
    assert "| [2] | k2 | 0.600 ± 0.141 (2) | 0.300 ± 0.071 (2) |" in out
    assert "| [3] | k3 | 0.750 (1) |" in out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "summary.csv").read_text())))
    probe = next(r for r in rows if r["figure"] == "probe %" and r["phases.k"] == "[2]")
    assert float(probe["mean"]) == pytest.approx(85) and int(probe["n"]) == 2
    assert float(probe["std"]) == pytest.approx(7.0711, rel=1e-4)
    latex = (tmp_path / "tables" / "summary.tex").read_text()
    assert r"0.600 $\pm$ 0.141 (2)" in latex and r"probe \%" in latex and r"\toprule" in latex
    assert tables.main([str(tmp_path), "--by=phases.kk"]) == 2
    assert "--by names 'phases.kk', a setting of none of these runs: did you mean phases.k" in capsys.readouterr().err
    assert tables.main([str(tmp_path / "nothing")]) == 2
    assert "no results.json in or below" in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text('{"distill": {"fits": {}}}')
    assert tables.main([str(tmp_path)]) == 2
    assert f"error: {tmp_path}/old/results.json was written by an older brh_jax" in capsys.readouterr().err


def test_tables_beside_the_paper(tmp_path, capsys):
    """Ours and the paper's in neighbouring columns, by model and by the row of the ablation."""
    for seed, r2 in ((0, 0.5), (1, 0.7)):
        for name, method in (("5-stage-2", "max_cut"), ("7-random-contiguous", "random_contiguous")):
            shift = 0.0 if method == "max_cut" else 0.1
            write_run(tmp_path / f"{name}-seed{seed}", seed, 3, r2 - shift, 0.8, **{"phases.method": method})
    assert tables.main([str(tmp_path), "--by=phases.method"]) == 0
    out = capsys.readouterr().out
    assert "| phases.method | model | top-1 % | paper's DINOv2 ViT-B/14 reg: top-1 % |" in out
    assert '| "max_cut" | k3 | 80.000 ± 0.000 (2) | 83.0 ± 0.1 |' in out
    # Beside the paper's stands the figure that is the same statistic, 0.1 above that of cls here.
    assert "| R², last layer, one mean | paper's DINOv2 ViT-B/14 reg: R², last layer, one mean |" in out
    assert "| 0.700 ± 0.141 (2) | about 0.73 |" in out
    assert "| 5-stage-2 | k3 | 70.000 ± 0.000 (2) | 82.4 | 80.000 ± 0.000 (2) | 83.0 |" in out  # as it is, fine-tuned
    published = {
        row["figure"]: row["paper"]
        for row in csv.DictReader((tmp_path / "tables/ablation.csv").open())
        if row["name"] == "5-stage-2"
    }
    assert published["probe %"] == "83.0" and published["R²"] == ""
    controls = [row for row in csv.DictReader((tmp_path / "tables/controls.csv").open()) if row["figure"] == "R²"]
    # Of each run the mean over two layers, and over cls and patches, which have half of it.
    expected = {"max cut": (0.5 + 0.7) / 2 * 3 / 8, "random contiguous": (0.4 + 0.6) / 2 * 3 / 8}
    assert {row["blocks"]: float(row["mean"]) for row in controls} == pytest.approx(expected)
    assert (tmp_path / "tables/controls.png").exists()
    assert tables.main([str(tmp_path), "--by=name"]) == 0
    assert "| 5-stage-2 | k3 | 80.000 ± 0.000 (2) | 83.0 ± 0.1 |" in capsys.readouterr().out  # probes: still by model
    write_run(tmp_path / "9-shallow-seed0", 0, 3, 0.5, 0.8, **{"phases.method": "max_cut", "raptor.unshared": "shallow"})
    runs = read_runs([tmp_path])
    (shallow,) = [row for row in tables.control_rows(runs) if "shallow" in row.settings["blocks"]]
    assert shallow.settings == {"blocks": "max cut, unshared shallow"}
    last = {"R² cls, last layer", "R² patches, last layer", "R², last layer", "e / norm, last layer"}
    assert set(shallow.values) == last | {"block parameters, M"}
    for rank in (4, 16):
        relaxed = {"phases.method": "max_cut", "raptor.rank": rank, "distill.stage2.learning_rate": 0.01}
        write_run(tmp_path / f"relaxed-{rank}-seed0", 0, 3, 0.5, 0.8, **relaxed)
    runs = read_runs([tmp_path])
    figure = tables.control_figure(runs, tables.control_rows(runs))
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels][1:] == [
        "R² patches, mean of layers",
        "e / norm, mean of layers",
        "R², last layer",
    ]
    labels = panels[0].get_legend_handles_labels()[1]
    assert labels.count("max cut, relaxed") == 1 and "max cut, unshared shallow" in labels
    for rank in (4, 16):
        shutil.rmtree(tmp_path / f"relaxed-{rank}-seed0")
    shutil.rmtree(tmp_path / "9-shallow-seed0")
    write_run(tmp_path / "6-gelu-seed0", 0, 3, 0.5, 0.8, **{"phases.method": "max_cut", "raptor.mlp": "gelu"})
    assert not tables.control_rows(read_runs([tmp_path]))  # partitions are not all that differs


def test_controls_are_a_study(tmp_path, capsys):
    runs = sweep.runs_of("configs/controls.py:seeds=2,ks=1+3")
    assert list(runs)[:4] == ["teacher", "max-cut-seed0", "random-contiguous-seed0", "random-fragmented-seed0"]
    assert runs["max-cut-seed1"]["phases.k"] == (1, 3) and runs["random-contiguous-seed1"]["phases.k"] == (3,)
    assert runs["random-fragmented-seed1"]["teacher.source"] == "{workdir}/teacher/teacher/model"
    pretrained = sweep.runs_of("configs/controls.py:dinov2,arch=vits14,runlocal,seeds=1")
    kinds = ["max-cut", "random-contiguous", "random-fragmented", "unshared-shallow", "unshared-narrow", "unshared-low-rank"]
    kinds += ["teacher-dropped", "relaxed-4", "relaxed-16", "relaxed-64"]
    assert list(pretrained) == [f"{kind}-seed0" for kind in kinds]
    assert pretrained["unshared-narrow-seed0"]["phases.k"] == (4, 5, 6)
    assert not any("teacher.source" in changes for changes in pretrained.values())
    assert sweep.runs_of("configs/dinov2.py:k=2+3") == {f"seed{i}": {"seed": i} for i in range(3)}
    assert sweep.main(["--config=configs/controls.py:ks=two", f"--workdir={tmp_path}"]) == 2
    assert "error: ks=two is no number of phases: expected ks=3, or several such as ks=2+3" in capsys.readouterr().err


def test_no_cell_is_a_formula_or_a_macro(tmp_path):
    """Names of runs are a user's; spreadsheets compute what begins with = + - @, LaTeX obeys its own signs."""
    for seed in (0, 1):
        write_run(tmp_path / f"=1+{{x}}~^_|-seed{seed}", seed, 2, -0.5, 0.8)
    assert tables.main([str(tmp_path), "--by=name", f"--out={tmp_path / 'out'}"]) == 0
    rows = list(csv.DictReader((tmp_path / "out/summary.csv").open()))
    assert {row["name"] for row in rows} == {"'=1+{x}~^_|"}
    assert {row["mean"] for row in rows if row["figure"] == "R² cls"} == {"-0.5"}
    assert r"=1+\{x\}\textasciitilde{}\textasciicircum{}\_$|$ &" in (tmp_path / "out/summary.tex").read_text()
    assert r"| =1+{x}~^_\| | k2 |" in (tmp_path / "out/summary.md").read_text()


def test_modes(tmp_path, capsys):
    config = tiny.get_config().unlock()
    config.stages = ("teacher", "phases", "distill", "probes")  # the page, whose figures take a while, is asked for at the end
    config.phases.k = (2,)
    config.loop.tensorboard = True
    with pytest.raises(UserError, match=r"holds no finished run.*: --mode=eval needs one"):
        pipeline.run(config, tmp_path / "run", mode="eval")
    first = pipeline.run(config, tmp_path / "run", profile=(2, 3))
    assert list((tmp_path / "run/distill/k2/stage1/profile").rglob("*.pb"))
    for folder in ("stage2", "stage2/validation"):
        assert list((tmp_path / "run/distill/k2" / folder / "tensorboard").glob("events*"))
    model = (tmp_path / "run/distill/k2/raptor/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run/distill/k2/stage1/checkpoints")  # eval needs none
    shutil.rmtree(tmp_path / "run/distill/k2/stage2/checkpoints")
    config.eval.num_images = 20
    second = pipeline.run(config, tmp_path / "run", mode="eval")
    assert not (tmp_path / "run/distill/k2/stage2/checkpoints").exists()
    config.compute_dtype = "bfloat16"
    half = pipeline.run(config, tmp_path / "run", mode="eval")
    assert half.get(AgreementResult).fits["k2"].r2 != second.get(AgreementResult).fits["k2"].r2
    config.compute_dtype = "float32"
    second = pipeline.run(config, tmp_path / "run", mode="eval")
    assert [run.get(AgreementResult).fits["k2"].num_images for run in (first, second)] == [40, 20]
    assert first.get(PhasesResult) == second.get(PhasesResult)
    assert (tmp_path / "run/distill/k2/raptor/model.safetensors").read_bytes() == model
    config.probe.epochs = 5
    with pytest.raises(UserError, match=r"probe.epochs: 4 there, 5 here \(of the probes\)\n--mode=eval takes what was trained"):
        pipeline.run(config, tmp_path / "run", mode="eval")
    config.probe.epochs = 4
    assert pipeline.run(config, tmp_path / "run", mode="report").stages == second.stages
    assert (tmp_path / "run/report/index.html").exists()
    with pytest.raises(UserError, match="unknown mode 'test'"):
        pipeline.run(config, tmp_path / "run", mode="test")


def test_states_on_disk_give_the_run_that_the_teacher_inside_gives(tmp_path):
    """The same images in another order: both learn, and the store is used."""
    config = tiny.get_config().unlock()
    config.phases.k = (2,)
    config.data.augment = "center_crop"
    config.stages = ("teacher", "phases", "distill")
    config.data.states_gb = 0.1
    results = pipeline.run(config, tmp_path / "run")
    assert (tmp_path / "run/states/done.json").exists()
    assert results.get(AgreementResult).fits["k2"].num_images == 40
    config.data.states_gb = 1e-6
    with pytest.raises(UserError, match="config.data.states_gb: .*limit_gb is 1e-06"):
        pipeline.run(config, tmp_path / "small")
    config.data.augment = "random_resized_crop"
    with pytest.raises(UserError, match="keeps one state for each image"):
        pipeline.run(config, tmp_path / "other")
