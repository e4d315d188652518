"""Bad input on the command line: one message, exit status 2, no stack trace, nothing half-written."""

import os
import pathlib
import subprocess
import sys

import pytest

import brh_jax

TINY = pathlib.Path(__file__).parent / "tiny.py"


def command(*arguments, cwd, **variables):
    one_device = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    environment = os.environ | {"XLA_FLAGS": one_device, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"} | variables
    environment |= {"BRH_JAX_CACHE": f"{cwd}/cache", "TORCH_HOME": f"{cwd}/torch"}
    return subprocess.run(
        [sys.executable, "-m", "experiments.main", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no configuration: give --config"),
        (["--config=configs/nothing.py"], "configs/dinov2.py, configs/pretrained.py, configs/quickstart.py"),
        (["--config=configs/quickstart.py", "--config.distill.batch_sise=3"], "did you mean config.distill.batch_size? "),
        (["--config=configs/quickstart.py", "--config.seed=-1"], "config.seed is -1: expected 0 or more"),
        (["--config=configs/quickstart.py", "--config.distill.batch_size=many"], "batch_size"),
        (["--config=configs/quickstart.py", "--config.distill.batch_size=1.5"], "batch_size=1.5"),
        (["--config=configs/quickstart.py", "--config.distill.batch_size=inf"], "batch_size=inf"),
        (["--config=configs/quickstart.py", "--config.distill.batch_size=1e2", "--config.seed=-1"], "config.seed is -1"),
        (
            ["--config=configs/quickstart.py", "--config.distill.stage1.learning_rate=nan"],
            "stage1.learning_rate is nan: expected",
        ),
        (["--config=configs/quickstart.py", "--wrkdir=x"], "unknown flag --wrkdir: did you mean --workdir? "),
        (["--config=configs/quickstart.py", "extra"], "unexpected extra"),
        (["--config=configs/dinov2.py:arch=vitz14"], "unknown architecture 'vitz14'"),
        (["--config=configs/dinov2.py:model=vits14"], "does not know 'model=vits14'"),
        (["--config=configs/dinov2.py:k=two"], "k=two is no number of phases"),
        (["--config=configs/default.py"], "config.teacher.source is empty"),
        (
            ["--config=configs/quickstart.py", "--config.stages=teacher,phase"],
            "unknown stage phase in config.stages: did you mean phases? ",
        ),
        (
            ["--config=configs/quickstart.py", "--config.data.train=folder:empty"],
            "config.data.train: no image folder at empty: looked in ",
        ),
        (["--config=configs/quickstart.py", "--config.data.image_size=9"], "9 x 9 is not a multiple of the patch size 2"),
        (["--config=configs/quickstart.py", "--config.data.image_size=(9, 9)"], "9 x 9 is not a multiple of the patch size 2"),
        (["--config=configs/quickstart.py", "--config.data.image_size=8x10"], "images are square here, expected one number"),
        (["--config=configs/quickstart.py", "--config.mesh.data=3"], "has 3 places for 1 devices"),
        (
            ["--config=configs/dinov2.py:runlocal", "--config.data.train=digits:train", "--config.data.eval=digits:test"],
            "could not get hf:facebook/dinov2-with-registers-base",
        ),
        (["--config=configs/quickstart.py", "--config.phases.k=(13,)"], "12 layers cannot be cut into 13 phases"),
        (
            ["--config=configs/quickstart.py", "--config.phases.method=given", "--config.phases.lengths=(7,0,5)"],
            "a partition needs one or more runs of at least one layer",
        ),
        (["--config=configs/quickstart.py", "--config.eval.num_images=0"], "config.eval.num_images is 0: expected a positive"),
        (["--config=configs/quickstart.py", "--config.raptor.mlp=relu"], "config.raptor.mlp is 'relu': expected one of gelu"),
        (["--config=configs/dinov2.py", "--config.probe.head=", "--config.teacher.source=gone.pth"], "no weights at gone.pth"),
        # Said before hours of distillation: what the probe starts from in the end.
        (
            ["--config=configs/dinov2.py:arch=vits14"],
            "config.probe.head: no file dinov2_vits14_linear_head.pth, Meta's classifier: download https://dl.fbaipublicfiles.com/",
        ),
        (["--config=configs/dinov2.py", "--config.teacher.source=random:vitz14"], "unknown architecture 'vitz14'"),
        (["--config=configs/quickstart.py", "--config.eval.baselines=('median',)"], "config.eval.baselines names 'median'"),
        (["--config=configs/quickstart.py", "--config.phases.metrics=('mmd',)"], "config.phases.metrics names 'mmd'"),
        (["--config=configs/quickstart.py", "--config.raptor.unshared=wide"], "config.raptor.unshared is 'wide'"),
    ],
)
def test_one_clear_message(arguments, message, tmp_path):
    result = command(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_k_larger_than_depth_and_a_changed_work_directory(tmp_path):
    run = (f"--config={TINY}", "--workdir=run", "--config.stages=('teacher','phases')")
    result = command(*run, "--config.phases.k=(5,)", cwd=tmp_path)
    assert result.returncode == 2
    assert "error: 4 layers cannot be cut into 5 phases: k must be between 1 and 4" in result.stderr
    assert not (tmp_path / "run").exists()
    assert command(*run, "--config.phases.k=(4,)", cwd=tmp_path).returncode == 0
    result = command(*run, cwd=tmp_path)
    assert result.returncode == 2
    assert "phases.k: [4] there, [2, 3] here" in result.stderr
    result = command(*run, "--rerun", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "teacher: done before, skipped" in result.stdout
    assert "k = 3" in result.stdout


def test_a_broken_pipe_of_stages_says_which_is_missing(tmp_path):
    result = command(f"--config={TINY}", "--workdir=run", "--config.stages=('distill',)", cwd=tmp_path)
    assert result.returncode == 2
    assert "put teacher before this stage in config.stages" in result.stderr


def test_settings_that_have_moved_work_at_their_old_place(tmp_path):
    run = (f"--config={TINY}", "--workdir=run", "--config.stages=('teacher',)", "--config.distill.log_every=1")
    result = command(*run, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--config.distill.log_every is --config.loop.log_every now" in result.stderr
    assert len((tmp_path / "run/teacher/training/metrics.jsonl").read_text().splitlines()) == 10


def test_a_platform_that_is_not_there(tmp_path):
    result = command(f"--config={TINY}", cwd=tmp_path, JAX_PLATFORMS="cuda")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "error: jax finds no device where JAX_PLATFORMS is 'cuda'" in result.stderr


def test_help_is_one_screen_of_its_own_flags(tmp_path):
    result = command("--help", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert len(result.stdout.splitlines()) <= 24
    assert "--workdir" in result.stdout and "--mode" in result.stdout and "alsologtostderr" not in result.stdout


def test_an_untrained_teacher(tmp_path):
    """config.teacher.source=random:ARCH, the README's control."""
    own = ("--config.teacher.source=random:deit_t16_224", "--config.teacher.arch=", "--config.stages=teacher")
    result = command("--config=configs/dinov2.py:runlocal", *own, "--workdir=run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert brh_jax.load(tmp_path / "run" / "teacher").depth == 12
