"""Gathers the results of runs into rows and tables: mean, standard deviation over seeds (n - 1) and n of every figure of merit.

`python -m experiments.tables` is the command that does it.
"""

import json
import os
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from brh_jax.errors import UserError
from brh_jax.files import nearest_path
from brh_jax.report.values import csv_text
from experiments import stages
from experiments.records import read_record
from experiments.results import Results
from experiments.runs import read_results

Merits = dict[str, dict[str, float]]  # model -> figure of merit -> value

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "²": "$^2$"}
_LATEX |= {c: "\\" + c for c in "{}%_&#$"} | {c: f"${c}$" for c in "<>|"}


class FinishedRun(NamedTuple):
    """Attributes: work directory, results, and settings as JSON has them, with `name`, the folder's without its seed."""

    workdir: pathlib.Path
    results: Results
    settings: dict[str, str]


class Row(NamedTuple):
    """Attributes: settings that tell the row from others, the model, and per figure of merit the values of all runs."""

    settings: dict[str, str]
    model: str
    values: dict[str, list[float]]


def read_runs(folders: Iterable[str | os.PathLike]) -> list[FinishedRun]:
    """The runs with a results.json, in or below the folders.

    Raises:
        UserError: there is none, or one that cannot be read.
    """
    found = sorted({p.parent for folder in folders for p in pathlib.Path(folder).expanduser().rglob("results.json")})
    if not found:
        hints = [nearest_path(folder) for folder in folders if not pathlib.Path(folder).expanduser().exists()]
        hint = hints[0] if hints else ""
        raise UserError(
            f"no results.json in or below {', '.join(map(str, folders))}: {hint}expected work directories of finished runs"
        )
    return [FinishedRun(workdir, read_results(workdir / "results.json"), _settings(workdir)) for workdir in found]


def _settings(workdir: pathlib.Path) -> dict[str, str]:
    """The settings in the records of its stages: what the results depend on."""
    records = [record for stage in stages.STAGES if (record := read_record(workdir / stage.name))]
    settings = {name: json.dumps(value) for record in records for name, value in record.settings.items()}
    return settings | {"name": re.sub(r"-?seed\d+", "", workdir.name)}


def merits_of(results: Results) -> Merits:
    """What every stage of a run says of the models."""
    found: Merits = {}
    for stage in stages.STAGES:
        if stage.merits is not None and stage.name in results.stages:
            for model, values in stage.merits(results.stages[stage.name]).items():
                found.setdefault(model, {}).update(values)
    return found


def gather(runs: Iterable[FinishedRun], by: Sequence[str] = (), merits: Callable[[Results], Merits] = merits_of) -> list[Row]:
    """The rows of a table.

    Args:
        by: settings to tell rows apart by; those that differ between the runs, but for seeds, by default.
        merits: of the results of a run. Runs without any count for nothing.
    """
    counted = [(run.settings, found) for run in runs if (found := merits(run.results))]
    if not by:
        names = {name for settings, _ in counted for name in settings if name != "name" and name.rpartition(".")[2] != "seed"}
        by = sorted(name for name in names if len({settings.get(name) for settings, _ in counted}) > 1)
    rows: dict[tuple, Row] = {}
    for settings, models in counted:
        chosen = {name: settings.get(name, "") for name in by}
        for model, values in models.items():
            row = rows.setdefault((*chosen.values(), model), Row(chosen, model, {}))
            for figure, value in values.items():
                row.values.setdefault(figure, []).append(value)
    return list(rows.values())


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, `mean ± deviation (n)`; a single run has no deviation."""
    settings = list(rows[0].settings) if rows else []
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    cells = [
        [*row.settings.values(), row.model, *(_cell(row.values.get(name, [])) for name in names)]
        for row in sorted(rows, key=lambda r: (*r.settings.values(), r.model))
    ]
    return [*settings, "model", *names], cells


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    mean = statistics.fmean(values)
    return f"{mean:.3f} ± {statistics.stdev(values):.3f} ({len(values)})" if len(values) > 1 else f"{mean:.3f} (1)"


def as_markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table for a README."""

    def line(row):
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, cells)]) + "\n"


def as_csv(rows: Sequence[Row], more: Mapping[str, Callable[[Row, str], str]] = MappingProxyType({})) -> str:
    """One line for each figure of merit, with mean, standard deviation and n as numbers.

    Args:
        more: further columns, their cells from row and figure.
    """
    settings = list(rows[0].settings) if rows else []
    lines: list[list[str | float]] = [[*settings, "model", "figure", "mean", "std", "n", *more]]
    for row in rows:
        for name, values in row.values.items():
            deviation = statistics.stdev(values) if len(values) > 1 else ""
            cells = [cell(row, name) for cell in more.values()]
            lines.append([*row.settings.values(), row.model, name, statistics.fmean(values), deviation, len(values), *cells])
    return csv_text(lines)


def write_table(out: pathlib.Path, name: str, header: Sequence[str], cells: Sequence[Sequence[str]], as_csv: str) -> None:
    """Writes NAME.md, NAME.tex and NAME.csv, the last from its text."""
    (out / f"{name}.md").write_text(as_markdown(header, cells))
    (out / f"{name}.tex").write_text(as_latex(header, cells))
    (out / f"{name}.csv").write_text(as_csv)


def as_latex(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A tabular for a paper (booktabs)."""

    def line(row):
        return " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in row) + r" \\"

    body = "\n".join(map(line, cells))
    columns = "l" * len(header)
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(header)}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


if __name__ == "__main__":
    sys.exit("error: experiments.summarize is no command: python -m experiments.tables is, and --help after it tells more")
