"""Runs start anew with huge pages, once, where the system leaves that to them."""

import os
import subprocess
import sys

import pytest

from experiments import huge_pages

START = """
import os, pathlib, sys
from experiments import huge_pages
huge_pages._SYSTEM = pathlib.Path(sys.argv[1])
huge_pages.restart_with_huge_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[2:])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are asked for on Linux")
@pytest.mark.parametrize(
    ("system", "given", "tunables"),
    [
        ("always [madvise] never", {}, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", {"GLIBC_TUNABLES": "glibc.malloc.check=1"}, "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", {"BRH_JAX_HUGE_PAGES": "0"}, "None"),
        ("[always] madvise never", {}, "None"),
        ("always madvise [never]", {}, "None"),
        (None, {}, "None"),
    ],
)
def test_a_process_starts_anew_with_huge_pages(system, given, tunables, tmp_path):
    file = tmp_path / "enabled"
    if system:
        file.write_text(system)
    kept = {name: value for name, value in os.environ.items() if name not in (huge_pages._VARIABLE, "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", START, str(file), "--config=a b", ""]
    with subprocess.Popen(command, env=kept | given, stdout=subprocess.PIPE, text=True) as process:
        printed = process.communicate()[0]
    assert process.returncode == 0
    assert printed == f"{process.pid} {tunables} ['--config=a b', '']\n"  # the same process, and what it was asked
