"""A hostile input and the one line that answers it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


def change(config, settings):
    """Sets `section__name` of a configuration to a value of any type."""
    for name, value in settings.items():
        *sections, field = name.split("__")
        place = config
        for section in sections:
            place = place[section]
        with place.ignore_type():
            place[field] = value


class Case(NamedTuple):
    """`act(folder)` does what a user would, in an empty folder; it raises a UserError whose one line has `says`, or returns."""

    name: str
    act: Callable[[Path], object]
    says: str | None = None  # a regular expression; None: the right result is asserted in `act`
