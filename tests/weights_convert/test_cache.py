"""Conversions kept: keyed by content, whole or not there, safe with several processes."""

import os
import pathlib
import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
from references import edit_config, make, rewrite, tensors

import brh_jax
from weights_convert import cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BRH_JAX_CACHE", str(tmp_path / "cache"))
    make("dinov2", tmp_path / "hf")
    return tmp_path / "hf"


def entries():
    return sorted(p.name for p in cache.cache_folder().iterdir())


def test_converted_once_and_said(folder, capfd, monkeypatch):
    first = brh_jax.load(folder)
    assert "DINOv2 (safetensors, transformers)" in capfd.readouterr().err
    monkeypatch.setattr(cache, "convert", None)  # cannot convert again
    second = brh_jax.load(folder)
    assert capfd.readouterr().err == ""
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert first.config == second.config and first.preprocessing == second.preprocessing
    assert len(entries()) == 1


def test_other_content_is_another_entry(folder):
    brh_jax.load(folder)
    state = tensors(folder)
    state["layernorm.weight"] += 1
    rewrite(folder, state)
    assert float(brh_jax.load(folder).params["norm"]["scale"][0]) == pytest.approx(float(state["layernorm.weight"][0]))
    edit_config(folder, layer_norm_eps=1e-3)
    assert brh_jax.load(folder).config.layer_norm_eps == 1e-3
    assert len(entries()) == 3


def test_the_way_to_the_files_does_not_matter(folder, monkeypatch):
    brh_jax.load(folder)
    monkeypatch.chdir(folder.parent)
    brh_jax.load("hf")
    brh_jax.load("./hf/")
    assert len(entries()) == 1


def test_fingerprint_is_of_content_and_names_not_of_the_place(folder, tmp_path):
    prints = [cache.fingerprint(str(folder))]
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    assert [cache.fingerprint(str(elsewhere))] == prints == [cache.fingerprint(f"{elsewhere / 'model.safetensors'}")]
    edit_config(folder, layer_norm_eps=1e-3)  # what lies beside the weights
    prints.append(cache.fingerprint(str(folder)))
    state = tensors(folder)
    state["layernorm.weight"] += 1  # as many bytes as before
    rewrite(folder, state)
    prints.append(cache.fingerprint(str(folder)))
    (folder / "model.safetensors").rename(folder / "renamed.safetensors")
    prints.append(cache.fingerprint(str(folder)))
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    (folder / "open_clip_config.json").write_text("{}")  # one more
    prints.append(cache.fingerprint(str(folder)))
    assert len(set(prints)) == 5
    brh_jax.load(elsewhere)
    (entry,) = entries()
    assert cache.fingerprint(str(cache.cache_folder() / entry)) != prints[0]  # what store wrote has one too


def test_a_damaged_entry_is_made_anew(folder):
    expected = brh_jax.load(folder)
    file = cache.cache_folder() / entries()[0] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    jax.tree.map(np.testing.assert_array_equal, brh_jax.load(folder).params, expected.params)
    assert len(entries()) == 1


@pytest.mark.parametrize("damage", ["flipped", "emptied", "no configuration", "a file", "a link to nothing"])
def test_an_entry_heals(folder, damage, capfd):
    expected = brh_jax.load(folder)
    (entry,) = cache.cache_folder().iterdir()
    weights = entry / "model.safetensors"
    if damage == "flipped":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    elif damage == "no configuration":
        (entry / "config.json").write_text("{")
    else:
        shutil.rmtree(entry)
        if damage == "emptied":
            entry.mkdir()
        elif damage == "a file":
            entry.write_text("")
        else:
            entry.symlink_to("nowhere")
    capfd.readouterr()
    for said in (True, False):  # the second time it is whole
        jax.tree.map(np.testing.assert_array_equal, brh_jax.load(folder).params, expected.params)
        err = capfd.readouterr().err
        assert ("DINOv2 (safetensors, transformers)" in err) == said and "not kept" not in err
        assert ("was damaged and is made anew" in err) == (said and damage == "flipped")
    assert entries() == [entry.name]


@pytest.mark.parametrize("trouble", ["full disk", "nobody's home", "read-only and damaged"])
def test_load_works_without_its_cache(folder, trouble, monkeypatch, capfd, request):
    expected = brh_jax.load(folder).params
    (entry,) = cache.cache_folder().iterdir()
    if trouble == "full disk":
        shutil.rmtree(entry)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))
    elif trouble == "nobody's home":
        for name in ("BRH_JAX_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(pathlib.Path, "expanduser", lambda path: _no_home(path))
    else:
        (entry / "model.safetensors").write_bytes(b"")

        def refuse(*args, **options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(cache.tempfile, "mkdtemp", refuse)
    capfd.readouterr()
    jax.tree.map(np.testing.assert_array_equal, brh_jax.load(folder).params, expected)
    said = [line for line in capfd.readouterr().err.splitlines() if "not kept" in line]
    assert len(said) == 1 and "BRH_JAX_CACHE names another folder" in said[0]


def _no_home(path):
    if str(path).startswith("~"):
        raise RuntimeError("Could not determine home directory.")
    return path


def test_a_cache_that_cannot_be_written_does_not_matter(folder, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BRH_JAX_CACHE", str(tmp_path / "file" / "below"))
    assert brh_jax.load(folder).depth == 3
    assert "BRH_JAX_CACHE names another folder" in capfd.readouterr().err


def test_several_processes_at_once(folder):
    code = "import sys, brh_jax, numpy; print(float(numpy.sum(brh_jax.load(sys.argv[1]).params['norm']['scale'])))"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert len(entries()) == 1
