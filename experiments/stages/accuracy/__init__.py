"""Accuracy of the teacher's own classifier, and of its snapshots'."""

from experiments.stage import Stage
from experiments.stages.accuracy.run import AccuracyResult, Settings, run

STAGE: Stage = Stage("accuracy", Settings, AccuracyResult, run, needs=("teacher",), measures=True, cheap=True, follows="teacher")
