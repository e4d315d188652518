"""Runs a study: python -m experiments.sweep --config=configs/study.py --workdir=runs/study

A configuration file with `sweep(arg)` beside `get_config(arg)` names the runs of a study: a dictionary from the name of a run to
the settings that it changes, {"k2-seed0": {"phases.k": (2,), "seed": 0}, ...}. Each run has a work directory of its own,
WORKDIR/NAME. Those that are done are skipped; the same command goes on after a stop.

    --list                 print the runs and the commands that make them
    --index=3              run one of them, for an array job; by default $SLURM_ARRAY_TASK_ID where that is set
    --jobs=2               so many at a time on this machine
"""

import argparse
import importlib.util
import pathlib
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from brh_jax.errors import UserError
from experiments.main import find_config


def runs_of(value: str) -> dict[str, dict]:
    """The runs that a configuration's `sweep` names.

    Args:
        value: `path.py[:argument]`, looked up as --config is.

    Raises:
        UserError: no such file, no sweep in it, or one that is not as described above.
    """
    path, _, argument = find_config(value).partition(":")
    spec = importlib.util.spec_from_file_location(f"sweep_{pathlib.Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "sweep"):
        raise UserError(f"{path} has no sweep(arg): a study needs one, returning {{name of a run: {{setting: value}}}}")
    runs = module.sweep(argument) if argument else module.sweep()
    if not runs or not all(isinstance(changes, dict) for changes in runs.values()):
        raise UserError(f"sweep() of {path} returned {runs!r}, expected {{name of a run: {{setting: value}}}}")
    if bad := [name for name in runs if not name or set(name) & set("/\\ ")]:
        raise UserError(f"sweep() of {path} names a run {bad[0]!r}: expected a folder's name without blanks")
    return runs


def command_of(config: str, workdir: pathlib.Path, name: str, changes: dict, more=()) -> list[str]:
    """What runs one of them."""
    settings = [f"--config.{key}={_text(value)}" for key, value in changes.items()]
    return [sys.executable, "-m", "experiments.main", f"--config={config}", f"--workdir={workdir / name}", *settings, *more]


def _text(value) -> str:
    if isinstance(value, list | tuple):
        return "(" + "".join(f"{v!r}," for v in value) + ")"
    return str(value)


def run_all(commands: dict[str, list[str]], workdir: pathlib.Path, jobs: int) -> list[str]:
    """Runs commands, `jobs` at a time, with a log each; returns the names of those that failed."""
    workdir.mkdir(parents=True, exist_ok=True)
    begun, done = time.monotonic(), []

    def one(name):
        log = workdir / f"{name}.log"
        with log.open("a") as file:
            status = subprocess.run(commands[name], stdout=file, stderr=subprocess.STDOUT).returncode
        page = workdir / name / "report" / "record.json"
        if status == 0 and commands[name][1:3] == ["-m", "experiments.main"] and not page.exists():
            status = "0, stopped before its end"  # told to stop: it goes on when the study does
        done.append(name)
        from brh_jax.metrics import clock

        left = (time.monotonic() - begun) / len(done) * (len(commands) - len(done))
        outcome = "done" if status == 0 else f"FAILED with status {status}, see {log}"
        print(f"{name}: {outcome}; {len(done)} of {len(commands)}, about {clock(left)} left", flush=True)
        return name if status else None

    with ThreadPoolExecutor(jobs) as pool:
        return [name for name in pool.map(one, commands) if name]


def main(argv=None) -> int:
    """Command line; returns the exit status: 1 where a run failed, 2 where the command is wrong."""
    import os

    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="configuration file with sweep(), and an optional :argument")
    parser.add_argument("--workdir", required=True, help="gets a work directory for each run")
    parser.add_argument("--list", action="store_true", help="print the runs and their commands")
    parser.add_argument("--index", type=int, default=None, help="run this one only, counted from 0")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    arguments, more = parser.parse_known_args(argv)
    workdir = pathlib.Path(arguments.workdir).expanduser()
    try:
        runs = runs_of(arguments.config)
        commands = {name: command_of(arguments.config, workdir, name, changes, more) for name, changes in runs.items()}
        index = arguments.index
        if index is None and "SLURM_ARRAY_TASK_ID" in os.environ and not arguments.list:
            index = int(os.environ["SLURM_ARRAY_TASK_ID"])
        if index is not None and not 0 <= index < len(commands):
            raise UserError(f"there is no run {index}: {arguments.config} has {len(commands)}, numbered from 0")
        if arguments.jobs < 1:
            raise UserError(f"--jobs is {arguments.jobs}: expected 1 or more")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.list:
        for number, (name, command) in enumerate(commands.items()):
            print(f"{number:>4} {name:<28} {shlex.join(['python', *command[1:]])}")
        return 0
    if index is not None:
        name = list(commands)[index]
        commands = {name: commands[name]}
    failed = run_all(commands, workdir, arguments.jobs)
    if failed:
        print(f"error: {len(failed)} of {len(commands)} runs failed: {', '.join(failed)}", file=sys.stderr)
    else:
        print(f"all {len(commands)} runs are done; python -m experiments.summarize {workdir} gathers them")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
