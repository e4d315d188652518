"""Swaps, deletions, repetitions and hybrids on the page."""

from brh_jax.report import interventions as figures
from brh_jax.report.html import FigureEntry, Table, save_figure
from experiments.sections import partitions_in


def sections(context, results, folder):
    """Figures and tables of `results["interventions"]`; nothing where the stage did not run."""
    found = results.get("interventions")
    if not found:
        return
    partitions = partitions_in(results)
    finest = max(partitions, key=lambda name: partitions[name].k)
    measures = [measure for measure in ("change", "error") if measure in found["unchanged"]]
    images = f"{found['num_images']} images of {found['images']}"
    head = f" Images are classified by {found['head']}." if found["head"] else ""

    def entry(figure, name, title, caption):
        return FigureEntry(save_figure(figure, folder, name), title, caption)

    matrices = {_title(name): group["matrix"]["change"] for name, group in found["swaps"].items() if group["matrix"]}
    if matrices:
        yield entry(
            figures.swap_matrices(matrices, partitions[finest], "1 - cosine"),
            "swaps",
            "One layer in the place of another",
            f"Change of the last [cls, mean patch] when one layer of the teacher, or half of it, runs at the place of another; "
            f"{images}. Boxes are the phases {partitions[finest]}: were layers exchangeable within phases and nowhere else, the "
            "boxes would be light and all else dark. A row that is dark as a whole is a layer that nothing replaces.",
        )
    if found["swaps"]:
        groups = {_title(name): group["partitions"][finest] for name, group in found["swaps"].items()}
        yield entry(
            figures.swaps_by_distance(groups, found["unchanged"], measures),
            "swaps_by_distance",
            "Swaps within and across phases, by distance",
            f"Mean over the swaps of a kind, phases {partitions[finest]}; {images}, bars are bootstrap 95 % intervals over "
            f"images.{head} Only the gap between the two at one distance speaks for phases: near layers swap more easily anyhow.",
        )
        yield from (_contrast_table(found["swaps"], partitions, measure) for measure in measures)
    if found["layers"]:
        yield entry(
            figures.layer_effects(found["layers"], partitions, measures),
            "layer_effects",
            "Layers left out and applied twice",
            f"Each layer of the teacher by itself, and its attention and feed-forward part alone; {images}, bands are bootstrap "
            f"95 % intervals over images.{head} Dotted lines are phase boundaries.",
        )
    if found["hybrids"]:
        hybrids = {_raptor(name): one for name, one in found["hybrids"].items()}
        yield entry(
            figures.hybrids(hybrids, found["unchanged"], measures),
            "hybrids",
            "Raptor's blocks in the teacher's place",
            "What each phase costs: the Raptor's block runs for one phase of the teacher, from the teacher's states; and the "
            f"teacher's own layers for one phase of the Raptor. {images.capitalize()}, against the teacher's last state.{head} "
            "Bars are bootstrap 95 % intervals over images.",
        )


def _contrast_table(swaps, partitions, measure) -> Table:
    def size(value, sign=""):
        return f"{100 * value:{sign}.1f} %" if measure == "error" else f"{value:{sign}.3f}"

    rows = []
    for name, group in swaps.items():
        for key, partition in partitions.items():
            tests = group["partitions"][key]["tests"][measure]
            row = [_title(name), str(partition)]
            if (plain := tests["distance"]) is None:
                rows.append([*row, *[""] * 3, "no distance has both kinds", *[""] * 4])
                continue
            row += [str(group["num_swaps"]), size(plain["intra"]), size(plain["inter"])]
            for test in (plain, tests.get("place_and_distance")):
                row += _difference(test, size)
            moved = tests.get("boundaries")
            rows.append([*row, f"{moved['p_value']:.3f} of {moved['num_placements']}" if moved else ""])
    columns = ["swaps of", "phases", "number", "within", "across", "difference at equal distance", "p"]
    columns += ["at equal place and distance", "p", "p of the boundaries"]
    what = "Share of images misclassified" if measure == "error" else "1 - cosine of the last [cls, mean patch]"
    remark = (
        f"{what}, mean over swaps. The plain means are what is usually shown, and distance confounds them. Differences are "
        "across minus within, of swaps at one distance, or of one place and distance (one layer before it against one behind); "
        "with bootstrap 95 % intervals over images, and the numbers of swaps within / across that are compared. p by shuffling "
        "which is which, one-sided. The last column moves the phase boundaries to all other places instead, since swaps share "
        "layers and are not independent; it cannot fall below one over the number of places. Boundaries were cut where layers "
        "differ most, so a small p is not independent evidence; and where the damage depends on the place more than on what runs "
        "there, only the column of equal places speaks for phases."
    )
    title = "Swaps in figures: accuracy" if measure == "error" else "Swaps in figures: change of the last state"
    return Table(title, columns, rows, remark)


def _difference(test, size) -> list[str]:
    if not test:
        return ["", ""]
    band = f"{size(test['difference'], '+')} [{size(test['low'], '+')}, {size(test['high'], '+')}]"
    return [f"{band}, {test['num_intra']} / {test['num_inter']}", f"{test['p_value']:.4f}"]


def _title(name: str) -> str:
    return {"1 layer": "one layer", "2 layers": "two layers", "3 layers": "three layers", "mlp": "feed-forward"}.get(name, name)


def _raptor(name: str) -> str:
    return f"k = {name.removeprefix('k')}"
