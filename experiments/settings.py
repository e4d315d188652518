"""Settings: each is stated once, in the dataclass that uses it, and the configuration that users change is made of all of them.

A field of a stage's `Settings` is a section of the configuration: `distill: DistillSettings` is `config.distill`. Several stages
may use one section, each the fields that it needs, through dataclasses that inherit them from one place. A field whose default is
None is no setting, but something that the code fills in.
"""

import dataclasses
import difflib
import json
import math
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from ml_collections import ConfigDict

from brh_jax.errors import UserError, expect, expect_one_of

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Seeded:
    """What every stage has.

    Attributes:
        seed: of everything that is drawn at random.
    """

    seed: int = 0

    def __post_init__(self):
        expect(0 <= self.seed < 2**30, "seed", self.seed, f"0 or more, below {2**30}")


@dataclasses.dataclass(frozen=True)
class Common(Seeded):
    """What every stage has that asks models.

    Attributes:
        compute_dtype: precision of matrix products, float32 or bfloat16; parameters, residual stream and losses are float32.
    """

    compute_dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        expect_one_of(self, "compute_dtype", ("float32", "bfloat16"))


# Settings that have moved: command lines of before go on working, configuration files are told.
MOVED = {
    **{f"distill.{name}": f"loop.{name}" for name in ("log_every", "save_every", "keep_last", "keep_best")},
    "tensorboard": "loop.tensorboard",
    "quick": "feature_probe",
}


def without_effect(default: Any) -> Any:
    """A field that changes how a stage goes, and not what comes out: it is no part of the stage's fingerprint."""
    return dataclasses.field(default=default, metadata={"effect": False})


def merged_defaults(kinds: Iterable[type]) -> dict:
    """The defaults of several settings dataclasses as one nested dictionary.

    Raises:
        ValueError: two of them give one setting different defaults.
    """
    merged: dict = {}
    for kind in kinds:
        _merge(merged, kind(), "config")
    return merged


def _merge(into: dict, settings, path: str) -> None:
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), field.name
        if value is None:
            continue
        if dataclasses.is_dataclass(value):
            _merge(into.setdefault(name, {}), value, f"{path}.{name}")
        elif into.setdefault(name, value) != value:
            raise ValueError(f"{path}.{name} has two defaults: {into[name]!r} and {value!r}")


def read(kind: type[T], config: ConfigDict | dict, path: str = "config") -> T:
    """A settings dataclass from the part of the configuration that it describes; fields that are not there keep their defaults.

    Raises:
        UserError: a value of the wrong type, or one that the dataclass refuses; the message names the setting in full.
    """
    defaults, kinds = kind(), typing.get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        default, name = getattr(defaults, field.name), f"{path}.{field.name}"
        if field.name not in config or default is None:
            continue
        value = config[field.name]
        if not dataclasses.is_dataclass(default):
            values[field.name] = _converted(value, kinds[field.name], name)
        elif isinstance(value, dict | ConfigDict):
            values[field.name] = read(type(default), value, name)
        else:
            raise UserError(f"{name} is {value!r}: expected a section of settings, {', '.join(vars(default))}")
    try:
        made = kind(**values)
    except UserError as error:
        if str(error).startswith("config."):
            raise
        about_a_field = re.match(r"[\w.]+(?= (is|names|and) )", str(error))
        named = about_a_field and hasattr(defaults, about_a_field[0].split(".")[0])
        raise UserError(f"{path}.{error}" if named else f"{path}: {error}" if "." in path else str(error)) from None
    _check_finite(made, path)
    return made


def _converted(value, kind, name: str):
    """The value in the type of its field: lists are tuples, whole numbers are numbers, and 1e2 is a whole number.

    Raises:
        UserError: it is none of that type, or a number that is not finite or takes more than 32 bits.
    """
    try:
        return _as(value, kind)
    except TypeError:
        raise UserError(f"{name} is {value!r}: expected {_expected(kind)}") from None


def _as(value, kind):
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, list | tuple) or (kinds[1:] != (...,) and len(value) != len(kinds)):
            raise TypeError
        return tuple(_as(one, kinds[0] if kinds[1:] == (...,) else kinds[place]) for place, one in enumerate(value))
    if isinstance(value, float) and kind is int and value.is_integer():
        value = int(value)
    if type(value) is int and (not -(2**31) <= value < 2**31 or kind not in (int, float)):
        raise TypeError
    if type(value) is int and kind is float:
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value


def _expected(kind) -> str:
    """What to say of a type."""
    if typing.get_origin(kind) is not tuple:
        return {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}.get(kind, kind.__name__)
    kinds = typing.get_args(kind)
    of = {int: "whole numbers", float: "numbers", str: "texts"}.get(kinds[0], "values")
    example = {int: "(2, 3)", float: "(0.5, 1.0)", str: "('a', 'b')"}.get(kinds[0], "(2, 3)")
    return f"several {of}, such as {example}" if kinds[1:] == (...,) else f"{len(kinds)} {of}, such as {example}"


def _check_finite(settings, path: str) -> None:
    """Raises UserError where a number is NaN or infinite and its dataclass has not refused it."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"{path}.{field.name} is {value!r}: expected finite numbers")


def names_of(config: ConfigDict | dict, prefix: str = "") -> Iterator[str]:
    """Every setting of a configuration, `section.name`."""
    for name, value in config.items():
        if isinstance(value, dict | ConfigDict):
            yield from names_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def unknown_setting(name: str, known: Iterable[str]) -> UserError:
    """The error for a mistyped `section.name`, or one that is put into another section: it names the nearest."""
    known = list(known)
    elsewhere = [one for one in known if one.rpartition(".")[2] == name.rpartition(".")[2]]
    near = difflib.get_close_matches(name, elsewhere or known, n=3, cutoff=0.5)
    clear = difflib.get_close_matches(name, near, n=1, cutoff=0.9)
    hint = f"did you mean {' or '.join(f'config.{one}' for one in clear or near)}? " if near else ""
    return UserError(f"unknown setting config.{name}: {hint}python -m experiments.explain lists and explains them all")


def check_names(config: ConfigDict | dict, known: dict, path: str = "config", every: Iterable[str] = ()) -> None:
    """Raises UserError where the configuration has a setting that nothing uses; sections of a study's own are let through."""
    every = every or list(names_of(known))
    for name, value in config.items():
        full = f"{path}.{name}"
        if name in known and isinstance(known[name], dict) and isinstance(value, dict | ConfigDict):
            check_names(value, known[name], full, every)
        elif name not in known and not (path == "config" and isinstance(value, dict | ConfigDict) and name not in MOVED):
            if moved := renamed(full.removeprefix("config.")):
                raise UserError(f"{full} is config.{moved} now: give that one")
            raise unknown_setting(full.removeprefix("config."), every)


def check_plain(config: ConfigDict) -> None:
    """Raises UserError where a configuration holds what cannot be kept with the results, a study's own sections included."""
    try:
        json.dumps(json.loads(config.to_json()), allow_nan=False)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        why = str(error).splitlines()[0]
        if isinstance(error, RecursionError) or "Circular" in why:
            why = "it holds itself, or is nested too deeply"
        raise UserError(f"the configuration must be made of texts, finite numbers, True, False and tuples ({why})") from None


def renamed(setting: str) -> str | None:
    """Where a setting `section.name` has moved to; None where it has not."""
    for old, new in MOVED.items():
        if setting == old or setting.startswith(f"{old}."):
            return new + setting.removeprefix(old)
    return None


def flat(settings: Any, *, all_fields: bool = False, prefix: str = "") -> dict[str, Any]:
    """`section.name` -> value, as JSON has it, of the settings that what comes out depends on."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if value is None or not (all_fields or field.metadata.get("effect", True)):
            continue
        if dataclasses.is_dataclass(value):
            found |= flat(value, all_fields=all_fields, prefix=f"{name}.")
        else:
            found[name] = _plain(value)
    return found


def _plain(value):
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
