"""Agreement of the Raptors with their teacher, state by state."""

from experiments.stage import Stage
from experiments.stages.agreement.page import page
from experiments.stages.agreement.run import AgreementResult, Settings, merits, ready, run

STAGE: Stage = Stage(
    "agreement",
    Settings,
    AgreementResult,
    run,
    needs=("teacher", "phases", "distill"),
    page=page,
    ready=ready,
    merits=merits,
    measures=True,
    cheap=True,
    follows="distill",
)
