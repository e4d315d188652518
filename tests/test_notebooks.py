"""The notebooks, top to bottom, in an empty folder and without the network; the tour of dynamics on a run made for it."""

import os
import pathlib
import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from experiments import pipeline

sys.path.insert(0, str(pathlib.Path(__file__).parent / "experiments"))
import tiny

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {"start": 3, "distil": 3, "own_model": 4, "dynamics": 5}  # figures; animations come on top


LONG = {"dynamics", "own_model"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.long] if path.stem in LONG else []) for path in NOTEBOOKS]
)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    """BRH_JAX_NOTEBOOK_RUN names a run to take instead, the quickstart's say."""
    if path.stem == "dynamics" and "BRH_JAX_NOTEBOOK_RUN" not in os.environ:
        config = tiny.get_config().copy_and_resolve_references().unlock()
        config.stages, config.phases.k = ("teacher", "phases", "distill"), (3,)
        pipeline.run(config, tmp_path / "run")
        monkeypatch.setenv("BRH_JAX_NOTEBOOK_RUN", str(tmp_path / "run"))
    # One device, as a reader has it; the last mention of a flag counts. Hundreds of steps are worth more of the compiler.
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=1"
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {flags}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # what is tested lies here, whatever is installed
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(tmp_path))
    if kept := os.environ.get("BRH_JAX_NOTEBOOKS_TO"):  # to look at
        nbformat.write(notebook, pathlib.Path(kept) / path.name)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= PICTURES[path.stem]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_in_colab_and_installs_first(path):
    notebook = nbformat.read(path, as_version=4)
    first, second = notebook.cells[:2]
    opened = re.search(r"colab\.research\.google\.com/github/([\w-]+/[\w-]+)/blob/main/notebooks/([\w.]+)\)", first.source)
    assert opened[2] == path.name
    installed = re.search(r"%pip install -q git\+https://github\.com/([\w-]+/[\w-]+)", second.source)
    assert installed[1] == opened[1]
    assert not [cell for cell in notebook.cells if cell.get("outputs")]  # nobody's own results are kept
