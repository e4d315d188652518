"""Controls on the page: how sure the partition is, what random ones reach, e with its intervals, and programs' lengths."""

from brh_jax.report import controls
from brh_jax.report.html import FigureEntry, Table, save_figure
from brh_jax.report.style import TOKEN_NAMES, fit_label


def sections(context, results, folder):
    """Yields figures and tables, as far as stages have run."""
    found = results["phases"]
    if metrics := {metric: by_k for metric, by_k in found.get("bootstrap", {}).items() if by_k}:
        yield from _stability(metrics, folder)
    if found.get("random"):
        yield from _random(found["random"], folder)
    if results["distill"].get("fits"):
        yield from _errors(results["distill"], context.config.data.eval, folder)
        yield _description(results)


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


def _errors(distill, spec, folder):
    yield FigureEntry(
        save_figure(controls.error_per_layer(distill["fits"]), folder, "error"),
        "e of the block-recurrent hypothesis",
        f"Frobenius norm of the difference to the teacher's state, relative to the norm of that state and absolute: mean over "
        f"{distill['num_images']} images of {spec}, bands are its 95 % bootstrap intervals over images.",
    )
    rows = []
    for name, found in {spec: distill, **distill.get("more", {})}.items():
        for model, fit in found["fits"].items():
            overall = fit.get("overall", {})
            cells = [_interval(overall.get(f"relative_error_{t}"), fit, t) for t in (*TOKEN_NAMES, "all")]
            worst = max(fit["relative_error_all"])
            layer = fit["relative_error_all"].index(worst) + 1
            rows.append([name, str(found["num_images"]), fit_label(model), *cells, f"{worst:.3f} at {layer}"])
            rows[-1] += [_interval(overall.get("error_all"), fit, "all", "error")]
    columns = [
        "images",
        "n",
        "model",
        *(f"e / norm, {t}" for t in TOKEN_NAMES),
        "all tokens",
        "largest, at layer",
        "e, all tokens",
    ]
    filled = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    remark = (
        "Means over layers and images, with 95 % bootstrap intervals over images. The mean state and the linear maps are fitted "
        "to the teacher's states of training images, apart for each token type. Linear blocks are one affine map for each phase, "
        "fitted to the steps between the teacher's states and applied again and again."
    )
    yield Table("e in figures", [columns[i] for i in filled], [[row[i] for i in filled] for row in rows], remark)


def _interval(overall, fit, token, measure="relative_error") -> str:
    """Mean over layers, with its interval where there is one; empty for a token type that the model lacks."""
    if overall:
        return "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**overall)
    values = fit[f"{measure}_all"] if token == "all" else fit[measure].get(token)
    return f"{sum(values) / len(values):.3f}" if values else ""


def _description(results) -> Table:
    teacher, distill = results["teacher"], results["distill"]
    costs = {"teacher": teacher} | distill["costs"]
    rows = []
    for name, cost in costs.items():
        fit = distill["fits"].get(name)
        rows.append(
            [
                name,
                f"{cost['block_params']:,}",
                f"{cost['block_bits']:,}",
                f"{cost['partition_bits']:.1f}",
                f"{cost['flops_per_image'] / 1e9:.3g}",
                f"{cost['log2_flops']:.2f}",
                f"{cost['levin']:,.0f}",
                f"{100 * cost['levin'] / teacher['levin']:.1f} %",
                _interval(fit.get("overall", {}).get("relative_error_all"), fit, "all") if fit else "0",
            ]
        )
    columns = ["model", "block parameters", "bits", "partition, bits", "GFLOP per image", "log2 FLOP", "Kt", "of the teacher's"]
    remark = (
        "Levin's Kt is the length of a program plus the logarithm of its running time: bits of the blocks' parameters as they "
        "are stored, bits that tell the partition from others, log2 of the operations of one image's blocks. Nothing is "
        "compressed, so these are upper bounds; the running time hardly counts beside the length; and a shorter program stands "
        "for the teacher only up to the e in the last column."
    )
    return Table("Description length and running time", [*columns, "e / norm"], rows, remark)
