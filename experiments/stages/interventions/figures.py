"""Figures of interventions on depth. Layers are counted from 1; every measure is of the last state, and larger the worse."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from brh_jax.partition import Partition
from brh_jax.report.style import BASELINE, TEACHER, colour, legend, log_scale, styled
from brh_jax.report.values import GUIDE
from experiments.interval import edges
from experiments.stages.interventions.results import Effect, HybridPhase, HybridResult, LayersResult, PhaseSwaps

INTRA, INTER = colour(0), colour(1)
# Of the last state after the final norm.
LABELS = {
    "change": "1 - cosine of\n[cls, mean patch]",
    "distance": "relative distance of\n[cls, mean patch]",
    "token_change": "1 - cosine,\nmean of tokens",
    "token_distance": "relative distance\nof all tokens",
    "error": "images misclassified",
}
_PARTS = {
    "layer": ("whole layer", TEACHER, "-"),
    "attention": ("attention", colour(2), "--"),
    "mlp": ("feed-forward", colour(3), ":"),
}


@styled
def swap_matrices(matrices: dict[str, list[list[float | None]]], partition: Partition, label: str) -> Figure:
    """Effect of running layer j at the place of layer i, on a logarithmic scale; the phases are outlined.

    Args:
        matrices: title -> `[place][layer]`, None where it was not measured; grey there.
        label: of the colours.
    """
    figure = Figure(figsize=(3.9 * len(matrices), 3.7), layout="constrained")
    for axis, (title, matrix) in zip(figure.subplots(1, len(matrices), squeeze=False)[0], matrices.items(), strict=True):
        values = np.array(matrix, float)
        depth, positive = len(values), values[values > 0]
        # Effects of rounding error would stretch the scale over nothing.
        low = max(positive.min(), 1e-4 * positive.max()) if positive.size else 1e-3
        norm = LogNorm(low, max(positive.max() if positive.size else 1, 1.01 * low), clip=True)
        axis.set_facecolor("#dddddd")
        image = axis.imshow(values, cmap="magma_r", norm=norm, extent=(0.5, depth + 0.5, depth + 0.5, 0.5))
        for run in partition.runs:
            corner, side = run.start + 0.5, run.stop - run.start
            square = corner + np.array([[0, side, side, 0, 0], [0, 0, side, side, 0]])
            axis.plot(*square, color=INTRA, lw=2, clip_on=False, gid=GUIDE)
        axis.set_title(title)
        axis.set_xlabel("layer that runs there")
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(7, integer=True))
        for spine in axis.spines.values():
            spine.set_visible(False)
        figure.colorbar(image, ax=axis, shrink=0.8).ax.set_title(label, fontsize=8, loc="left")
    figure.axes[0].set_ylabel("layer replaced")
    return figure


@styled
def swaps_by_distance(groups: dict[str, PhaseSwaps], unchanged: Effect, measures: Sequence[str]) -> Figure:
    """Mean effect of swaps within phases and across them against their distance, a column per sort of swap.

    Args:
        groups: by title.
        unchanged: of the trained order, drawn grey.
        measures: keys of LABELS, a row each.
    """
    figure, axes = _panels(measures, list(groups), "distance |i - j| (layers)", (2.4 * len(groups) + 1.3), sharex=True)
    for line, measure in zip(axes, measures, strict=True):
        for axis, group in zip(line, groups.values(), strict=True):
            for points, label, tint, marker in (
                (group.intra, "within a phase", INTRA, "o"),
                (group.inter, "across phases", INTER, "s"),
            ):
                mean, low, high = edges([point.effect[measure] for point in points])
                style = {"fmt": f"{marker}-", "ms": 4, "lw": 1.2, "capsize": 2, "color": tint, "label": label}
                axis.errorbar([float(p.distance) for p in points], mean, [mean - low, high - mean], **style)
            axis.axhline(unchanged[measure].value, color=BASELINE, lw=0.9, ls=":", zorder=0, label="trained order")
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend(figure, axes[0][0])
    return figure


@styled
def layer_effects(groups: Sequence[LayersResult], partitions: Sequence[Partition], measures: Sequence[str]) -> Figure:
    """What deleting (left) and repeating (right) each layer, or half of it, does; bands are bootstrap intervals over images.

    Args:
        partitions: their boundaries are drawn as dotted lines.
        measures: keys of LABELS, a row each.
    """
    actions = {"delete": "layer left out", "repeat": "layer applied twice"}
    figure, axes = _panels(measures, list(actions.values()), "layer", 8.6, sharex=True)
    for line, measure in zip(axes, measures, strict=True):
        for axis, action in zip(line, actions, strict=True):
            for group in (group for part in _PARTS for group in groups if (group.action, group.part) == (action, part)):
                label, tint, style = _PARTS[group.part]
                mean, low, high = edges(group.effects[measure])
                layers = np.arange(1, len(mean) + 1)
                axis.plot(layers, mean, style, color=tint, marker=".", lw=1.4, label=label)
                axis.fill_between(layers, low, high, color=tint, alpha=0.15, lw=0, gid=label)
            for number, partition in enumerate(partitions):
                for cut in partition.boundaries:
                    axis.axvline(cut + 0.5 + 0.06 * number, color=colour(number), lw=0.9, ls=":", zorder=0)
            axis.xaxis.set_major_locator(MaxNLocator(7, integer=True))
            if measure != "error":
                log_scale(axis)
    legend(figure, axes[0][0])
    return figure


@styled
def hybrids(results: Sequence[HybridResult], unchanged: Effect, measures: Sequence[str]) -> Figure:
    """What each phase costs: the Raptor's block for the teacher's layers of a phase, and the reverse, a column per Raptor.

    Args:
        unchanged: of the teacher.
        measures: keys of LABELS, a row each.
    """
    widths = [len(one.phases) for one in results]
    size = max(1.25 * sum(widths), 2.2 * len(results)) + 2.3
    titles = [f"k = {one.k}" for one in results]
    figure, axes = _panels(measures, titles, "layers of the phase", size, sharex="col", width_ratios=widths)
    for line, measure in zip(axes, measures, strict=True):
        for axis, one in zip(line, results, strict=True):
            _bars(axis, one.phases, measure)
            axis.axhline(one.raptor[measure].value, color=TEACHER, lw=1.1, ls="--", label="Raptor alone")
            if measure == "error":
                axis.axhline(unchanged[measure].value, color=BASELINE, lw=1.1, ls=":", label="teacher alone")
            axis.set_xticks(np.arange(len(one.phases)), [phase.layers for phase in one.phases])
    legend(figure, axes[-1][0])
    return figure


def _bars(axis, phases: Sequence[HybridPhase], measure: str) -> None:
    places = np.arange(len(phases))
    sorts = (
        (-0.19, "Raptor's block\nin the teacher", INTER, [phase.raptor_in_teacher for phase in phases]),
        (0.19, "teacher's layers\nin the Raptor", INTRA, [phase.teacher_in_raptor for phase in phases]),
    )
    for shift, label, tint, effects in sorts:
        mean, low, high = edges([effect[measure] for effect in effects])
        style = {"width": 0.36, "color": tint, "label": label, "ecolor": TEACHER, "error_kw": {"capsize": 2, "lw": 0.9}}
        axis.bar(places + shift, mean, yerr=[mean - low, high - mean], **style)


def _panels(measures: Sequence[str], titles: Sequence[str], label: str, width: float, **options):
    """A figure with a row for each measure and a column for each title, and its axes."""
    figure = Figure(figsize=(width, 2.3 * len(measures) + 0.3), layout="constrained")
    axes = figure.subplots(len(measures), len(titles), squeeze=False, sharey="row", **options)
    for line, measure in zip(axes, measures, strict=True):
        line[0].set_ylabel(LABELS[measure])
        if measure == "error":
            for axis in line:
                axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for axis in axes[-1]:
        axis.set_xlabel(label)
    return figure, axes
