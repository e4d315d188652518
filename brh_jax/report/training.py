"""Figures of trainings: loss against step, and what is measured on the way against images seen."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from brh_jax.report.style import TEACHER, TOKEN_NAMES, colour, legend, log_scale, styled
from brh_jax.report.values import GUIDE


@styled
def training_curves(runs: dict[str, list[dict]], columns: int = 2) -> Figure:
    """Loss against step: one panel per run, the mean in black and, where they were trained side by side, each block's own.

    Args:
        runs: title -> rows of a metrics file (`step`, `loss`, `loss_phase_1`, ..., `teacher_forcing`).
        columns: panels in a row.
    """
    columns = min(len(runs), columns)
    lines = -(-len(runs) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (title, rows) in zip(axes, runs.items(), strict=False):
        steps = [r["step"] for r in rows]
        blocks = [k for k in (rows[0] if rows else {}) if k.startswith("loss_phase_")]
        blocks.sort(key=lambda k: int(k.removeprefix("loss_phase_")))
        for i, name in enumerate(blocks):
            axis.plot(steps, [r[name] for r in rows], color=colour(i), lw=1, label=f"block {i + 1}")
        axis.plot(steps, [r["loss"] for r in rows], color=TEACHER, lw=1.6, label="mean" if blocks else "loss")
        annealed = [r["step"] for r in rows if r.get("teacher_forcing", 0) > 0]
        if annealed:
            axis.axvspan(0, max(annealed), color="#eeeeee", lw=0, label="teacher\nforcing\nannealed")
        if all(value > 0 for r in rows for key, value in r.items() if key.startswith("loss")):
            log_scale(axis)
        # A logarithm of errors falls below zero, and is on such a scale already.
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    for axis in axes[len(runs) :]:
        axis.set_visible(False)
    return figure


# Of each model its trainings, one after the other: rows with the `images` that it has seen till then.
Measured = Mapping[str, Sequence[Sequence[dict]]]


@styled
def validation_curves(models: Measured, floor: float = -1.0) -> Figure:
    """What was measured of models as they trained, against the images seen; the last training of each as a full line.

    A column for each token type with R², mean over layers above and of the last layer below; then e over the state's norm and,
    where there is a classifier, how often it decides as on the teacher's state (dotted) and its accuracy, the teacher's in black.

    Args:
        models: see `distill.validation.figures` for a row.
        floor: the axis of R² ends here; lower values are marked by triangles on it.
    """
    everything = [row for trainings in models.values() for rows in trainings for row in rows]
    names = {name for row in everything for name in row}
    types = [token for token in TOKEN_NAMES if f"r2_{token}" in names]
    figure = Figure(figsize=(2.7 * (len(types) + 1) + 1.2, 4.6), layout="constrained")
    axes = figure.subplots(2, len(types) + 1, squeeze=False, sharex=True)
    for column, token in enumerate(types):
        for axis, which, title in zip(axes[:, column], ("", "_last"), ("mean of layers", "last"), strict=True):
            _lines(axis, models, f"r2_{token}{which}", floor=floor)
            axis.set_title(f"R² {token}, {title}")
    error, said = axes[:, -1]
    _lines(error, models, "relative_error")
    error.set_title("e / norm of the state")
    _lines(said, models, "same_class", dashes=(":", ":"))
    _lines(said, models, "accuracy")
    for accuracy in [row["teacher_accuracy"] for row in everything if "teacher_accuracy" in row][:1]:
        said.axhline(accuracy, color=TEACHER, lw=1.4)
    said.set_title("accuracy; dotted: same class" if "accuracy" in names else "same class as the teacher")
    said.set_ylim(bottom=0)
    said.set_visible("same_class" in names)
    seen = [row["images"] for row in everything]
    if max(seen) >= 10 * min(seen):
        error.set_xscale("log")
        error.xaxis.set_major_locator(LogLocator(subs=(1, 3) if max(seen) < 1000 * min(seen) else (1,)))
        error.xaxis.set_minor_locator(NullLocator())
    error.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.supxlabel("images seen", fontsize=9)
    legend(figure, axes[0][0])
    return figure


def _lines(axis: Axes, models: Measured, name: str, *, floor: float = -np.inf, dashes: tuple[str, str] = ("--", "-")) -> None:
    """One figure of all models, `dashes` of earlier trainings and of the last; values that are not finite are left out."""
    for number, (model, trainings) in enumerate(models.items()):
        for training, rows in enumerate(trainings):
            points = [(row["images"], row[name]) for row in rows if np.isfinite(row.get(name, np.nan))]
            seen, values = np.array(points).reshape(-1, 2).T
            last = training == len(trainings) - 1
            shade, below = colour(number), seen[values < floor]
            label, gid = (model if last else None), f"{model}, training {training + 1}"
            axis.plot(seen, values, dashes[last], marker=".", ms=4, color=shade, lw=1.5, label=label, gid=gid)
            if len(below):
                axis.plot(below, np.full(len(below), floor), "v", color=shade, ms=5, clip_on=False, gid=GUIDE)
    if np.isfinite(floor):
        axis.axhline(0, color="#dddddd", lw=0.8, zorder=0)
        axis.set_ylim(floor, 1.02)
