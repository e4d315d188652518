"""Figures of the agreement with the teacher, per layer. Layers are counted from 1."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brh_jax.report.agreement import per_layer
from brh_jax.report.glance import at_a_glance
from brh_jax.report.style import BASELINE, TOKEN_NAMES, colour, legend, log_scale, order_of, styled
from experiments.stages.agreement.run import ALL, Fit
from experiments.stages.phases.run import PhasesResult

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


def fit_per_layer(fits: dict[str, Fit], measure: str, label: str, floor: float | None = None) -> Figure:
    """A measure of agreement with the teacher per layer, one panel per token type.

    Args:
        measure: r2 or cosine.
        floor: the axis ends here; lower values are drawn as triangles on it.
    """
    return per_layer({name: getattr(fit, measure) for name, fit in fits.items()}, _styles(fits), label, floor)


def glance(phases: PhasesResult, fits: dict[str, Fit]) -> Figure:
    """The finest phases, and R² of the Raptors beside the baselines; the first state repeated is far below both."""
    shown = {name: fit for name, fit in fits.items() if fit.kind in ("raptor", "baseline") and name != "identity"}
    styles = {name: style for name, style in _styles(fits).items() if name in shown}
    return at_a_glance(np.asarray(phases.dissimilarity), phases.finest, {name: fit.r2 for name, fit in shown.items()}, styles)


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
                    axis.fill_between(layers, edges.low, edges.high, color=styles[name]["color"], alpha=0.2, lw=0, gid=fit.label)
            log_scale(axis)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axis, token in zip(axes[0], types, strict=True):
        axis.set_title("all tokens" if token == ALL else token)
    axes[0][0].set_ylabel("e / norm of the state")
    axes[1][0].set_ylabel("e")
    figure.supxlabel("layer", fontsize=9)
    legend(figure, axes[0][0])
    return figure
