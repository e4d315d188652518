"""Results of a run: a dataclass for each stage, and results.json, which holds them all.

python -m experiments.results          prints the JSON schema of results.json
"""

import json
import os
import pathlib
import zipfile
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from brh_jax.errors import UserError
from brh_jax.files import read_array

# Of results.json and of the stages' records: raise it where older ones cannot be read any more, or where the default of a new
# setting does something else than was done before it was there. 1 was not written.
SCHEMA = 3

R = TypeVar("R")


class Results:
    """What the stages of a run found out: `results.get(DistillResult)`.

    Attributes:
        stages: name -> result, of stages that are done.
        about: what results.json holds besides: `seconds` by stage, `config`, `environment`, `skipped_images`.
    """

    def __init__(self, stages: dict[str, Any] | None = None, about: dict[str, Any] | None = None):
        self.stages = stages or {}
        self.about = about or {}

    def get(self, kind: type[R]) -> R | None:
        """The result of that type; None where the stage is not done."""
        return next((result for result in self.stages.values() if isinstance(result, kind)), None)

    def as_json(self) -> dict:
        """What results.json holds."""
        return {"schema": SCHEMA, **{name: to_json(result) for name, result in self.stages.items()}, **self.about}


def check_schema(whole: Any, path: pathlib.Path) -> None:
    """Raises UserError unless a file is of the schema that is read here."""
    if not isinstance(whole, dict):
        raise damaged(path)
    there = whole.get("schema", 1)
    if there != SCHEMA:
        older = not isinstance(there, int) or there < SCHEMA
        raise UserError(
            f"{path} was written by {'an older' if older else 'a newer'} brh_jax (schema {there}, this one reads {SCHEMA}): "
            + ("use another --workdir, or remove that folder to make the run again" if older else "upgrade brh-jax")
        )


def to_json(result: Any) -> Any:
    """A result dataclass as JSON holds it."""
    return TypeAdapter(type(result)).dump_python(result, mode="json", warnings="error")


def from_json(kind: type[R], value: Any, path: pathlib.Path) -> R:
    """A result dataclass from JSON. Raises UserError where it does not fit, naming the first place."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged or of another version ({place}: {first['msg']}): make the run again") from None


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file. Raises UserError where it is damaged, or not to be read."""
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is no file: expected what a run wrote there")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise damaged(path) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that a stage wrote. Raises UserError where it is damaged, or not to be read."""
    if not path.is_file():
        raise UserError(f"{path} is no file: expected the arrays that a stage wrote there; remove its folder to run it again")

    def member(archive, info):
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > path.stat().st_size:
            raise ValueError(f"{info.filename} is compressed, or of a size that it cannot have")
        with archive.open(info) as stream:
            return read_array(stream, info.file_size)

    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): member(archive, info) for info in archive.infolist()}
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}): remove the folder of its stage to run that again") from None


def damaged(path: pathlib.Path) -> UserError:
    """What to say of a file that is not what a run writes."""
    what = "run that stage" if path.name == "record.json" else "make it"
    return UserError(f"{path} is damaged: remove {path.parent if path.name == 'record.json' else path} to {what} again")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)
