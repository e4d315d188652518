"""Dynamics on the page: the summary, what it says in figures, then every measure's figures."""

from collections.abc import Iterator

import numpy as np

from brh_jax.dynamics.comparison import Distance
from brh_jax.dynamics.drawing import pictures
from brh_jax.dynamics.measure import Shown
from brh_jax.report.html import FigureEntry, Table
from brh_jax.report.style import TOKEN_NAMES
from brh_jax.tokens import TokenLayout
from experiments.interval import Interval
from experiments.page import Page, of_photographs
from experiments.results import read_arrays
from experiments.stages.distill.run import DistillResult
from experiments.stages.dynamics.results import JUMPS, DynamicsResult, ModelResult
from experiments.stages.phases.run import PhasesResult
from experiments.stages.teacher.run import TeacherResult

# Of curves about zero, or next to another one, the distance says nothing of its own.
_WITHOUT_DISTANCE = {f"{name}_{token}" for name in ("acceleration", "within", "between") for token in TOKEN_NAMES}


def page(page: Page) -> Iterator[FigureEntry | Table]:
    """Yields teacher and Raptors side by side."""
    result = page.result(DynamicsResult)
    shown = _shown(page, result)
    for picture in pictures():
        if (figure := picture.draw(shown)) is not None:
            yield page.figure(figure, picture.name, picture.title, picture.caption_of(shown))
        if picture.name == "summary":
            yield _directions_table(result.models)
            yield from _basins_table(result.models, page.results.about["config"]["dynamics"]["class_images"])
            yield from _jumps_table(result.models)
            yield from _stability_table(result.models)
            yield from _distance_table(result.models)
    yield from _iterated_table(result)


def _shown(page: Page, result: DynamicsResult) -> Shown:
    layout, distilled = page.result(TeacherResult).layout, page.results.get(DistillResult)
    phases, raptors = page.result(PhasesResult), distilled.raptors if distilled else {}
    arrays = read_arrays(page.workdir / "dynamics" / "arrays.npz")

    def of(name: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}

    return Shown(
        bands={name: model.bands for name, model in result.models.items()},
        arrays={name: of(name) for name in result.models},
        partitions={name: phases.partition_of(raptors[name].k) for name in result.models if name in raptors},
        layout=TokenLayout(layout.num_cls, layout.num_registers, layout.grid),
        num_images=result.num_images,
        num_photographs=result.num_photographs,
        tangent_images=result.tangent_images,
    )


def _directions_table(models: dict[str, ModelResult]) -> Table:
    rows = []
    for name, model in models.items():
        for token in (t for t in TOKEN_NAMES if t in model.tokens):
            one = model.tokens[token]
            row = [name, token, *("never" if at is None else f"state {at:.1f}" for at in (one.half, one.nine_tenths))]
            ranks = (" / ".join(_number(v, 1) for v in of) for of in (one.stable_rank, one.uncentred_stable_rank))
            rows.append([*row, " / ".join(map(_number, one.speed)), *ranks])
    columns = ["model", "token", "cosine with the end: 0.5 at", "0.9 at", "angular speed: first, middle, last layer"]
    columns += ["stable rank of updates by thirds of depth", "with the mean update"]
    remark = (
        "Stable ranks are of angular updates about their mean, which the paper's figures are taken to be of; beside them with "
        "the mean left in, which all tokens are moved by alike."
    )
    return Table("Directions in figures", columns, rows, remark)


def _basins_table(models: dict[str, ModelResult], images: str) -> Iterator[Table]:
    """Accuracy of the nearest class mean at the first, the middle and the last state, and where it is best.

    Args:
        images: that classes are of, where they are others than all else is of.
    """
    measured = {name: model.basins for name, model in models.items() if model.basins is not None}
    if not measured:
        return
    rows = []
    for name, basins in measured.items():
        for token, states in basins.accuracy.items():
            best = max(range(len(states)), key=lambda i: -1.0 if (state := states[i]) is None else state.value)
            cells = (f"{i}: {_percent(states[i])}" for i in (0, len(states) // 2, len(states) - 1, best))
            rows.append([name, token, *cells])
    first = next(iter(measured.values()))
    remark = (
        "Share of images whose direction lies nearest to the mean of their own class, taken without them (and without other "
        f"views of their photograph), mean over classes; {of_photographs(first.num_images, first.num_photographs)} of "
        f"{first.num_classes} classes{f' of {images}' if images else ''}, as many of each as there are; chance "
        f"{100 / first.num_classes:.1f} %. With 95 % bootstrap intervals over photographs: of these classes, others may differ."
    )
    yield Table("Class basins in figures", ["model", "token", "first state", "middle", "last", "best"], rows, remark)


def _percent(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _jumps_table(models: dict[str, ModelResult]) -> Iterator[Table]:
    """p-values of jumps at phase boundaries, measure by measure."""
    rows, placements = [], set()
    for name, model in models.items():
        for token in (t for t in TOKEN_NAMES if t in model.tokens and model.tokens[t].jumps):
            jumps = model.tokens[token].jumps
            placements |= {str(jump.num_placements) for jump in jumps.values()}
            rows.append([name, token, *(f"{jumps[measure].p_value:.3f}" if measure in jumps else "" for measure in JUMPS)])
    if rows:
        remark = (
            "p of the test whether a curve changes more across the phase boundaries than between other layers, against all other "
            f"places for as many boundaries ({' or '.join(sorted(placements))} of them: p cannot fall below one over their "
            "number). One in twenty lies below 0.05 by chance. The boundaries were cut where layers differ most, so a small "
            "value is not independent evidence."
        )
        yield Table("Jumps at phase boundaries", ["model", "token", *JUMPS.values()], rows, remark)


def _stability_table(models: dict[str, ModelResult]) -> Iterator[Table]:
    measured = {name: model.stability for name, model in models.items() if model.stability is not None}
    if not measured:
        return
    kinds = list(next(iter(measured.values())).recovery)
    rows = []
    for name, one in measured.items():
        row = [name, _number(one.exponent), _number(one.direction_exponent), " / ".join(map(_number, one.by_phase))]
        rows.append([*row, *(" / ".join(_number(r, 2) for r in one.recovery[kind]) for kind in kinds)])
    columns = ["model", "largest exponent", "of directions", "by phase", *(f"recovery, {kind}" for kind in kinds)]
    remark = (
        "Exponents are per layer, natural logarithms: above zero small differences grow. Recovery: angle of all tokens at "
        "the end over the injected one, for each size of perturbation (config.dynamics.relative_sizes); below one directions "
        "recover. Where one token is moved, above one says that the others follow."
    )
    yield Table("Stability in figures", columns, rows, remark)


def _distance_table(models: dict[str, ModelResult]) -> Iterator[Table]:
    by_model = {name: model.distance for name, model in models.items() if model.distance}
    names = [name for name in next(iter(by_model.values()), {}) if name not in _WITHOUT_DISTANCE]
    if names:
        rows = [[name.replace("_", " "), *(_share(distances.get(name)) for distances in by_model.values())] for name in names]
        remark = "Of each curve, mean over images: Euclidean norm of the difference along depth over that of the teacher's curve."
        yield Table("Distance of the dynamics from the teacher's", ["curve", *by_model], rows, remark)


def _iterated_table(result: DynamicsResult) -> Iterator[Table]:
    rows, steps = [], 0
    for name, model in result.models.items():
        for one in model.iterated:
            fates = (", ".join(f"{fate} {count}" for fate, count in of.items()) for of in (one.fates, one.direction_fates))
            rows.append([name, one.layers, *fates, _number(one.norm_growth, 4)])
            steps = one.num_steps
    if rows:
        columns = ["model", "layers", "states", "directions", "norm, factor per step at the end"]
        remark = f"Fates of {result.tangent_images} images after {steps} applications."
        yield Table("Where iterated blocks end", columns, rows, remark)


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _share(distance: Distance | None) -> str:
    return "" if distance is None else f"{100 * distance.relative:.0f} %"
