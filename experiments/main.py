"""Runs an experiment: python -m experiments.main --config=configs/quickstart.py --workdir=runs/quickstart

--config is looked up from the current directory, then beside this file; an argument may follow a colon, and single settings are
overridden by --config.section.name=value; python -m experiments.explain lists and explains them all. Stages that are done are
skipped, and the same command goes on after a stop. The page of results is WORKDIR/report/index.html.
"""

import importlib.util
import os
import pathlib
import re
import shlex
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from types import ModuleType

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from brh_jax.command import NOBODY_READS, nobody_reads, print_any_name
from brh_jax.errors import UserError, did_you_mean
from experiments.settings import names_of, renamed, unknown_setting


class _WholeNumber(flags.IntegerParser):
    """Takes 1e2 for 100, too."""

    def convert(self, argument: str | int) -> int:
        try:
            return super().convert(argument)
        except ValueError:
            number = float(argument)
            if not number.is_integer():  # 1.5; infinity is said by float's own error
                raise
            return int(number)


config_flags.register_flag_parser_for_type(int, _WholeNumber())
_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, with an optional :argument.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; runs/NAME of the configuration by default.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "report"],
    "train: all that is not done; eval: measure finished models again; report: the page.",
)
_NO_CONFIG = "run"
_PROFILE = flags.DEFINE_string("profile", None, "FIRST:LAST, steps of every training to trace for TensorBoard or Perfetto.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of the first process; TPU pods and SLURM need no such flags.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Processes of this run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which of them this one is, from 0.")
_RERUN = flags.DEFINE_bool("rerun", False, "Discard stages in the work directory that another configuration made.")


_OWN = (_CONFIG, _WORKDIR, _MODE, _RERUN, _PROFILE, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
_ASKED_FOR_HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")


def help_text() -> str:
    """What --help prints: this file's flags, without those of every library that it imports."""
    lines = (f"  --{own.name:<14} {flags.FLAGS[own.name].help}" for own in _OWN)
    return f"{__doc__.strip()}\n\n" + "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Runs what the flags ask for, once they are parsed."""
    if len(argv) > 1:
        raise UserError(f"unexpected {' '.join(argv[1:])}: options are --config=..., --workdir=... and --config.name=value")
    if _CONFIG.value is None and _config_path(sys.argv) == _NO_CONFIG:
        raise UserError("no configuration: give --config=configs/quickstart.py, or a file of your own")
    config = _checked(_CONFIG.value)
    logging.set_verbosity(logging.WARNING)  # orbax and jax tell a page at every checkpoint
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)  # what orbax cannot do it raises, too
    profile = _steps(_PROFILE.value)
    # After the flags: a wrong flag answers at once.
    from brh_jax.train import stopping
    from brh_jax.train.hardware import check_devices
    from brh_jax.train.parallel import start_processes

    stopping.install()  # before jax: with several processes its own handler takes this one's place and tells all of them
    start_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    check_devices()
    from experiments import pipeline

    workdir = _WORKDIR.value or f"runs/{pathlib.Path(_config_path(sys.argv)).stem}"
    command = ["python -m experiments.main", *sys.argv[1:]]
    try:
        pipeline.run(config, workdir, mode=_MODE.value, rerun=_RERUN.value, command=command, profile=profile)
    except stopping.Stopped as stopped:
        print(f"{stopped}; go on with: {shlex.join(['python', '-m', 'experiments.main', *sys.argv[1:]])}", flush=True)


def _steps(text: str | None) -> tuple[int, int] | None:
    """FIRST:LAST of --profile."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise UserError(f"--profile={text}: expected FIRST:LAST, for example 10:12")
    return int(first), int(last)


def find_config(value: str) -> str:
    """`path.py[:argument]` with the path resolved from the current directory, then from the experiments package.

    Raises:
        UserError: no such file in either place.
    """
    path, colon, argument = value.partition(":")
    here = pathlib.Path(__file__).parent
    for candidate in (pathlib.Path(path).expanduser(), here / path):
        if candidate.is_file():
            return f"{candidate}{colon}{argument}"
        if candidate.exists():  # a pipe would be waited for
            raise UserError(f"{candidate} is no file: give a configuration, such as configs/quickstart.py, or a file of your own")
    shipped = sorted(f"configs/{p.name}" for p in (here / "configs").glob("*.py") if p.stem != "__init__")
    hint = did_you_mean(path, shipped, most=1) or f"looked in {pathlib.Path.cwd()} and in {here}; "
    raise UserError(f"no configuration file {path}: {hint}there are {', '.join(shipped)}")


def _config_path(argv) -> str:
    """The configuration file as it was given, without its argument."""
    return _config_flag(argv).partition(":")[0] or _NO_CONFIG


def _config_flag(argv) -> str:
    """What was given as `--config=VALUE` or `--config VALUE`; empty where nothing was."""
    for item, following in zip(argv, [*argv[1:], ""], strict=True):
        if item in ("--config", "-config"):
            return following
        if item.startswith(("--config=", "-config=")):
            return item.partition("=")[2]
    return ""


def module_of(path: str) -> ModuleType:
    """A configuration file, imported. Raises UserError where it is no Python."""
    spec = importlib.util.spec_from_file_location(f"config_{pathlib.Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: expected a configuration with get_config()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    return module


def config_of(value: str, given: Sequence[str] = ()) -> ConfigDict:
    """What `get_config` of `path.py[:argument]` gives; looked up as --config is.

    Args:
        given: flags whose --config.section.name=value change it.

    Raises:
        UserError: it is no configuration, or a value is not of its setting's type.
    """
    path, _, argument = find_config(value).partition(":")
    module = module_of(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no get_config(): expected a configuration file")
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except (AttributeError, KeyError) as error:
        line = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == module.__file__][-1]
        raise UserError(f"{path}, line {line}: {' '.join(str(error.args[0]).split())}") from None
    config = _checked(config)
    if not (settings := [item for item in given if item.startswith("--config.")]):
        return config
    parser = flags.FlagValues()
    holder = config_flags.DEFINE_config_dict("config", config, flag_values=parser, sys_argv=["", *settings])
    try:
        parser(["", *settings])
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(str(error)) from None
    return holder.value


def _checked(config: object) -> ConfigDict:
    """Raises UserError for what is no configuration."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of the configuration file returned {config!r}: expected a ConfigDict")
    return config


def check_given_settings(argv: Iterable[str], known: Iterable[str]) -> None:
    """Raises UserError for the first `--config.section.name=value` that is no setting."""
    known = list(known)
    for item in argv:
        name = item.partition("=")[0]
        setting = name.removeprefix("--config.")
        section = any(one.startswith(f"{setting}.") for one in known)
        if setting != name and setting not in known and not section and not renamed(setting):
            raise unknown_setting(setting, known)


def check_flags(argv: Iterable[str], config: str, also: Iterable[str] = ()) -> None:
    """Raises UserError for a flag that neither this command nor its configuration has.

    Args:
        config: `path.py[:argument]`.
        also: names of further flags, for the message alone.
    """
    check_given_settings(argv, names_of(config_of(config)))
    own = {own.name for own in _OWN}
    for item in argv:
        name = item.partition("=")[0].removeprefix("--")
        if item.startswith("--") and not name.startswith("config.") and name.removeprefix("no") not in own:
            raise _unknown_flag(name, config, also)


def _unknown_flag(name: str, config: str, also: Iterable[str] = ()) -> UserError:
    """What to say of a mistyped flag, or of a setting without `config.` before it."""
    settings = names_of(config_of(config)) if config else ()
    flat = f"did you mean --config.{name}? " if name in settings else ""
    hint = flat or did_you_mean(f"--{name}", [f"--{known}" for known in (*(own.name for own in _OWN), *also)])
    return UserError(f"unknown flag --{name}: {hint}--help tells what there is")


def as_named_now(item: str) -> str:
    """A flag as this version takes it: settings that have moved at their new place, sizes of square images as one number."""
    return _squared(_moved(item))


def _moved(item: str) -> str:
    """A flag for a setting that has moved since, at its new place, aloud."""
    name, equals, value = item.partition("=")
    place = renamed(name.removeprefix("--config.")) if name.startswith("--config.") else None
    if place is None:
        return item
    print(f"{name} is --config.{place} now", file=sys.stderr)
    return f"--config.{place}{equals}{value}"


def _squared(item: str) -> str:
    """A flag for the size of images, which are square, with one number where (height, width) are given."""
    found = re.fullmatch(r"(--config\.(?:\w+\.)*image_size)=[(\[]?\s*(\d+)\s*[,x]\s*(\d+)\s*,?\s*[)\]]?", item)
    if found is None:
        return item
    name, height, width = found.groups()
    if int(height) != int(width):
        raise UserError(f"{item}: images are square here, expected one number, such as {name}={height}")
    return f"{name}={height}"


def _parse(argv):
    """absl's parser, with the configuration file found first and every fault as one message."""
    argv = list(argv)
    for i, item in enumerate(argv):
        if item.startswith(("--config=", "-config=")):
            name, _, value = item.partition("=")
            argv[i] = f"{name}={find_config(value)}"
        elif item in ("--config", "-config") and i + 1 < len(argv):
            argv[i + 1] = find_config(argv[i + 1])
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise _unknown_flag(error.flagname, _config_flag(argv)) from None
    except flags.Error as error:
        # A configuration file that refuses its argument says so in its last line; a bug in one keeps its stack trace.
        kind, _, message = str(error).strip().rpartition("\n")[2].partition(": ")
        refused = kind.rpartition(".")[2] in ("ValueError", "UserError")
        raise UserError(message if refused else str(error)) from None
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise UserError("the configuration holds itself, or is nested too deeply: expected sections of settings") from None
    except (AttributeError, KeyError):
        check_given_settings(argv, names_of(config_of(_config_flag(argv))))
        raise
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None


def cli() -> None:
    """Entry point: faults that the user can put right end in one message and exit status 2."""
    logging.set_verbosity(logging.ERROR)  # ml_collections warns of what is said here
    print_any_name()
    if any(item in _ASKED_FOR_HELP for item in sys.argv[1:]):
        print(help_text())
        return
    try:
        sys.argv = [as_named_now(item) for item in sys.argv]  # where ml_collections looks for settings that are overridden
        # Parsed here rather than by app.run, which prints a help text of its own for some faults and a stack trace for others.
        arguments = _parse(sys.argv)
        app.run(main, argv=arguments, flags_parser=lambda argv: argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _leave(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        _leave(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            print(f"error: {NOBODY_READS}", file=sys.stderr)
        else:
            traceback.print_exc()
        _leave(1)


def _leave(status: int) -> None:
    """Ends this process; with several, at once: the others are told by its silence, and not kept waiting at a barrier."""
    import jax

    if jax.distributed.is_initialized():
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(2)  # others that end for the same reason say so before its silence ends them
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    cli()
