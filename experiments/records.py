"""What a stage leaves about itself in its folder, and whether that is what would be made now."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError

from brh_jax.data.dense import open_depths, open_masks
from brh_jax.data.sources import Source, open_source
from brh_jax.errors import UserError
from experiments.results import SCHEMA, check_schema, damaged, read_json, write_json
from experiments.settings import flat

# What is read from outside a run, besides weights.
OPENERS: dict[str, Callable[..., Source]] = {"images": open_source, "masks": open_masks, "depths": open_depths}


@dataclasses.dataclass(frozen=True)
class Record:
    """The record.json of a stage.

    Attributes:
        settings: `section.name` -> value, of the settings that its results depend on.
        outside: what it read from outside the run -> fingerprint of its content.
        needs: stages that it took something from -> their fingerprints.
        done: whether it came to its end.
        seconds: that it took, attempts that were stopped included.
        result: what it found out, as JSON.
        skipped: images that could not be decoded -> why.
    """

    settings: dict[str, Any]
    outside: dict[str, str] = dataclasses.field(default_factory=dict)
    needs: dict[str, str] = dataclasses.field(default_factory=dict)
    done: bool = False
    seconds: float = 0.0
    result: Any = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A digest that is the same for stages that make the same."""
        made_of = json.dumps([self.settings, self.outside, self.needs], sort_keys=True)
        return hashlib.sha256(made_of.encode()).hexdigest()[:16]

    def write(self, folder: pathlib.Path) -> None:
        """Leaves it in a stage's folder."""
        write_json(folder / "record.json", {"schema": SCHEMA, **dataclasses.asdict(self)})


def read_record(folder: pathlib.Path) -> Record | None:
    """What a stage left about itself; None if it never ran.

    Raises:
        UserError: the file is damaged, or of another version.
    """
    path = folder / "record.json"
    if not path.exists():
        return None
    whole = read_json(path)
    check_schema(whole, path)
    try:
        return TypeAdapter(Record).validate_python({name: value for name, value in whole.items() if name != "schema"})
    except ValidationError:
        raise damaged(path) from None


def differing_settings(record: Record, settings: Any) -> dict[str, str]:
    """Settings that are not as they were when the stage ran -> a line that says how they differ.

    A setting that was not there yet counts as its default, see `results.SCHEMA`.

    Args:
        settings: of the stage, its dataclass.
    """
    then, now = flat(type(settings)()) | record.settings, flat(settings)
    pairs = {name: (then[name], now.get(name, "nothing")) for name in then}
    return {name: f"{name}: {there} there, {here} here" for name, (there, here) in pairs.items() if there != here}


def differing_content(record: Record, data_dir: str) -> dict[str, str]:
    """What the stage read from outside the run and is not what it was -> a line that says so."""
    return {
        what: f"{what}: its content has changed since"
        for what, then in record.outside.items()
        if fingerprint_of(what, data_dir) not in (None, then)
    }


def fingerprint_of(what: str, data_dir: str) -> str | None:
    """The fingerprint of something outside the run as it is now; None where it is not there any more."""
    kind, _, spec = what.partition(" ")
    try:
        if kind == "weights":
            from weights_convert.cache import fingerprint

            return fingerprint(spec)
        return OPENERS[kind](spec, data_dir=data_dir).fingerprint()
    except UserError:
        return None  # what was made of it stays
