"""The stages of a run, in order: one folder each, and one line here."""

from experiments.stages import accuracy, agreement, distill, dynamics, interventions, phases, probes, teacher

STAGES = (
    teacher.STAGE,
    accuracy.STAGE,
    phases.STAGE,
    distill.STAGE,
    agreement.STAGE,
    probes.STAGE,
    interventions.STAGE,
    dynamics.STAGE,
)
