"""Extending a run takes what docs/extending.md says: a stage one folder and a line, a setting one place."""

import dataclasses
import pathlib
import sys

import pytest

from experiments import pipeline, stages
from experiments.configs import default
from experiments.runs import read_results, schema

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny

# The folder experiments/stages/norms/, as one module.
NORMS = '''
"""Norms of the teacher's parameters."""

import dataclasses

import jax
import numpy as np

from brh_jax.errors import expect_positive
from brh_jax.report.html import Table
from experiments.settings import Seeded
from experiments.stage import Stage
from experiments.stages.teacher.run import read_teacher


@dataclasses.dataclass(frozen=True)
class NormSettings:
    """Which norm is taken.

    Attributes:
        order: of the norm.
    """

    order: float = 2.0

    def __post_init__(self):
        expect_positive(self, "order")


@dataclasses.dataclass(frozen=True)
class Settings(Seeded):
    norms: NormSettings = NormSettings()


@dataclasses.dataclass(frozen=True)
class NormsResult:
    largest: float


def run(context, settings):
    leaves = jax.tree.leaves(read_teacher(context).params)
    return NormsResult(max(float(np.linalg.norm(np.ravel(leaf), settings.norms.order)) for leaf in leaves))


def page(page):
    yield Table("Norms", ["largest"], [[f"{page.result(NormsResult).largest:.3f}"]])


STAGE = Stage("norms", Settings, NormsResult, run, needs=("teacher",), page=page, measures=True, cheap=True)
'''


@pytest.fixture
def norms(tmp_path, monkeypatch):
    (tmp_path / "norms_stage.py").write_text(NORMS)
    monkeypatch.syspath_prepend(tmp_path)
    import norms_stage

    monkeypatch.setattr(stages, "STAGES", (*stages.STAGES, norms_stage.STAGE))  # the one line
    yield norms_stage
    del sys.modules["norms_stage"]


def test_a_stage_is_one_folder_and_a_line(norms, tmp_path, capsys):
    assert default.get_config().norms.order == 2.0
    config = tiny.get_config().unlock()
    config.stages = ("teacher", "norms", "report")
    first = pipeline.run(config, tmp_path / "run").get(norms.NormsResult)
    assert first.largest > 0 and "Norms" in (tmp_path / "run/report/index.html").read_text()
    assert read_results(tmp_path / "run/results.json").get(norms.NormsResult) == first
    assert "NormsResult" in schema()["$defs"]
    config.norms.order = 1.0
    capsys.readouterr()
    second = pipeline.run(config, tmp_path / "run").get(norms.NormsResult)
    out = capsys.readouterr().out
    assert second.largest > first.largest
    assert "norms: measured again (norms.order: 2.0 there, 1.0 here)" in out and "teacher: done before, skipped" in out


def test_a_setting_is_one_place(monkeypatch):
    """A field with its docstring and its check: the configuration, its checks and what explains it follow."""
    phases = next(stage for stage in stages.STAGES if stage.name == "phases")
    settings = dataclasses.make_dataclass(
        "PhaseSettings", [("depth_of_field", int, 7)], bases=(type(phases.Settings().phases),), frozen=True
    )
    kind = dataclasses.make_dataclass("Settings", [("phases", settings, settings())], bases=(phases.Settings,), frozen=True)
    changed = dataclasses.replace(phases, Settings=kind)
    monkeypatch.setattr(stages, "STAGES", tuple(changed if stage is phases else stage for stage in stages.STAGES))
    config = default.get_config()
    assert config.phases.depth_of_field == 7
    with config.unlocked():
        config.phases.depth_of_field = 8
    assert pipeline.read_settings(config)[1]["phases"].phases.depth_of_field == 8
