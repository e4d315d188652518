"""Tables and figures of runs: python -m experiments.tables runs/study [--by=phases.k,distill.stage2.steps] [--out=FOLDER]

Reads results.json of every run in or below the folders given and writes, as Markdown, CSV and LaTeX, into the first folder's
`tables` or --out, those of these that the runs have something for, the paper's value beside ours where there is one:

    summary    figures of merit, a row for each set of settings and model, over the runs that differ in nothing but their seed
    fit        R², cosine and e, means over layers, by model
    probes     linear probes: classification, segmentation, depth (paper, section 5)
    ablation   what each part of the distillation is worth, of runs of configs/ablation.py
    controls   R² and e by number of phases, of max cut beside random partitions and blocks that are not shared, and as a figure

Cells are mean ± standard deviation over seeds (n - 1), and n. --by tells the rows of the first three apart by these settings.
"""

import argparse
import pathlib
import re
import statistics
import sys
from collections.abc import Iterator
from typing import NamedTuple

from brh_jax.command import run_command
from brh_jax.report import controls
from brh_jax.report.html import save_figure
from experiments import published
from experiments.summarize import Row, as_csv, as_latex, as_markdown, gather, table

_RAPTOR = re.compile(r"k\d+")
_CONTROLLED = ("phases.method", "raptor.unshared")


class Named(NamedTuple):
    """A table: its name, rows, and what the paper reports, row's key -> figure -> text; the key is in the column `key`."""

    name: str
    rows: list[Row]
    paper: dict[str, dict[str, str]]
    key: str = "model"

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells; a figure that the paper reports is followed by the paper's."""
        header, cells = table(self.rows)
        key = header.index(self.key)
        for figure in dict.fromkeys(figure for values in self.paper.values() for figure in values):
            if figure in header:
                place = header.index(figure) + 1
                header = [*header[:place], f"paper's {published.MODEL}: {figure}", *header[place:]]
                cells = [[*row[:place], self.paper.get(row[key], {}).get(figure, ""), *row[place:]] for row in cells]
        return header, cells

    def csv(self) -> str:
        """A line for each figure, the paper's in the last column."""
        return as_csv(self.rows, {"paper": self._published} if self.paper else {})

    def _published(self, row: Row, figure: str) -> str:
        return self.paper.get(row.settings.get(self.key, row.model), {}).get(figure, "")


def tables_of(folders, by=()) -> Iterator[Named]:
    """The tables that the runs have something for.

    Raises:
        UserError: no runs there.
    """
    yield Named("summary", gather(folders, by), {})
    if fits := gather(folders, by, figures=fit_figures):
        yield Named("fit", fits, published.FITS)
    if probes := gather(folders, by, figures=probe_figures):
        yield Named("probes", probes, published.PROBES)
    if parts := [row for row in gather(folders, ("name",), figures=_ablation_figures) if row.settings["name"][:1].isdigit()]:
        yield Named("ablation", parts, published.ABLATION, key="name")
    if compared := control_rows(folders):
        yield Named("controls", compared, {})


def fit_figures(results: dict) -> dict[str, dict[str, float]]:
    """Model -> agreement with the teacher, mean of layers and at the last; R² without a token type is the mean over types."""
    out = {}
    for name, fit in results.get("distill", {}).get("fits", {}).items():
        r2 = {token: statistics.fmean(values) for token, values in fit["r2"].items() if values}
        out[name] = {"R²": statistics.fmean(r2.values())} | {f"R² {token}": value for token, value in r2.items()}
        out[name] |= {f"cosine {token}": statistics.fmean(values) for token, values in fit["cosine"].items() if values}
        out[name]["e / norm"] = statistics.fmean(fit["relative_error_all"])
        out[name]["R², last layer"] = statistics.fmean(values[-1] for values in fit["r2"].values() if values)
        out[name]["e / norm, last layer"] = fit["relative_error_all"][-1]
    return out


def probe_figures(results: dict) -> dict[str, dict[str, float]]:
    """Model -> scores of its linear probes, on whatever data the run had."""
    probes, out = results.get("probes", {}), {}
    for name, accuracy in probes.get("accuracy", {}).items():
        out.setdefault(name, {})["top-1 %"] = 100 * accuracy
    for task, score, label, factor in (("segmentation", "miou", "mIoU %", 100), ("depth", "rmse", "RMSE", 1)):
        for name, scores in probes.get(task, {}).get("models", {}).items():
            out.setdefault(name, {})[label] = factor * scores[score]
    return out


def _ablation_figures(results: dict) -> dict[str, dict[str, float]]:
    """Raptor -> its teacher's classifier read off it, the fine-tuned probe, and its fit."""
    probes, out = results.get("probes", {}), {}
    for name, figures in fit_figures(results).items():
        if _RAPTOR.fullmatch(name):
            given, probe = (probes.get(kind, {}).get(name) for kind in ("accuracy_of_given_head", "accuracy"))
            scores = {"head as it is %": given, "probe %": probe}
            out[name] = {label: 100 * s for label, s in scores.items() if s is not None} | figures
    return out


def control_rows(folders) -> list[Row]:
    """Rows of Raptors by the method of their partition and by what their blocks share.

    Unshared shallow networks are made for the last state of each phase alone: means over layers are left out.
    No rows where the runs have only one kind, or differ in anything else but k and seeds, as those of an ablation do.
    """

    def raptors(results):
        return {name: figures for name, figures in fit_figures(results).items() if _RAPTOR.fullmatch(name)}

    if any(set(row.settings) - {*_CONTROLLED, "phases.k"} for row in gather(folders, figures=raptors)):
        return []
    rows = []
    for row in gather(folders, _CONTROLLED, figures=raptors):
        method, unshared = (row.settings[key].strip('"') for key in _CONTROLLED)
        blocks = f"{method.replace('_', ' ')}, unshared {unshared}" if unshared else method.replace("_", " ")
        values = {name: found for name, found in row.values.items() if unshared != "shallow" or name.endswith("last layer")}
        rows.append(row._replace(settings={"blocks": blocks}, values=values))
    return rows if len({row.settings["blocks"] for row in rows}) > 1 else []


def control_figure(rows: list[Row]):
    """R² and e against k; see `controls.fit_by_phases`."""
    curves: dict[str, dict[int, dict[str, list[float]]]] = {}
    for row in rows:
        values = {name: row.values.get(name, []) for name in ("R²", "e / norm", "R², last layer", "e / norm, last layer")}
        curves.setdefault(row.settings["blocks"], {})[int(row.model.removeprefix("k"))] = values
    return controls.fit_by_phases(curves)


def main(argv=None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tables", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", help="work directories, or folders of them")
    parser.add_argument("--by", default="", help="settings to tell rows apart by, separated by commas")
    parser.add_argument("--out", default=None, help="folder for the tables; FIRST FOLDER/tables by default")
    return run_command(parser, _write, argv)


def _write(arguments) -> None:
    found = list(tables_of(arguments.folders, [key for key in arguments.by.split(",") if key]))
    out = pathlib.Path(arguments.out or pathlib.Path(arguments.folders[0]) / "tables").expanduser()
    out.mkdir(parents=True, exist_ok=True)
    for one in found:
        header, cells = one.cells()
        (out / f"{one.name}.md").write_text(as_markdown(header, cells))
        (out / f"{one.name}.csv").write_text(one.csv())
        (out / f"{one.name}.tex").write_text(as_latex(header, cells))
        print(f"{one.name}\n\n{as_markdown(header, cells)}")
        if one.name == "controls":
            save_figure(control_figure(one.rows), out, one.name)
    print(f"{out}: {', '.join(one.name for one in found)}, each as .md, .csv and .tex")


if __name__ == "__main__":
    sys.exit(main())
