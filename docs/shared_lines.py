"""Docstrings here may describe several arguments in one line, `first, second: ...`: the reference has a line for each."""

import re

import griffe

_SHARED = re.compile(r"^( {4,})(\w+(?:, \**\w+)+): (.*(?:\n\1 .*)*)", re.MULTILINE)


class SharedLines(griffe.Extension):
    """Takes such lines apart before a docstring is read."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _SHARED.sub(_apart, obj.docstring.value)


def _apart(found: re.Match) -> str:
    indent, names, text = found.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
