"""Controls on the page: how sure the partition is, and what random partitions and simpler predictions reach."""

from brh_jax.report import controls
from brh_jax.report.html import FigureEntry, Table, save_figure


def sections(context, results, folder):
    """Yields figures and tables, as far as stages have run."""
    found = results["phases"]
    if metrics := {metric: by_k for metric, by_k in found.get("bootstrap", {}).items() if by_k}:
        yield from _stability(metrics, folder)
    if found.get("random"):
        yield from _random(found["random"], folder)


def _stability(metrics, folder):
    first = next(iter(next(iter(metrics.values())).values()))
    if any(int(k) > 1 for by_k in metrics.values() for k in by_k):
        yield FigureEntry(
            save_figure(controls.boundary_frequency(metrics), folder, "boundaries"),
            "How sure the phases are",
            f"Share of {first['num_resamples']} bootstrap resamples of the images that are cut after each layer, by cosine and "
            "by linear CKA of cls and mean patch. Triangles: where all images together are cut. One tall bar for each cut is a "
            "partition that other images would give too; bars of the two metrics in other places are a partition that depends on "
            "what layers are compared by.",
        )
    columns = ["metric", "k", "all images", "most frequent", "in", "partitions", "Rand index", "to the run's", "units"]
    rows = [
        [
            metric,
            k,
            one["found"],
            one["modal"],
            f"{100 * max(one['frequencies'].values()):.0f} %",
            str(one["num_partitions"]),
            f"{one['rand_index']:.2f}",
            f"{one['rand_index_to_used']:.2f}",
            str(one["num_units"]),
        ]
        for metric, by_k in metrics.items()
        for k, one in by_k.items()
    ]
    remark = (
        "Rand index: adjusted, mean over resamples, of their partition to that of all images; one for the same phases, zero for "
        "unrelated ones. To the run's: of the metric's partition to the one that Raptors share blocks by. What is resampled are "
        "images for the cosine, groups of 16 images for CKA, whose unbiased estimate is one of groups."
    )
    yield Table("Partitions of resampled images", columns, rows, remark)


def _random(by_k, folder):
    ranks = ", ".join(f"{100 * one['rank_on_other_images']:.0f} % for k = {k}" for k, one in by_k.items())
    yield FigureEntry(
        save_figure(controls.cut_weights(by_k), folder, "cut_weights"),
        "Max cut and random partitions",
        "Share of the dissimilarity that lies between phases. The max cut is the largest of all contiguous ones by construction. "
        f"Cut from half of the images it is, on the other half, at least as heavy as this share of the contiguous ones: {ranks}. "
        "How far the others stay below says how much it matters where depth is cut.",
    )
