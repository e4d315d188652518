"""Errors that are meant to be read by the person who runs the program."""

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something the user can put right; the message names the value, what was expected and what to do.

    Command-line entry points print the message alone and exit with status 2.
    """


def did_you_mean(name: str, known: Iterable[str], most: int = 2) -> str:
    """`did you mean X or Y? ` of the known names that a mistyped one is nearest to; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=most)
    return f"did you mean {' or '.join(near)}? " if near else ""


def expect(condition: bool, name: str, value: Any, expected: str) -> None:
    """Raises UserError `NAME is VALUE: expected EXPECTED`, the form of all complaints about settings, unless it holds."""
    if not condition:
        raise UserError(f"{name} is {value!r}: expected {expected}")


def expect_positive(settings: Any, *names: str) -> None:
    """Raises UserError unless these fields of a settings dataclass are finite numbers above zero."""
    for name in names:
        expect(0 < getattr(settings, name) < float("inf"), name, getattr(settings, name), "a positive number")


def expect_not_negative(settings: Any, *names: str) -> None:
    """Raises UserError unless these fields of a settings dataclass are finite numbers, zero or above."""
    for name in names:
        expect(0 <= getattr(settings, name) < float("inf"), name, getattr(settings, name), "0 or more")


def expect_one_of(settings: Any, name: str, choices: Iterable[str]) -> None:
    """Raises UserError unless a field of a settings dataclass is one of the choices."""
    expect(getattr(settings, name) in choices, name, getattr(settings, name), f"one of {', '.join(choices)}")


def expect_whole(settings: Any, least: int, *names: str) -> None:
    """Raises UserError unless these fields of a settings dataclass are whole numbers of at least `least`."""
    for name in names:
        value = getattr(settings, name)
        expect(is_whole(value) and int(value) >= least, name, value, f"a whole number, {least} or more")


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, Python's or numpy's; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
