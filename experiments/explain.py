"""Every setting with its default and what it means: python -m experiments.explain"""

import dataclasses
import inspect
import re

from experiments.pipeline import settings_kinds


def explain(kinds) -> str:
    """Every setting with its default and what the docstring of its dataclass says of it."""
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
    return "\n".join(lines.values())


def _documented(kind: type) -> dict[str, str]:
    """Field -> its sentence in the `Attributes:` of the docstrings of a dataclass and of those it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, attributes = inspect.cleandoc(vars(base).get("__doc__") or "").partition("Attributes:\n")
        for names, text in re.findall(r"^    ([\w, ]+): (.*(?:\n {5,}.*)*)", attributes, re.MULTILINE):
            found |= dict.fromkeys((name.strip() for name in names.split(",")), re.sub(r"\s+", " ", text))
    return found


if __name__ == "__main__":
    print(explain(settings_kinds()))
