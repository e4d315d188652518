"""What a run found: results.json for scripts, the figures as files, and the page that a person opens."""

import importlib.metadata
import json
import pathlib
import platform
import shlex

import jax
import numpy as np

from brh_jax.metrics import clock, read_metrics
from brh_jax.phases import Partition
from brh_jax.report import figures
from brh_jax.report.html import FigureEntry, Table, render, save_figure
from experiments.context import Context, read_record

_PACKAGES = ("brh-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def run(context: Context, folder: pathlib.Path) -> dict:
    """Reads what the other stages left and writes `figures/` and `index.html`."""
    results = results_of(context)
    sections = list(_sections(context, results, folder / "figures"))
    title = f"Block-recurrent dynamics of {results['teacher'].get('name', 'a ViT')}"
    render(
        folder / "index.html",
        title=title,
        lead=list(_lead(results)),
        sections=sections,
        configuration=str(context.config),
        environment=results["environment"] | {f"time: {k}": clock(v) for k, v in results["seconds"].items()},
    )
    print(f"report: {folder / 'index.html'}", flush=True)
    return {}


def results_of(context: Context) -> dict:
    """What results.json holds: everything that the stages measured, and with which configuration, where and how."""
    names = ("teacher", "phases", "distill", "probes", "dynamics")
    records = {name: read_record(context.workdir / name) for name in names}
    done = {name: r for name, r in records.items() if r.get("done")}
    found = {name: dict(done[name]["summary"]) if name in done else {} for name in names}
    device = jax.devices()[0]
    return {
        **found,
        "skipped_images": {k: v for f in found.values() for k, v in f.pop("skipped", {}).items()},
        "seconds": {name: round(r["seconds"], 1) for name, r in done.items()},
        "config": json.loads(context.config.to_json()),
        "environment": {
            "command": shlex.join(context.command),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {len(jax.devices())} x {device.device_kind}",
            **{name: _version(name) for name in _PACKAGES},
        },
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def _lead(results):
    teacher, fits = results["teacher"], results["distill"].get("fits", {})
    if teacher:
        layout = teacher["layout"]
        yield (
            f"Teacher: {teacher['depth']} layers of width {teacher['dim']}, {layout['num_cls']} cls + {layout['num_registers']} "
            f"register + {layout['grid'][0]} x {layout['grid'][1]} patch tokens, {teacher['params'] / 1e6:.1f} M parameters."
        )
    for k, partition in results["phases"].get("partitions", {}).items():
        fit = fits.get(f"k{k}")
        if fit is None:
            yield f"k = {k}: phases {partition['text']} ({results['phases']['method']})."
            continue
        last = ", ".join(f"{t} {values[-1]:.2f}" for t, values in fit["r2"].items())
        identity = ", ".join(f"{t} {values[-1]:.2f}" for t, values in fits["identity"]["r2"].items())
        yield (
            f"k = {k}: phases {partition['text']} ({results['phases']['method']}). R² at the last layer: {last} "
            f"(identity baseline: {identity}); e is {100 * _mean(fit['relative_error_all']):.0f} % of "
            "the state's norm, mean of layers."
        )
    if results["skipped_images"]:
        yield f"{len(results['skipped_images'])} images could not be decoded and were skipped; results.json names them."


def _sections(context: Context, results, folder):
    """The page's figures and tables, as far as stages have run."""
    rows = read_metrics(context.workdir / "teacher" / "training" / "metrics.jsonl")
    if rows and results["teacher"]:
        yield FigureEntry(
            save_figure(figures.training_curves({"teacher": rows}), folder, "teacher"),
            "Training of the teacher",
            f"Supervised; accuracy on {context.config.data.eval}: {100 * results['teacher']['accuracy']:.1f} %."
            if "accuracy" in results["teacher"]
            else "Supervised.",
        )
    phases, fits = results["phases"], results["distill"].get("fits", {})
    partitions = {f"k{k}": Partition(tuple(p["lengths"]), tuple(p["phases"])) for k, p in phases.get("partitions", {}).items()}
    if partitions:
        figure = figures.dissimilarity(phases["dissimilarity"], list(partitions.values()))
        yield FigureEntry(
            save_figure(figure, folder, "dissimilarity"),
            "Phases of depth",
            f"1 - cosine between the outputs of two layers, cls and mean patch, mean over {phases['num_images']} images. "
            f"Boxes: phases found by {phases['method']}; dark off the boxes and light inside them is a clear phase structure.",
        )
    if fits:
        yield _fit_table(results, partitions)
        runs = _training_runs(context, partitions)
        yield FigureEntry(
            save_figure(figures.training_curves(runs), folder, "training"),
            "Training",
            "Stage 1 trains every block on its own phase from the teacher's states; stage 2 joins the blocks and rolls them out "
            "from the first state. The losses are weighted differently and do not compare across stages.",
        )
        yield FigureEntry(
            save_figure(figures.fit_per_layer(fits, "r2", "pooled R²", floor=-0.5), folder, "r2"),
            "R² of every state",
            f"On {results['distill']['num_images']} images of {context.config.data.eval}, from a_0 by recurrence alone. Values "
            "below -0.5 are marked by triangles. Where a token hardly varies, R² can be very low at a cosine near one.",
        )
        yield FigureEntry(
            save_figure(figures.fit_per_layer(fits, "cosine", "cosine"), folder, "cosine"),
            "Cosine of every state",
            "Mean cosine between the tokens of the teacher and of the Raptor.",
        )
        yield FigureEntry(
            save_figure(figures.fit_per_layer(fits, "relative_error", "relative e"), folder, "error"),
            "e of the block-recurrent hypothesis",
            "Frobenius norm of the difference to the teacher's state divided by the norm of that state, mean over images.",
        )
    if results["dynamics"]:
        yield from _dynamics_sections(context, results["dynamics"], partitions, folder)
    accuracies = results["probes"].get("accuracy")
    if accuracies:
        probes = results["probes"]
        yield FigureEntry(
            save_figure(figures.probe_accuracy(accuracies, probes["num_eval"]), folder, "probes"),
            "Linear probes",
            f"Trained on {probes['num_train']} images of {probes['train']}, tested on {probes['num_eval']} of {probes['eval']}; "
            "bars are binomial 95 % intervals.",
        )
        columns = ["model", "accuracy", "of the teacher's"]
        rows = [[n, f"{100 * a:.2f} %", f"{100 * a / accuracies['teacher']:.1f} %"] for n, a in accuracies.items()]
        if given := probes.get("accuracy_of_given_head"):
            columns.append(f"with {pathlib.Path(context.config.probe.head).name} as it is")
            rows = [[*row, f"{100 * given[row[0]]:.2f} %"] for row in rows]
        yield Table("Linear probes in figures", columns, rows)


def _dynamics_sections(context: Context, found, partitions, folder):
    """Depth as a dynamical system, teacher and Raptors side by side."""
    measures, tangent = found["measures"], found["tangent_images"]
    bands = f"Mean over {found['num_images']} images, bands from the 10 to the 90 % quantile over images"

    def entry(figure, name, title, caption):
        return FigureEntry(save_figure(figure, folder, name), title, caption)

    yield entry(
        figures.dynamics_summary(measures, partitions, "Dynamics of teacher and Raptors"),
        "summary",
        "Dynamics in one figure",
        f"{bands}; perturbations and exponents are of {tangent} images. Dotted lines are phase boundaries. A good surrogate does "
        "what the teacher does in every panel.",
    )
    yield from _findings_tables(found)
    yield entry(
        figures.along_depth(measures, partitions, figures.DIRECTIONS),
        "dynamics",
        "Directions along depth",
        f"{bands}. Everything is measured on the unit sphere but the norm, which grows along depth.",
    )
    if "coherence_patches" in measures["teacher"]:
        yield entry(
            figures.patch_coherence(measures, partitions),
            "coherence",
            "Patch coherence",
            "Mean cosine of the patch tokens with their mean direction: one when all patches point the same way.",
        )
    yield entry(
        figures.along_depth(measures, partitions, figures.RANKS),
        "ranks",
        "Ranks of updates",
        "Of the angular updates of all tokens of all images together. The last row is the largest angle between the leading "
        "update directions of neighbouring layers: zero where they move tokens in the same directions, π/2 where each "
        "has its own.",
    )
    arrays = context.workdir / "dynamics" / "arrays.npz"
    arrays = dict(np.load(arrays)) if arrays.exists() else {}
    if "labels" in arrays:
        yield entry(
            figures.along_depth(measures, partitions, figures.BASINS),
            "basins",
            "Angular basins",
            "Images of one class draw together and apart from others. The nearest class mean is taken without the image itself. "
            "Where the data have no classes these are clusters of the last directions, apart there by construction.",
        )
        paths = {name: arrays[f"{name}/projection"] for name in measures if f"{name}/projection" in arrays}
        yield entry(
            figures.projections(paths, arrays["labels"]),
            "projections",
            "Trajectories",
            "Directions of images from the first state (crosses) to the last (dots), on the two leading components of each "
            "model's last directions, coloured by class.",
        )
    if tangent:
        yield from _tangent_entries(measures, partitions, tangent, entry)
    modes = {
        name: [{k: v if k == "phase" else [complex(*z) for z in v] for k, v in phase.items()} for phase in phases]
        for name, phases in found["modes"].items()
    }
    yield entry(
        figures.modes(modes),
        "modes",
        "Linear models of the phases",
        "Eigenvalues of one linear map for all layers of a phase (dynamic mode decomposition). Inside the circle modes contract; "
        "their angle is how far they turn per layer. Triangles lie further out.",
    )
    matrices = {f"layer {k.removeprefix('influence/')}": v for k, v in arrays.items() if k.startswith("influence/")}
    if matrices:
        yield entry(
            figures.influence(matrices, context.teacher().layout),
            "influence",
            "Which token moves which",
            "Of the teacher's layers, one image: Frobenius norm of the derivative of each token's direction by each token's.",
        )
    if found["extrapolation"]:
        yield entry(
            figures.extrapolation(found["extrapolation"]),
            "extrapolation",
            "Blocks iterated beyond their place",
            "The last layer of each phase applied on, to the state that it left, its depth held; mean over all tokens and the "
            "images that stay finite. A falling angle is a direction that comes to rest, whatever the norm does.",
        )
        yield _extrapolation_table(found["extrapolation"], tangent)


def _tangent_entries(measures, partitions, tangent: int, entry):
    yield entry(
        figures.along_depth(measures, partitions, figures.GROWTH),
        "growth",
        "What becomes of a perturbation",
        f"Every token of the first state is moved by a random vector, of the middle of the sizes that config.dynamics names: the "
        f"angle to the clean trajectory later, over the injected one; {tangent} images. Below one directions recover.",
    )
    yield entry(
        figures.exponents(measures),
        "exponents",
        "Finite-time Lyapunov exponents",
        f"Mean growth of tangent vectors per layer over all of depth, {tangent} images. The directions' leave out the growth of "
        "norms, which is most of the states'.",
    )
    yield entry(
        figures.jacobians(measures, partitions),
        "jacobians",
        "Jacobians of the layers",
        f"Of each layer's map of directions, all tokens together, {tangent} images: the factor by which the most sensitive "
        "direction grows, how far the map is from leaving all directions as they are, and how far from a symmetric one.",
    )
    yield entry(
        figures.sublayers(measures, partitions),
        "sublayers",
        "Attention and feed-forward apart",
        "The angle that each half of a layer turns a token by.",
    )


def _findings_tables(found):
    columns = ["model", "token", "cosine with the end: 0.5 at", "0.9 at", "angular speed: first, middle, last layer"]
    columns += ["stable rank by thirds", "jump at boundaries, p"]
    rows = []
    for name, finding in found["findings"].items():
        for token in (t for t in figures.TOKEN_NAMES if t in finding):
            one = finding[token]
            jump = one.get("jump")
            row = [name, token, *("never" if one[k] is None else f"state {one[k]:.1f}" for k in ("half", "nine_tenths"))]
            row += [" / ".join(f"{v:.3f}" for v in one["speed"]), " / ".join(f"{v:.1f}" for v in one["stable_rank"])]
            rows.append([*row, f"{jump['p']:.3f} of {jump['placements']}" if jump else ""])
    remark = (
        "The last column tests whether the angular speed changes more across the phase boundaries than between other layers, "
        "against all other places for as many boundaries; it cannot fall below one over their number. The boundaries were "
        "cut where layers differ most, so a small value is not independent evidence."
    )
    yield Table("Directions in figures", columns, rows, remark)
    if found["tangent_images"]:
        columns, rows = ["model", "largest exponent", "of directions", "recovery, by size"], []
        for name, one in found["findings"].items():
            exponents = (f"{one[key]:.3f}" for key in ("largest_exponent", "largest_direction_exponent"))
            rows.append([name, *exponents, " / ".join(f"{r:.2f}" for r in one["recovery"])])
        remark = (
            "Exponents are per layer, natural logarithms: above zero small differences grow. Recovery: angle of all tokens at "
            "the end over the injected one, for each size of perturbation; below one directions recover."
        )
        yield Table("Stability in figures", columns, rows, remark)
    curves = [c for c in next(iter(found["distance"].values()), {}) if not c.startswith(("acceleration", "within", "between"))]
    columns = ["curve", *found["distance"]]
    rows = [[c.replace("_", " "), *(_share(d.get(c)) for d in found["distance"].values())] for c in curves]
    if rows:
        remark = "Of each curve, mean over images: Euclidean norm of the difference along depth over that of the teacher's curve."
        yield Table("Distance of the dynamics from the teacher's", columns, rows, remark)


def _share(distance) -> str:
    return f"{100 * distance['relative']:.0f} %" if distance else ""


def _extrapolation_table(runs, num_images) -> Table:
    rows = []
    for name, blocks in runs.items():
        for phase, run in blocks.items():
            fates = (", ".join(f"{fate} {count}" for fate, count in run[kind].items()) for kind in ("fate", "direction_fate"))
            growth = run["norm_growth"]
            rows.append([name, phase, *fates, "" if growth is None else f"{growth:.4f}"])
    columns = ["model", "layers", "states", "directions", "norm, factor per step at the end"]
    remark = f"Fates of {num_images} images after {len(next(iter(next(iter(runs.values())).values()))['speed'])} applications."
    return Table("Where iterated blocks end", columns, rows, remark)


def _training_runs(context, partitions) -> dict[str, list[dict]]:
    folder = context.workdir / "distill"
    runs = {
        f"k = {partition.k}, stage {stage}": read_metrics(folder / name / f"stage{stage}" / "metrics.jsonl")
        for name, partition in partitions.items()
        for stage in (1, 2)
    }
    return {title: rows for title, rows in runs.items() if rows}


def _fit_table(results, partitions) -> Table:
    fits, costs, teacher = results["distill"]["fits"], results["distill"]["costs"], results["teacher"]
    types = list(fits["identity"]["r2"])
    columns = ["model", "phases", *(f"R² {t}" for t in types), *(f"cosine {t}" for t in types)]
    columns += ["final cosine", "relative e", "block params", "FLOPs"]
    rows = []
    for name, fit in fits.items():
        base = name.removesuffix("_stage1")
        cost = costs.get(base)
        rows.append(
            [
                name.replace("_stage1", ", stage 1"),
                str(partitions[base]) if base in partitions else "",
                *(f"{_mean(fit['r2'][t]):.3f}" for t in types),
                *(f"{_mean(fit['cosine'][t]):.3f}" for t in types),
                f"{fit['final_cosine']:.3f}",
                f"{_mean(fit['relative_error_all']):.3f}",
                f"{100 * cost['block_params'] / teacher['block_params']:.0f} %" if cost else "",
                f"{100 * cost['flops_per_image'] / teacher['flops_per_image']:.0f} %" if cost else "",
            ]
        )
    remark = (
        "R², cosine and relative e are means over layers. Final cosine: of [cls, mean patch] after the final norm. Block "
        "parameters and FLOPs are given as a share of the teacher's; a SwiGLU block costs more than the GELU block it stands for."
    )
    return Table("Agreement with the teacher", columns, rows, remark)


def _mean(values) -> float:
    return sum(values) / len(values)
