"""Runs as real processes: several of one run, killed ones, stopped ones, one without end."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from brh_jax.train.metrics import read_metrics

TINY = pathlib.Path(__file__).parent / "tiny.py"
STAGES = ("teacher/training", "distill/k2/stage1", "distill/k2/stage2")
KILLS = int(os.environ.get("BRH_JAX_TEST_KILLS", "2"))


def start(workdir, *more, devices=1, log=None, folder=None):
    environment = os.environ | {
        # As the tests themselves compile, and of a flag that is there twice the last counts.
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(TINY.parents[2]),
    }
    command = [
        sys.executable,
        "-m",
        "experiments.main",
        f"--config={TINY}",
        f"--workdir={workdir}",
        "--config.phases.k=(2,)",
        *more,
    ]
    output = subprocess.PIPE if log is None else log.open("a")
    return subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT, text=True)


def finish(process) -> str:
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0, out
    return out


def same_losses(a, b, stages, rtol):
    for stage in stages:
        rows = [read_metrics(folder / stage / "metrics.jsonl") for folder in (a, b)]
        found, expected = ([row["loss"] for row in part] for part in rows)
        assert len(found) == len(expected) > 3
        np.testing.assert_allclose(found, expected, rtol=rtol, err_msg=stage)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_of_four_devices_are_one_of_eight(tmp_path):
    more = ["--config.loop.log_every=1", "--config.distill.stage1.steps=20", "--config.distill.stage2.steps=20"]
    more += ["--config.stages=('teacher','phases','distill','report')"]
    finish(start(tmp_path / "one", *more, devices=8))
    first, second = (finish(process) for process in start_two(tmp_path / "two", *more))
    assert "8 cpu device(s) of 2 processes" in first and "\ndistill: " in first
    assert "\ndistill: " not in second  # only the first prints
    same_losses(tmp_path / "two", tmp_path / "one", STAGES, 1e-5)
    one, two = (read_metrics(tmp_path / run / STAGES[2] / "validation/metrics.jsonl") for run in ("one", "two"))
    assert [row["step"] for row in one] == [10, 20]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    one, two = ((folder / "distill/k2/raptor/config.json").read_text() for folder in (tmp_path / "one", tmp_path / "two"))
    assert one == two


def start_two(workdir, *more, devices=4, apart=((), ()), folders=(None, None)) -> list[subprocess.Popen]:
    """Two processes of as many devices each, over loopback; `apart` are flags of each, `folders` where they start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    join = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [start(workdir, *more, *apart[i], *join, f"--process_id={i}", devices=devices, folder=folders[i]) for i in range(2)]


def ended(processes) -> list[str]:
    """What processes say that are refused; none keeps another waiting."""
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    assert not any("Traceback" in out for out in outputs), outputs
    return outputs


@pytest.mark.slow
def test_processes_with_other_settings_do_not_train_together(tmp_path):
    outputs = ended(start_two(tmp_path / "run", apart=[[], ["--config.seed=1", "--config.data.threads=3"]]))
    for out in outputs:
        assert "the processes of this run differ (config.seed: 0 in process 0, 1 in process 1): start all with" in out
    assert not (tmp_path / "run").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".lock").write_text("left by another run")
    outputs = ended(start_two(tmp_path / "run", apart=[[], [f"--workdir={tmp_path / 'other'}"]]))
    assert all("must be one folder for all processes, and is not" in out for out in outputs)
    outputs = ended(start_two(tmp_path / "run", apart=[[], ["--config.seed=-1"]]))
    assert "error: another process of this run cannot go on" in outputs[0]
    assert "error: config.seed is -1" in outputs[1]


@pytest.mark.slow
def test_processes_with_other_images_do_not_train_together(tmp_path):
    """Folders of the same name, on hosts of their own."""
    for process, images in enumerate((40, 39)):
        for number in range(images):
            place = tmp_path / f"host{process}" / "images" / str(number % 2) / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), number).save(place)
    more = ["--config.data.train=folder:images", "--config.stages=('teacher',)"]
    outputs = ended(start_two(tmp_path / "run", *more, folders=[tmp_path / "host0", tmp_path / "host1"]))
    for out in outputs:
        assert re.search(r"images folder:images is not the same in all processes of this run \(\S+ in process 0, \S+ in", out)
    shutil.rmtree(tmp_path / "host1" / "images")
    outputs = ended(start_two(tmp_path / "run", *more, folders=[tmp_path / "host0", tmp_path / "host1"]))
    assert "error: another process of this run cannot go on" in outputs[0]
    assert "error: config.data.train: no image folder at images" in outputs[1]


@pytest.mark.slow
def test_results_name_the_damaged_images_of_all_processes(tmp_path):
    """Each process reads half of the images, and finds the damaged ones of these."""
    damaged = {str(tmp_path / f"images/{i % 2}/{i}.png") for i in range(0, 32, 3)}
    for i in range(32):
        place = tmp_path / f"images/{i % 2}/{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 64).save(place)
        if str(place) in damaged:
            place.write_bytes(b"no image")
    more = [f"--config.data.{part}=folder:{tmp_path / 'images'}" for part in ("train", "eval")]
    more += ["--config.stages=('teacher','phases')"]
    outputs = [finish(process) for process in start_two(tmp_path / "run", *more, devices=1)]
    assert "warning: skipped" in outputs[0]
    record = json.loads((tmp_path / "run/phases/record.json").read_text())
    assert set(record["skipped"]) == damaged == set(json.loads((tmp_path / "run/results.json").read_text())["skipped_images"])


@pytest.mark.slow
def test_the_second_of_two_equal_commands_is_told(tmp_path):
    more = ["--config.teacher.train.steps=5000", "--config.loop.log_every=1", "--config.stages=('teacher',)"]
    first = start(tmp_path / "run", *more)
    wait_for_rows([first], tmp_path / "run/teacher/training/metrics.jsonl", 3)
    second = start(tmp_path / "run", *more)
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"run is in use by process {first.pid} on {socket.gethostname()}, since " in out and "Traceback" not in out
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    out, _ = first.communicate(timeout=120)
    assert first.returncode == 2
    # What threads of orbax say that were writing at that moment is theirs.
    assert "run was removed or replaced while this run was working in it" in out


def wait_for_rows(processes, metrics, rows):
    while all(process.poll() is None for process in processes) and len(read_metrics(metrics)) < rows:
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.long
def test_sigterm_to_one_of_two_stops_both_and_one_process_goes_on(tmp_path):
    """Stopped with two processes, ended with one of as many devices: the losses of a run that was never stopped."""
    more = ["--config.loop.log_every=1", "--config.loop.save_every=1000", "--config.stages=('teacher','phases','distill')"]
    more += ["--config.distill.stage1.steps=10", "--config.distill.stage2.steps=300", "--config.eval.num_images=20"]
    both = start_two(tmp_path / "stopped", *more, devices=2)
    metrics = tmp_path / "stopped/distill/k2/stage2/metrics.jsonl"
    wait_for_rows(both, metrics, 5)
    both[1].send_signal(signal.SIGTERM)
    outputs = [finish(process) for process in both]
    assert re.search(r"stage 2: stopped at step (\d+) of 300, saved; go on with", outputs[0]), outputs
    rows = read_metrics(metrics)
    assert 5 <= len(rows) < 300
    out = finish(start(tmp_path / "stopped", *more, devices=4))
    assert f"stage 2: going on from step {len(rows)} of 300" in out
    finish(start(tmp_path / "whole", *more, devices=4))
    same_losses(tmp_path / "stopped", tmp_path / "whole", STAGES, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_other(tmp_path, killed):
    more = ["--config.loop.log_every=1", "--config.teacher.train.steps=5000", "--config.stages=('teacher',)"]
    both = start_two(tmp_path / "run", *more, devices=2)
    wait_for_rows(both, tmp_path / "run/teacher/training/metrics.jsonl", 3)
    both[killed].kill()
    begun = time.monotonic()
    out, _ = both[1 - killed].communicate(timeout=240)
    print(f"process {killed} killed: the other ended after {time.monotonic() - begun:.1f} s with {both[1 - killed].returncode}")
    assert both[1 - killed].returncode not in (0, None), out
    both[killed].communicate()


@pytest.mark.slow
@pytest.mark.long
def test_killed_at_random_and_started_again_ends_the_same(tmp_path):
    """BRH_JAX_TEST_KILLS says how often; kill -9 strikes in both stages of distillation and while checkpoints are written."""
    more = ["--config.loop.save_every=2", "--config.loop.log_every=1", "--config.stages=('teacher','phases','distill')"]
    steps = 30 if KILLS < 10 else 60
    more += [f"--config.distill.stage1.steps={steps}", f"--config.distill.stage2.steps={steps}"]
    finish(start(tmp_path / "whole", *more))
    rng, struck = random.Random(int(os.environ.get("BRH_JAX_TEST_SEED", "0"))), []
    for number in range(KILLS):
        process = start(tmp_path / "killed", *more, log=tmp_path / "log.txt")
        stage = STAGES[1 + number * 2 // max(KILLS, 1)]
        metrics = tmp_path / "killed" / stage / "metrics.jsonl"
        before = len(read_metrics(metrics))
        while process.poll() is None and len(read_metrics(metrics)) <= before + rng.randrange(1, 2 * steps // KILLS + 2):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        if process.poll() is None:
            struck.append((stage, len(read_metrics(metrics))))
            process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start(tmp_path / "killed", *more))
    print(f"killed {len(struck)} times: {struck}")
    assert len(struck) >= KILLS * 0.8
    assert {stage for stage, _ in struck} == set(STAGES[1:])
    for folder in ("stage1", "stage2"):
        assert (tmp_path / "killed" / "distill" / "k2" / folder / "metrics.jsonl").exists()
    whole, killed = ((tmp_path / run / "distill/k2/raptor/model.safetensors").read_bytes() for run in ("whole", "killed"))
    assert whole == killed


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    more = ["--config.distill.stage2.steps=5000", "--config.loop.save_every=1000", "--config.loop.log_every=1"]
    process = start(tmp_path / "run", *more)
    metrics = tmp_path / "run/distill/k2/stage2/metrics.jsonl"
    while process.poll() is None and len(read_metrics(metrics)) < 5:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out = finish(process)
    stopped = re.search(
        r"distill k=2 stage 2: stopped at step (\d+) of 5000, saved; go on with: python -m experiments.main .*", out
    )
    assert stopped, out
    again = start(tmp_path / "run", *more)
    for line in again.stdout:
        if "going on from" in line:
            break
    again.kill()
    again.communicate()
    assert f"distill k=2 stage 2: going on from step {stopped[1]} of 5000" in line


def test_flags_of_processes_go_together(tmp_path):
    process = start(tmp_path / "run", "--num_processes=2")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: coordinator=HOST:PORT, num_processes=N and process_id=I go together" in out
