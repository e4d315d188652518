"""Probes on the teacher and on every Raptor: linear classification, segmentation and depth, k-NN and logistic regression."""

from experiments.stage import Stage
from experiments.stages.probes.page import page
from experiments.stages.probes.run import ProbesResult, Settings, merits, reads, ready, run, trained_with

STAGE: Stage = Stage(
    "probes",
    Settings,
    ProbesResult,
    run,
    needs=("teacher",),
    uses=("distill",),
    page=page,
    merits=merits,
    reads=reads,
    ready=ready,
    measures=True,
    trained_with=trained_with,
)
