"""A disk that is full is said in one line, whoever was writing, and the run goes on once there is room."""

import contextlib
import errno
import os
import pathlib
import subprocess
import sys

import pytest

from brh_jax.errors import UserError
from brh_jax.models import store
from brh_jax.train import checkpoints
from experiments import full_disk, pipeline

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder, left):
    """Leaves so many bytes of a file system."""
    with (folder / "ballast").open("wb") as file:
        while (free := os.statvfs(folder).f_bavail * 4096) > left:
            file.write(bytes(min(free - left, 4096)))
            file.flush()


def config(*stages):
    config = tiny.get_config().unlock()
    config.stages = stages
    config.phases.k = (2,)
    return config.lock()


@pytest.mark.parametrize("left", [0, 40 * 4096, *(pytest.param(n * 4096, marks=pytest.mark.long) for n in (8, 80))])
def test_a_run_goes_on_when_there_is_room_again(small_disk, left, capsys):
    """The disk fills as the lock, the metrics, a checkpoint or the model is written."""
    fill(small_disk, left)
    with pytest.raises(UserError, match=r"the disk of \S+ is full \(\S+ MB left .*\): make room, then the same command goes on"):
        pipeline.run(config("teacher"), small_disk / "run")
    (small_disk / "ballast").unlink()
    results = pipeline.run(config("teacher"), small_disk / "run")
    assert "teacher" in results.stages and store.read(small_disk / "run/teacher/model").depth == 4


def test_it_goes_on_from_the_last_checkpoint(small_disk, monkeypatch, capsys):
    real = checkpoints.Checkpoints.save

    def save(self, step, state, loss):
        if step == 8:
            self._manager.wait_until_finished()
            fill(small_disk, 4096)
        real(self, step, state, loss)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="is full"):
        patch.setattr(checkpoints.Checkpoints, "save", save)
        pipeline.run(config("teacher"), small_disk / "run")
    (small_disk / "ballast").unlink()
    pipeline.run(config("teacher"), small_disk / "run")
    assert "teacher: going on from step 4 of 10" in capsys.readouterr().out


def full(*args, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def said(text):
    def fail(*args, **more):
        raise ValueError(text)

    return fail


@pytest.mark.parametrize(
    ("where", "what", "fails"),
    [
        (pipeline, "write_json", full),  # results.json
        (pipeline.report, "write", full),
        (pipeline.Record, "write", full),
        (store, "save_file", said("Error while serializing: I/O error: No space left on device (os error 28)")),
        (
            checkpoints.Checkpoints,
            "save",
            said("RESOURCE_EXHAUSTED: Error writing local file [OS error 28: ENOSPC No space left on device]"),
        ),
    ],
)
def test_whoever_writes(tmp_path, monkeypatch, where, what, fails):
    with monkeypatch.context() as patch:
        patch.setattr(where, what, fails)
        with pytest.raises(UserError, match="is full"):
            pipeline.run(config("teacher", "report"), tmp_path)
    if what != "save":
        pipeline.run(config("teacher", "report"), tmp_path)
        assert (tmp_path / "report" / "index.html").exists()


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="Input/output"), full_disk.reported(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(UserError, match=f"the disk of {tmp_path}/x is full"), full_disk.reported(tmp_path):  # noqa: SIM117
        with contextlib.suppress(KeyError):
            try:
                raise OSError(errno.ENOSPC, "", f"{tmp_path}/x")
            except OSError as error:
                raise RuntimeError("could not write") from error
