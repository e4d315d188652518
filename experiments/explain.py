"""Every setting with its default and what it means: python -m experiments.explain [SECTION]"""

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Sequence

from brh_jax.command import Parser, run_command
from brh_jax.errors import UserError, did_you_mean


def explain(kinds: Iterable[type], section: str = "") -> str:
    """Every setting with its default and what the docstring of its dataclass says of it.

    Args:
        section: of the configuration, `distill` or `distill.stage1`, to leave out all others; or one setting.

    Raises:
        UserError: no such section or setting.
    """
    lines: dict[str, str] = {}

    def add(settings, path):
        documented = _documented(type(settings))
        for field in dataclasses.fields(settings):
            value, name = getattr(settings, field.name), f"{path}.{field.name}"
            if dataclasses.is_dataclass(value):
                add(value, name)
            elif value is not None:
                lines[name] = f"--{name}={value!r}\n    {documented.get(field.name, '')}".rstrip()

    for kind in kinds:
        add(kind(), "config")
    section = section.removeprefix("--").removeprefix("config.")
    chosen = [text for name, text in lines.items() if f"{name}.".startswith(f"config.{section}." if section else "")]
    if not chosen:
        names = [name.removeprefix("config.") for name in lines]
        sections = dict.fromkeys(name.rpartition(".")[0] for name in names)
        hint = did_you_mean(section, [*sections, *names], most=1)
        raise UserError(f"no section {section}: {hint}there are {', '.join(dict.fromkeys(n.split('.')[0] for n in names))}")
    return "\n".join(chosen)


def _documented(kind: type) -> dict[str, str]:
    """Field -> its sentence in the `Attributes:` of the docstrings of a dataclass and of those it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, attributes = inspect.cleandoc(vars(base).get("__doc__") or "").partition("Attributes:\n")
        for names, text in re.findall(r"^    ([\w, ]+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE):
            found |= dict.fromkeys((name.strip() for name in names.split(",")), re.sub(r"\s+", " ", text))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = Parser("experiments.explain", __doc__)
    parser.add_argument("section", nargs="?", default="", help="distill or distill.stage1 say; all by default")
    return run_command(parser, _print, argv)


def _print(arguments: argparse.Namespace) -> None:
    from experiments.pipeline import settings_kinds  # after the flags: a wrong one answers at once

    print(explain(settings_kinds(), arguments.section))


if __name__ == "__main__":
    sys.exit(main())
