"""What a run found: results.json for scripts, the figures as files, and the page that a person opens."""

import importlib.metadata
import json
import pathlib
import platform
import shlex

import jax

from brh_jax.report import figures
from brh_jax.report.html import FigureEntry, Table, render, save_figure
from brh_jax.report.style import fit_label
from brh_jax.train.metrics import clock, read_metrics
from experiments.context import Context, read_record
from experiments.sections import controls, dynamics, interventions, partitions_in, probes

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
    names = ("teacher", "phases", "distill", "probes", "interventions", "dynamics")
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
    partitions = partitions_in(results)
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
    yield from controls.sections(context, results, folder)
    yield from probes.sections(context, results, folder)
    yield from interventions.sections(context, results, folder)
    if results["dynamics"]:
        yield from dynamics.sections(context, results, folder)


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
                fit_label(name),
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
