"""Runs a study: python -m experiments.sweep --config=configs/study.py --workdir=runs/study

A configuration file with `sweep(arg)` beside `get_config(arg)` names the runs of a study: a dictionary from the name of a run to
the settings that it changes, {"k2-seed0": {"phases.k": (2,), "seed": 0}, ...}. Each run has a work directory of its own,
WORKDIR/NAME. Those that are done are skipped; the same command goes on after a stop.

A `sweep(arg, config)` gets the settings too, as the flags of the command line leave them, for runs that depend on them. What a
run changes holds whatever the flags say.

A setting may take what another run of the study makes: in {"teacher.source": "{workdir}/base/teacher/model"} {workdir} stands for
WORKDIR, and the run waits for the one named base. What XLA compiles is kept for later runs in WORKDIR/compiled, unless
$JAX_COMPILATION_CACHE_DIR names another folder.

Further flags, --config.section.name=value among them, are those of experiments.main and go to every run; a run that changes the
same setting keeps its own.
"""

import argparse
import inspect
import os
import pathlib
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from brh_jax.command import Parser, run_command
from brh_jax.errors import UserError
from brh_jax.files import own_folder
from brh_jax.train.metrics import clock
from brh_jax.train.stopping import Stopped
from experiments.main import as_named_now, check_flags, config_of, find_config, module_of
from experiments.records import read_record


def runs_of(value: str, flags: Sequence[str] = ()) -> dict[str, dict]:
    """The runs that a configuration's `sweep` names.

    Args:
        value: `path.py[:argument]`, looked up as --config is.
        flags: those that go to every run, --config.section.name=value among them.

    Raises:
        UserError: no such file, no sweep in it, or one that is not as described above.
    """
    path, _, argument = find_config(value).partition(":")
    module = module_of(path)
    if not hasattr(module, "sweep"):
        raise UserError(f"{path} has no sweep(arg): a study needs one, returning {{name of a run: {{setting: value}}}}")
    first, *rest = inspect.signature(module.sweep).parameters.values()
    arguments = [argument] if argument or first.default is first.empty else []
    settings = {"config": config_of(value, flags)} if "config" in [parameter.name for parameter in rest] else {}
    runs = module.sweep(*arguments, **settings)
    named = isinstance(runs, dict) and all(isinstance(name, str) for name in runs)
    if not runs or not named or not all(isinstance(changes, dict) for changes in runs.values()):
        raise UserError(f"sweep() of {path} returned {runs!r}, expected {{name of a run: {{setting: value}}}}")
    if bad := [name for name in runs if name in ("", ".", "..") or set(name) & set("/\\ ")]:
        raise UserError(f"sweep() of {path} names a run {bad[0]!r}: expected a folder's name without blanks")
    return runs


def flags_of(more: Sequence[str], config: ConfigDict) -> dict[str, str]:
    """Flags as experiments.main takes them, by name, each as --name=value.

    `--name value`, `-name=value`, and --name or --noname of what is true or false are rewritten; the last of one name holds.

    Raises:
        UserError: one that sets a whole section, or what is no flag.
    """
    found, left = {}, [as_named_now(item) for item in more]
    while left:
        item = left.pop(0)
        if not item.startswith("-"):
            raise UserError(f"unexpected {item}: flags are --config.section.name=value and those of experiments.main")
        name, equals, value = item.lstrip("-").partition("=")
        setting = _setting(config, name)
        if setting is None and isinstance(_setting(config, off := name.removeprefix("no")), bool):
            name, equals, value = off, "=", "False"
        elif isinstance(setting, ConfigDict):
            raise UserError(f"--{name} is a section: give its settings one by one, such as --{name}.{next(iter(setting))}=...")
        elif isinstance(setting, bool) and not equals:
            equals, value = "=", "True"
        elif not equals and left and not left[0].startswith("-"):
            equals, value = "=", left.pop(0)
        found[name] = f"--{name}{equals}{value}"
    return found


def _setting(config: ConfigDict, name: str) -> Any:
    """The value of config.section.name; None where there is no such setting."""
    first, *path = name.split(".")
    value: Any = config if first == "config" else None
    for part in path:
        value = value[part] if isinstance(value, ConfigDict) and part in value else None
    return value


def own_settings(runs: Mapping[str, dict], flags: Mapping[str, str]) -> list[str]:
    """What to say of flags that do not hold in every run, because some change the same setting.

    Raises:
        UserError: one that holds in none.
    """
    said = []
    for name, flag in flags.items():
        setting = name.removeprefix("config.")
        own = [run for run, changes in runs.items() if setting in changes]
        if len(own) == len(runs):
            raise UserError(f"{flag} has no effect: every run of this study sets {setting} itself. Leave the flag out")
        if own:
            some = ", ".join(own[:3]) + (f" and {len(own) - 3} more" if len(own) > 3 else "")
            said.append(f"{flag} does not hold for {some}, which set it themselves")
    return said


def command_of(config: str, workdir: pathlib.Path, name: str, changes: dict, flags: Mapping[str, str] | None = None) -> list[str]:
    """The command that runs one of them, with the flags of what it does not change."""
    more = [flag for own, flag in (flags or {}).items() if own.removeprefix("config.") not in changes]
    settings = [f"--config.{key}={_text(value).replace('{workdir}', str(workdir))}" for key, value in changes.items()]
    return [sys.executable, "-m", "experiments.main", f"--config={config}", f"--workdir={workdir / name}", *more, *settings]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "(" + "".join(f"{v!r}," for v in value) + ")"
    return str(value)


def needs_of(runs: dict[str, dict]) -> dict[str, set[str]]:
    """The runs that each run takes something from.

    Raises:
        UserError: one that is not in the study, or that in the end needs what waits for it.
    """

    def named(changes):
        return {name for value in changes.values() for name in re.findall(r"\{workdir\}/([^/\s]+)", str(value))}

    needs = {name: named(changes) for name, changes in runs.items()}
    for name, needed in needs.items():
        if missing := sorted(needed - set(runs)):
            raise UserError(f"run {name} takes something from {missing[0]}, which is no run of this study: {', '.join(runs)}")
    left = dict(needs)
    while ready := [name for name, needed in left.items() if not needed & set(left)]:
        left = {name: needed for name, needed in left.items() if name not in ready}
    if left:
        raise UserError(f"runs that wait for each other: {', '.join(left)}")
    return needs


def is_done(folder: pathlib.Path) -> bool:
    """Whether a run has come to its end: its results are there, and every stage that began is done."""
    records = [read_record(path.parent) for path in folder.glob("*/record.json")]
    return (folder / "results.json").exists() and all(record.done for record in records)


def shared_compilations(workdir: pathlib.Path, place: int) -> dict[str, str]:
    """Environment in which runs keep what they compile, for those after them: small runs are mostly compilation.

    Runs at a time, of different places, have a folder each: jax writes entries in place, and a run that reads one half-written
    crashes.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return {"JAX_COMPILATION_CACHE_DIR": os.path.join(os.environ["JAX_COMPILATION_CACHE_DIR"], str(place))}
    return {
        "JAX_COMPILATION_CACHE_DIR": str((workdir / "compiled" / str(place)).absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def run_all(
    commands: dict[str, list[str]],
    workdir: pathlib.Path,
    jobs: int,
    needs: Mapping[str, set[str]] = MappingProxyType({}),
    first_place: int = 0,
) -> list[str]:
    """Runs commands, `jobs` at a time, with a log each, on GPUs of their own where the machine has several.

    SIGTERM is passed on to those that run, which save and end, and starts no other.

    Args:
        needs: those of the commands that one waits for; where they fail it is not run.
        first_place: number of the first compilation cache; job arrays, of which nobody knows who runs beside them, differ in it.

    Returns:
        the names of those that failed or were not run.

    Raises:
        Stopped: SIGTERM came.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    places = [gpus | shared_compilations(workdir, number) for number, gpus in enumerate(gpu_places(jobs), first_place)]
    running = _Running(commands, workdir, places)
    before = signal.signal(signal.SIGTERM, running.stop)
    try:
        with ThreadPoolExecutor(jobs) as pool:
            failed = _in_order(commands, needs, lambda name: pool.submit(running.run, name), jobs, running.stopped)
    except KeyboardInterrupt:  # the runs, in the same terminal, have had it too
        running.stop()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if running.stopped.is_set():
        raise Stopped(f"stopped with {len(failed)} of {len(commands)} runs to go; the same command goes on with them")
    return failed


class _Running:
    """Commands that run side by side, each in one of the environments `places`, which no other has meanwhile."""

    def __init__(self, commands: dict[str, list[str]], workdir: pathlib.Path, places: list[dict[str, str]]):
        self.commands, self.workdir, self.places = commands, workdir, queue.SimpleQueue()
        for place in places:
            self.places.put(place)
        self.stopped, self.processes = threading.Event(), set()
        self.begun, self.num_ended = time.monotonic(), 0

    def stop(self, *_) -> None:
        """Tells those that run to end; no other begins."""
        self.stopped.set()
        for process in list(self.processes):
            process.terminate()

    def run(self, name: str) -> bool:
        """Whether it came to its end, once it has ended."""
        if self.stopped.is_set():
            return False
        command, log = self.commands[name], self.workdir / f"{name}.log"
        status: int | str = self._status(command, log)
        if status == 0 and command[1:3] == ["-m", "experiments.main"] and not is_done(self.workdir / name):
            status = "0, stopped before its end"  # told to stop: it goes on when the study does
        self.num_ended += 1
        left = (time.monotonic() - self.begun) / self.num_ended * (len(self.commands) - self.num_ended)
        failure = "stopped" if self.stopped.is_set() else f"FAILED with status {status}{_why(log)}"
        outcome = "done" if status == 0 else f"{failure}, see {log}"
        print(f"{name}: {outcome}; {self.num_ended} of {len(self.commands)}, about {clock(left)} left", flush=True)
        return status == 0

    def _status(self, command: list[str], log: pathlib.Path) -> int:
        place = self.places.get()
        try:
            with log.open("a") as file:
                process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | place)
                self.processes.add(process)
                if self.stopped.is_set():
                    process.terminate()
                status = process.wait()
                self.processes.discard(process)
                return status
        finally:
            self.places.put(place)


def _why(log: pathlib.Path) -> str:
    """The message that a run ended with, where it is one line."""
    last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
    return f" ({last})" if last.startswith("error: ") else ""


def _in_order(
    names: Iterable[str],
    needs: Mapping[str, set[str]],
    submit: Callable[[str], Future[bool]],
    jobs: int,
    stopped: threading.Event,
) -> list[str]:
    """Submits `jobs` at a time, each once all that it needs have ended well; gives the names of those that have not."""
    waiting, running, ended, failed = list(names), {}, set(), set()
    while (waiting or running) and not stopped.is_set():
        for name in [name for name in waiting if needs.get(name, set()) & failed]:
            print(f"{name}: not run, as {', '.join(sorted(needs[name] & failed))} failed", flush=True)
            waiting.remove(name)
            failed.add(name)
        ready = [name for name in waiting if needs.get(name, set()) <= ended]
        for name in ready[: jobs - len(running)]:
            waiting.remove(name)
            running[submit(name)] = name
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            (ended if future.result() else failed).add(running.pop(future))
    ended |= {name for future, name in running.items() if future.result()}
    return [name for name in names if name not in ended]


def gpu_places(jobs: int) -> list[dict[str, str]]:
    """What each of `jobs` runs at a time needs in its environment to have its share of the machine's NVIDIA GPUs."""
    gpus = visible_gpus()
    if jobs == 1 or not gpus:
        return [{}] * jobs
    if jobs <= len(gpus):
        return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[place::jobs])} for place in range(jobs)]
    together = -(-jobs // len(gpus))  # on one GPU: jax would take three quarters of its memory for each
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / together:.2f}"}
    return [{"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} | share for place in range(jobs)]


def visible_gpus() -> list[str]:
    """Names of the NVIDIA GPUs that a process here would see; without asking jax, which would take them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 1 where a run failed, 2 where the command is wrong."""
    parser = Parser("experiments.sweep", __doc__)
    parser.add_argument("--config", required=True, help="configuration file with sweep(), and an optional :argument")
    parser.add_argument("--workdir", required=True, help="gets a work directory for each run")
    parser.add_argument("--list", action="store_true", help="print the runs and their commands")
    parser.add_argument(
        "--index",
        type=int,
        default=None,
        help="run this one only, counted from 0; by default $SLURM_ARRAY_TASK_ID where that is set",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time on this machine, which share its GPUs")
    try:
        return run_command(parser, _study, argv, more=True)
    except Stopped as stopped:
        print(stopped, flush=True)
        return 0
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130


def _study(arguments: argparse.Namespace) -> int:
    """Lists or runs what the arguments say; returns the exit status."""
    if arguments.jobs < 1:
        raise UserError(f"--jobs is {arguments.jobs}: expected 1 or more")
    workdir, flags = own_folder(arguments.workdir), {}
    if arguments.more:
        flags = flags_of(arguments.more, config_of(arguments.config))
        check_flags(flags.values(), arguments.config, also=("list", "index", "jobs"))
    runs = runs_of(arguments.config, list(flags.values()))
    for said in own_settings(runs, flags):
        print(said, file=sys.stderr, flush=True)
    needs, index = needs_of(runs), arguments.index
    if index is None and "SLURM_ARRAY_TASK_ID" in os.environ and not arguments.list:
        task = os.environ["SLURM_ARRAY_TASK_ID"]
        if not task.isdecimal():
            raise UserError(f"SLURM_ARRAY_TASK_ID is {task!r}: expected the number of a run, or give --index")
        index = int(task)
    if index is not None and not 0 <= index < len(runs):
        raise UserError(f"there is no run {index}: {arguments.config} has {len(runs)}, numbered from 0")
    commands = {name: command_of(arguments.config, workdir, name, changes, flags) for name, changes in runs.items()}
    if arguments.list:
        for number, (name, command) in enumerate(commands.items()):
            print(f"{number:>4} {name:<28} {shlex.join(['python', *command[1:]])}")
        return 0
    if index is not None:
        name = list(commands)[index]
        if missing := sorted(needed for needed in needs[name] if not is_done(workdir / needed)):
            raise UserError(f"run {index}, {name}, takes something from {missing[0]}, which is not done: run that one first")
        commands, needs = {name: commands[name]}, {}
    if failed := run_all(commands, workdir, arguments.jobs, needs, index or 0):
        print(f"error: {len(failed)} of {len(commands)} runs failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    print(f"all {len(commands)} runs are done; python -m experiments.tables {workdir} gathers them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
