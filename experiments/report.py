"""The page of a run: what was asked and the answer, then the stages' sections as a story.

python -m experiments.report RUN           makes the page of a finished run again, RUN/report/index.html
python -m experiments.report RUN RUN ...   puts runs side by side, on a page of their own
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence

from brh_jax.command import Parser, run_command
from brh_jax.errors import UserError
from brh_jax.report.html import Chapter, FigureEntry, Listing, render
from brh_jax.train.metrics import clock
from experiments import side_by_side, stages
from experiments.page import Page, settings_of
from experiments.results import Results
from experiments.runs import read_run
from experiments.stages.agreement.figures import glance
from experiments.stages.agreement.run import AgreementResult
from experiments.stages.phases.run import PhasesResult
from experiments.stages.teacher.run import TeacherResult
from experiments.verdict import answer, in_short

# Title, the question that a chapter answers, and the stages that it is of; stages that are not named have one of their own.
_STORY = (
    ("Phases", "Where does depth fall into runs of layers that do alike, and how sure is that?", ("phases",)),
    ("Fidelity", "How near does each Raptor stay to its teacher, layer by layer and in what is decided?", ("agreement",)),
    ("Probes", "What can be read off frozen features, the teacher's and the Raptors'?", ("probes",)),
    (
        "Interventions",
        "What breaks where layers are swapped, left out, repeated or replaced by a Raptor's block?",
        ("interventions",),
    ),
    ("Dynamics", "How do states move through depth, and does a Raptor move them likewise?", ("dynamics",)),
)
_TRAINING = ("Training", "How did the losses fall, and what was reached on the way?", ("teacher", "distill"))


def write(workdir: pathlib.Path, results: Results) -> None:
    """Writes `report/index.html` of a run, and its figures and their values beside it as files."""
    path = workdir / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    teacher = results.get(TeacherResult)
    render(
        path,
        title=f"Block-recurrent dynamics of {teacher.name if teacher else 'a ViT'}",
        lead=list(_lead(results)),
        answers=[answer(workdir, results)],
        chapters=[*_chapters(Page(results, workdir, workdir / "report" / "figures")), _settings(results)],
    )
    print(f"report: {path}", flush=True)


def _lead(results: Results) -> Iterator[str]:
    if (teacher := results.get(TeacherResult)) and (phases := results.get(PhasesResult)):
        numbers = " or ".join(map(str, phases.partitions))
        yield f"Can {numbers} blocks, each applied again and again, do what the {teacher.depth} layers of {teacher.name} do?"
    yield from in_short(results)
    if skipped := results.about["skipped_images"]:
        yield f"{len(skipped)} images could not be decoded and were skipped; results.json names them."


def _chapters(page: Page) -> Iterator[Chapter]:
    yield Chapter("At a glance", "", list(_glance(page)))
    pages = {stage.name: stage.page for stage in stages.STAGES if stage.page and stage.name in page.results.stages}
    told = {name for *_, names in (*_STORY, _TRAINING) for name in names}
    own = ((name.capitalize().replace("_", " "), "", (name,)) for name in pages if name not in told)
    for title, question, names in (*_STORY, *own, _TRAINING):
        yield Chapter(title, question, [item for name in names if name in pages for item in pages[name](page)])


def _glance(page: Page) -> Iterator[FigureEntry]:
    phases, agreement = page.results.get(PhasesResult), page.results.get(AgreementResult)
    if phases and agreement and any(fit.kind == "raptor" for fit in agreement.fits.values()):
        yield page.figure(
            glance(phases, agreement.fits),
            "glance",
            "Phases, and R² of every state",
            "The further the coloured lines are above the grey ones, the more of the teacher is in the blocks. Left the "
            "dissimilarity of layers, phases outlined; right how much of each state's variance is reproduced from the first. "
            "Triangles are values below the axis.",
        )


def _settings(results: Results) -> Chapter:
    about = results.about
    lines = about["environment"] | {f"time of {stage}": clock(seconds) for stage, seconds in about["seconds"].items()}
    environment = Listing("Environment", "\n".join(f"{name}: {value}" for name, value in lines.items()))
    return Chapter("Configuration", "", [environment, settings_of(results)])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = Parser("experiments.report", __doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="work directory of a finished run")
    parser.add_argument(
        "--out", type=pathlib.Path, help="folder of the page of several runs; FIRST RUN/report/side_by_side by default"
    )
    return run_command(parser, _write_all, argv)


def _write_all(arguments: argparse.Namespace) -> None:
    runs = {run.expanduser(): read_run(run.expanduser()) for run in arguments.runs}
    if len(runs) > 1:
        first = next(iter(runs))
        side_by_side.write((arguments.out or first / "report" / "side_by_side").expanduser(), runs)
    elif arguments.out:
        raise UserError("--out is for the page of several runs: that of one run is RUN/report/index.html")
    else:
        write(*next(iter(runs.items())))


if __name__ == "__main__":
    sys.exit(main())
