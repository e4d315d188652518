"""Tables and figures of runs: python -m experiments.tables runs/study [--by=phases.k,distill.stage2.steps] [--out=FOLDER]

Reads results.json of every run in or below the folders given and writes, as Markdown, CSV and LaTeX, into the first folder's
`tables` or --out, those of these that the runs have something for, the paper's value beside ours where there is one:

    summary    figures of merit, a row for each set of settings and model, over the runs that differ in nothing but their seed
    fit        R², cosine and e, means over layers, by model
    probes     linear probes: classification, segmentation, depth (paper, section 5)
    ablation   what each part of the distillation is worth, of runs of configs/ablation.py
    controls   fidelity by the parameters of the blocks, of max cut beside random partitions, layers that share less, and layers
               that share nothing; and as a figure

Cells are mean ± standard deviation over seeds (n - 1), and n. --by tells the rows of the first three apart by these settings.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from matplotlib.figure import Figure

from brh_jax.command import Parser, run_command
from brh_jax.errors import UserError, did_you_mean
from brh_jax.files import own_folder
from brh_jax.report.html import save_figure
from brh_jax.report.study import fit_by_parameters
from experiments import published
from experiments.configs import ablation
from experiments.results import Results
from experiments.stages.agreement.run import ALL, AgreementResult, Fit, decisions
from experiments.stages.distill.run import DistillResult
from experiments.stages.teacher.run import TeacherResult
from experiments.summarize import FinishedRun, Merits, Row, as_csv, as_markdown, gather, merits_of, read_runs, table, write_table

_PROBES = ("top-1 %", "mIoU %", "RMSE", "RMSE per image")
_CLASSIFIED = ("head as it is %", "probe %")
_CONTROLLED = ("phases.method", "raptor.unshared", "raptor.rank")
_NOT_CONTROLLED = ("phases.k", "distill.stage2.learning_rate")  # what else may differ: layers that begin as a teacher's want less
_AGAINST_PARAMETERS = ("R² cls", "R² patches", "e / norm", "R², last layer")
_PARAMETERS = "block parameters, M"


class Named(NamedTuple):
    """A table of runs.

    Attributes:
        name, rows: its own.
        paper: what the paper reports, row's key -> figure of merit -> text; the key is in the column `key`.
        figure: the same drawn; None for none.
    """

    name: str
    rows: list[Row]
    paper: Mapping[str, Mapping[str, str]] = {}
    key: str = "model"
    figure: Figure | None = None

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


def tables_of(runs: Sequence[FinishedRun], by: Sequence[str] = ()) -> Iterator[Named]:
    """Yields the tables that the runs have something for."""
    yield Named("summary", gather(runs, by, _summarized))
    if fits := gather(runs, by, fit_merits):
        yield Named("fit", fits, published.FITS)
    if probes := gather(runs, by, lambda results: _take(merits_of(results), _PROBES)):
        yield Named("probes", probes, published.PROBES)
    names = ablation.rows(ablation.get_config())
    if parts := [row for row in gather(runs, ("name",), _ablation_merits) if row.settings["name"] in names]:
        yield Named("ablation", parts, published.ABLATION, key="name")
    if compared := control_rows(runs):
        yield Named("controls", compared, figure=control_figure(runs, compared))


def _take(merits: Merits, names: Sequence[str]) -> Merits:
    """The merits of these names, in this order, of the models that have any."""
    taken = {model: {name: values[name] for name in names if name in values} for model, values in merits.items()}
    return {model: values for model, values in taken.items() if values}


def _summarized(results: Results) -> Merits:
    """The figures of merit that no other table is for."""
    merits = merits_of(results)
    return _take(merits, [name for values in merits.values() for name in values if name not in _PROBES])


def _fits(results: Results) -> dict[str, Fit]:
    agreement = results.get(AgreementResult)
    return agreement.fits if agreement else {}


def fit_merits(results: Results) -> Merits:
    """Model -> agreement with the teacher, mean of layers and at the last; R² without a token type is the mean over types.

    `one mean` is the authors' statistic, see `brh_jax.distill.TrajectoryFit`: the only one beside the paper's."""
    fits = _fits(results)
    found = decisions(fits)  # the teacher's too
    for name, fit in fits.items():
        found[name] = _fit_merits(fit) | found.get(name, {})
    return found


def _fit_merits(fit: Fit) -> dict[str, float]:
    r2, e = {token: fmean(values) for token, values in fit.r2.items()}, fit.relative_error[ALL]
    return {
        "R²": fmean(r2.values()),
        **{f"R² {token}": value for token, value in r2.items()},
        **{f"cosine {token}": fmean(values) for token, values in fit.cosine.items()},
        "e / norm": fmean(e),
        **{f"R² {token}, last layer": values[-1] for token, values in fit.r2.items()},
        "R², last layer": fmean(values[-1] for values in fit.r2.values()),
        "R², last layer, all tokens": fit.r2_all[-1],
        "R², last layer, one mean": fit.r2_one_mean,
        "e / norm, last layer": e[-1],
    }


def _raptor_merits(results: Results) -> Merits:
    """The agreement of the Raptors alone."""
    fits = _fits(results)
    return {name: values for name, values in fit_merits(results).items() if name in fits and fits[name].kind == "raptor"}


def _controlled_merits(results: Results) -> Merits:
    """The agreement of the Raptors and the parameters of their blocks."""
    distilled = results.get(DistillResult)
    sizes = {name: raptor.cost.block_params for name, raptor in distilled.raptors.items()} if distilled else {}
    return {name: {_PARAMETERS: sizes[name] / 1e6} | found for name, found in _raptor_merits(results).items() if name in sizes}


def _ablation_merits(results: Results) -> Merits:
    """Raptor -> its teacher's classifier read off it, the fine-tuned probe, and its fit."""
    scores = _take(merits_of(results), _CLASSIFIED)
    return {name: scores.get(name, {}) | fit for name, fit in _raptor_merits(results).items()}


def control_rows(runs: Sequence[FinishedRun]) -> list[Row]:
    """Rows of Raptors by the method of their partition and by what their blocks share.

    Unshared shallow networks are made for the last state of each phase alone: means over layers are left out.
    No rows where the runs have only one kind, or differ in anything else but k, learning rate and seeds, as an ablation's do.
    """
    if any(set(row.settings) - {*_CONTROLLED, *_NOT_CONTROLLED} for row in gather(runs, (), _raptor_merits)):
        return []
    rows = []
    for row in gather(runs, _CONTROLLED, _controlled_merits):
        method, unshared, rank = (json.loads(row.settings[name] or '""') for name in _CONTROLLED)
        blocks = method.replace("_", " ") + (f", unshared {unshared.replace('_', ' ')}" if unshared else "")
        blocks += f", relaxed, rank {rank}" if rank else ""
        once = unshared in ("shallow", "dropped")
        values = {name: found for name, found in row.values.items() if not (once and _over_layers(name))}
        rows.append(row._replace(settings={"blocks": blocks}, values=values))
    return rows if len({row.settings["blocks"] for row in rows}) > 1 else []


def _over_layers(name: str) -> bool:
    """Whether a figure of `_fit_merits` is taken over all layers."""
    return name.startswith(("R²", "cosine", "e / norm")) and not name.endswith("last layer")


def control_figure(runs: Sequence[FinishedRun], rows: Sequence[Row]) -> Figure:
    """Fidelity of control rows against the parameters of their blocks; see `fit_by_parameters`."""
    whole = next(result.cost.block_params / 1e6 for run in runs if (result := run.results.get(TeacherResult)))
    curves: dict[str, dict[float, dict[str, list[float]]]] = {}
    for row in rows:
        kind = row.settings["blocks"].partition(", rank ")[0]
        values = {name: row.values.get(name, []) for name in _AGAINST_PARAMETERS}
        curves.setdefault(kind, {})[fmean(row.values[_PARAMETERS])] = values
    return fit_by_parameters(curves, whole)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = Parser("experiments.tables", __doc__)
    parser.add_argument("folders", nargs="+", help="work directories, or folders of them")
    parser.add_argument("--by", default="", help="settings to tell rows apart by, separated by commas")
    parser.add_argument("--out", default=None, help="folder for the tables; FIRST FOLDER/tables by default")
    return run_command(parser, _write, argv)


def _write(arguments: argparse.Namespace) -> None:
    runs, by = read_runs(arguments.folders), [name for name in arguments.by.split(",") if name]
    known = dict.fromkeys(name for run in runs for name in run.settings)
    if unknown := [name for name in by if name not in known]:
        hint = did_you_mean(unknown[0], known)
        raise UserError(f"--by names {unknown[0]!r}, a setting of none of these runs" + (f": {hint.strip()}" if hint else ""))
    found = list(tables_of(runs, by))
    out = own_folder(arguments.out or pathlib.Path(arguments.folders[0]) / "tables")
    out.mkdir(parents=True, exist_ok=True)
    for one in found:
        header, cells = one.cells()
        write_table(out, one.name, header, cells, one.csv())
        print(f"{one.name}\n\n{as_markdown(header, cells)}")
        if one.figure is not None:
            save_figure(one.figure, out, one.name)
    print(f"{out}: {', '.join(one.name for one in found)}, each as .md, .csv and .tex")


if __name__ == "__main__":
    sys.exit(main())
