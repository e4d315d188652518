"""What a training step spends its time on: the operations of its program, by what they are for and of what kind they are."""

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax

# By the name that jax gives an operation, the first that is found in it.
_FOR = {
    "backward, recomputed": r"rematted_computation",
    "backward": r"transpose\(jvp|/checkpoint/",
    "teacher": r"/ViT/|/ViT\.",
    "forward": r"jvp\(",
}
# By the instruction, then by the last part of that name.
_KINDS = {
    "loops": r"^(while|conditional|call)\b",
    "products": r"^(dot|ynn|custom-call|cublas|gemm)|dot_general$",
    "sums": r"^(reduce|wrapped_reduce)|reduce_\w+$",
    "copies": r"^(copy|transpose)|transpose$|concatenate$|pad$|slice$",
    "what is kept for later": r"wrapped_broadcast|dynamic-update-slice|dynamic_update_slice$",
}


def by_operation(run: Callable[[], Any], program: str, steps: int = 3) -> dict[tuple[str, str], float]:
    """Seconds a step of each (purpose, kind), summed over threads, as jax's profiler has them.

    Args:
        run: does a step; what it gives is waited for.
        program: the compiled step, as text.
    """
    names = _names(program)
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                jax.block_until_ready(run())
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            for name, seconds in _operations(path):
                found[purpose(names.get(name, "")), kind(name, names.get(name, ""))] += seconds / steps
    return dict(found)


def purpose(operation: str) -> str:
    """What an operation is for, by the name that jax gave it."""
    return next((what for what, pattern in _FOR.items() if re.search(pattern, operation)), "optimiser, loss and the rest")


def kind(instruction: str, operation: str) -> str:
    """Of which kind it is, by the instruction's name in the compiled program, then by jax's."""
    found = (what for name in (instruction, operation) for what, pattern in _KINDS.items() if re.search(pattern, name))
    return next(found, "element by element")


def _names(program):
    """Instruction -> the name that jax gave it."""
    found = {}
    for line in program.splitlines():
        instruction = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        operation = re.search(r'op_name="([^"]*)"', line)
        if instruction:
            found[instruction[1]] = operation[1] if operation else ""
    return found


def _operations(path):
    """(instruction, seconds) of every one that was run, without the time of those that ran inside it on its thread."""
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            events = ((event.start_ns, event.duration_ns, dict(event.stats).get("hlo_op")) for event in line.events)
            yield from _alone(sorted((start, -length, name) for start, length, name in events if name is not None))


def _alone(events):
    """(name, seconds) of intervals `(start, -length, name)` in order, each without those that lie within it."""
    around: list[list] = []  # [end, name, what is left of its length]
    for start, negative, name in events:
        while around and start >= around[-1][0]:
            _, done, left = around.pop()
            yield done, left / 1e9
        if around:
            around[-1][2] += negative
        around.append([start - negative, name, -negative])
    for _, done, left in around:
        yield done, left / 1e9
