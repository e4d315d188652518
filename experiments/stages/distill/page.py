"""The training of the Raptors on the page, and what they cost."""

from collections.abc import Iterator

from brh_jax.report.html import FigureEntry
from brh_jax.report.training import training_curves
from brh_jax.train.metrics import read_metrics
from experiments.page import Page
from experiments.stages.distill.run import DistillResult


def page(page: Page) -> Iterator[FigureEntry]:
    """Yields the losses of all trainings."""
    trainings = {
        title: rows
        for raptor in page.result(DistillResult).raptors.values()
        for title, folder in raptor.trainings.items()
        if (rows := read_metrics(page.workdir / "distill" / folder / "metrics.jsonl"))
    }
    if trainings:
        yield page.figure(
            training_curves(trainings),
            "training",
            "Training",
            "Stage 1 trains every block on its own phase from the teacher's states; stage 2 joins the blocks and rolls them out "
            "from the first state. The losses are weighted differently and do not compare across stages.",
        )
