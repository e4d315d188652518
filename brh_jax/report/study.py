"""Figures of a study over many runs, from arrays: curves over seeds, groups side by side, one measure against another."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brh_jax.report.run_statistics import mean_over_seeds
from brh_jax.report.style import BASELINE, TEACHER, colour, legend, styled
from brh_jax.report.values import GUIDE

_MARKERS = "osD^v"


@styled
def curves(panels: dict[str, dict[str, dict[float, list[float]]]], x_label: str, *, legend: str = "", columns: int = 3) -> Figure:
    """Draws measures along x: a dot for each run, a line through the means, a band of their 95 % intervals over seeds.

    Args:
        panels: measure -> name of a line -> x -> values of the runs there.
        legend: what the names of lines are of; empty for no legend.
        columns: panels in a row.
    """
    figure, axes = _grid(panels, columns)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axis, (label, lines) in zip(axes, panels.items(), strict=False):
        for name, points in lines.items():
            tint = TEACHER if len(names) == 1 else _shade(names.index(name), len(names))
            xs = sorted(points)
            means = [mean_over_seeds(points[x]) for x in xs]
            axis.plot(xs, [m.mean for m in means], color=tint, lw=1.6, label=name)
            for x in xs:
                axis.plot([x] * len(points[x]), points[x], "o", color=tint, ms=2.5, alpha=0.6, gid=f"{name}, runs")
            if all(m.low is not None for m in means):
                low, high = [m.low for m in means], [m.high for m in means]
                axis.fill_between(xs, low, high, color=tint, alpha=0.15 if len(names) == 1 else 0.07, lw=0, gid=name)
        _limits(axis, [v for points in lines.values() for values in points.values() for v in values])
        axis.set_title(label)
        axis.set_xlabel(x_label)
    if legend:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, title=legend)
    return figure


@styled
def side_by_side(panels: dict[str, dict[str, list[float]]], columns: int = 3) -> Figure:
    """Draws measures in groups of runs: a dot for each run, a bar at the mean with its 95 % interval.

    Args:
        panels: measure -> group -> values of its runs.
    """
    figure, axes = _grid(panels, columns)
    for axis, (label, groups) in zip(axes, panels.items(), strict=False):
        for place, (name, values) in enumerate(groups.items()):
            spread = place + np.linspace(-0.14, 0.14, len(values)) if len(values) > 1 else [place]
            axis.plot(spread, values, "o", color=colour(place), ms=3.5, alpha=0.6, gid=name)
            mean = mean_over_seeds(values)
            axis.plot([place - 0.26, place + 0.26], [mean.mean] * 2, color=colour(place), lw=2, gid=GUIDE)
            if mean.low is not None:
                axis.plot([place] * 2, [mean.low, mean.high], color=colour(place), lw=1, gid=GUIDE)
        axis.set_xticks(range(len(groups)), [name.replace(" ", "\n") for name in groups], fontsize=8)
        axis.set_xlim(-0.5, len(groups) - 0.5)
        axis.set_title(label)
    return figure


@styled
def against_each_other(
    points: dict[str, dict[str, np.ndarray]], rows: dict[str, str], columns: dict[str, str], notes: dict[tuple[str, str], str]
) -> Figure:
    """Draws every measure of `rows` against every one of `columns`, a dot for each run.

    Args:
        points: group -> measure -> `[runs]`.
        rows, columns: measure -> label.
        notes: (row, column) -> text in the panel, its correlation say.
    """
    figure = Figure(figsize=(2.7 * len(columns) + 1.3, 2.6 * len(rows) + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex="col", sharey="row")
    for line, (y, y_label) in zip(axes, rows.items(), strict=True):
        for axis, x in zip(line, columns, strict=True):
            for place, (group, measures) in enumerate(points.items()):
                style = {"marker": _MARKERS[place % len(_MARKERS)], "color": colour(place), "ls": "", "ms": 4, "alpha": 0.75}
                axis.plot(measures[x], measures[y], label=group, **style)
            axis.set_title(notes.get((y, x), ""), fontsize=8)
        line[0].set_ylabel(y_label)
    for axis, x_label in zip(axes[-1], columns.values(), strict=True):
        axis.set_xlabel(x_label)
    legend(figure, axes[0][0])
    return figure


@styled
def fit_by_parameters(curves: dict[str, dict[float, dict[str, list[float]]]], whole: float) -> Figure:
    """Draws fidelity against the parameters of the blocks, mean and standard deviation over runs, a line for each kind.

    Args:
        curves: kind -> parameters -> figure of merit -> values of the runs; none: no point. The first kind is drawn on top.
        whole: parameters of the teacher's blocks, in the same unit.
    """
    names = list(next(iter(next(iter(curves.values())).values())))
    figure, axes = _grid({name: {} for name in names}, 2)
    for axis, name in zip(axes, names, strict=False):
        for i, (kind, by_size) in enumerate(curves.items()):
            sizes = sorted(size for size in by_size if len(by_size[size][name]))
            mean = [np.mean(by_size[size][name]) for size in sizes]
            spread = [np.std(found, ddof=1) if len(found := by_size[size][name]) > 1 else 0.0 for size in sizes]
            style = {"ms": 4, "lw": 1.2, "capsize": 3, "color": colour(i), "zorder": 3 - i / len(curves), "label": kind}
            style |= {"marker": _MARKERS[i % len(_MARKERS)], "ls": "-" if i < 6 else "--"}  # there are six colours
            axis.errorbar([size / whole for size in sizes], mean, spread, **style)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
        axis.set_title(name if "layer" in name else f"{name}, mean of layers")
    figure.supxlabel("parameters of the blocks, as a share of the teacher's", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def _grid(panels: dict[str, dict], columns: int) -> tuple[Figure, np.ndarray]:
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns + 1.0, 2.5 * lines + 0.1), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure, axes


def _limits(axis: Axes, values: list[float]) -> None:
    """Room for the runs; intervals may go beyond."""
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.05
    axis.set_ylim(low - room, high + room)
    if low < 0 < high:
        axis.axhline(0, color=BASELINE, lw=0.6, zorder=0)


def _shade(place: int, count: int):
    """A colour from light to dark, for lines with an order."""
    return colormaps["viridis_r"](0.1 + 0.85 * place / max(count - 1, 1))
