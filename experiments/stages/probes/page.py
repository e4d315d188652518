"""What probes find in the teacher and in every Raptor, on the page."""

import pathlib
from collections.abc import Iterator

from brh_jax.report.html import FigureEntry, Table
from experiments.interval import Interval
from experiments.page import Page
from experiments.results import read_arrays
from experiments.stages.probes import figures
from experiments.stages.probes.choice import Choice, ProbeSets
from experiments.stages.probes.depth import DepthResult
from experiments.stages.probes.feature_probe import FeatureProbeResult
from experiments.stages.probes.linear import LinearResult
from experiments.stages.probes.run import ProbesResult
from experiments.stages.probes.segmentation import SegmentationResult


def page(page: Page) -> Iterator[FigureEntry | Table]:
    """Yields figures and tables of each probe that ran."""
    probes = page.result(ProbesResult)
    if probes.linear:
        yield from _linear(page, probes.linear)
    if probes.feature_probe:
        yield _feature_probe(probes.feature_probe)
    if probes.segmentation:
        yield from _segmentation(page, probes.segmentation)
    if probes.depth:
        yield from _depth(page, probes.depth)


def _linear(page: Page, result: LinearResult) -> Iterator[FigureEntry | Table]:
    accuracies = {name: probe.accuracy.value for name, probe in result.models.items()}
    yield page.figure(
        figures.probe_accuracy(accuracies, result.num_eval),
        "probes",
        "Linear probes",
        f"A bar as tall as the teacher's is a Raptor whose features serve as well. {_trained(result)} Bars are binomial 95 % "
        "intervals.",
    )
    columns = ["model", "accuracy", "of the teacher's"]
    rows = [[name, f"{100 * value:.2f} %", _share(value, accuracies)] for name, value in accuracies.items()]
    if result.head:
        columns.append(f"with {result.head} as it is")
        rows = [[*row, f"{100 * (result.models[row[0]].accuracy_of_given_head or 0.0):.2f} %"] for row in rows]
    yield Table("Linear probes in figures", columns, rows, _chosen(result.models))


def _feature_probe(result: FeatureProbeResult) -> Table:
    rows = []
    for name, probe in result.models.items():
        accuracies = (*probe.nearest.values(), probe.logistic)
        rows.append([name, *(f"{100 * one.value:.2f} % ({_band(one, 100)})" for one in accuracies)])
    neighbours = next(iter(result.models.values())).nearest
    remark = (
        f"{_trained(result)} On [cls, mean patch] of centre crops, without training: votes of the nearest training images by "
        "cosine, and logistic regression by L-BFGS, whose penalty a held-out part of the training set chose. In brackets: 95 % "
        "bootstrap intervals over images."
    )
    if empty := result.classes_without_images:
        remark += f" No training image of {len(empty)} classes: {', '.join(empty[:5])}."
    return Table("k-NN and logistic regression", ["model", *(f"{k}-NN" for k in neighbours), "logistic"], rows, remark)


def _segmentation(page: Page, result: SegmentationResult) -> Iterator[FigureEntry | Table]:
    scores = {name: probe.miou for name, probe in result.models.items()}
    yield page.figure(
        figures.score_bars(scores, "mIoU"),
        "segmentation",
        "Linear segmentation",
        f"A bar as tall as the teacher's is a Raptor whose patches say as well what is where. {_trained(result)} Mean "
        f"intersection over union of {len(result.classes)} classes, those neither predicted nor there left out, at the size "
        "of the network's input; bars are 95 % bootstrap intervals over images.",
    )
    values = {name: miou.value for name, miou in scores.items()}
    rows = [
        [
            name,
            f"{100 * probe.miou.value:.2f} % ({_band(probe.miou, 100)})",
            _share(probe.miou.value, values),
            f"{100 * probe.pixel_accuracy:.2f} %",
            str(sum(iou is not None for iou in probe.iou)),
        ]
        for name, probe in result.models.items()
    ]
    remark = _chosen(result.models)
    if result.unseen:
        remark += f" No training pixel of {len(result.unseen)} classes: {', '.join(result.unseen[:5])}."
    columns = ["model", "mIoU", "of the teacher's", "pixels right", "classes counted"]
    yield Table("Linear segmentation in figures", columns, rows, remark)
    if examples := _examples(page.workdir / "probes" / "segmentation"):
        yield page.figure(
            figures.segmentation_examples(*examples, len(result.classes)),
            "segmentation_examples",
            "Segmentation, examples",
            "The more alike the columns, the more a Raptor keeps of the teacher. The first test images, the true masks and "
            "what each model's probe says; white: no label.",
        )


def _depth(page: Page, result: DepthResult) -> Iterator[FigureEntry | Table]:
    yield page.figure(
        figures.score_bars({name: probe.rmse for name, probe in result.models.items()}, "RMSE (m), lower is better"),
        "depth",
        "Linear depth",
        "The lower the better: a bar no taller than the teacher's is a Raptor that keeps what depth is read from. "
        f"{_trained(result)} By the recipe {result.recipe}. Root of the mean squared error over all pixels together; bars are "
        "95 % bootstrap intervals.",
    )
    rows = [
        [
            name,
            f"{probe.rmse.value:.4f} ({_band(probe.rmse, digits=4)})",
            f"{probe.rmse_per_image.value:.4f} ({_band(probe.rmse_per_image, digits=4)})",
            f"{probe.abs_rel:.4f}",
            f"{probe.delta1:.4f}",
        ]
        for name, probe in result.models.items()
    ]
    columns = ["model", "RMSE (m), all pixels", "RMSE of each image, mean", "relative error", "within 1.25"]
    yield Table("Linear depth in figures", columns, rows, _chosen(result.models, "minus RMSE"))
    if examples := _examples(page.workdir / "probes" / "depth"):
        yield page.figure(
            figures.depth_examples(*examples),
            "depth_examples",
            "Depth, examples",
            "The more alike the columns, the more a Raptor keeps of the teacher. The first test images, the true depth and "
            "what each model's probe says; white: no measurement.",
        )


def _examples(folder: pathlib.Path):
    """Images, targets, and model -> predictions; None where there are none."""
    path = folder / "examples.npz"
    if not path.exists():
        return None
    arrays = read_arrays(path)
    predictions = {name.partition("/")[2]: values for name, values in arrays.items() if name.startswith("predictions/")}
    return arrays["images"], arrays["targets"], predictions


def _trained(sets: ProbeSets) -> str:
    return f"Trained on {sets.num_train} images of {sets.train}, tested on {sets.num_eval} of {sets.eval}."


def _share(score: float, scores: dict[str, float]) -> str:
    teacher = scores["teacher"]
    return f"{100 * score / teacher:.1f} %" if teacher else ""


def _band(interval: Interval, scale: float = 1, digits: int = 1) -> str:
    return f"{scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f}"


def _chosen(models: dict, what: str = "the score") -> str:
    """Which learning rates were tried, where a held-out part of the training set chose."""
    chosen: dict[str, Choice] = {name: probe.learning_rate for name, probe in models.items() if probe.learning_rate.held_out}
    if not chosen:
        return ""
    texts = [f"{name} {choice.value:g}" for name, choice in chosen.items()]
    rates = ", ".join(f"{rate:g}" for rate in next(iter(chosen.values())).held_out)
    return f"Learning rates {rates}: the one with the best held-out part of the training set, by {what}: {', '.join(texts)}."
