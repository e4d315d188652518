"""Under jax's settings of types every model, training step and measure gives what it says: see any_precision.py."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        pytest.param({"JAX_ENABLE_X64": "1"}, id="x64"),
        pytest.param({"JAX_NUMPY_DTYPE_PROMOTION": "strict"}, id="strict", marks=pytest.mark.long),
    ],
)
def test_models_training_and_measures(setting):
    environment = os.environ | setting | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/any_precision.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
