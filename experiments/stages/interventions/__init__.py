"""Interventions on the teacher's depth, and hybrids of it with every Raptor."""

from experiments.stage import Stage
from experiments.stages.interventions.page import page
from experiments.stages.interventions.results import InterventionsResult
from experiments.stages.interventions.run import Settings, reads, run

STAGE: Stage = Stage(
    "interventions",
    Settings,
    InterventionsResult,
    run,
    needs=("teacher", "phases"),
    uses=("distill", "probes"),
    page=page,
    reads=reads,
    measures=True,
    cheap=True,
)
