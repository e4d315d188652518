"""The training of the Raptors on the page, and what was measured on the way."""

import pathlib
from collections.abc import Iterator

from brh_jax.report.html import FigureEntry
from brh_jax.report.training import training_curves, validation_curves
from brh_jax.train.metrics import read_metrics
from experiments.page import Page
from experiments.stages.distill.run import DistillResult, RaptorResult


def page(page: Page) -> Iterator[FigureEntry]:
    """Yields the losses of all trainings, and what was measured of the Raptors as they trained."""
    raptors = page.result(DistillResult).raptors
    trainings = {
        title: rows
        for raptor in raptors.values()
        for title, folder in raptor.trainings.items()
        if (rows := read_metrics(page.workdir / "distill" / folder / "metrics.jsonl"))
    }
    if trainings:
        yield page.figure(
            training_curves(trainings),
            "training",
            "Training",
            "A line that still falls at its end would gain from more steps. Stage 1 trains every block on its own phase from "
            "the teacher's states; stage 2 joins the blocks and rolls them out from the first state. The losses are weighted "
            "differently and do not compare across stages. Where layers start from the teacher's states at first (shaded), a "
            "loss may rise as fewer of them do.",
        )
    measured = {name: validations(page.workdir, raptor) for name, raptor in raptors.items()}
    if any(rows for each in measured.values() for rows in each):
        yield page.figure(
            validation_curves(measured),
            "validation",
            "On the way",
            "What the training was worth to images that it did not see. Always the same few of them: the blocks joined and "
            "rolled out from the first state, in stage 1 (dashed) as in stage 2. R² below -1 is marked by triangles; the "
            "black line is the teacher's accuracy.",
        )


def validations(workdir: pathlib.Path, raptor: RaptorResult) -> list[list[dict]]:
    """The rows of each training of a Raptor, images counted from the start of the first."""
    found, before = [], 0
    for folder in raptor.trainings.values():
        rows = read_metrics(workdir / "distill" / folder / "validation" / "metrics.jsonl")
        rows = [row | {"images": before + row["images"]} for row in rows if isinstance(row.get("images"), int)]
        before = max([before, *(row["images"] for row in rows)])
        found.append(rows)
    return found
