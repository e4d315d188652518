"""Hostile inputs of running: configurations, settings, work directories, processes, and what spreadsheets are given."""

import csv
import errno
import io
import json
import os
import pathlib
import socket
import subprocess
import sys

from hostile.case import Case, change
from ml_collections import ConfigDict

from brh_jax.train.metrics import read_metrics
from brh_jax.train.parallel import start_processes
from experiments import full_disk, main, pipeline
from experiments.configs import quickstart
from experiments.lock import NAME, hold
from experiments.records import read_record
from experiments.results import SCHEMA
from experiments.runs import read_results
from experiments.summarize import Row, as_csv, as_latex


def settings(**changes):
    """Reads the quickstart's settings with `section__name` set to a value."""

    def act(folder):
        config = quickstart.get_config().unlock()
        change(config, changes)
        return pipeline.read_settings(config)

    return act


def whole_number(folder):
    read = settings(distill__batch_size=1e2, phases__k=(2e0, 3))(folder)[1]
    assert read["distill"].distill.batch_size == 100 and read["phases"].phases.k == (2, 3)


def a_configuration_within_itself(folder):
    config = quickstart.get_config().unlock()
    config.study = ConfigDict({})
    config.study.unlock().study = config.study
    pipeline.read_settings(config)


def a_deep_configuration(folder):
    config = quickstart.get_config().unlock()
    config.study = place = ConfigDict({})
    for _ in range(100_000):  # of which Python 3.13 goes through some thousands
        place.inner = ConfigDict({})
        place = place.inner
    pipeline.read_settings(config)


def a_pipe_as_configuration(folder):
    os.mkfifo(folder / "config.py")
    main.find_config(str(folder / "config.py"))


def command(*flags, **files):
    """The command line in a process of its own, with files in the folder; what it says at its end is raised."""

    def act(folder):
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
        line = [sys.executable, "-m", "experiments.main", *flags]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        raise main.UserError(done.stderr.removeprefix("error: ").strip())

    return act


def record(text):
    """Reads a stage's record of that content."""

    def act(folder):
        (folder / "record.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_record(folder)

    return act


def results(text):
    """The same of a run's results."""

    def act(folder):
        (folder / "results.json").write_text(text)
        return read_results(folder / "results.json")

    return act


def a_pipe_as_record(folder):
    os.mkfifo(folder / "record.json")
    read_record(folder)


def odd_rows_of_metrics(folder):
    lines = ['{"step": 1, "loss": 2.0}', "null", "3", "[[", '{"loss": 1}', "[" * 100_000, '{"step": 2, "loss": 1.0}', '{"st']
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2]


def a_directory_in_use(folder):
    with hold(folder), hold(folder):
        pass


def a_lock_that_was_left(folder):
    for text in ("", "null", "{", '{"host": 3}', "\0" * 10):
        (folder / NAME).write_text(text)
        with hold(folder):
            pass


def a_directory_removed_meanwhile(folder):
    with hold(folder) as held:
        (folder / NAME).unlink()
        held.check()


def a_file_as_work_directory(folder):
    (folder / "file").touch()
    pipeline.run(quickstart.get_config(), folder / "file")


def a_bucket_as_work_directory(folder):
    try:
        pipeline.run(quickstart.get_config(), pathlib.Path("gs://bucket/run"))
    finally:
        assert not list(folder.iterdir())


def below_a_file(folder):
    (folder / "file").touch()
    with hold(folder / "file" / "run"):
        pass


def a_full_disk(folder):
    with full_disk.reported(folder):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("saving failed") from error


def a_port_in_use(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        start_processes(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0)


def cells_of_a_spreadsheet(folder):
    names = ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1", "-1.5", "plain"]
    rows = [Row({"name": name}, "=cmd|' /C calc'!A0", {"R²": [-0.5]}) for name in names]
    cells = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [cell["name"] for cell in cells] == ["'=1+1", "'+x", "'-x", "'@SUM(A1)", "'\t=1", "-1.5", "plain"]
    assert {cell["model"] for cell in cells} == {"'=cmd|' /C calc'!A0"} and {cell["mean"] for cell in cells} == {"-0.5"}


def cells_of_latex(folder):
    written = as_latex(["a"], [[r"\input{x}~^_&%$#"]]).split("\n")[4]
    assert written == r"\textbackslash{}input\{x\}\textasciitilde{}\textasciicircum{}\_\&\%\$\# \\"


_DAMAGED = r"record.json is damaged: remove \S+ to run that stage again"
CASES = [
    Case("seed below zero", settings(seed=-1), r"config\.seed is -1: expected 0 or more"),
    Case("seed beyond 32 bits", settings(seed=2**40), r"config\.seed is 1099511627776: expected a whole number"),
    Case("no attention heads", settings(teacher__vit__num_heads=0), r"num_heads is 0: expected a positive number"),
    Case("learning rate NaN", settings(teacher__train__learning_rate=float("nan")), r"learning_rate is nan: expected a positive"),
    Case(
        "learning rate infinite", settings(probe__learning_rate=float("inf")), r"probe\.learning_rate is inf: expected a positive"
    ),
    Case("learning rate negative", settings(distill__stage2__learning_rate=-1.0), r"learning_rate is -1\.0: expected a positive"),
    Case("batch of no images", settings(distill__batch_size=0), r"distill\.batch_size is 0: expected a positive number"),
    Case("batch of 1e2 images", whole_number),
    Case(
        "texts where numbers are expected", settings(phases__k=("two",)), r"phases\.k is \('two',\): expected several whole num"
    ),
    Case("no feed-forward width", settings(raptor__mlp_ratio=0.0), r"mlp_ratio is 0\.0: expected a positive number"),
    Case(
        "token weights NaN",
        settings(distill__stage1__token_weights=(1.0, float("nan"), 1.0)),
        r"token_weights is .*expected three",
    ),
    Case(
        "configuration within itself", a_configuration_within_itself, "the configuration .*holds itself, or is nested too deeply"
    ),
    Case("configuration nested deeply", a_deep_configuration, "the configuration .*nested too deeply"),
    Case("pipe as configuration", a_pipe_as_configuration, r"config\.py is no file: give a configuration"),
    Case("folder as configuration", lambda folder: main.find_config(str(folder)), "is no file: give a configuration"),
    Case(
        "1.5 images on the command line",
        command("--config=configs/quickstart.py", "--config.distill.batch_size=1.5"),
        "batch_size=1.5",
    ),
    Case("configuration that is no Python", command("--config=a.py", a="def ("), r"a\.py, line 1: "),
    Case("configuration without get_config", command("--config=a.py", a="x = 1"), r"a\.py has no get_config\(\)"),
    Case(
        "configuration of None", command("--config=a.py", a="get_config = lambda: None"), r"returned None: expected a ConfigDict"
    ),
    Case("record null", record("null"), _DAMAGED),
    Case("record cut", record('{"schema": 2, "settings": {"seed'), _DAMAGED),
    Case("record not UTF-8", record(b'{"schema": 2, "settings": "\xff"}'), _DAMAGED),
    Case("record without its settings", record(json.dumps({"schema": SCHEMA, "settings": None})), _DAMAGED),
    Case("record nested deeply", record("[" * 100_000), _DAMAGED),
    Case("record that is a pipe", a_pipe_as_record, "record.json is no file"),
    Case("results null", results("null"), r"results\.json is damaged: remove \S+results\.json to make it again"),
    Case("results cut", results('{"schema": 2, "teacher'), r"results\.json is damaged"),
    Case(
        "results without their configuration",
        results(json.dumps({"schema": SCHEMA, "config": None})),
        r"results\.json is damaged or of another",
    ),
    Case("rows of metrics that are none", odd_rows_of_metrics),
    Case(
        "work directory in use", a_directory_in_use, r"is in use by process \d+ on \S+, since 20.*: let it end, or give another"
    ),
    Case("lock that was left", a_lock_that_was_left),
    Case("work directory removed", a_directory_removed_meanwhile, "was removed or replaced while this run was working in it"),
    Case("work directory that is a file", a_file_as_work_directory, "is a file: give a folder as --workdir"),
    Case("work directory in a bucket", a_bucket_as_work_directory, "is an address: expected a folder of this machine; mount it"),
    Case("work directory below a file", below_a_file, "cannot write to .*: give another --workdir"),
    Case("full disk", a_full_disk, r"the disk of \S+ is full .*: make room, then the same command goes on"),
    Case("coordinator's port in use", a_port_in_use, r"port \d+ of this machine.* cannot be had \(Address already in use\)"),
    Case(
        "coordinator without a port", lambda folder: start_processes("localhost", 2, 0), "expected HOST:PORT of the first process"
    ),
    Case("process beyond the last", lambda folder: start_processes("localhost:5000", 2, 2), "process_id is 2: expected 0 to 1"),
    Case("formulas in a spreadsheet", cells_of_a_spreadsheet),
    Case("LaTeX in a table", cells_of_latex),
]
