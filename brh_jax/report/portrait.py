"""Drawing of bands, from `brh_jax.curves` to matplotlib. A band lies where its axis says: layers from 1, states from 0."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brh_jax.curves import AXES, Band
from brh_jax.partition import Partition
from brh_jax.report.style import TOKEN_NAMES, legend, line_styles, log_scale, order_of, styled, ticks

Bands = Mapping[
    str, Mapping[str, Band]
]  # system -> name of the curve -> band; the first system is the one others are held against
Panels = Sequence[tuple[str, str, str]]  # name of the curve, label, scale of its axis


@styled
def along_depth(bands: Bands, partitions: Mapping[str, Partition], rows: Panels) -> Figure | None:
    """Curves along depth, a row per measure and a column per token type; the band is the 10 to 90 % range over images.

    Args:
        bands: of curves named `convergence_cls`, `speed_patches`, ...
        partitions: of the Raptors; their boundaries are drawn as dotted lines in the Raptor's colour.
        rows: of each row the curve without its token type, label and scale; those that were not measured are left out.

    Returns:
        None where nothing of it was measured.
    """
    first = next(iter(bands.values()))
    rows = [row for row in rows if any(f"{row[0]}_{t}" in first for t in TOKEN_NAMES)]
    if not rows:
        return None
    types = [t for t in TOKEN_NAMES if f"{rows[0][0]}_{t}" in first]
    figure = Figure(figsize=(3.2 * len(types) + 1.2, 2.35 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(types), squeeze=False)
    for line, (measure, label, scale) in zip(axes, rows, strict=True):
        for axis, token in zip(line, types, strict=True):
            if f"{measure}_{token}" in first:
                draw_curve(axis, bands, f"{measure}_{token}", partitions, scale)
            else:
                axis.set_visible(False)
        next(axis for axis in line if axis.get_visible()).set_ylabel(label)
    for axis, token in zip(axes[0], types, strict=True):
        axis.set_title(TOKEN_NAMES[token])
    figure.align_ylabels(axes[:, 0])
    legend(figure, axes[0][0])
    return figure


@styled
def side_by_side(bands: Bands, partitions: Mapping[str, Partition], panels: Panels) -> Figure | None:
    """Curves without a token type, a panel each.

    Args:
        bands, partitions: as of `along_depth`.
        panels: curve, label and scale; those that were not measured are left out.

    Returns:
        None where none of them was measured.
    """
    panels = [panel for panel in panels if panel[0] in next(iter(bands.values()))]
    if not panels:
        return None
    figure = Figure(figsize=(3.9 * len(panels) + 1.2, 2.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, label, scale) in zip(axes, panels, strict=True):
        draw_curve(axis, bands, name, partitions, scale)
        axis.set_ylabel(label)
    legend(figure, axes[0])
    return figure


def draw_curve(
    axis: Axes, bands: Bands, name: str, partitions: Mapping[str, Partition] | None = None, scale: str = "linear"
) -> None:
    """One curve of every system that has it; along depth with the boundaries of `partitions`, else with a dot for each point."""
    found = {system: of_system[name] for system, of_system in bands.items() if name in of_system}
    styles, kind, depth = line_styles(bands), AXES[next(iter(found.values())).axis], next(iter(found.values())).depth
    between = min(kind.first, 1.0) / 2  # cuts lie between layers
    for system, band in found.items():
        points = {"marker": "o", "ms": 3} if depth is None else {"zorder": 3 if system == "teacher" else 2}
        axis.plot(band.positions, np.array(band.mean, float), label=system, **points, **styles[system])
        if band.low:
            axis.fill_between(band.positions, band.low, band.high, color=styles[system]["color"], alpha=0.12, lw=0, gid=system)
        for cut in (partitions or {})[system].boundaries if depth is not None and system in (partitions or {}) else ():
            # Raptors' lines are set apart where they share a cut.
            shift = 0.06 * order_of(bands).get(system, 0)
            axis.axvline(cut + between + shift, color=styles[system]["color"], lw=0.9, ls=":", zorder=1)
    axis.set_xlabel(kind.label)
    if depth is not None:
        axis.set_xticks(ticks(int(min(kind.first, 1.0)), depth))
    if scale == "log":
        log_scale(axis)
