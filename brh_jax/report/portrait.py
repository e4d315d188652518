"""Figures of the dynamics, from arrays to a matplotlib Figure. Layers are counted from 1, states from 0 (the embedding)."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brh_jax.partition import Partition
from brh_jax.report.style import BASELINE, TOKEN_NAMES, colour, fit_order, legend, line_styles, log_scale, styled, ticks

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
    ("raw_stable_rank", "stable rank\nof raw updates", "log"),
    ("token_stable_rank", "stable rank, over the\ntokens of an image", "log"),
    ("turn", "largest angle to the\nnext layer's updates (rad)", "linear"),
)
BASINS = (
    ("within", "angle within a class (rad)", "linear"),
    ("between", "angle between classes (rad)", "linear"),
    ("silhouette", "silhouette", "linear"),
    ("accuracy", "accuracy of the\nnearest class mean", "linear"),
)
GROWTH = (("growth", "angle to the clean trajectory\n/ injected angle", "log"),)
# Curves with points for each phase instead of each layer.
_OF_PHASES = ("horizon_", "modulus_")
# Panels of `perturbations`: name of the curve, what is perturbed.
PERTURBATIONS = (
    ("along", "every token along its update"),
    ("towards", "every token towards the next image's"),
    ("from_cls", "cls alone"),
    ("from_registers", "registers alone"),
    ("from_patch", "the middle patch alone"),
)


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
        next(axis for axis in line if axis.get_visible()).set_ylabel(label)
    for axis, token in zip(axes[0], types, strict=True):
        axis.set_title(TOKEN_NAMES[token])
    figure.align_ylabels(axes[:, 0])
    legend(figure, axes[0][0])
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
def perturbations(measures: dict[str, dict], partitions: dict[str, Partition]) -> Figure:
    """What becomes of perturbations of other kinds, or of one token: angle of all tokens over the injected one.

    Arguments as for `along_depth`, curves `along`, `towards`, `from_cls`, `from_registers`, `from_patch`.
    """
    curves = [(name, title) for name, title in PERTURBATIONS if name in measures["teacher"]]
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(3.3 * columns + 1.2, 2.5 * lines + 0.2), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis, (name, title) in zip(axes.ravel(), curves, strict=False):
        _bands(axis, measures, name, partitions)
        log_scale(axis)
        axis.set_title(title)
    for axis in axes.ravel()[len(curves) :]:
        axis.set_visible(False)
    for line in axes:
        line[0].set_ylabel("angle to the clean trajectory\n/ injected angle")
    legend(figure, axes[0][0])
    return figure


@styled
def exponents(measures: dict[str, dict]) -> Figure:
    """Finite-time Lyapunov spectra, of states and of directions; bands are the 10 to 90 % range over images."""
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, title in zip(axes, ("exponents", "direction_exponents"), ("states", "directions"), strict=True):
        axis.axhline(0, color="#dddddd", lw=0.8, zorder=0)
        for model, style in line_styles(measures).items():
            band = {k: np.asarray(v, float) for k, v in measures[model][name].items()}
            index = np.arange(1, len(band["mean"]) + 1)
            axis.plot(index, band["mean"], "o-", ms=3, label=model, **style)
            if "low" in band:
                axis.fill_between(index, band["low"], band["high"], color=style["color"], alpha=0.12, lw=0)
        axis.set_title(title)
        axis.set_xlabel("exponent")
    axes[0].set_ylabel("per layer, natural logarithm")
    legend(figure, axes[0])
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
    legend(figure, axes[0][0])
    return figure


@styled
def eigenvalues(values: dict[str, np.ndarray]) -> Figure:
    """Leading eigenvalues of each layer's map of directions in the complex plane, coloured by layer, with the unit circle.

    Args:
        values: model -> complex `[depth, images, n]`.
    """
    figure = Figure(figsize=(3.1 * len(values) + 1.0, 3.3), layout="constrained")
    axes = figure.subplots(1, len(values), squeeze=False, sharex=True, sharey=True)[0]
    turn = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    for axis, (model, found) in zip(axes, values.items(), strict=True):
        axis.plot(turn.real, turn.imag, color="#bbbbbb", lw=0.8)
        layers = np.broadcast_to(np.arange(1, len(found) + 1)[:, None, None], found.shape)
        points = axis.scatter(found.real, found.imag, c=layers, s=7, cmap="viridis", linewidths=0)
        axis.set_title(model)
        axis.set_xlabel("real part")
        axis.set_aspect("equal")
    axes[0].set_ylabel("imaginary part")
    figure.colorbar(points, ax=axes, label="layer", shrink=0.85, ticks=MaxNLocator(6, integer=True))
    return figure


@styled
def horizons(found: dict[str, list[dict]]) -> Figure:
    """Cosine of linear predictions p layers ahead: of one map for a phase, of free maps, of no change.

    Args:
        found: model -> for each phase {"phase": text, token type: {"steps": `[p]`, "dmd", "identity", "linear": `[p]`}}.
    """
    phases = next(iter(found.values()))
    types = [t for t in TOKEN_NAMES if any(t in phase for phase in phases)]
    figure = Figure(figsize=(2.6 * len(phases) + 1.8, 2.2 * len(types) + 0.3), layout="constrained")
    axes = figure.subplots(len(types), len(phases), squeeze=False, sharey="row")
    dashes = {"dmd": ("-", "one linear map"), "linear": ("--", "free linear maps"), "identity": (":", "no change")}
    for line, token in zip(axes, types, strict=True):
        for axis, column in zip(line, range(len(phases)), strict=True):
            for model, style in line_styles(found).items():
                curve = found[model][column].get(token)
                for kind, (dash, label) in dashes.items() if curve else ():
                    axis.plot(curve["steps"], curve[kind], dash, marker="o", ms=3, **style, label=f"{model}, {label}")
            axis.set_xticks((1, 2, 3, 4))
            axis.set_xlim(0.7, 4.3)
        line[0].set_ylabel(f"{TOKEN_NAMES[token]}: cosine")
    for axis, phase in zip(axes[0], phases, strict=True):
        axis.set_title(f"layers {phase['phase']}")
    for axis in axes[-1]:
        axis.set_xlabel("layers ahead")
    legend(figure, axes[0][0])
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
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(6, integer=True))
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
        for model, style in line_styles(measures).items():
            values = np.asarray(measures[model]["direction_exponents"]["mean"], float)
            spectrum.plot(np.arange(1, len(values) + 1), values, "o-", ms=3, **style)
        spectrum.set_title("Lyapunov exponents of directions")
        spectrum.set_xlabel("exponent")
    for axis in rest:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=12)
    legend(figure, axes[0])
    return figure


def _plane(values):
    return values.real, values.imag


def _panels(measures, partitions, curves, scales=None) -> Figure:
    """Curves without a token type, side by side."""
    figure = Figure(figsize=(3.9 * len(curves) + 1.2, 2.8), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (name, label), scale in zip(axes, curves, scales or ["linear"] * len(curves), strict=True):
        _bands(axis, measures, name, partitions)
        if scale == "log":
            log_scale(axis)
        axis.set_ylabel(label)
    legend(figure, axes[0])
    return figure


def _bands(axis, measures, key, partitions):
    order, styles = fit_order(measures), line_styles(measures)
    # A curve has a point for each state, for each layer, or between layers: the longest of them have one for each state.
    along = [
        curve for name, curve in measures["teacher"].items() if not name.endswith("exponents") and not name.startswith(_OF_PHASES)
    ]
    depth = max(len(curve["mean"]) for curve in along) - 1
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
    axis.set_xticks(ticks(int(points <= depth), depth))
