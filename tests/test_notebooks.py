"""The notebooks, top to bottom, on a run made for the purpose."""

import os
import pathlib
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from experiments import pipeline

sys.path.insert(0, str(pathlib.Path(__file__).parent / "experiments"))
import tiny

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    """BRH_JAX_NOTEBOOK_RUN names a run to take instead, the quickstart's say."""
    if "BRH_JAX_NOTEBOOK_RUN" not in os.environ:
        config = tiny.get_config().copy_and_resolve_references().unlock()
        config.stages, config.phases.k = ("teacher", "phases", "distill"), (3,)
        pipeline.run(config, tmp_path / "run")
        monkeypatch.setenv("BRH_JAX_NOTEBOOK_RUN", str(tmp_path / "run"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
