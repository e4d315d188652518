"""One function per figure, from arrays to a matplotlib Figure. Layers are counted from 1, states from 0 (the embedding)."""

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

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
        axis.set_xticks(_ticks(1, len(values)))
    if floor is not None:
        axes[0].set_ylim(floor, 1.02)
    axes[0].set_ylabel(label)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    return figure


# Rows of `along_depth` for each group of measures: name of the curve, label of the axis, scale.
DIRECTIONS = (
    ("convergence", "cosine with the last state", "linear"),
    ("speed", "angular speed (rad per layer)", "linear"),
    ("acceleration", "angular acceleration\n(rad per layer²)", "linear"),
    ("norm", "norm of a token", "log"),
)
RANKS = (
    ("stable_rank", "stable rank", "log"),
    ("effective_rank", "effective rank", "log"),
    ("participation", "participation ratio", "log"),
    ("turn", "largest angle to the\nnext layer's updates (rad)", "linear"),
)
BASINS = (
    ("within", "angle within a class (rad)", "linear"),
    ("between", "angle between classes (rad)", "linear"),
    ("silhouette", "silhouette", "linear"),
    ("accuracy", "accuracy of the\nnearest class mean", "linear"),
)
GROWTH = (("growth", "angle to the clean trajectory\n/ injected angle", "log"),)


@styled
def along_depth(measures: dict[str, dict], partitions: dict[str, Partition], rows) -> Figure:
    """Curves along depth, a row per measure and a column per token type; the band is the 10 to 90 % range over images.

    Args:
        measures: model -> curve -> {"mean", "low", "high"}, curves named `convergence_cls`, `speed_patches`, ...
        partitions: of the Raptors; their boundaries are drawn as dotted lines in the Raptor's colour.
        rows: (curve without its token type, label, scale) of each row: DIRECTIONS, RANKS, BASINS, GROWTH.
    """
    teacher = measures["teacher"]
    rows = [row for row in rows if any(f"{row[0]}_{t}" in teacher for t in TOKEN_NAMES)]
    types = [t for t in TOKEN_NAMES if f"{rows[0][0]}_{t}" in teacher]
    figure = Figure(figsize=(3.2 * len(types) + 1.2, 2.35 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(types), squeeze=False)
    for line, (measure, label, scale) in zip(axes, rows, strict=True):
        for axis, token in zip(line, types, strict=True):
            if f"{measure}_{token}" in teacher:
                _bands(axis, measures, f"{measure}_{token}", partitions)
                if scale == "log":
                    log_scale(axis)
            else:
                axis.set_visible(False)
        line[0].set_ylabel(label)
    for axis, token in zip(axes[0], types, strict=True):
        axis.set_title(TOKEN_NAMES[token])
    figure.align_ylabels(axes[:, 0])
    _legend(figure, axes[0][0])
    return figure


@styled
def patch_coherence(measures: dict[str, dict], partitions: dict[str, Partition]) -> Figure:
    """Mean cosine of patch tokens with their mean direction; arguments as for `along_depth`, curve `coherence_patches`."""
    return _panels(measures, partitions, (("coherence_patches", "patch coherence"),))


@styled
def jacobians(measures: dict[str, dict], partitions: dict[str, Partition]) -> Figure:
    """Of each layer's map of directions the largest singular value, and how far it is from the identity and from a symmetric map.

    Arguments as for `along_depth`.
    """
    curves = (
        ("gain", "largest singular value"),
        ("from_identity", "|J - I| / |J|"),
        ("antisymmetric", "antisymmetric share of |J|²"),
    )
    return _panels(measures, partitions, curves, ("log", "linear", "linear"))


@styled
def exponents(measures: dict[str, dict]) -> Figure:
    """Finite-time Lyapunov spectra, of states and of directions; bands are the 10 to 90 % range over images."""
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, title in zip(axes, ("exponents", "direction_exponents"), ("states", "directions"), strict=True):
        axis.axhline(0, color="#dddddd", lw=0.8, zorder=0)
        for model, style in _styles(measures).items():
            band = {k: np.asarray(v, float) for k, v in measures[model][name].items()}
            index = np.arange(1, len(band["mean"]) + 1)
            axis.plot(index, band["mean"], "o-", ms=3, label=model, **style)
            if "low" in band:
                axis.fill_between(index, band["low"], band["high"], color=style["color"], alpha=0.12, lw=0)
        axis.set_title(title)
        axis.set_xlabel("exponent")
    axes[0].set_ylabel("per layer, natural logarithm")
    _legend(figure, axes[0])
    return figure


@styled
def projections(paths: dict[str, np.ndarray], labels, num_paths: int = 60) -> Figure:
    """Trajectories of images on the two leading components of the last directions, coloured by class.

    Args:
        paths: model -> `[depth + 1, images, 2]`.
        labels: `[images]`.
        num_paths: at most so many images are drawn.
    """
    labels = np.asarray(labels)
    classes = np.unique(labels)
    shown = np.unique(np.linspace(0, len(labels) - 1, min(num_paths, len(labels))).astype(int))
    colours = colormaps["tab20" if len(classes) > 10 else "tab10"]
    figure = Figure(figsize=(3.5 * len(paths) + 0.9, 3.3), layout="constrained")
    axes = figure.subplots(1, len(paths), squeeze=False)[0]
    for axis, (model, path) in zip(axes, paths.items(), strict=True):
        path = np.asarray(path)
        for image in shown:
            tint = colours(int(np.searchsorted(classes, labels[image])) % colours.N)
            axis.plot(*path[:, image].T, color=tint, lw=0.6, alpha=0.6)
            axis.plot(*path[-1, image], "o", color=tint, ms=3.5)
        axis.plot(*path[0, shown].T, "x", color=BASELINE, ms=4)
        axis.set_title(model)
        axis.set_xlabel("first component")
        axis.set_aspect("equal", adjustable="datalim")
    axes[0].set_ylabel("second component")
    return figure


@styled
def modes(eigenvalues: dict[str, list[dict]], radius: float = 1.8) -> Figure:
    """Eigenvalues of the linear model of each phase in the complex plane, with the unit circle.

    Args:
        eigenvalues: model -> for each phase {"phase": text, token type: `[r]` complex}.
        radius: larger ones are drawn as triangles at this distance.
    """
    types = [t for t in TOKEN_NAMES if any(t in phase for phases in eigenvalues.values() for phase in phases)]
    figure = Figure(figsize=(2.8 * len(types) + 1.4, 2.6 * len(eigenvalues) + 0.3), layout="constrained")
    axes = figure.subplots(len(eigenvalues), len(types), squeeze=False, sharex=True, sharey=True)
    turn = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    for line, (model, phases) in zip(axes, eigenvalues.items(), strict=True):
        for axis, token in zip(line, types, strict=True):
            axis.plot(turn.real, turn.imag, color="#bbbbbb", lw=0.8)
            for i, phase in enumerate(phases):
                values = np.asarray(phase.get(token, []), complex)
                size = np.abs(values)
                axis.plot(*_plane(values[size <= radius]), ".", ms=4, color=colour(i), label=f"layers {phase['phase']}")
                axis.plot(*_plane((radius * values / np.maximum(size, radius))[size > radius]), "^", ms=4, color=colour(i))
            axis.set_aspect("equal")
            axis.set_xlim(-1.1 * radius, 1.1 * radius)
            axis.set_ylim(-1.1 * radius, 1.1 * radius)
        line[0].set_ylabel(f"{model}\nimaginary part")
    for axis, token in zip(axes[0], types, strict=True):
        axis.set_title(TOKEN_NAMES[token])
    for axis in axes[-1]:
        axis.set_xlabel("real part")
    _legend(figure, axes[0][0])
    return figure


@styled
def extrapolation(runs: dict[str, dict[str, dict]]) -> Figure:
    """Angle turned and norm, step by step, as a block is iterated far beyond its place.

    Args:
        runs: model -> layers of the phase -> {"speed": `[steps]`, "norm": `[steps + 1]`}; None where they are not finite.
    """
    figure = Figure(figsize=(8.8, 2.4 * len(runs) + 0.4), layout="constrained")
    axes = figure.subplots(len(runs), 2, squeeze=False)
    for line, (model, blocks) in zip(axes, runs.items(), strict=True):
        for axis, name, label in zip(line, ("speed", "norm"), ("angle turned (rad)", "norm of a token"), strict=True):
            for i, (phase, run) in enumerate(blocks.items()):
                values = np.array(run[name], float)
                axis.plot(np.arange(len(values)) + (name == "speed"), values, color=colour(i), lw=1.3, label=f"after {phase}")
            axis.set_yscale("log")
            axis.set_ylabel(label)
            axis.set_xlabel("applications after its place")
        line[0].set_title(model)
        line[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@styled
def influence(matrices: dict[str, np.ndarray], layout) -> Figure:
    """How much each token moves each, |d y_i / d x_j|, in logarithms; lines part cls, registers and patches.

    Args:
        matrices: title -> `[tokens, tokens]`, row = output, column = input.
    """
    figure = Figure(figsize=(3.3 * len(matrices) + 0.9, 3.4), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    logs = {title: np.log10(np.maximum(np.asarray(m), 1e-12)) for title, m in matrices.items()}
    low, high = np.quantile(np.concatenate([m.ravel() for m in logs.values()]), (0.01, 1.0))
    for axis, (title, matrix) in zip(axes, logs.items(), strict=True):
        image = axis.imshow(matrix, cmap="magma", vmin=low, vmax=high, interpolation="nearest")
        for place in (layout.num_cls, layout.num_cls + layout.num_registers):
            if 0 < place < layout.num_tokens:
                axis.axhline(place - 0.5, color="white", lw=0.5)
                axis.axvline(place - 0.5, color="white", lw=0.5)
        axis.set_title(title)
        axis.set_xlabel("input token")
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(6, integer=True))
    axes[0].set_ylabel("output token")
    figure.colorbar(image, ax=axes, label="log10 of the norm", shrink=0.85)
    return figure


@styled
def sublayers(measures: dict[str, dict], partitions: dict[str, Partition]) -> Figure:
    """Angle that attention (above) and feed-forward (below) turn a token by; arguments as for `along_depth`."""
    rows = (
        ("attention_speed", "attention: angle turned\n(rad)", "linear"),
        ("mlp_speed", "feed-forward: angle turned\n(rad)", "linear"),
    )
    return along_depth(measures, partitions, rows)


@styled
def dynamics_summary(measures: dict[str, dict], partitions: dict[str, Partition], title: str) -> Figure:
    """The dynamics on one page: where a trajectory goes, in how many directions, and what becomes of small differences."""
    token = "cls" if "speed_cls" in measures["teacher"] else "patches"
    panels = (
        (f"convergence_{token}", f"cosine of {token} with its last state", "linear"),
        *((f"speed_{t}", f"angular speed of {t} (rad per layer)", "linear") for t in dict.fromkeys((token, "patches"))),
        ("coherence_patches", "patch coherence", "linear"),
        ("stable_rank_patches", "stable rank of patch updates", "log"),
        (f"accuracy_{token}", f"nearest class mean of {token}", "linear"),
        (f"growth_{token}", f"growth of a perturbation, {token}", "log"),
        ("gain", "largest singular value of a layer", "log"),
    )
    panels = [panel for panel in panels if panel[0] in measures["teacher"]]
    figure = Figure(figsize=(11.0, 7.6), layout="constrained")
    axes = figure.subplots(3, 3).ravel()
    for axis, (name, label, scale) in zip(axes, panels, strict=False):
        _bands(axis, measures, name, partitions)
        if scale == "log":
            log_scale(axis)
        axis.set_title(label)
    rest = axes[len(panels) :]
    if "direction_exponents" in measures["teacher"]:
        spectrum, rest = rest[0], rest[1:]
        spectrum.axhline(0, color="#dddddd", lw=0.8, zorder=0)
        for model, style in _styles(measures).items():
            values = np.asarray(measures[model]["direction_exponents"]["mean"], float)
            spectrum.plot(np.arange(1, len(values) + 1), values, "o-", ms=3, **style)
        spectrum.set_title("Lyapunov exponents of directions")
        spectrum.set_xlabel("exponent")
    for axis in rest:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=12)
    _legend(figure, axes[0])
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
    order = fit_order(accuracies)
    colours = [TEACHER if n == "teacher" else colour(order[n]) for n in names]
    axis.bar(names, values, color=colours, width=0.6)
    errors = np.clip([values - (centre - half), centre + half - values], 0, None)
    axis.errorbar(names, values, errors, fmt="none", ecolor=BASELINE, capsize=3)
    for i, value in enumerate(values):
        axis.text(i, 0.03, f"{100 * value:.1f} %", ha="center", color="white", fontsize=8)
    axis.set_ylim(0, 1)
    axis.set_ylabel("accuracy of a linear probe")
    return figure


def _plane(values):
    return values.real, values.imag


def log_scale(axis) -> None:
    """A logarithmic scale with plain numbers, of which there are always some."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5) if high / low > 4 else range(1, 10)))
    for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatter("{x:.3g}")


def _panels(measures, partitions, curves, scales=None) -> Figure:
    """Curves without a token type, side by side."""
    figure = Figure(figsize=(3.9 * len(curves) + 1.2, 2.8), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (name, label), scale in zip(axes, curves, scales or ["linear"] * len(curves), strict=True):
        _bands(axis, measures, name, partitions)
        if scale == "log":
            log_scale(axis)
        axis.set_ylabel(label)
    _legend(figure, axes[0])
    return figure


def _bands(axis, measures, key, partitions):
    order, styles = fit_order(measures), _styles(measures)
    # A curve has a point for each state, for each layer, or between layers: the longest of them have one for each state.
    depth = max(len(curve["mean"]) for name, curve in measures["teacher"].items() if "exponents" not in name) - 1
    for name, style in styles.items():
        if key not in measures[name]:
            continue
        band = {k: np.asarray(v, float) for k, v in measures[name][key].items()}
        points = len(band["mean"])
        first = (depth + 1 - points) / 2 + 0.5 * (points <= depth)
        x = first + np.arange(points)
        axis.plot(x, band["mean"], label=name, zorder=3 if name == "teacher" else 2, **style)
        if "low" in band:
            axis.fill_between(x, band["low"], band["high"], color=style["color"], alpha=0.12, lw=0)
        if name in partitions:
            for cut in partitions[name].boundaries:
                # Cuts lie between layers; Raptors' lines are set apart where they share a cut.
                axis.axvline(cut + 0.5 * (points <= depth) + 0.06 * order[name], color=style["color"], lw=0.9, ls=":", zorder=1)
    axis.set_xlabel("state" if points > depth else "layer")
    axis.set_xticks(_ticks(int(points <= depth), depth))


def _styles(names) -> dict[str, dict]:
    """Line of each model, the teacher's in black."""
    order = fit_order(names)
    return {n: {"color": TEACHER, "lw": 1.8} if n == "teacher" else {"color": colour(order[n]), "lw": 1.4} for n in names}


def _legend(figure, axis) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=8)


# Predictions that know nothing of phases: what they are called, and how their grey lines are dashed.
_SIMPLE = {"identity": ("first state repeated", "-"), "mean": ("mean state", "--"), "linear": ("linear maps of a_0", ":")}


def fit_label(name: str) -> str:
    """What a prediction of the trajectory is called: `k3_stage1` is `k3, stage 1`, `linear_k3` is `linear blocks, k3`."""
    if name in _SIMPLE:
        return _SIMPLE[name][0]
    if name.startswith("linear_"):
        return f"linear blocks, {name.removeprefix('linear_')}"
    return name.replace("_stage1", ", stage 1")


def fit_order(names) -> dict[str, int]:
    """Number of each Raptor among the names, so that it keeps its colour; its stages and linear blocks share it."""

    def base(name):
        return name.removesuffix("_stage1").removeprefix("linear_")

    raptors = [n for n in names if n != "teacher" and n not in _SIMPLE]
    number = {n: i for i, n in enumerate(sorted({base(n) for n in raptors}))}
    return {n: number[base(n)] for n in raptors}


def fit_style(name: str, order: dict[str, int]) -> dict:
    """How a prediction is drawn; `order` from `fit_order`."""
    if name in _SIMPLE:
        return {"color": BASELINE, "lw": 1.2, "ls": _SIMPLE[name][1], "label": fit_label(name)}
    thin = {"_stage1": "--", "linear_": ":"}
    dashes = next((dash for part, dash in thin.items() if part in name), None)
    return {"color": colour(order[name]), "lw": 1.1 if dashes else 1.8, "ls": dashes or "-", "label": fit_label(name)}


def _ticks(first: int, last: int) -> list[int]:
    step = max(1, round((last - first) / 6))
    return list(range(first, last + 1, step))
