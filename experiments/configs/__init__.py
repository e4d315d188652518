"""Configurations. Each docstring gives command, hardware, time and what to expect.

Here is what they share: how they read the argument that follows their name, `file.py:item,name=value,...`.
"""

from collections.abc import Container, Iterable

from brh_jax.errors import UserError


def split_argument(arg: str, **options: str) -> tuple[dict[str, str], list[str]]:
    """The values of `options`, as they are given here where the argument does not say, and the items that are none of them."""
    found, others = dict(options), []
    for item in filter(None, arg.split(",")):
        name, _, value = item.partition("=")
        if value and name in options:
            found[name] = value
        else:
            others.append(item)
    return found, others


def check_items(file: str, items: Iterable[str], known: Container[str], expected: str) -> None:
    """Raises UserError where the argument of a configuration file has an item that is not `known`."""
    for item in items:
        if item not in known:
            raise UserError(f"configs/{file} does not know {item!r}: expected {expected}")


def numbers(name: str, text: str, what: str) -> tuple[int, ...]:
    """Positive numbers, joined by +.

    Raises:
        UserError: something else; the message says that `name=text` is no number of `what`.
    """
    parts = text.split("+")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"{name}={text} is no number of {what}: expected {name}=3, or several such as {name}=2+3")
    return tuple(map(int, parts))


def number(name: str, text: str, what: str) -> int:
    """One positive number. Raises UserError where it is something else."""
    if not text.isdecimal() or not int(text):
        raise UserError(f"{name}={text} is no number of {what}: expected {name}=3")
    return int(text)
