"""Figures of the agreement with the teacher, per layer. Layers are counted from 1."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brh_jax.report.style import BASELINE, TOKEN_NAMES, colour, legend, log_scale, order_of, styled, ticks
from experiments.stages.agreement.run import ALL, Fit

# How a prediction is drawn: width and dashes by what it is; baselines are told apart by their dashes, in grey.
_LINES = {"raptor": (1.8, "-"), "blockwise": (1.1, "--"), "linear blocks": (1.1, ":")}
_DASHES = ("-", "--", ":", "-.")


def _styles(fits: dict[str, Fit]) -> dict[str, dict]:
    order = order_of(sorted({fit.raptor for fit in fits.values()} - {""}))
    baselines = [name for name, fit in fits.items() if fit.kind == "baseline"]
    styles = {}
    for name, fit in fits.items():
        if fit.kind == "baseline":
            dash = _DASHES[baselines.index(name) % len(_DASHES)]
            styles[name] = {"color": BASELINE, "lw": 1.2, "ls": dash, "label": fit.label}
        else:
            width, dash = _LINES[fit.kind]
            styles[name] = {"color": colour(order[fit.raptor]), "lw": width, "ls": dash, "label": fit.label}
    return styles


@styled
def fit_per_layer(fits: dict[str, Fit], measure: str, label: str, floor: float | None = None) -> Figure:
    """A measure of agreement with the teacher per layer, one panel per token type.

    Args:
        measure: r2 or cosine.
        floor: the axis ends here; lower values are drawn as triangles on it.
    """
    types = [t for t in TOKEN_NAMES if t in getattr(next(iter(fits.values())), measure)]
    figure = Figure(figsize=(3.2 * len(types) + 1.2, 2.9), layout="constrained")
    axes = figure.subplots(1, len(types), squeeze=False, sharey=True)[0]
    for axis, token in zip(axes, types, strict=True):
        for name, style in _styles(fits).items():
            values = np.asarray(getattr(fits[name], measure)[token])
            layers = np.arange(1, len(values) + 1)
            drawn = values if floor is None else np.maximum(values, floor)
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


@styled
def error_per_layer(fits: dict[str, Fit]) -> Figure:
    """e of the hypothesis per layer, relative to the state's norm (above) and absolute (below), a column per token type."""
    types = [*(t for t in TOKEN_NAMES if t in next(iter(fits.values())).error), ALL]
    figure = Figure(figsize=(2.6 * len(types) + 1.5, 4.9), layout="constrained")
    axes = figure.subplots(2, len(types), squeeze=False, sharex=True)
    styles = _styles(fits)
    for line, measure in zip(axes, ("relative_error", "error"), strict=True):
        for axis, token in zip(line, types, strict=True):
            for name, fit in fits.items():
                values = np.asarray(getattr(fit, measure)[token])
                layers = np.arange(1, len(values) + 1)
                axis.plot(layers, values, **styles[name])
                if edges := fit.edges.get(measure, {}).get(token):
                    axis.fill_between(layers, edges.low, edges.high, color=styles[name]["color"], alpha=0.2, lw=0)
            log_scale(axis)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axis, token in zip(axes[0], types, strict=True):
        axis.set_title("all tokens" if token == ALL else token)
    axes[0][0].set_ylabel("e / norm of the state")
    axes[1][0].set_ylabel("e")
    figure.supxlabel("layer", fontsize=9)
    legend(figure, axes[0][0])
    return figure
