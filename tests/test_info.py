"""python -m brh_jax.info: one screen for a report of a fault, whatever is missing on the machine."""

import importlib.metadata
import pathlib

import jax

from brh_jax import __version__, info


def test_one_screen_without_the_name_of_the_user(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("BRH_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert info.main([]) == 0
    said = capsys.readouterr().out
    assert f"brh_jax: {__version__}" in said and f"jax {jax.__version__}" in said and "devices: " in said
    assert "conversions: ~/cache, not there yet" in said and str(tmp_path) not in said and "secret" not in said
    assert len(said.splitlines()) <= 24
    (tmp_path / "cache" / "entry").mkdir(parents=True)
    (tmp_path / "cache" / "entry" / "weights").write_bytes(bytes(10**7))
    assert "conversions: ~/cache, 1 entries, 0.01 GB" in "\n".join(info.lines())


def test_what_is_missing_or_broken_is_said(monkeypatch):
    def nothing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    def broken(*given):
        raise RuntimeError("no driver\nand more")

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    monkeypatch.setattr(jax, "devices", broken)
    monkeypatch.setattr(info.shutil, "which", lambda name: None)
    monkeypatch.setattr(pathlib.Path, "expanduser", broken)
    said = "\n".join(info.lines())
    assert "torch not installed" in said and "devices: cannot tell (RuntimeError: no driver)" in said
    assert "nvcc not installed" in said and "conversions: cannot tell (RuntimeError: no driver)" in said
