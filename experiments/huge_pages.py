"""Huge pages for the memory that a run allocates: its process starts anew with them, once."""

import os
import pathlib
import sys
from collections.abc import Sequence

_VARIABLE = "BRH_JAX_HUGE_PAGES"
_SYSTEM = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages(module: str) -> None:
    """Has the GNU C library ask for huge pages where Linux leaves that to programs.

    Its tunable glibc.malloc.hugetlb is read as a process starts, so that `python -m module` does so again; what was started
    in any other way (a notebook, a debugger, a script on standard input) goes on as it is. XLA allocates the temporary buffer
    of a program at every call, and Linux maps it page by page: on CPUs up to a third of the time of a small ViT's training
    step.
    """
    if _VARIABLE in os.environ or not _is_command(module, sys.orig_argv, sys.argv[1:]):
        return
    given = os.environ.get("GLIBC_TUNABLES")
    tunables = f"glibc.malloc.hugetlb=1:{given}" if given else "glibc.malloc.hugetlb=1"  # the last one holds
    try:
        if "[madvise]" in _SYSTEM.read_text():
            variables = {_VARIABLE: "1", "GLIBC_TUNABLES": tunables}  # children have them, too
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | variables)
    except OSError:  # another system, or one that hides this: without them
        return


def _is_command(module: str, whole: Sequence[str], arguments: Sequence[str]) -> bool:
    """Whether a process's command line `whole` is `python [-flag ...] -m module arguments`."""
    python, *flags = whole[: len(whole) - len(arguments)] or [""]
    plain = all(flag.startswith("-") and flag not in ("-", "-c", "-m") for flag in flags[:-2])
    return bool(python) and [*flags[-2:], *arguments] == ["-m", module, *whole[len(whole) - len(arguments) :]] and plain
