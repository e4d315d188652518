"""What linear probes find in the teacher and in every Raptor."""

import pathlib

import numpy as np
from experiments.context import Context

from brh_jax.report import probes
from brh_jax.report.html import FigureEntry, Table, save_figure


def sections(context: Context, results: dict, folder: pathlib.Path):
    """Yields FigureEntry and Table for each probe that ran."""
    found, stage = results["probes"], context.workdir / "probes"
    if "accuracy" in found:
        yield from _classification(context, found, folder)
    if "quick" in found:
        yield _quick(found["quick"])
    if "segmentation" in found:
        yield from _segmentation(found["segmentation"], stage, folder)
    if "depth" in found:
        yield from _depth(found["depth"], stage, folder)


def _classification(context, found, folder):
    accuracies = found["accuracy"]
    yield FigureEntry(
        save_figure(probes.probe_accuracy(accuracies, found["num_eval"]), folder, "probes"),
        "Linear probes",
        f"{_trained(found)} Bars are binomial 95 % intervals.",
    )
    columns = ["model", "accuracy", "of the teacher's"]
    rows = [[n, f"{100 * a:.2f} %", _share(a, accuracies)] for n, a in accuracies.items()]
    if given := found.get("accuracy_of_given_head"):
        columns.append(f"with {pathlib.Path(context.config.probe.head).name} as it is")
        rows = [[*row, f"{100 * given[row[0]]:.2f} %"] for row in rows]
    yield Table("Linear probes in figures", columns, rows, _chosen({n: found["held_out"].get(n) for n in accuracies}))


def _quick(found) -> Table:
    models = found["models"]
    names = list(next(iter(models.values()))["accuracy"])
    rows = [
        [model, *(f"{100 * one['accuracy'][n]:.2f} % ({_band(one['interval'][n], 100)})" for n in names)]
        for model, one in models.items()
    ]
    remark = (
        f"{_trained(found)} On [cls, mean patch] of centre crops, without training: votes of the nearest training images by "
        "cosine, and logistic regression by L-BFGS, whose penalty a held-out part of the training set chose. In brackets: 95 % "
        "bootstrap intervals over images."
    )
    if empty := next(iter(models.values()))["classes_without_images"]:
        remark += f" No training image of {len(empty)} classes: {', '.join(empty[:5])}."
    return Table("k-NN and logistic regression", ["model", *names], rows, remark)


def _segmentation(found, stage, folder):
    models = found["models"]
    scores = {name: (one["miou"], one["low"], one["high"]) for name, one in models.items()}
    yield FigureEntry(
        save_figure(probes.score_bars(scores, "mIoU"), folder, "segmentation"),
        "Linear segmentation",
        f"{_trained(found)} Mean intersection over union of {len(found['classes'])} classes, those neither predicted nor there "
        "left out, at the size of the network's input; bars are 95 % bootstrap intervals over images.",
    )
    rows = [
        [
            name,
            f"{100 * one['miou']:.2f} % ({_band((one['low'], one['high']), 100)})",
            _share(one["miou"], {n: m["miou"] for n, m in models.items()}),
            f"{100 * one['pixel_accuracy']:.2f} %",
            str(sum(v is not None for v in one["iou"])),
        ]
        for name, one in models.items()
    ]
    remark = _chosen({name: one["held_out"] for name, one in models.items()})
    if unseen := next(iter(models.values())).get("unseen"):
        remark += f" No training pixel of {len(unseen)} classes: {', '.join(unseen[:5])}."
    columns = ["model", "mIoU", "of the teacher's", "pixels right", "classes counted"]
    yield Table("Linear segmentation in figures", columns, rows, remark)
    examples = _examples(stage / "segmentation")
    if examples:
        yield FigureEntry(
            save_figure(probes.segmentation_examples(*examples, len(found["classes"])), folder, "segmentation_examples"),
            "Segmentation, examples",
            "The first test images, the true masks and what each model's probe says. White: no label.",
        )


def _depth(found, stage, folder):
    models = found["models"]
    scores = {name: (one["rmse"], one["low"], one["high"]) for name, one in models.items()}
    yield FigureEntry(
        save_figure(probes.score_bars(scores, "RMSE (m), lower is better"), folder, "depth"),
        "Linear depth",
        f"{_trained(found)} Root mean squared error of each image, mean over images; bars are 95 % bootstrap intervals.",
    )
    rows = [
        [
            name,
            f"{one['rmse']:.4f} ({_band((one['low'], one['high']), digits=4)})",
            f"{one['rmse_pooled']:.4f}",
            f"{one['abs_rel']:.4f}",
            f"{one['delta1']:.4f}",
        ]
        for name, one in models.items()
    ]
    columns = ["model", "RMSE (m)", "RMSE of all pixels", "relative error", "within 1.25"]
    remark = _chosen({name: one["held_out"] for name, one in models.items()}, "minus RMSE")
    yield Table("Linear depth in figures", columns, rows, remark)
    examples = _examples(stage / "depth")
    if examples:
        yield FigureEntry(
            save_figure(probes.depth_examples(*examples), folder, "depth_examples"),
            "Depth, examples",
            "The first test images, the true depth and what each model's probe says. White: no measurement.",
        )


def _examples(folder):
    path = folder / "examples.npz"
    if not path.exists():
        return None
    with np.load(path) as arrays:
        predictions = {name.partition("/")[2]: arrays[name] for name in arrays.files if name.startswith("predictions/")}
        return arrays["images"], arrays["targets"], predictions


def _trained(found) -> str:
    return f"Trained on {found['num_train']} images of {found['train']}, tested on {found['num_eval']} of {found['eval']}."


def _share(score, scores) -> str:
    teacher = scores.get("teacher", 0)
    return f"{100 * score / teacher:.1f} %" if teacher else ""


def _band(interval, scale: float = 1, digits: int = 1) -> str:
    return " to ".join(f"{scale * v:.{digits}f}" for v in interval)


def _chosen(held_out: dict[str, dict | None], what: str = "the score") -> str:
    """Which learning rates were tried, where a held-out part of the training set chose."""
    tried = {name: scores for name, scores in held_out.items() if scores}
    if not tried:
        return ""
    texts = [f"{name} {max(scores, key=scores.get)}" for name, scores in tried.items()]
    rates = ", ".join(next(iter(tried.values())))
    return f"Learning rates {rates}: the one with the best held-out part of the training set, by {what}: {', '.join(texts)}."
