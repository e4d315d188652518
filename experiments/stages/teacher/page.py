"""The teacher on the page."""

from collections.abc import Iterator

from brh_jax.report.html import FigureEntry
from brh_jax.report.training import training_curves
from brh_jax.train.metrics import read_metrics
from experiments.page import Page


def page(page: Page) -> Iterator[FigureEntry]:
    """Yields the loss of a teacher that was trained here."""
    if rows := read_metrics(page.workdir / "teacher" / "training" / "metrics.jsonl"):
        yield page.figure(
            training_curves({"teacher": rows}),
            "teacher",
            "Training of the teacher",
            "A line that still falls at its end is a teacher that was not trained out. Supervised; loss on training images.",
        )
