"""One way to run a command: flags are parsed, its body is called, and what the user can put right ends in one line."""

import argparse
import io
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from brh_jax.errors import UserError, did_you_mean

NOBODY_READS = "stopped, as nobody reads what is printed here any more (a closed pipe): the same command goes on"


class Parser(argparse.ArgumentParser):
    """The flags of a command: what is wrong with them is a UserError, which names the nearest flag of a mistyped one.

    Args:
        command: as it is typed after `python -m`.
        about: what --help says first, as it stands.
    """

    def __init__(self, command: str, about: str):
        super().__init__(
            prog=f"python -m {command}", description=about.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's. Raises UserError for a flag that is not there."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            hint = did_you_mean(name, self._option_string_actions) or ("" if name.startswith("-") else "quote what has blanks: ")
            raise UserError(f"unknown argument {unknown[0]}: {hint}{self.prog} --help tells what there is")
        return found

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help tells what there is")


def run_command(
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
    *,
    more: bool = False,
) -> int:
    """Parses flags and calls the body with them; a UserError or an OSError is printed as `error: ...` on stderr.

    Args:
        body: what the command does; its result is the exit status, None for 0.
        argv: `sys.argv[1:]` by default.
        more: whether to hand over flags that the parser does not know, as `arguments.more`, instead of refusing them.

    Returns:
        The exit status, 2 where an error was printed.
    """
    print_any_name()
    try:
        arguments, unknown = parser.parse_known_args(argv) if more else (parser.parse_args(argv), [])
        arguments.more = unknown
        return body(arguments) or 0
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            error = UserError(NOBODY_READS)
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader is gone (`| head`, a `tee` that ended); what is left then goes nowhere."""
    if not hasattr(select, "poll"):  # Windows
        return False
    out = select.poll()
    out.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in out.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def print_any_name() -> None:
    """Lets names of files that are no UTF-8 be printed, with escapes, where they would end the program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
