"""Gathers a small-scale study: python -m experiments.study runs/small_digits [--out=FOLDER]

Reads results.json of every run that experiments.sweep made of configs/small_scale.py and writes, into WORKDIR/study or --out, a
page index.html, its figures, and as Markdown, CSV and LaTeX `measures`, a row for each kind of ViT over seeds, and
`correlations`, of phase structure with the Raptor's fit. A study that is not finished is gathered as far as it is.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from brh_jax.command import Parser, run_command
from brh_jax.errors import UserError
from brh_jax.files import own_folder
from brh_jax.report import study as figures
from brh_jax.report.html import Chapter, FigureEntry, Table, figure_entry, render
from brh_jax.report.run_statistics import Correlation, correlation
from brh_jax.report.values import csv_text
from experiments.page import settings_of
from experiments.results import Results
from experiments.stages.accuracy.run import AccuracyResult
from experiments.stages.agreement.run import ALL, AgreementResult, Fit
from experiments.stages.distill.run import DistillResult
from experiments.stages.phases.run import PhasesResult
from experiments.summarize import FinishedRun, Row, as_csv, read_runs, table, write_table

# What is measured of every ViT and its Raptor; of R² and e the mean over layers.
FITS = {"r2_cls": "R² cls", "r2_patches": "R² patches", "relative_e": "relative e"}
STRUCTURE = {
    "mean_similarity": "similarity of layers",
    "contrast": "contrast",
    "matched_contrast": "contrast at equal distance",
    "modularity": "modularity",
    "z": "gain of the cut (z)",
}
ACCURACIES = {"accuracy": "accuracy, test", "train_accuracy": "accuracy, training"}
LABELS = STRUCTURE | FITS | ACCURACIES
_CURVES = ("mean_similarity", *FITS, *ACCURACIES)
_DOTS = "Dots are runs, lines and bars means over seeds, bands and whiskers Student's 95 % intervals (wide, with few seeds)."

Correlations = dict[str, dict[tuple[str, str], Correlation]]  # subset of the runs -> pair of measures -> correlation


class Run(NamedTuple):
    """A ViT of the study with its Raptor.

    Attributes:
        group: trained or over-fitted.
        step, last: training steps that the ViT has had, and that its group ends with.
        p, seed: stochastic depth and seed of the training.
        k: number of phases.
        values: LABELS' keys -> value, those that there are.
    """

    group: str
    step: int
    last: int
    p: float
    seed: int
    k: int
    values: dict[str, float]

    @property
    def kind(self) -> str:
        """untrained, trained or over-fitted; empty between start and end of a training."""
        return "untrained" if self.step == 0 else self.group if self.step == self.last else ""

    @property
    def training(self) -> tuple[float, int]:
        """What its snapshots have in common."""
        return self.p, self.seed


def read_study(finished: Sequence[FinishedRun]) -> list[Run]:
    """The runs of a study among finished runs, one for each Raptor.

    Raises:
        UserError: none there.
    """
    runs = [run for one in finished for run in _runs_of(one.results)]
    if not runs:
        raise UserError(
            f"no run of a small-scale study among {len(finished)} finished runs, {finished[0].workdir} and so on: make them of "
            "configs/small_scale.py with experiments.sweep first"
        )
    ends = {group: max(run.step for run in runs if run.group == group) for group in {run.group for run in runs}}
    return [run._replace(last=ends[run.group]) for run in runs]


def _runs_of(results: Results) -> Iterator[Run]:
    config = ConfigDict(results.about.get("config", {}))
    phases, distilled, agreement = results.get(PhasesResult), results.get(DistillResult), results.get(AgreementResult)
    if phases is None or distilled is None or agreement is None or not {"group", "step"} <= set(config.get("study") or ()):
        return
    for name, raptor in distilled.raptors.items():
        structure = phases.partitions[raptor.k].structure
        measured = {measure: structure[measure] for measure in STRUCTURE} | _fit(agreement.fits[name]) | _accuracies(results)
        values = {measure: value for measure, value in measured.items() if value is not None and math.isfinite(value)}
        study = config.study
        yield Run(study.group, study.step, study.step, config.teacher.vit.drop_path, config.seed, raptor.k, values)


def _fit(fit: Fit) -> dict[str, float]:
    r2 = {name: fmean(fit.r2[token]) for name, token in (("r2_cls", "cls"), ("r2_patches", "patches")) if token in fit.r2}
    return r2 | {"relative_e": fmean(fit.relative_error[ALL])}


def _accuracies(results: Results) -> dict[str, float | None]:
    accuracy = results.get(AccuracyResult)
    return {"accuracy": accuracy.teacher.test, "train_accuracy": accuracy.teacher.train} if accuracy else {}


def measure_rows(runs: Iterable[Run]) -> list[Row]:
    """A row for each kind of ViT, over seeds."""
    rows: dict[tuple, Row] = {}
    for run in sorted(runs, key=lambda r: (r.group != "trained", r.step, r.p, r.k)):
        group = "untrained" if run.step == 0 else run.group
        settings = {"ViT": group, "steps": f"{run.step:>6}", "p": "any" if run.step == 0 else f"{run.p:g}"}
        row = rows.setdefault((*settings.values(), run.k), Row(settings, f"k = {run.k}", {}))
        for name, label in LABELS.items():
            if name in run.values:
                row.values.setdefault(label, []).append(run.values[name])
    return list(rows.values())


def correlations(runs: Sequence[Run]) -> Correlations:
    """Correlations of structure or p with fit or accuracy, where there are enough runs."""
    subsets = {"all ViTs": runs, "trained to the end": [run for run in runs if run.kind == "trained"]}
    by_subset: Correlations = {}
    for name, chosen in subsets.items():
        pairs = [(x, y) for x in STRUCTURE for y in FITS]
        if name == "trained to the end":
            pairs += [("p", y) for y in ("mean_similarity", "matched_contrast", *FITS, "accuracy")]
        for x, y in pairs:
            both = [(run, _value(run, x), _value(run, y)) for run in chosen if None not in (_value(run, x), _value(run, y))]
            if len(both) >= 3:
                kept, xs, ys = zip(*both, strict=True)
                by_subset.setdefault(name, {})[x, y] = correlation(xs, ys, [run.training for run in kept])
    return by_subset


def _value(run: Run, name: str) -> float | None:
    return run.p if name == "p" else run.values.get(name)


def correlation_table(by_subset: Correlations) -> tuple[list[str], list[list[str]]]:
    """Header and cells."""
    header = ["ViTs", "measure", "with", "Pearson", "95 % interval", "Spearman", "95 % interval", "ViTs, n", "trainings"]
    cells = []
    for subset, pairs in by_subset.items():
        for (x, y), c in pairs.items():
            numbers = [_text(c.pearson), _interval(c.pearson_interval), _text(c.spearman), _interval(c.spearman_interval)]
            cells.append([subset, LABELS.get(x, x), LABELS[y], *numbers, str(c.num_points), str(c.num_groups)])
    return header, cells


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def figure_entries(runs: Sequence[Run], by_subset: Correlations, folder: pathlib.Path) -> Iterator[FigureEntry]:
    """Yields the page's figures, as far as there are runs for them."""
    finished = [run for run in runs if run.kind == "trained"]
    if len({run.p for run in finished}) > 1:
        panels = {LABELS[name]: {"trained": lines} for name in _CURVES if (lines := _points(finished, name, lambda run: run.p))}
        yield figure_entry(
            figures.curves(panels, "stochastic depth p"),
            folder,
            "stochastic_depth",
            "Stochastic depth",
            "A trend along p that the spread over seeds does not cover is an effect of it. ViTs trained to the end; "
            "similarity of two layers' outputs, mean of all pairs; R² and relative e of the Raptor on test images, mean over "
            f"layers. {_DOTS}",
        )
    if len({run.kind for run in runs} - {""}) > 1:
        yield _kinds(runs, folder)
    for group in ("trained", "over-fitted"):
        chosen = [run for run in runs if run.group == group]
        if len({run.step for run in chosen}) > 1:
            yield _along_training(runs, chosen, group, folder)
    if "all ViTs" in by_subset:
        yield _scatter(runs, by_subset["all ViTs"], folder)


def _kinds(runs: Sequence[Run], folder: pathlib.Path) -> FigureEntry:
    """Untrained, trained and over-fitted at the p that all have in common: over-fitting is not confounded with it."""
    kinds = [kind for kind in ("untrained", "trained", "over-fitted") if any(run.kind == kind for run in runs)]
    shared = {run.p for run in runs if run.kind == "over-fitted"} or {run.p for run in runs}
    chosen = {kind: [r for r in runs if r.kind == kind and (kind == "untrained" or r.p in shared)] for kind in kinds}
    panels = {}
    for name in _CURVES:
        values = {kind: [run.values[name] for run in members if name in run.values] for kind, members in chosen.items()}
        if all(values.values()):
            panels[LABELS[name]] = values
    return figure_entry(
        figures.side_by_side(panels),
        folder,
        "kinds",
        "Untrained, trained, over-fitted",
        "Groups whose intervals lie apart differ by more than seeds do. Over-fitted: trained on few images for longer. p = "
        f"{', '.join(f'{p:g}' for p in sorted(shared))}. {_DOTS}",
    )


def _along_training(runs: Sequence[Run], chosen: Sequence[Run], group: str, folder: pathlib.Path) -> FigureEntry:
    untrained = [run for run in runs if run.step == 0]
    panels = {}
    for name in _CURVES:
        lines = {}
        for p in sorted({run.p for run in chosen if run.step}):
            # Untrained ViTs do not know p: every line starts from them.
            line = [run for run in chosen if run.p == p and run.step] + untrained
            if points := _points(line, name, lambda run: run.step):
                lines[f"{p:g}"] = points
        if lines:
            panels[LABELS[name]] = lines
    return figure_entry(
        figures.curves(panels, "training steps", legend="p"),
        folder,
        f"along_training_{group}".replace("-", ""),
        f"Along training: {group}",
        "Where the lines rise is when in training it comes about. The ViT as it was after some steps of training, with a "
        f"Raptor of its own each time. {_DOTS}",
    )


def _scatter(runs: Sequence[Run], pairs: Mapping[tuple[str, str], Correlation], folder: pathlib.Path) -> FigureEntry:
    rows = {name: label for name, label in FITS.items() if all(name in run.values for run in runs)}
    columns = {name: label for name, label in STRUCTURE.items() if all(name in run.values for run in runs)}
    kinds = {"untrained": "untrained", "trained": "trained", "over-fitted": "over-fitted", "": "in training"}
    points = {}
    for kind, label in kinds.items():
        members = [run for run in runs if run.kind == kind]
        if members:
            points[label] = {name: np.array([run.values[name] for run in members]) for name in (*rows, *columns)}
    notes = {}
    for (x, y), c in pairs.items():
        if c.spearman is not None:
            notes[y, x] = f"ρ = {_text(c.spearman)}" + (f" ({_interval(c.spearman_interval)})" if c.spearman_interval else "")
    return figure_entry(
        figures.against_each_other(points, rows, columns, notes),
        folder,
        "structure_and_fit",
        "Phase structure and fit",
        "A cloud along a diagonal is a structure that goes with the fit. A dot for each ViT; ρ is Spearman's coefficient over "
        "all of them, with the 95 % interval of a bootstrap that draws whole trainings (p, seed), as the snapshots of one are "
        "not independent. p and the length of training differ between ViTs and may drive both sides.",
    )


def _points(runs: Iterable[Run], name: str, x: Callable[[Run], float]) -> dict[float, list[float]]:
    """x -> values of a measure."""
    points: dict[float, list[float]] = {}
    for run in runs:
        if name in run.values:
            points.setdefault(x(run), []).append(run.values[name])
    return points


def gather(workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Writes page, figures and tables."""
    finished = read_runs([workdir])
    runs = read_study(finished)
    by_subset, rows = correlations(runs), measure_rows(runs)
    measures, correlated = table(rows), correlation_table(by_subset)
    out.mkdir(parents=True, exist_ok=True)
    write_table(out, "measures", *measures, as_csv(rows))
    write_table(out, "correlations", *correlated, _correlations_csv(by_subset))
    tables = [
        Table("All measures", *measures, "Mean ± standard deviation over seeds (n)."),
        Table("Correlations", *correlated, "Intervals as in the figure above."),
    ]
    render(
        out / "index.html",
        title=f"Small-scale study: {workdir.name}",
        lead=list(_lead(runs, workdir)),
        chapters=[
            Chapter("Figures", "", list(figure_entries(runs, by_subset, out / "figures"))),
            Chapter("Tables", "", tables),
            Chapter("Configuration", f"Of the first of the runs in {workdir}.", [settings_of(finished[0].results)]),
        ],
    )


def _lead(runs: Sequence[Run], workdir: pathlib.Path) -> Iterator[str]:
    seeds = len({run.seed for run in runs})
    yield f"{len(runs)} ViTs of {len({run.training for run in runs})} pairs of stochastic depth and seed, {seeds} seeds."
    unfinished = sorted(log.stem for log in workdir.glob("*.log") if not (workdir / log.stem / "results.json").exists())
    if unfinished:
        yield f"Not finished, and not counted: {', '.join(unfinished)}."


def _correlations_csv(by_subset: Correlations) -> str:
    lines: list[list[str | float]] = [["subset", "x", "y", "coefficient", "value", "low", "high", "points", "trainings"]]
    for subset, pairs in by_subset.items():
        for (x, y), c in pairs.items():
            for name in ("pearson", "spearman"):
                value, interval = getattr(c, name), getattr(c, f"{name}_interval") or ("", "")
                lines.append([subset, x, y, name, "" if value is None else value, *interval, c.num_points, c.num_groups])
    return csv_text(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = Parser("experiments.study", __doc__)
    parser.add_argument("workdir", help="what experiments.sweep had as --workdir")
    parser.add_argument("--out", default=None, help="folder for the page and the tables; WORKDIR/study by default")
    return run_command(parser, _write, argv)


def _write(arguments: argparse.Namespace) -> None:
    workdir = pathlib.Path(arguments.workdir).expanduser()
    out = own_folder(arguments.out) if arguments.out else workdir / "study"
    gather(workdir, out)
    print((out / "measures.md").read_text() + f"{out / 'index.html'}, measures and correlations as .md, .csv and .tex")


if __name__ == "__main__":
    sys.exit(main())
