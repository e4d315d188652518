"""A work directory belongs to one run at a time, and a full disk or a removed directory is said in one line."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from brh_jax.errors import UserError
from experiments import lock, pipeline
from experiments.lock import hold

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny


def only(*stages, **changes):
    config = tiny.get_config().unlock()
    config.stages = stages
    return config.lock()


def test_one_line_says_who_holds_it(tmp_path):
    workdir = tmp_path / "run"
    with hold(workdir):
        with pytest.raises(UserError, match=rf"run is in use by process {os.getpid()} on \S+, since 20\d\d-\S+ \S+ \S+: let it"):
            pipeline.run(only("teacher"), workdir)
        assert [p.name for p in workdir.iterdir()] == [lock.NAME]
    assert not workdir.exists()  # as it was
    with hold(workdir):
        (workdir / "kept").touch()
    assert [p.name for p in workdir.iterdir()] == ["kept"]


HOLDER = """
import pathlib, sys, time
from experiments.lock import hold
with hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_lets_go(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline()
    with pytest.raises(UserError, match=f"in use by process {process.pid} on "), hold(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / lock.NAME).exists()
    with hold(tmp_path):
        pass


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that has none."""

    class Without:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def flock(*_):
            raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock, "fcntl", Without)


@pytest.mark.parametrize("has_module", [True, False])
def test_where_there_are_no_locks_the_file_is_one(tmp_path, no_locks, monkeypatch, has_module):
    if not has_module:
        monkeypatch.setattr(lock, "fcntl", None)
    with hold(tmp_path), pytest.raises(UserError, match=rf"in use by process {os.getpid()} .*, remove .*lock"), hold(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    this = lock._this_process()
    (tmp_path / lock.NAME).write_text(json.dumps(this | {"process": gone.pid}))
    with hold(tmp_path):  # a process that is gone from this machine
        pass
    (tmp_path / lock.NAME).write_text(json.dumps(this | {"process": gone.pid, "host": "elsewhere"}))
    with pytest.raises(UserError, match="on elsewhere, since"), hold(tmp_path):
        pass


def test_a_directory_that_was_removed_is_not_done(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    first, *others = pipeline.stages.STAGES

    def removed(context, settings):
        found = first.run(context, settings)
        shutil.rmtree(workdir)
        return found

    monkeypatch.setattr(pipeline.stages, "STAGES", (dataclasses.replace(first, run=removed), *others))
    with pytest.raises(UserError, match="run was removed or replaced while this run was working in it"):
        pipeline.run(only("teacher"), workdir)
    assert not workdir.exists()
