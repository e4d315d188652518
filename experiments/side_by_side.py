"""Runs side by side on one page: cards, settings that differ, figures of merit, phases, fidelity, what was reached on the way.

`python -m experiments.report RUN RUN` is the command that makes it. A run has one colour everywhere.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from brh_jax.phases import plot
from brh_jax.report.agreement import per_layer
from brh_jax.report.html import Chapter, FigureEntry, Table, figure_entry, render
from brh_jax.report.style import colour
from brh_jax.report.training import validation_curves
from experiments.page import settings_of
from experiments.results import Results
from experiments.stages.agreement.run import AgreementResult
from experiments.stages.distill.page import validations
from experiments.stages.distill.run import DistillResult
from experiments.stages.phases.run import PhasesResult
from experiments.summarize import merits_of
from experiments.verdict import answer

Runs = Mapping[str, tuple[pathlib.Path, Results]]


def write(out: pathlib.Path, runs: Mapping[pathlib.Path, Results]) -> None:
    """Writes OUT/index.html, and its figures and their values beside it as files."""
    named = dict(zip(_names(list(runs)), runs.items(), strict=True))
    figures = out / "figures"
    out.mkdir(parents=True, exist_ok=True)
    render(
        out / "index.html",
        title=f"{len(runs)} runs side by side",
        answers=[answer(*run, name, colour(number)) for number, (name, run) in enumerate(named.items())],
        chapters=[
            Chapter("What differs", "", list(_tables(named))),
            Chapter("Phases", "Do the runs' teachers fall into the same phases?", list(_phases(named, figures))),
            Chapter("Fidelity", "Which Raptor stays nearer to its teacher?", list(_fidelity(named, figures))),
            Chapter("Training", "Which run got there with fewer images?", list(_on_the_way(named, figures))),
            Chapter("Configuration", "", [settings_of(results, name) for name, (_, results) in named.items()]),
        ],
    )
    print(f"report: {out / 'index.html'}", flush=True)


def _names(folders: list[pathlib.Path]) -> list[str]:
    """The folders' names; as much of their paths as tells them apart where these are alike."""
    parts = [folder.resolve().parts for folder in folders]
    most = max(map(len, parts))
    named = (["/".join(path[-count:]) for path in parts] for count in range(1, most + 1))
    return next(names for names in named if len(set(names)) == len(names))


def _tables(runs: Runs) -> Iterator[Table]:
    settings = {name: dict(_flat(results.about["config"])) for name, (_, results) in runs.items()}
    keys = dict.fromkeys(key for of_run in settings.values() for key in of_run)
    cells = {key: [of_run.get(key, "") for of_run in settings.values()] for key in keys}
    if differing := [[key, *values] for key, values in cells.items() if len(set(values)) > 1]:
        yield Table("Settings", ["setting", *settings], differing, "Those that differ between the runs.")
    merits = {(name, model): values for name, (_, results) in runs.items() for model, values in merits_of(results).items()}
    figures = list(dict.fromkeys(figure for values in merits.values() for figure in values))
    if figures:
        rows = [[name, model, *(_number(values.get(figure)) for figure in figures)] for (name, model), values in merits.items()]
        remark = "A row for each model of each run. R² and cosine are of the last layer, relative e is the mean over layers."
        yield Table("Figures of merit", ["run", "model", *figures], rows, remark)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _phases(runs: Runs, folder: pathlib.Path) -> Iterator[FigureEntry]:
    for number, (name, (_, results)) in enumerate(runs.items()):
        if phases := results.get(PhasesResult):
            figure = plot(phases.dissimilarity, *(cut.partition for cut in phases.partitions.values()))
            caption = "Boxes at the same places are the same phases. 1 - cosine between the outputs of two layers."
            yield figure_entry(figure, folder, f"dissimilarity{number}", name, caption)


def _fidelity(runs: Runs, folder: pathlib.Path) -> Iterator[FigureEntry]:
    for raptor in _raptors(runs):
        fits = {name: found.fits[raptor] for name, (_, results) in runs.items() if (found := _agreement(results, raptor))}
        styles = {name: {"color": colour(i), "lw": 1.8, "label": name} for i, name in enumerate(runs) if name in fits}
        if fits:
            figure = per_layer({name: fit.r2 for name, fit in fits.items()}, styles, "pooled R²", floor=-0.5)
            caption = (
                "The higher line is the Raptor that stays nearer to its own teacher. R² of every state, from the first by "
                "recurrence alone; values below -0.5 are marked by triangles."
            )
            yield figure_entry(figure, folder, f"r2_{raptor}", f"R² of {raptor}", caption)


def _agreement(results: Results, raptor: str) -> AgreementResult | None:
    found = results.get(AgreementResult)
    return found if found and raptor in found.fits else None


def _on_the_way(runs: Runs, folder: pathlib.Path) -> Iterator[FigureEntry]:
    for raptor in _raptors(runs):
        # A run without that Raptor has no line, and keeps its place in the order of colours.
        rows = {name: _validations(*run, raptor) for name, run in runs.items()}
        if any(row for trainings in rows.values() for training in trainings for row in training):
            caption = (
                "The line that rises further to the left learns with fewer images. Stage 1 is dashed; images that are not "
                "trained on, always the same of a run; R² below -1 is marked by triangles."
            )
            yield figure_entry(validation_curves(rows), folder, f"validation_{raptor}", f"{raptor} on the way", caption)


def _validations(workdir: pathlib.Path, results: Results, raptor: str) -> list[list[dict]]:
    distilled = results.get(DistillResult)
    return validations(workdir, distilled.raptors[raptor]) if distilled and raptor in distilled.raptors else []


def _raptors(runs: Runs) -> list[str]:
    found = [distilled for _, results in runs.values() if (distilled := results.get(DistillResult))]
    return list(dict.fromkeys(name for distilled in found for name in distilled.raptors))
