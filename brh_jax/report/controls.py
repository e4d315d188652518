"""Figures of the controls: how sure a partition is, and what random ones and simpler predictions reach."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brh_jax.report.style import BASELINE, TEACHER, TOKEN_NAMES, colour, fit_order, fit_style, legend, log_scale, styled


@styled
def boundary_frequency(metrics: dict[str, dict[str, dict]]) -> Figure:
    """How often resampled images are cut after each layer, a panel for each k above one; triangles mark where all images are cut.

    Args:
        metrics: metric -> k -> {"boundary_frequency": `[depth - 1]`, "boundaries": of the partition of all images}.
    """
    ks = sorted({k for by_k in metrics.values() for k in by_k if int(k) > 1}, key=int)
    columns = min(len(ks), 3)
    lines = -(-len(ks) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.9, 2.1 * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    width = 0.8 / len(metrics)
    for axis, k in zip(axes.ravel(), ks, strict=False):
        for i, (metric, by_k) in enumerate(metrics.items()):
            if k not in by_k:
                continue
            shares, offset = np.asarray(by_k[k]["boundary_frequency"]), (i - (len(metrics) - 1) / 2) * width
            places = np.arange(1, len(shares) + 1)
            axis.bar(places + offset, shares, width, color=colour(i), label=metric)
            cuts = np.asarray(by_k[k]["boundaries"])
            axis.plot(cuts + offset, np.full(len(cuts), 1.06), "v", color=colour(i), ms=5, clip_on=False)
        axis.set_title(f"k = {k}")
        axis.set_ylim(0, 1.1)
        axis.set_yticks([0, 0.5, 1])
        axis.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    for axis in axes.ravel()[len(ks) :]:
        axis.set_visible(False)
    figure.supylabel("share of resamples", fontsize=9)
    figure.supxlabel("cut after layer", fontsize=9)
    legend(figure, axes[0][0])
    return figure


@styled
def cut_weights(by_k: dict[str, dict]) -> Figure:
    """Weight of the max cut against k, beside that of random contiguous and fragmented partitions.

    Args:
        by_k: k -> {"weight", "contiguous": {"mean", "low", "high"}, "fragmented": the same}.
    """
    ks = np.array([int(k) for k in by_k])
    figure = Figure(figsize=(5.4, 2.9), layout="constrained")
    axis = figure.subplots()
    kinds = (("contiguous", colour(0), -0.08), ("fragmented", BASELINE, 0.08))
    for kind, tint, offset in kinds:
        mean, low, high = (np.array([one[kind][name] for one in by_k.values()]) for name in ("mean", "low", "high"))
        label = f"random {kind}:\nmean, 95 % of them"
        axis.errorbar(ks + offset, mean, [mean - low, high - mean], fmt="o", color=tint, ms=4, capsize=3, label=label)
    axis.plot(ks, [one["weight"] for one in by_k.values()], "D-", color=TEACHER, ms=4, lw=1.2, label="max cut")
    axis.set_xlabel("number of phases k")
    axis.set_xticks(ks)
    axis.set_ylabel("share of dissimilarity\nbetween phases")
    figure.legend(loc="outside right center", fontsize=8)
    return figure


@styled
def error_per_layer(fits: dict[str, dict]) -> Figure:
    """e of the hypothesis per layer, relative to the state's norm (above) and absolute (below), a column per token type.

    Args:
        fits: name -> {"relative_error", "error": token type -> `[depth]`, "relative_error_all", "error_all": `[depth]`} and
            optionally "intervals": `relative_error_cls`, ... -> {"low", "high"}, drawn as bands.
    """
    types = [t for t in TOKEN_NAMES if t in next(iter(fits.values()))["error"]]
    figure = Figure(figsize=(2.6 * (len(types) + 1) + 1.5, 4.9), layout="constrained")
    axes = figure.subplots(2, len(types) + 1, squeeze=False, sharex=True)
    order = fit_order(fits)
    for line, measure in zip(axes, ("relative_error", "error"), strict=True):
        for axis, token in zip(line, [*types, "all"], strict=True):
            for name, fit in fits.items():
                values = np.asarray(fit[f"{measure}_all"] if token == "all" else fit[measure][token])
                layers, style = np.arange(1, len(values) + 1), fit_style(name, order)
                axis.plot(layers, values, **style)
                if band := fit.get("intervals", {}).get(f"{measure}_{token}"):
                    axis.fill_between(layers, band["low"], band["high"], color=style["color"], alpha=0.2, lw=0)
            log_scale(axis)
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axis, token in zip(axes[0], [*types, "all tokens"], strict=True):
        axis.set_title(token)
    axes[0][0].set_ylabel("e / norm of the state")
    axes[1][0].set_ylabel("e")
    figure.supxlabel("layer", fontsize=9)
    legend(figure, axes[0][0])
    return figure


@styled
def fit_by_phases(curves: dict[str, dict[int, dict[str, list[float]]]]) -> Figure:
    """R² and e against the number of phases, mean and standard deviation over runs, a line for each kind of Raptor.

    Args:
        curves: kind -> k -> figure of merit (an even number of them) -> values of the runs; none: no point.
    """
    names = list(next(iter(next(iter(curves.values())).values())))
    figure = Figure(figsize=(8.4, 2.7 * -(-len(names) // 2)), layout="constrained")
    axes = figure.subplots(-(-len(names) // 2), 2).ravel()
    for axis, name in zip(axes, names, strict=True):
        for i, (kind, by_k) in enumerate(curves.items()):
            ks = sorted(k for k in by_k if len(by_k[k][name]))
            if not ks:
                continue
            mean = [np.mean(by_k[k][name]) for k in ks]
            spread = [np.std(by_k[k][name], ddof=1) if len(by_k[k][name]) > 1 else 0.0 for k in ks]
            places = np.array(ks) + 0.06 * (i - (len(curves) - 1) / 2)
            axis.errorbar(places, mean, spread, fmt="o-", ms=4, lw=1.2, capsize=3, color=colour(i), label=kind)
        axis.set_xlabel("number of phases k")
        axis.set_ylabel(name if "layer" in name else f"{name}, mean of layers")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, axes[0])
    return figure
