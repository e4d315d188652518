"""The page of a run: what was found in a few sentences, then each stage's section.

python -m experiments.report RUN [RUN ...] makes the pages of finished runs again, WORKDIR/report/index.html.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from statistics import fmean

from brh_jax.command import Parser, run_command
from brh_jax.errors import UserError
from brh_jax.files import nearest_path
from brh_jax.report.html import render
from brh_jax.train.metrics import clock
from experiments import stages
from experiments.page import Page
from experiments.results import Results
from experiments.runs import read_results
from experiments.stages.accuracy.run import AccuracyResult
from experiments.stages.agreement.run import ALL, AgreementResult
from experiments.stages.phases.run import PhasesResult
from experiments.stages.teacher.run import TeacherResult


def write(workdir: pathlib.Path, results: Results, configuration: str) -> None:
    """Writes `report/index.html` of a run, and its figures beside it as files."""
    page = Page(results, workdir, workdir / "report" / "figures")
    made = [stage.page for stage in stages.STAGES if stage.page is not None and stage.name in results.stages]
    sections = [section for stage_page in made for section in stage_page(page)]
    teacher = results.get(TeacherResult)
    path = workdir / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    render(
        path,
        title=f"Block-recurrent dynamics of {teacher.name if teacher else 'a ViT'}",
        lead=list(_lead(results)),
        sections=sections,
        configuration=configuration,
        environment=results.about["environment"] | {f"time: {k}": clock(v) for k, v in results.about["seconds"].items()},
    )
    print(f"report: {path}", flush=True)


def _lead(results: Results) -> Iterator[str]:
    """What was found, a sentence or two each."""
    if teacher := results.get(TeacherResult):
        accuracy = results.get(AccuracyResult)
        right = accuracy.teacher.test if accuracy else None
        yield (
            f"Teacher: {teacher.depth} layers of width {teacher.dim}, {teacher.layout.num_cls} cls + "
            f"{teacher.layout.num_registers} "
            f"register + {teacher.layout.grid[0]} x {teacher.layout.grid[1]} patch tokens, {teacher.cost.params / 1e6:.1f} M "
            "parameters" + ("." if right is None else f", right about {100 * right:.1f} % of the test images.")
        )
    agreement, phases = results.get(AgreementResult), results.get(PhasesResult)
    fits = agreement.fits if agreement else {}
    for k, cut in phases.partitions.items() if phases else ():
        sentence = f"k = {k}: phases {cut.text} ({phases.method})."
        if (fit := fits.get(f"k{k}")) is not None:
            sentence += (
                f" R² at the last layer: {_last(fit.r2)} (identity baseline: {_last(fits['identity'].r2)}); e is "
                f"{100 * fmean(fit.relative_error[ALL]):.0f} % of the state's norm, mean of layers."
                + (f" It keeps {100 * fit.kept.value:.0f} % of the teacher's accuracy." if fit.kept else "")
            )
        yield sentence
    if skipped := results.about["skipped_images"]:
        yield f"{len(skipped)} images could not be decoded and were skipped; results.json names them."


def _last(r2: dict[str, list[float]]) -> str:
    return ", ".join(f"{token} {values[-1]:.2f}" for token, values in r2.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = Parser("experiments.report", __doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="work directory of a finished run")
    return run_command(parser, _write_all, argv)


def _write_all(arguments: argparse.Namespace) -> None:
    for run in arguments.runs:
        workdir = run.expanduser()
        if not (workdir / "results.json").is_file():
            hint = nearest_path(workdir) or "expected the work directory of a finished run"
            raise UserError(f"no results.json in {workdir}: {hint.strip(' ;')}")
        results = read_results(workdir / "results.json")
        write(workdir, results, json.dumps(results.about["config"], indent=1))


if __name__ == "__main__":
    sys.exit(main())
