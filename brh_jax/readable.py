"""Results as people read them: a line for each field, with its shape, its values or their range, and its unit."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

C = TypeVar("C", bound=type)
_WHOLE = 12  # numbers that are shown one by one; of more than these the range is


def readable(**units: str) -> Callable[[C], C]:
    """Gives a NamedTuple a `__repr__` that can be read, `units` being those of its fields; "" or none for plain numbers."""

    def decorate(cls: C) -> C:
        def __repr__(self: Any) -> str:
            return described(cls.__name__, self._asdict(), units)

        for name, value in (("units", units), ("__repr__", __repr__)):
            setattr(cls, name, value)
        return cls

    return decorate


def described(title: str, values: Mapping[str, Any], units: Mapping[str, str] | None = None) -> str:
    """A title, and below it a line for each value: name, shape, values or range, unit.

    Args:
        values: arrays, numbers, texts, NamedTuples, dictionaries and tuples of these; None and empty arrays are left out.
        units: of values by name, and of what a NamedTuple under that name holds and gives no unit of its own.
    """
    rows = [row for name, value in values.items() for row in _rows(name, value, (units or {}).get(name, ""))]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip() for row in rows]
    return "\n  ".join([title, *lines])


def _rows(name: str, value: Any, unit: str) -> Iterator[tuple[str, str, str, str]]:
    if value is None:
        return
    if hasattr(value, "_asdict"):
        units = getattr(type(value), "units", {})
        for inner, one in value._asdict().items():
            yield from _rows(f"{name}.{inner}", one, units.get(inner, unit))
    elif isinstance(value, dict) or (isinstance(value, tuple) and any(hasattr(one, "_asdict") for one in value)):
        for inner, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _rows(f"{name}[{inner}]", one, unit)
    elif isinstance(value, jax.core.Tracer):
        yield name, str(list(value.shape)), "traced", unit
    elif isinstance(value, jax.Array | np.ndarray):
        if value.size:
            yield name, str(list(value.shape)) if value.ndim else "", _values(value), unit
    else:
        yield name, "", f"{value:.4g}" if isinstance(value, float) else str(value), unit


def _values(array: Any) -> str:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return "on several processes"
    numbers = np.asarray(array)
    if numbers.dtype.kind not in "iufcb":
        return str(numbers.dtype)
    if numbers.size <= _WHOLE and numbers.ndim <= 1:
        return " ".join(f"{number:.3g}" for number in np.ravel(numbers).tolist())
    size = np.abs(numbers) if numbers.dtype.kind == "c" else numbers.astype(np.float64)
    finite = size[np.isfinite(size)]
    lost = f", {size.size - finite.size} not finite" if finite.size < size.size else ""
    between = f"{finite.min():.3g} ... {finite.max():.3g}" if finite.size else "none finite"
    return f"{'modulus ' if numbers.dtype.kind == 'c' else ''}{between}{lost}"
