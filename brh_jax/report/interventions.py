"""Figures of interventions on depth. Layers are counted from 1; every measure is of the last state, and larger the worse."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from brh_jax.partition import Partition
from brh_jax.report.style import BASELINE, TEACHER, colour, legend, log_scale, styled

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
def swap_matrices(matrices: dict[str, list], partition: Partition, label: str) -> Figure:
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
        norm = LogNorm(low, max(positive.max() if positive.size else 1, 1.01 * low))
        axis.set_facecolor("#dddddd")
        shown = np.where(np.isnan(values), np.nan, np.maximum(values, low))
        image = axis.imshow(shown, cmap="magma_r", norm=norm, extent=(0.5, depth + 0.5, depth + 0.5, 0.5))
        for run in partition.runs:
            corner, side = run.start + 0.5, run.stop - run.start
            square = corner + np.array([[0, side, side, 0, 0], [0, 0, side, side, 0]])
            axis.plot(*square, color=INTRA, lw=2, clip_on=False)
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
def swaps_by_distance(groups: dict[str, dict], unchanged: dict, measures) -> Figure:
    """Mean effect of swaps within phases and across them against their distance, a column per sort of swap.

    Args:
        groups: title -> {"intra", "inter": [{"distance", "measures": measure -> {"mean", "low", "high"}}]}.
        unchanged: measure -> {"mean": [value]} of the trained order, drawn grey.
        measures: keys of LABELS, a row each.
    """
    figure = Figure(figsize=(2.4 * len(groups) + 1.3, 2.3 * len(measures) + 0.3), layout="constrained")
    axes = figure.subplots(len(measures), len(groups), squeeze=False, sharey="row", sharex=True)
    for line, measure in zip(axes, measures, strict=True):
        for axis, group in zip(line, groups.values(), strict=True):
            for name, tint, marker in (("intra", INTRA, "o"), ("inter", INTER, "s")):
                band = {k: np.array([point["measures"][measure][k] for point in group[name]]) for k in ("mean", "low", "high")}
                distance = np.array([point["distance"] for point in group[name]], float)
                error = [band["mean"] - band["low"], band["high"] - band["mean"]]
                label = {"intra": "within a phase", "inter": "across phases"}[name]
                axis.errorbar(distance, band["mean"], error, fmt=f"{marker}-", ms=4, lw=1.2, capsize=2, color=tint, label=label)
            axis.axhline(unchanged[measure]["mean"][0], color=BASELINE, lw=0.9, ls=":", zorder=0, label="trained order")
            if measure == "error":
                axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        line[0].set_ylabel(LABELS[measure])
    for axis, title in zip(axes[0], groups, strict=True):
        axis.set_title(title)
    for axis in axes[-1]:
        axis.set_xlabel("distance |i - j| (layers)")
    legend(figure, axes[0][0])
    return figure


@styled
def layer_effects(effects: dict[str, dict], partitions: dict[str, Partition], measures) -> Figure:
    """What deleting (left) and repeating (right) each layer, or half of it, does; bands are bootstrap intervals over images.

    Args:
        effects: "delete layer", "repeat attention", ... -> measure -> {"mean", "low", "high"}, `[depth]` each.
        partitions: their boundaries are drawn as dotted lines.
        measures: keys of LABELS, a row each.
    """
    actions = {"delete": "layer left out", "repeat": "layer applied twice"}
    figure = Figure(figsize=(8.6, 2.3 * len(measures) + 0.3), layout="constrained")
    axes = figure.subplots(len(measures), 2, squeeze=False, sharey="row", sharex=True)
    for line, measure in zip(axes, measures, strict=True):
        for axis, action in zip(line, actions, strict=True):
            for part, (label, tint, style) in _PARTS.items():
                if (band := effects.get(f"{action} {part}", {}).get(measure)) is None:
                    continue
                layers = np.arange(1, len(band["mean"]) + 1)
                axis.plot(layers, band["mean"], style, color=tint, marker=".", lw=1.4, label=label)
                axis.fill_between(layers, band["low"], band["high"], color=tint, alpha=0.15, lw=0)
            for number, partition in enumerate(partitions.values()):
                for cut in partition.boundaries:
                    axis.axvline(cut + 0.5 + 0.06 * number, color=colour(number), lw=0.9, ls=":", zorder=0)
            axis.xaxis.set_major_locator(MaxNLocator(7, integer=True))
            if measure == "error":
                axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            else:
                log_scale(axis)
        line[0].set_ylabel(LABELS[measure])
    for axis, title in zip(axes[0], actions.values(), strict=True):
        axis.set_title(title)
    for axis in axes[-1]:
        axis.set_xlabel("layer")
    legend(figure, axes[0][0])
    return figure


@styled
def hybrids(found: dict[str, dict], unchanged: dict, measures) -> Figure:
    """What each phase costs: the Raptor's block for the teacher's layers of a phase, and the reverse, a column per Raptor.

    Args:
        found: Raptor -> {"raptor": measure -> {"mean", "low", "high"}, "phases": [{"layers", "raptor_in_teacher",
            "teacher_in_raptor"}]}.
        unchanged: measure -> {"mean": [value]} of the teacher.
        measures: keys of LABELS, a row each.
    """
    widths = [len(one["phases"]) for one in found.values()]
    size = (max(1.25 * sum(widths), 2.2 * len(found)) + 2.3, 2.3 * len(measures) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(measures), len(found), squeeze=False, sharey="row", sharex="col", width_ratios=widths)
    sorts = {
        "raptor_in_teacher": ("Raptor's block\nin the teacher", INTER),
        "teacher_in_raptor": ("teacher's layers\nin the Raptor", INTRA),
    }
    for line, measure in zip(axes, measures, strict=True):
        for axis, one in zip(line, found.values(), strict=True):
            places = np.arange(len(one["phases"]))
            for shift, (name, (label, tint)) in zip((-0.19, 0.19), sorts.items(), strict=True):
                band = {k: np.array([phase[name][measure][k] for phase in one["phases"]]) for k in ("mean", "low", "high")}
                error = [band["mean"] - band["low"], band["high"] - band["mean"]]
                bars = {"width": 0.36, "color": tint, "label": label, "ecolor": TEACHER, "error_kw": {"capsize": 2, "lw": 0.9}}
                axis.bar(places + shift, band["mean"], yerr=error, **bars)
            axis.axhline(one["raptor"][measure]["mean"], color=TEACHER, lw=1.1, ls="--", label="Raptor alone")
            if measure == "error":
                axis.axhline(unchanged[measure]["mean"][0], color=BASELINE, lw=1.1, ls=":", label="teacher alone")
                axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axis.set_xticks(places, [phase["layers"] for phase in one["phases"]])
        line[0].set_ylabel(LABELS[measure])
    for axis, title in zip(axes[0], found, strict=True):
        axis.set_title(title)
    for axis in axes[-1]:
        axis.set_xlabel("layers of the phase")
    legend(figure, axes[-1][0])
    return figure
