"""Distillation of the teacher into a Raptor for every partition."""

from experiments.stage import Stage
from experiments.stages.distill.page import page
from experiments.stages.distill.run import DistillResult, Settings, ready, run

STAGE: Stage = Stage("distill", Settings, DistillResult, run, needs=("teacher", "phases"), page=page, ready=ready)
