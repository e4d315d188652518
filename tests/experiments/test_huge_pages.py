"""Runs start anew with huge pages, once, where the system leaves that to them."""

import os
import subprocess
import sys

import pytest

from experiments import huge_pages

START = """
import os, pathlib, sys
from experiments import huge_pages
huge_pages._SYSTEM = pathlib.Path(os.environ["SYSTEM"])
huge_pages.restart_with_huge_pages("started")
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""
OWN = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are asked for on Linux")
@pytest.mark.parametrize(
    ("system", "given", "tunables"),
    [
        ("always [madvise] never", {}, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", OWN, "glibc.malloc.hugetlb=1:glibc.malloc.hugetlb=0"),
        ("always [madvise] never", {"BRH_JAX_HUGE_PAGES": "0"}, "None"),
        ("[always] madvise never", {}, "None"),
        (None, {}, "None"),
    ],
)
def test_a_process_starts_anew_with_huge_pages(system, given, tunables, tmp_path):
    (tmp_path / "started.py").write_text(START)
    if system:
        (tmp_path / "enabled").write_text(system)
    kept = {name: value for name, value in os.environ.items() if name not in (huge_pages._VARIABLE, "GLIBC_TUNABLES")}
    places = {"SYSTEM": str(tmp_path / "enabled"), "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    command = [sys.executable, "-m", "started", "--config=a b", ""]
    with subprocess.Popen(command, env=kept | places | given, stdout=subprocess.PIPE, text=True) as process:
        printed = process.communicate()[0]
    assert process.returncode == 0
    assert printed == f"{process.pid} {tunables} ['--config=a b', '']\n"  # the same process, and what it was asked


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        ("python -m experiments.main --config=x", True),
        ("python -u -O -m experiments.main --config=x", True),
        ("python - --config=x", False),
        ("python -m pdb -m experiments.main --config=x", False),
        ("python script.py -m experiments.main --config=x", False),
        ("python -m ipykernel_launcher -f kernel.json", False),
        ("--config=x", False),
    ],
)
def test_nothing_else_is_started_anew(line, ours):
    assert huge_pages._is_command("experiments.main", line.split(), ["--config=x"]) is ours


def test_where_it_cannot_be_started_anew_the_run_goes_on(monkeypatch, tmp_path):
    (tmp_path / "enabled").write_text("[madvise]")
    monkeypatch.setattr(huge_pages, "_SYSTEM", tmp_path / "enabled")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.main"])
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    monkeypatch.delenv("BRH_JAX_HUGE_PAGES", raising=False)
    before = dict(os.environ)
    huge_pages.restart_with_huge_pages("experiments.main")
    assert dict(os.environ) == before
