"""Gathers the results of runs into rows and tables: mean, standard deviation over seeds (n - 1) and n of every figure of merit.

`python -m experiments.tables` is the command that does it.
"""

import csv
import io
import json
import pathlib
import re
import statistics
from collections.abc import Callable
from typing import NamedTuple

from brh_jax.errors import UserError

_LATEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "²": "$^2$"} | {c: "\\" + c for c in "%_&#$"}

_SEED = re.compile(r"-?seed\d+")
_SEEDED = re.compile(r"^name$|^(.*\.)?seed$")  # settings that runs of one row differ in


class Row(NamedTuple):
    """Attributes: settings that tell the row from others, the model, and per figure of merit the values of all runs."""

    settings: dict[str, str]
    model: str
    values: dict[str, list[float]]


def find_runs(folders) -> list[pathlib.Path]:
    """Work directories with a results.json, in or below the folders.

    Raises:
        UserError: there is none.
    """
    found = sorted({p.parent for folder in folders for p in pathlib.Path(folder).expanduser().rglob("results.json")})
    if not found:
        raise UserError(f"no results.json in or below {', '.join(map(str, folders))}: expected work directories of finished runs")
    return found


def figures_of_merit(results: dict) -> dict[str, dict[str, float]]:
    """Model -> figure of merit -> value, of one run."""
    out: dict[str, dict[str, float]] = {}
    for name, fit in results.get("distill", {}).get("fits", {}).items():
        row = {f"R² {token}": values[-1] for token, values in fit["r2"].items() if values}
        row |= {f"cosine {token}": values[-1] for token, values in fit["cosine"].items() if values}
        row["relative e"] = statistics.fmean(fit["relative_error_all"])
        out[name] = row
    for name, accuracy in results.get("probes", {}).get("accuracy", {}).items():
        out.setdefault(name, {})["probe %"] = 100 * accuracy
    for name, accuracy in results.get("probes", {}).get("accuracy_of_given_head", {}).items():
        out.setdefault(name, {})["head as it is %"] = 100 * accuracy
    return out


def settings_of(workdir: pathlib.Path) -> dict[str, str]:
    """All settings of a run, flat, from the records of its stages, and its `name` without the seed."""
    flat = {}
    for record in sorted(workdir.glob("*/record.json")):
        flat |= json.loads(record.read_text()).get("config", {})
    return {key: json.dumps(value) for key, value in flat.items()} | {"name": _SEED.sub("", workdir.name)}


def gather(folders, by=(), *, figures: Callable = figures_of_merit) -> list[Row]:
    """The rows of the table.

    Args:
        by: settings to tell rows apart by; those that differ between the runs, but for seeds, by default.
        figures: results of a run -> model -> figure of merit -> value. Runs without any count for nothing.
    """
    runs = [(settings_of(w), figures(json.loads((w / "results.json").read_text()))) for w in find_runs(folders)]
    runs = [run for run in runs if run[1]]
    if not by:
        keys = {key for settings, _ in runs for key in settings}
        by = sorted(k for k in keys if not _SEEDED.search(k) and len({s.get(k) for s, _ in runs}) > 1)
    rows: dict[tuple, Row] = {}
    for settings, models in runs:
        chosen = {key: settings.get(key, "") for key in by}
        for model, values in models.items():
            row = rows.setdefault((*chosen.values(), model), Row(chosen, model, {}))
            for name, value in values.items():
                row.values.setdefault(name, []).append(value)
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


def as_markdown(header, cells) -> str:
    """A table for a README."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells]) + "\n"


def as_csv(rows: list[Row], more: dict[str, Callable[[Row, str], str]] | None = None) -> str:
    """One line for each figure of merit, with mean, standard deviation and n as numbers.

    Args:
        more: further columns, their cells from row and figure.
    """
    more = more or {}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    settings = list(rows[0].settings) if rows else []
    writer.writerow([*settings, "model", "figure", "mean", "std", "n", *more])
    for row in rows:
        for name, values in row.values.items():
            deviation = statistics.stdev(values) if len(values) > 1 else ""
            cells = [cell(row, name) for cell in more.values()]
            writer.writerow([*row.settings.values(), row.model, name, statistics.fmean(values), deviation, len(values), *cells])
    return out.getvalue()


def as_latex(header, cells) -> str:
    """A tabular for a paper (booktabs)."""

    def line(row):
        return " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in row) + r" \\"

    body = "\n".join(map(line, cells))
    columns = "l" * len(header)
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(header)}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
