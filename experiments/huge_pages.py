"""Huge pages for the memory that a run allocates: the process starts anew with them, once."""

import os
import pathlib
import sys

_VARIABLE = "BRH_JAX_HUGE_PAGES"
_SYSTEM = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Has the GNU C library ask for huge pages where Linux leaves that to programs.

    Its tunable glibc.malloc.hugetlb is read as a process starts, so that this one does so again. Nothing happens elsewhere, or
    where $BRH_JAX_HUGE_PAGES says something. XLA allocates the temporary buffer of a program at every call, and Linux maps it
    page by page: on CPUs a third of the time of a small ViT's training step.
    """
    if _VARIABLE in os.environ or not sys.executable or not _SYSTEM.exists() or "[madvise]" not in _SYSTEM.read_text():
        return
    given = os.environ.get("GLIBC_TUNABLES")
    os.environ["GLIBC_TUNABLES"] = f"{given}:glibc.malloc.hugetlb=1" if given else "glibc.malloc.hugetlb=1"
    os.environ[_VARIABLE] = "1"  # children have them, too
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
