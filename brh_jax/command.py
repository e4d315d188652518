"""One way to run a command: flags are parsed, its body is called, and what the user can put right ends in one line."""

import argparse
import io
import sys
from collections.abc import Callable, Sequence

from brh_jax.errors import UserError


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
    arguments, unknown = parser.parse_known_args(argv) if more else (parser.parse_args(argv), [])
    arguments.more = unknown
    try:
        return body(arguments) or 0
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def print_any_name() -> None:
    """Lets names of files that are no UTF-8 be printed, with escapes, where they would end the program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
