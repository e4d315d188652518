"""Agreement with the teacher on the page: R², cosine and e per layer, and what a program of that length reaches."""

from collections.abc import Iterator
from statistics import fmean

from brh_jax.report.html import FigureEntry, Table
from brh_jax.report.style import TOKEN_NAMES
from experiments.page import Page, of_photographs
from experiments.stages.agreement import figures
from experiments.stages.agreement.run import ALL, AgreementResult, Fit
from experiments.stages.distill.run import DistillResult
from experiments.stages.teacher.run import TeacherResult


def page(page: Page) -> Iterator[FigureEntry | Table]:
    """Yields figures and tables of the fit."""
    agreement = page.result(AgreementResult)
    fits, spec = agreement.fits, next(iter(agreement.sets))
    images = of_photographs(fits["identity"].num_images, fits["identity"].num_photographs)
    yield _fit_table(page, fits)
    if any(fit.same_class is not None for one in agreement.sets.values() for fit in one.values()):
        yield _decisions_table(agreement)
    yield page.figure(
        figures.fit_per_layer(fits, "r2", "pooled R²", floor=-0.5),
        "r2",
        "R² of every state",
        "A Raptor above the grey and dotted lines says more of the teacher's states than simpler predictions do, and at zero no "
        f"more than their mean. On {images} of {spec}, from a_0 by recurrence alone; values below -0.5 are marked by triangles. "
        "Where a token hardly varies, R² can be very low at a cosine near one.",
    )
    yield page.figure(
        figures.fit_per_layer(fits, "cosine", "cosine"),
        "cosine",
        "Cosine of every state",
        "At one the Raptor's tokens point where the teacher's do; a line that falls with depth is a fault that grows. Mean "
        "cosine between the tokens of the two.",
    )
    yield page.figure(
        figures.error_per_layer(fits),
        "error",
        "e of the block-recurrent hypothesis",
        "The lower the nearer; at one in the upper row a prediction is as far off as a state of zeros. Frobenius norm of the "
        f"difference to the teacher's state, relative to the norm of that state and absolute: mean over {images} of {spec}, "
        "bands are its 95 % bootstrap intervals over photographs.",
    )
    yield _errors_table(agreement)
    yield _description(page, fits)


def _fit_table(page: Page, fits: dict[str, Fit]) -> Table:
    raptors, teacher = page.result(DistillResult).raptors, page.result(TeacherResult).cost
    types = list(fits["identity"].r2)
    columns = ["model", "phases", *(f"R² {t}" for t in types), *(f"cosine {t}" for t in types)]
    columns += ["R² all, last layer", "about one mean", "final cosine", "relative e", "block params", "FLOPs"]
    rows = []
    for fit in fits.values():
        raptor = raptors.get(fit.raptor)
        cost = raptor.cost if raptor and fit.kind in ("raptor", "blockwise") else None
        rows.append(
            [
                fit.label,
                raptor.phases if raptor else "",
                *(f"{fmean(fit.r2[t]):.3f}" for t in types),
                *(f"{fmean(fit.cosine[t]):.3f}" for t in types),
                f"{fit.r2_all[-1]:.3f}",
                f"{fit.r2_one_mean:.3f}",
                f"{fit.final_cosine:.3f}",
                f"{fmean(fit.relative_error[ALL]):.3f}",
                f"{100 * cost.block_params / teacher.block_params:.0f} %" if cost else "",
                f"{100 * cost.flops_per_image / teacher.flops_per_image:.0f} %" if cost else "",
            ]
        )
    remark = (
        "R², cosine and relative e are means over layers, but for R² of all tokens together at the last layer, about their mean "
        "state "
        "and, as the paper's authors take it (their 0.73 for k = 3), about one mean of all numbers of the prediction. Final "
        "cosine: of [cls, mean patch] after the final norm. Block "
        "parameters and FLOPs are given as a share of the teacher's; a SwiGLU block costs more than the GELU block it stands for."
    )
    return Table("Agreement with the teacher", columns, rows, remark)


def _decisions_table(agreement: AgreementResult) -> Table:
    rows = []
    for spec, fits in agreement.sets.items():
        first = next(iter(fits.values()))
        size = f"{first.num_images} / {first.num_photographs}"
        if first.teacher_accuracy is not None:
            rows.append([spec, size, "teacher", _percent(first.teacher_accuracy), "100 %", "100 %"])
        for fit in fits.values():
            kept = f"{_percent(fit.kept.value)} [{100 * fit.kept.low:.1f}, {100 * fit.kept.high:.1f}]" if fit.kept else ""
            rows.append([spec, size, fit.label, _percent(fit.accuracy), kept, _percent(fit.same_class)])
    columns = ["images", "n / photographs", "model", "accuracy", "accuracy kept", "same class as the teacher"]
    filled = _told(agreement, columns, rows)
    remark = (
        f"{_of_all(agreement)}The teacher's own classifier on the last state, of the same views for all. Accuracy kept is a "
        "share of the teacher's, with its 95 % bootstrap interval: photographs are drawn with what is said of them on either "
        "state. Without labels that are the classifier's there is only whether it decides alike."
    )
    cells = [[row[i] for i in filled] for row in rows]
    return Table("What the teacher's classifier says", [columns[i] for i in filled], cells, remark)


def _told(agreement: AgreementResult, columns: list[str], rows: list[list[str]]) -> list[int]:
    """Columns that tell something; of a single set of images the remark does."""
    first = 0 if len(agreement.sets) > 1 else columns.index("model")
    return [i for i in range(first, len(columns)) if any(row[i] for row in rows)]


def _of_all(agreement: AgreementResult) -> str:
    """What a table of a single set of images is measured on."""
    if len(agreement.sets) > 1:
        return ""
    first = next(iter(agreement.fits.values()))
    return f"On {of_photographs(first.num_images, first.num_photographs)} of {next(iter(agreement.sets))}. "


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _errors_table(agreement: AgreementResult) -> Table:
    types = [*TOKEN_NAMES, ALL]
    rows = []
    for spec, fits in agreement.sets.items():
        for fit in fits.values():
            worst = max(fit.relative_error[ALL])
            layer = fit.relative_error[ALL].index(worst) + 1
            cells = [_interval(fit, "relative_error", token) for token in types]
            rows.append(
                [
                    spec,
                    f"{fit.num_images} / {fit.num_photographs}",
                    fit.label,
                    *cells,
                    f"{worst:.3f} at {layer}",
                    _interval(fit, "error", ALL),
                ]
            )
    columns = [
        "images",
        "n / photographs",
        "model",
        *(f"e / norm, {t}" for t in TOKEN_NAMES),
        "all tokens",
        "largest, at layer",
        "e, all tokens",
    ]
    filled = _told(agreement, columns, rows)
    remark = (
        f"{_of_all(agreement)}Means over layers and images, with 95 % bootstrap intervals; crops of one photograph are drawn "
        "together. The mean state and the linear maps are fitted to the teacher's states of training images, apart for each "
        "token type. Linear blocks are one affine map for each phase, fitted to the steps between the teacher's states and "
        "applied again and again."
    )
    return Table("e in figures", [columns[i] for i in filled], [[row[i] for i in filled] for row in rows], remark)


def _interval(fit: Fit, measure: str, token: str) -> str:
    """Mean over layers, with its interval where there is one; empty for a token type that the model lacks."""
    if overall := fit.overall.get(measure, {}).get(token):
        return f"{overall.value:.3f} [{overall.low:.3f}, {overall.high:.3f}]"
    values = getattr(fit, measure).get(token)
    return f"{fmean(values):.3f}" if values else ""


def _description(page: Page, fits: dict[str, Fit]) -> Table:
    teacher = page.result(TeacherResult).cost
    costs = {"teacher": teacher} | {name: raptor.cost for name, raptor in page.result(DistillResult).raptors.items()}
    rows = [
        [
            name,
            f"{cost.block_params:,}",
            f"{cost.block_bits:,}",
            f"{cost.partition_bits:.1f}",
            f"{cost.flops_per_image / 1e9:.3g}",
            f"{cost.log2_flops:.2f}",
            f"{cost.levin:,.0f}",
            f"{100 * cost.levin / teacher.levin:.1f} %",
            _interval(fits[name], "relative_error", ALL) if name in fits else "0",
        ]
        for name, cost in costs.items()
    ]
    columns = ["model", "block parameters", "bits", "partition, bits", "GFLOP per image", "log2 FLOP", "Kt", "of the teacher's"]
    remark = (
        "Levin's Kt is the length of a program plus the logarithm of its running time: bits of the blocks' parameters as they "
        "are stored, bits that tell the partition from others, log2 of the operations of one image's blocks. Nothing is "
        "compressed, so these are upper bounds; the running time hardly counts beside the length; and a shorter program stands "
        "for the teacher only up to the e in the last column."
    )
    return Table("Description length and running time", [*columns, "e / norm"], rows, remark)
