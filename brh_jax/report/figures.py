"""One function per figure, from arrays to a matplotlib Figure. Layers are counted from 1, states from 0 (the embedding)."""

import numpy as np
from matplotlib.figure import Figure

from brh_jax.partition import Partition
from brh_jax.report.style import TEACHER, TOKEN_NAMES, colour, fit_order, fit_style, legend, log_scale, styled, ticks


@styled
def dissimilarity(matrix, partitions: list[Partition]) -> Figure:
    """Layer-layer dissimilarity `[depth, depth]`, once for each partition, its phases outlined."""
    matrix = np.asarray(matrix)
    depth = len(matrix)
    figure = Figure(figsize=(3.6 * max(len(partitions), 1) + 0.8, 3.7), layout="constrained")
    axes = figure.subplots(1, max(len(partitions), 1), squeeze=False)[0]
    for axis, partition in zip(axes, partitions, strict=True):
        image = axis.imshow(matrix, cmap="magma_r", extent=(0.5, depth + 0.5, depth + 0.5, 0.5), vmin=0)
        for run in partition.runs:
            corner, side = run.start + 0.5, run.stop - run.start
            axis.plot(
                corner + np.array([0, side, side, 0, 0]),
                corner + np.array([0, 0, side, side, 0]),
                color="#0072b2",
                lw=2,
                clip_on=False,
            )
        axis.set_title(f"k = {partition.k}:  {partition}")
        axis.set_xlabel("layer")
        axis.set_xticks(ticks(1, depth))
        axis.set_yticks(ticks(1, depth))
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="1 - cosine", shrink=0.85)
    return figure


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
        log_scale(axis)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    for axis in axes[len(runs) :]:
        axis.set_visible(False)
    return figure


@styled
def fit_per_layer(fits: dict[str, dict], measure: str, label: str, floor: float | None = None) -> Figure:
    """A measure of agreement with the teacher per layer, one panel per token type.

    Args:
        fits: name -> {measure: {token type: [depth]}}; simpler predictions are drawn grey, `..._stage1` dashed, linear blocks
            dotted.
        floor: the axis ends here; lower values are drawn as triangles on it.
    """
    types = [t for t in TOKEN_NAMES if t in next(iter(fits.values()))[measure]]
    figure = Figure(figsize=(3.2 * len(types) + 1.2, 2.9), layout="constrained")
    axes = figure.subplots(1, len(types), squeeze=False, sharey=True)[0]
    order = fit_order(fits)
    for axis, token in zip(axes, types, strict=True):
        for name, fit in fits.items():
            values = np.asarray(fit[measure][token])
            layers = np.arange(1, len(values) + 1)
            drawn = values if floor is None else np.maximum(values, floor)
            style = fit_style(name, order)
            axis.plot(layers, drawn, **style)
            if floor is not None and (values < floor).any():
                axis.plot(layers[values < floor], drawn[values < floor], "v", color=style["color"], ms=5, clip_on=False)
        axis.axhline(0, color="#dddddd", lw=0.8, zorder=0)
        axis.set_title(TOKEN_NAMES[token])
        axis.set_xlabel("layer")
        axis.set_xticks(ticks(1, len(values)))
    if floor is not None:
        axes[0].set_ylim(floor, 1.02)
    axes[0].set_ylabel(label)
    legend(figure, axes[0])
    return figure
