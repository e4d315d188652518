"""Phases on the page."""

from collections.abc import Iterator

from brh_jax.phases import plot
from brh_jax.report.html import FigureEntry, Table
from experiments.page import Page, of_photographs
from experiments.stages.phases import figures
from experiments.stages.phases.run import ObjectiveResult, PhasesResult, RandomComparison, StabilityResult


def page(page: Page) -> Iterator[FigureEntry | Table]:
    """Yields the dissimilarity with the phases, how sure these are, and random partitions beside them."""
    phases = page.result(PhasesResult)
    yield page.figure(
        plot(phases.dissimilarity, *(cut.partition for cut in phases.partitions.values())),
        "dissimilarity",
        "Phases of depth",
        "Light inside the boxes and dark outside is a clear phase structure. 1 - cosine between the outputs of two layers, "
        f"cls and mean patch, mean over {of_photographs(phases.num_images, phases.num_photographs)}; boxes are the phases "
        f"found by {phases.method}{_thresholds(phases)}.",
    )
    if phases.objectives:
        yield _objectives(phases.method, phases.objectives)
    if phases.stability:
        yield from _stability(page, phases.stability)
    if phases.random:
        yield _random(page, phases.random)


def _thresholds(phases: PhasesResult) -> str:
    """The largest thresholds at which a bisection gives the partitions, in words."""
    found = {k: cut.threshold for k, cut in phases.partitions.items() if cut.threshold is not None}
    return ", " + ", ".join(f"k = {k} at thresholds up to {threshold:.3f}" for k, threshold in found.items()) if found else ""


def _objectives(method: str, objectives: list[ObjectiveResult]) -> Table:
    ks = sorted({one.k for one in objectives})
    cells = {(one.method, one.min_length, one.k): _cell(one) for one in objectives}
    rows = [
        [name + (" (this run's)" if name == method else ""), str(length), *(cells.get((name, length, k), "none") for k in ks)]
        for name, length in sorted({(one.method, one.min_length) for one in objectives})
    ]
    remark = (
        "The same matrix cut by other objectives; in parentheses the share of the dissimilarity that lies between phases, which "
        "max_cut makes as large as it can be. contrast_cut: largest mean dissimilarity across phases minus that within. "
        "recursive_bisection, the paper's authors': in two where most crosses, and each part again, as long as the share of the "
        "whole that crosses reaches a threshold; the largest that gives k phases stands beside. Where the objectives differ, the "
        "phases are theirs as much as the model's."
    )
    return Table("What each objective gives", ["objective", "fewest layers", *(f"k = {k}" for k in ks)], rows, remark)


def _cell(one: ObjectiveResult) -> str:
    threshold = "" if one.threshold is None else f", threshold {one.threshold:.3f}"
    return f"{one.text} ({one.cut_weight:.2f}{threshold})"


def _stability(page: Page, stability: list[StabilityResult]):
    metrics: dict[str, dict[int, StabilityResult]] = {}
    for one in stability:
        metrics.setdefault(one.metric, {})[one.k] = one
    if any(one.k > 1 for one in stability):
        yield page.figure(
            figures.boundary_frequency(metrics),
            "boundaries",
            "How sure the phases are",
            "One tall bar for each cut is a partition that other images would give too; bars of the two metrics in other places "
            "are a partition that depends on what layers are compared by. "
            f"Share of {stability[0].num_resamples} bootstrap resamples of the photographs that are cut after each layer, by "
            "cosine and by linear CKA of cls and mean patch. Triangles: where all images together are cut.",
        )
    columns = ["metric", "k", "all images", "most frequent", "in", "partitions", "Rand index", "to the run's", "units / groups"]
    rows = [
        [
            one.metric,
            str(one.k),
            one.all_images,
            one.modal,
            f"{100 * max(one.frequencies.values()):.0f} %",
            str(one.num_partitions),
            f"{one.rand_index:.2f}",
            f"{one.rand_index_to_used:.2f}",
            f"{one.num_units} / {one.num_groups}",
        ]
        for one in stability
    ]
    remark = (
        "Rand index: adjusted, mean over resamples, of their partition to that of all images; one for the same phases, zero for "
        "unrelated ones. To the run's: of the metric's partition to the one that Raptors share blocks by. What is resampled are "
        "groups of units: for the cosine photographs with all their views, for CKA sets of 16 photographs (a unit is 16 images, "
        "one of "
        "each)."
    )
    yield Table("Partitions of resampled images", columns, rows, remark)


def _random(page: Page, compared: list[RandomComparison]) -> FigureEntry:
    ranks = ", ".join(f"{100 * one.rank_on_other_images:.0f} % for k = {one.k}" for one in compared)
    return page.figure(
        figures.cut_weights(compared),
        "cut_weights",
        "Max cut and random partitions",
        "How far random partitions stay below the max cut says how much it matters where depth is cut. Share of the "
        "dissimilarity that lies between phases; the max cut is the largest of all contiguous ones by construction. Cut from "
        f"half of the photographs it is, on the other half, at least as heavy as this share of the contiguous ones: {ranks}.",
    )
