"""Swaps, deletions, repetitions and hybrids on the page."""

from collections.abc import Iterator

from brh_jax.interventions import Contrast
from brh_jax.report.html import FigureEntry, Table
from experiments.page import Page, of_photographs
from experiments.stages.interventions import figures
from experiments.stages.interventions.results import InterventionsResult, SwapsResult
from experiments.stages.phases.run import PhasesResult

_NUMBERS = {1: "one layer", 2: "two layers", 3: "three layers"}


def page(page: Page) -> Iterator[FigureEntry | Table]:
    """Yields figures and tables of the interventions; none where nothing was measured."""
    result = page.result(InterventionsResult)
    if not result.num_images:
        return
    measures: list[str] = [measure for measure in ("change", "error") if measure in result.unchanged]
    images = f"{of_photographs(result.num_images, result.num_photographs)} of {result.images}"
    head = f" Images are classified by {result.head}." if result.head else ""
    yield from _swaps(page, result, measures, images, head)
    if result.layers:
        partitions = [cut.partition for cut in page.result(PhasesResult).partitions.values()]
        yield page.figure(
            figures.layer_effects(result.layers, partitions, measures),
            "layer_effects",
            "Layers left out and applied twice",
            "A peak is a layer that the network cannot do without, or not do twice. Each layer of the teacher by itself, and "
            f"its attention and feed-forward part alone; {images}, bands are bootstrap 95 % intervals over photographs.{head} "
            "Dotted lines are phase boundaries.",
        )
    if result.hybrids:
        yield page.figure(
            figures.hybrids(list(result.hybrids.values()), result.unchanged, measures),
            "hybrids",
            "Raptor's blocks in the teacher's place",
            "Of the Raptor's blocks in the teacher, the tallest bar is the phase that they do worst. The Raptor's block runs "
            "for one phase of the teacher, from the teacher's states; and the teacher's own layers for one phase of the "
            f"Raptor. {images.capitalize()}, against the teacher's last state.{head} Bars are bootstrap 95 % intervals over "
            "photographs.",
        )


def _swaps(page: Page, result: InterventionsResult, measures: list[str], images: str, head: str):
    finest = page.result(PhasesResult).finest
    if matrices := {_title(group): group.matrix["change"] for group in result.swaps if group.matrix}:
        yield page.figure(
            figures.swap_matrices(matrices, finest, "1 - cosine"),
            "swaps",
            "One layer in the place of another",
            "Were layers exchangeable within phases and nowhere else, the boxes would be light and all else dark; a row that "
            "is dark as a whole is a layer that nothing replaces. Change of the last [cls, mean patch] when one layer of the "
            f"teacher, or half of it, runs at the place of another; {images}. Boxes are the phases {finest}.",
        )
    if result.swaps:
        groups = {_title(group): group.partitions[finest.k] for group in result.swaps}
        yield page.figure(
            figures.swaps_by_distance(groups, result.unchanged, measures),
            "swaps_by_distance",
            "Swaps within and across phases, by distance",
            "Only the gap between the two lines at one distance speaks for phases: near layers swap more easily anyhow. Mean "
            f"over the swaps of a kind, phases {finest}; {images}, bars are bootstrap 95 % intervals over photographs.{head}",
        )
        yield from (_contrasts(result.swaps, measure) for measure in measures)


def _contrasts(groups: list[SwapsResult], measure: str) -> Table:
    rows = [_contrast_row(group, k, measure) for group in groups for k in group.partitions]
    columns = ["swaps of", "phases", "number", "within", "across", "difference at equal distance", "p"]
    columns += ["at equal place and distance", "p", "p of the boundaries"]
    what = "Share of images misclassified" if measure == "error" else "1 - cosine of the last [cls, mean patch]"
    remark = (
        f"{what}, mean over swaps. The plain means are what is usually shown, and distance confounds them. Differences are "
        "across minus within, of swaps at one distance, or of one place and distance (one layer before it against one behind); "
        "with bootstrap 95 % intervals over photographs, and the numbers of swaps within / across that are compared. p by "
        "shuffling "
        "which is which, one-sided. The last column moves the phase boundaries to all other places instead, since swaps share "
        "layers and are not independent; it cannot fall below one over the number of places. Boundaries were cut where layers "
        "differ most, so a small p is not independent evidence; and where the damage depends on the place more than on what runs "
        "there, only the column of equal places speaks for phases."
    )
    title = "Swaps in figures: accuracy" if measure == "error" else "Swaps in figures: change of the last state"
    return Table(title, columns, rows, remark)


def _contrast_row(group: SwapsResult, k: int, measure: str) -> list[str]:
    swaps = group.partitions[k]
    tests, row = swaps.tests[measure], [_title(group), swaps.phases]
    if (plain := tests.distance) is None:
        return [*row, *[""] * 3, "no distance has both kinds", *[""] * 4]
    row += [str(group.num_swaps), _size(plain.intra, measure), _size(plain.inter, measure)]
    row += [cell for test in (plain, tests.place_and_distance) for cell in _difference(test, measure)]
    moved = tests.boundaries
    return [*row, f"{moved.p_value:.3f} of {moved.num_placements}" if moved else ""]


def _difference(test: Contrast | None, measure: str) -> list[str]:
    if test is None:
        return ["", ""]
    difference, low, high = (_size(value, measure, "+") for value in (test.difference, test.low, test.high))
    return [f"{difference} [{low}, {high}], {test.num_intra} / {test.num_inter}", f"{test.p_value:.4f}"]


def _size(value: float, measure: str, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} %" if measure == "error" else f"{value:{sign}.3f}"


def _title(group: SwapsResult) -> str:
    if group.part == "layer":
        return _NUMBERS.get(group.num_layers, group.name)
    return {"mlp": "feed-forward"}.get(group.part, group.part)
