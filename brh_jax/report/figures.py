"""One function per figure, from arrays to a matplotlib Figure. Layers are counted from 1, states from 0 (the embedding)."""

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from brh_jax.phases.partition import Partition

TEACHER = "#222222"
BASELINE = "#999999"
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe-Ito: told apart without red and green
TOKEN_NAMES = {"cls": "cls", "registers": "registers", "patches": "patches"}
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def colour(index: int) -> str:
    """The colour of the index-th Raptor, the same in every figure."""
    return COLOURS[index % len(COLOURS)]


def styled(function):
    """Draws in the style of this package without touching the user's."""

    def draw(*args, **kwargs):
        with rc_context(_STYLE):
            return function(*args, **kwargs)

    draw.__name__, draw.__doc__ = function.__name__, function.__doc__
    return draw


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
        ticks = _ticks(1, depth)
        axis.set_xticks(ticks)
        axis.set_yticks(ticks)
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
        axis.set_yscale("log")
        for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatter("{x:.3g}")
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
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
        fits: name -> {measure: {token type: [depth]}}; `identity` is drawn grey, `..._stage1` dashed.
        floor: the axis ends here; lower values are drawn as triangles on it.
    """
    types = [t for t in TOKEN_NAMES if t in next(iter(fits.values()))[measure]]
    figure = Figure(figsize=(3.2 * len(types) + 1.2, 2.9), layout="constrained")
    axes = figure.subplots(1, len(types), squeeze=False, sharey=True)[0]
    order = _raptor_order(fits)
    for axis, token in zip(axes, types, strict=True):
        for name, fit in fits.items():
            values = np.asarray(fit[measure][token])
            layers = np.arange(1, len(values) + 1)
            drawn = values if floor is None else np.maximum(values, floor)
            style = _fit_style(name, order)
            axis.plot(layers, drawn, **style)
            if floor is not None and (values < floor).any():
                axis.plot(layers[values < floor], drawn[values < floor], "v", color=style["color"], ms=5, clip_on=False)
        axis.axhline(0, color="#dddddd", lw=0.8, zorder=0)
        axis.set_title(TOKEN_NAMES[token])
        axis.set_xlabel("layer")
        axis.set_xticks(_ticks(1, len(values)))
    if floor is not None:
        axes[0].set_ylim(floor, 1.02)
    axes[0].set_ylabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    return figure


@styled
def dynamics(measures: dict[str, dict], partitions: dict[str, Partition]) -> Figure:
    """Convergence and angular speed of teacher and Raptors; the band is the 10 to 90 % range over images.

    Args:
        measures: model -> measure -> {"mean", "low", "high"}, measures named `convergence_cls`, `speed_patches`, ...
        partitions: of the Raptors; their boundaries are drawn as dotted lines in the Raptor's colour.
    """
    teacher = measures["teacher"]
    types = [t for t in TOKEN_NAMES if f"convergence_{t}" in teacher]
    figure = Figure(figsize=(3.2 * len(types) + 1.2, 5.0), layout="constrained")
    axes = figure.subplots(2, len(types), squeeze=False)
    rows = (("convergence", "cosine with the last state"), ("speed", "angular speed (rad per layer)"))
    order = _raptor_order(measures)
    for row, (measure, label) in enumerate(rows):
        for axis, token in zip(axes[row], types, strict=True):
            _bands(axis, measures, f"{measure}_{token}", order, partitions, first=int(measure == "speed"))
            axis.set_title(TOKEN_NAMES[token])
        axes[row][0].set_ylabel(label)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    return figure


@styled
def patch_coherence(measures: dict[str, dict], partitions: dict[str, Partition]) -> Figure:
    """Mean cosine of patch tokens with their mean direction; arguments as for `dynamics`, measure `coherence_patches`."""
    figure = Figure(figsize=(5.2, 2.8), layout="constrained")
    axis = figure.subplots()
    _bands(axis, measures, "coherence_patches", _raptor_order(measures), partitions, first=0)
    axis.set_ylabel("patch coherence")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


@styled
def probe_accuracy(accuracies: dict[str, float], num_images: int) -> Figure:
    """Accuracy of linear probes by model, with binomial 95 % intervals."""
    names = list(accuracies)
    values = np.array([accuracies[n] for n in names])
    # Wilson's interval: stays within 0 ... 1 also for accuracies near one.
    z = 1.96
    centre = (values + z**2 / (2 * num_images)) / (1 + z**2 / num_images)
    half = z * np.sqrt(values * (1 - values) / num_images + z**2 / (4 * num_images**2)) / (1 + z**2 / num_images)
    figure = Figure(figsize=(1.0 + 1.0 * len(names), 2.8), layout="constrained")
    axis = figure.subplots()
    order = _raptor_order(accuracies)
    colours = [TEACHER if n == "teacher" else colour(order[n]) for n in names]
    axis.bar(names, values, color=colours, width=0.6)
    errors = np.clip([values - (centre - half), centre + half - values], 0, None)
    axis.errorbar(names, values, errors, fmt="none", ecolor=BASELINE, capsize=3)
    for i, value in enumerate(values):
        axis.text(i, 0.03, f"{100 * value:.1f} %", ha="center", color="white", fontsize=8)
    axis.set_ylim(0, 1)
    axis.set_ylabel("accuracy of a linear probe")
    return figure


def _bands(axis, measures, key, order, partitions, first):
    for name, model in measures.items():
        band = {k: np.asarray(v) for k, v in model[key].items()}
        x = np.arange(first, first + len(band["mean"]))
        style = {"color": TEACHER, "lw": 1.8} if name == "teacher" else {"color": colour(order[name]), "lw": 1.4}
        axis.plot(x, band["mean"], label=name, zorder=3 if name == "teacher" else 2, **style)
        axis.fill_between(x, band["low"], band["high"], color=style["color"], alpha=0.12, lw=0)
        if name in partitions:
            for cut in partitions[name].boundaries:
                # Cuts lie between layers; Raptors' lines are set apart where they share a cut.
                axis.axvline(cut + 0.5 + 0.06 * order[name], color=style["color"], lw=0.9, ls=":", zorder=1)
    axis.set_xlabel("layer" if first else "state")
    axis.set_xticks(_ticks(first, first + len(band["mean"]) - 1))


def _raptor_order(names) -> dict[str, int]:
    """Number of each Raptor among the names, so that it keeps its colour; its stages share one."""
    base = [n.removesuffix("_stage1") for n in names if n.removesuffix("_stage1") not in ("teacher", "identity")]
    number = {n: i for i, n in enumerate(sorted(set(base)))}
    return {n: number[n.removesuffix("_stage1")] for n in names if n.removesuffix("_stage1") in number}


def _fit_style(name, order) -> dict:
    if name == "identity":
        return {"color": BASELINE, "lw": 1.2, "label": "identity\n(first state\nrepeated)"}
    stage1 = name.endswith("_stage1")
    return {
        "color": colour(order[name]),
        "lw": 1.1 if stage1 else 1.8,
        "ls": "--" if stage1 else "-",
        "label": name.removesuffix("_stage1") + (", stage 1" if stage1 else ""),
    }


def _ticks(first: int, last: int) -> list[int]:
    step = max(1, round((last - first) / 6))
    return list(range(first, last + 1, step))
