"""Figures of the phases. Layers are counted from 1."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brh_jax.report.style import BASELINE, TEACHER, colour, legend, styled
from brh_jax.report.values import GUIDE
from experiments.stages.phases.run import RandomComparison, StabilityResult


@styled
def boundary_frequency(metrics: dict[str, dict[int, StabilityResult]]) -> Figure:
    """How often resampled images are cut after each layer, a panel for each k above one; triangles mark where all images are cut.

    Args:
        metrics: metric -> k -> how resampled images are cut.
    """
    ks = sorted({k for by_k in metrics.values() for k in by_k if k > 1})
    columns = min(len(ks), 3)
    lines = -(-len(ks) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.9, 2.1 * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    width = 0.8 / len(metrics)
    for axis, k in zip(axes.ravel(), ks, strict=False):
        for i, (metric, by_k) in enumerate(metrics.items()):
            if k not in by_k:
                continue
            shares, offset = np.asarray(by_k[k].boundary_frequency), (i - (len(metrics) - 1) / 2) * width
            places = np.arange(1, len(shares) + 1)
            axis.bar(places + offset, shares, width, color=colour(i), label=metric)
            cuts = np.asarray(by_k[k].boundaries)
            axis.plot(cuts + offset, np.full(len(cuts), 1.06), "v", color=colour(i), ms=5, clip_on=False, gid=GUIDE)
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
def cut_weights(compared: list[RandomComparison]) -> Figure:
    """Weight of the max cut against k, beside that of random contiguous and fragmented partitions.

    Args:
        compared: one for each k.
    """
    ks = np.array([one.k for one in compared])
    figure = Figure(figsize=(5.4, 2.9), layout="constrained")
    axis = figure.subplots()
    kinds = (("contiguous", colour(0), -0.08), ("fragmented", BASELINE, 0.08))
    for kind, tint, offset in kinds:
        mean, low, high = (np.array([getattr(getattr(one, kind), name) for one in compared]) for name in ("mean", "low", "high"))
        label = f"random {kind}:\nmean, 95 % of them"
        axis.errorbar(ks + offset, mean, [mean - low, high - mean], fmt="o", color=tint, ms=4, capsize=3, label=label)
    axis.plot(ks, [one.weight for one in compared], "D-", color=TEACHER, ms=4, lw=1.2, label="max cut")
    axis.set_xlabel("number of phases k")
    axis.set_xticks(ks)
    axis.set_ylabel("share of dissimilarity\nbetween phases")
    figure.legend(loc="outside right center", fontsize=8)
    return figure
