"""Phases of depth, found from the similarity of layers."""

from experiments.stage import Stage
from experiments.stages.phases.page import page
from experiments.stages.phases.run import PhasesResult, Settings, ready, run

STAGE: Stage = Stage("phases", Settings, PhasesResult, run, needs=("teacher",), page=page, ready=ready)
