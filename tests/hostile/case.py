"""A hostile input and the one line that answers it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Case(NamedTuple):
    """`act(folder)` does what a user would, in an empty folder; it either raises a UserError whose one line has `says`, or returns."""

    name: str
    act: Callable[[Path], object]
    says: str | None = None  # a regular expression; None: the right result is asserted in `act`
