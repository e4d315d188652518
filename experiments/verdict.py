"""The answer of a run on cards: the phases, what each Raptor keeps beside the best baseline, and what it costs.

A card shows what results hold and says of a disappointing one that it is.
"""

import pathlib
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from brh_jax.report.html import Answer, Card, Table
from brh_jax.train.metrics import read_metrics
from experiments.interval import Interval
from experiments.page import of_photographs
from experiments.results import Results
from experiments.stages.accuracy.run import AccuracyResult
from experiments.stages.agreement.run import ALL, AgreementResult, Fit
from experiments.stages.distill.run import DistillResult, RaptorResult
from experiments.stages.phases.run import CutResult, PhasesResult, RandomComparison, StabilityResult
from experiments.stages.probes.run import ProbesResult
from experiments.stages.teacher.run import TeacherResult

_HOLDS = 0.95  # share of contiguous cuts that a cut is as heavy as on other images, where it holds there


def answer(workdir: pathlib.Path, results: Results, name: str = "", colour: str = "") -> Answer:
    """What a run was asked and what it answers."""
    return Answer(name, list(_asked(results)), list(cards(workdir, results)), colour)


def in_short(results: Results) -> Iterator[str]:
    """Yields the answer in a sentence: what the Raptor does that keeps most of its teacher."""
    distilled, teacher, agreement = results.get(DistillResult), results.get(TeacherResult), results.get(AgreementResult)
    fits = {name: fit for name, fit in agreement.fits.items() if fit.kind == "raptor"} if agreement else {}
    if not (distilled and teacher and fits):
        return
    name = max(fits, key=lambda name: (fits[name].kept.value if fits[name].kept else 0.0, fits[name].r2_all[-1]))
    fit, share = fits[name], distilled.raptors[name].cost.block_params / teacher.cost.block_params
    kept = f"keeps {_with_interval(fit.kept)} of its accuracy and " if fit.kept else ""
    of_state = f"{fit.r2_all[-1]:.2f} of the variance" if fit.r2_all[-1] > 0 else f"nothing (R² {fit.r2_all[-1]:.2f})"
    yield f"{name}, with {_percent(share, 0)} of the teacher's block parameters, {kept}reproduces {of_state} of the last state."


def cards(workdir: pathlib.Path, results: Results) -> Iterator[Card]:
    """Yields the cards of what is done."""
    if phases := results.get(PhasesResult):
        for k, cut in phases.partitions.items():
            yield _phases_card(phases, k, cut)
    agreement, probes = results.get(AgreementResult), results.get(ProbesResult)
    fits = agreement.fits if agreement else {}
    for name, fit in fits.items():
        if fit.kind == "raptor":
            yield _raptor_card(name, fit, [one for one in fits.values() if _is_baseline(one, fit)], _probed(probes, name))
    if (teacher := results.get(TeacherResult)) and (distilled := results.get(DistillResult)):
        yield _cost_card(workdir, results.about, teacher, distilled.raptors)


def _asked(results: Results) -> Iterator[tuple[str, str]]:
    phases, agreement = results.get(PhasesResult), results.get(AgreementResult)
    if teacher := results.get(TeacherResult):
        layout, right = teacher.layout, accuracy.teacher.test if (accuracy := results.get(AccuracyResult)) else None
        tokens = f"{layout.num_cls} cls + {layout.num_registers} register + {layout.grid[0]} x {layout.grid[1]} patch tokens"
        yield (
            "Teacher",
            f"{teacher.name}: {teacher.depth} layers of width {teacher.dim}, {tokens}, {teacher.cost.params / 1e6:.1f} M "
            "parameters" + ("" if right is None else f"; right on {100 * right:.1f} % of the test images"),
        )
    data = results.about.get("config", {}).get("data", {})
    if used := [f"{data[of]} to {what}" for of, what in (("train", "fit"), ("eval", "measure on")) if data.get(of)]:
        yield "Data", ", ".join(used)
    measured = [f"phases on {of_photographs(phases.num_images, phases.num_photographs)}"] if phases else []
    for spec, fits in agreement.sets.items() if agreement else ():
        first = next(iter(fits.values()))
        measured.append(f"Raptors on {of_photographs(first.num_images, first.num_photographs)} of {spec}")
    if measured:
        yield "Images", ", ".join(measured)
    if phases:
        yield "Phases", f"k = {', '.join(map(str, phases.partitions))}, by {phases.method}"


def _phases_card(phases: PhasesResult, k: int, cut: CutResult) -> Card:
    random = next((one for one in phases.random if one.k == k), None)
    facts = [("Between phases", f"{_percent(cut.cut_weight)} of the dissimilarity of layers")]
    if random:
        mean, low, high = (_percent(share) for share in (random.contiguous.mean, random.contiguous.low, random.contiguous.high))
        facts.append(("Random cuts", f"{mean}, 95 % of them from {low} to {high}"))
    facts += [_resampled(one) for one in phases.stability if one.k == k > 1]
    verdict, poor = _sharpness(phases.method, cut, random)
    return Card(f"Phases, k = {k}", cut.text, verdict, poor, facts)


def _resampled(one: StabilityResult) -> tuple[str, str]:
    share = one.frequencies.get(one.all_images)
    known = f"cut {one.all_images} in {_percent(share)}" if share else f"not one of the frequent cuts; {one.modal} in most"
    return f"Resampled, {one.metric}", f"{known} of {one.num_resamples} resamples of the images"


def _sharpness(method: str, cut: CutResult, random: RandomComparison | None) -> tuple[str, bool]:
    """Whether a cut is more than chance and more than mere distance in depth, in words, and whether either is not so."""
    said, poor = [], False
    if random and method == "max_cut":
        share = random.rank_on_other_images
        poor = share < _HOLDS
        how = "Does not hold" if poor else "Holds"
        said.append(
            f"{how} on other images: cut from half of them, it is no lighter than {_percent(share, 0)} of cuts on the rest."
        )
    elif random:
        poor = cut.cut_weight <= random.contiguous.high
        said.append("No heavier than random contiguous cuts." if poor else "Heavier than 97.5 % of random contiguous cuts.")
    contrast = cut.structure.get("matched_contrast")
    if contrast is not None and contrast <= 0:
        said.append("Layers of one phase are no more alike than others that lie as far apart.")
    elif contrast is not None:
        said.append(f"Layers of one phase are more alike than others as far apart, by {contrast:.3f} of cosine.")
    return " ".join(said), poor or (contrast is not None and contrast <= 0)


def _is_baseline(one: Fit, raptor: Fit) -> bool:
    return one.kind == "baseline" or (one.kind == "linear blocks" and one.raptor == raptor.raptor)


def _raptor_card(name: str, fit: Fit, baselines: list[Fit], probe: tuple[str, str] | None) -> Card:
    finding = f"R² {fit.r2_all[-1]:.2f} at the last layer"
    best = max(baselines, key=lambda one: one.r2_all[-1], default=None)
    if fit.r2_all[-1] < 0:
        verdict, poor = "Below the mean state: a constant says more about the last layer.", True
    elif best and best.r2_all[-1] >= fit.r2_all[-1]:
        verdict, poor = f"Below the best baseline, {best.label} ({best.r2_all[-1]:.2f}).", True
    else:
        verdict, poor = f"Above every baseline; the best is {best.label} ({best.r2_all[-1]:.2f})." if best else "", False
    facts = []
    if fit.kept:
        finding += f", keeps {_percent(fit.kept.value, 0)} of the accuracy"
        facts.append(("Accuracy kept", f"{_with_interval(fit.kept)} of the teacher's"))
        rival = max((one for one in baselines if one.kept), key=lambda one: one.kept.value if one.kept else 0, default=None)
        if rival and rival.kept:
            none, said = rival.kept.value == 0, f"{_with_interval(rival.kept)} kept by {rival.label}"
            facts.append(("Best baseline", "none keeps any of it" if none else said))
            if rival.kept.value > fit.kept.value:
                verdict, poor = f"{verdict} It keeps less of the accuracy than {rival.label}.".strip(), True
    if fit.same_class is not None:
        facts.append(("Same class", f"as the teacher on {_percent(fit.same_class)} of the images"))
    facts += [probe] if probe else []
    if e := fit.relative_error.get(ALL):
        facts.append(("e / norm", f"{fmean(e):.2f} of a state's norm, mean of layers"))
    return Card(f"Raptor {name}", finding, verdict, poor, facts, _r2_table(fit, baselines))


def _r2_table(fit: Fit, baselines: list[Fit]) -> Table:
    """R² by token type, mean of layers and at the last, each beside the best of the baselines there."""
    rows = []
    for title, of in (("mean of layers", fmean), ("last layer", lambda layers: layers[-1])):
        rows.append([title, *(f"{of(values):z.2f}" for values in fit.r2.values()), f"{of(fit.r2_all):z.2f}"])
        if baselines:
            best = [max(of(one.r2[token]) for one in baselines) for token in fit.r2]
            rows.append(["best baseline", *(f"{value:z.2f}" for value in (*best, max(of(one.r2_all) for one in baselines)))])
    return Table("R² of a Raptor and of the best baseline", ["R²", *fit.r2, "all"], rows)


def _probed(probes: ProbesResult | None, name: str) -> tuple[str, str] | None:
    linear = probes.linear.models if probes and probes.linear else {}
    if name not in linear or "teacher" not in linear:
        return None
    own, teacher = (_with_interval(linear[model].accuracy) for model in (name, "teacher"))
    return "Linear probe", f"{own}; the teacher's {teacher}"


def _cost_card(
    workdir: pathlib.Path, about: Mapping[str, Any], teacher: TeacherResult, raptors: Mapping[str, RaptorResult]
) -> Card:
    batch = about.get("config", {}).get("distill", {}).get("batch_size", 0)
    rows = [["teacher", f"{teacher.cost.block_params / 1e6:.3g} M", f"{teacher.cost.flops_per_image / 1e9:.3g}", ""]]
    for name, raptor in raptors.items():
        steps = [read_metrics(workdir / "distill" / folder / "metrics.jsonl") for folder in raptor.trainings.values()]
        seen = batch * sum(training[-1]["step"] for training in steps if training)
        cost = (
            f"{raptor.cost.block_params / 1e6:.3g} M",
            f"{raptor.cost.flops_per_image / 1e9:.3g}",
            f"{seen:,}" if seen else "",
        )
        rows.append([name, *cost])
    shares = {name: raptor.cost.block_params / teacher.cost.block_params for name, raptor in raptors.items()}
    flops = {_percent(one.cost.flops_per_image / teacher.cost.flops_per_image, 0) for one in raptors.values()}
    seconds = about.get("seconds", {})
    facts = [("Distillation", _minutes(seconds["distill"]))] if "distill" in seconds else []
    facts += [("All stages", _minutes(sum(seconds.values())))] if seconds else []
    facts += [("Machine", machine)] if (machine := about.get("environment", {}).get("machine")) else []
    return Card(
        "Cost",
        f"{', '.join(f'{name} {_percent(share, 0)}' for name, share in shares.items())} of the blocks' parameters",
        f"An image takes {' or '.join(sorted(flops))} of the teacher's FLOPs: blocks are shared, not left out.",
        facts=facts,
        table=Table("Cost", ["model", "block parameters", "GFLOP per image", "images seen"], rows),
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes"


def _with_interval(interval: Interval) -> str:
    return f"{_percent(interval.value)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"
