"""Depth as a dynamical system: teacher and Raptors from the same first states."""

from experiments.stage import Stage
from experiments.stages.dynamics.page import page
from experiments.stages.dynamics.results import DynamicsResult
from experiments.stages.dynamics.run import Settings, reads, ready, run

STAGE: Stage = Stage(
    "dynamics",
    Settings,
    DynamicsResult,
    run,
    needs=("teacher", "phases"),
    uses=("distill",),
    page=page,
    reads=reads,
    ready=ready,
    measures=True,
    cheap=True,
)
