"""A whole run on teachers that lack a class token, a position table, registers, or have a norm before the blocks."""

import json
import pathlib
import sys

import pytest

import brh_jax
from experiments import pipeline
from experiments.stages.agreement import AgreementResult
from experiments.stages.dynamics import DynamicsResult
from experiments.stages.probes import ProbesResult
from weights_convert.__main__ import main as convert_main

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "parity"))
import tiny
from references import make


@pytest.mark.parametrize(
    "family, tokens",
    [
        ("siglip", {"patches"}),
        ("dinov3", {"cls", "registers", "patches"}),
        pytest.param("clip", {"cls", "patches"}, marks=pytest.mark.long),
    ],
)
def test_phases_losses_probes_and_dynamics(family, tokens, tmp_path):
    # Patches of 2 pixels on digits of 8; DINOv3 on a grid that is no square.
    changes = {"patch_size": 2, "image_size": 8, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    make(family, tmp_path / "source", **changes)
    size = "8x12" if family == "dinov3" else "8"
    assert convert_main([str(tmp_path / "source"), str(tmp_path / "teacher"), f"--image-size={size}"]) == 0
    config = tiny.get_config().unlock()
    config.teacher.source, config.data.image_size = str(tmp_path / "teacher"), 0
    config.phases.k = (2,)
    config.distill.stage1.steps = config.distill.stage2.steps = 4
    config.probe.epochs = 1
    results = pipeline.run(config.lock(), tmp_path / "run")
    assert set(results.get(AgreementResult).fits["k2"].r2) == tokens
    bands = results.get(DynamicsResult).models["k2"].bands
    assert {band.token for name, band in bands.items() if name.startswith("speed")} == tokens
    assert 0 <= results.get(ProbesResult).linear.models["k2"].accuracy.value <= 1
    raptor = brh_jax.load(tmp_path / "run")
    assert raptor.layout == brh_jax.load(tmp_path / "teacher").layout
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results.as_json()
