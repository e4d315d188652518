"""Agreement of the Raptors with their teacher, state by state."""

from experiments.stage import Stage
from experiments.stages.agreement.page import page
from experiments.stages.agreement.run import AgreementResult, Settings, merits, reads, run

STAGE: Stage = Stage(
    "agreement",
    Settings,
    AgreementResult,
    run,
    needs=("teacher", "phases", "distill"),
    page=page,
    merits=merits,
    reads=reads,
    measures=True,
    cheap=True,
    follows="distill",
)
