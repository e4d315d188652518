"""A Raptor of a finished run as a repository of the hub: python -m experiments.publish RUN FOLDER [--k=2]

As `python -m weights_convert RUN FOLDER --to-hf`, with a model card that holds what the run measured: how it was trained, what it
keeps of its teacher's states and decisions, and what the baselines keep.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from statistics import fmean

from brh_jax.command import Parser, run_command
from brh_jax.errors import UserError
from brh_jax.loading import load
from experiments.results import Results
from experiments.runs import read_run
from experiments.stages.agreement.run import AgreementResult, Fit
from experiments.stages.distill.run import DistillResult, RaptorResult
from experiments.stages.teacher.run import TeacherResult
from weights_convert import export


def measured(results: Results, name: str) -> str:
    """The part of a model card that says what a run measured, in Markdown.

    Args:
        name: of the Raptor in the results, k2 say.

    Raises:
        UserError: the run has no such Raptor.
    """
    distilled, teacher = results.get(DistillResult), results.get(TeacherResult)
    if distilled is None or teacher is None or name not in distilled.raptors:
        there = ", ".join(distilled.raptors) if distilled else "none"
        raise UserError(f"results.json has no Raptor {name}: it has {there}")
    raptor, agreement = distilled.raptors[name], results.get(AgreementResult)
    tables = [_table(spec, fits, name) for spec, fits in agreement.sets.items()] if agreement else []
    return "\n\n".join(["## Measured", _training(results, teacher, raptor), *tables])


def _training(results: Results, teacher: TeacherResult, raptor: RaptorResult) -> str:
    config = results.about["config"]
    data, own = config["data"], config["distill"]
    stages = [own[stage] for stage in ("stage1", "stage2") if own[stage]["steps"]]
    how = ", then ".join(f"{s['steps']:,} steps with loss {s['loss']} and {s['optimizer']}" for s in stages)
    views = own["batch_size"] * sum(s["steps"] for s in stages)
    share = raptor.cost.flops_per_image / teacher.cost.flops_per_image
    return (
        f"Teacher: {teacher.name}. Distilled on {views:,} views ({data['augment']}) of `{_last(data['train'])}`: {how}, batches "
        f"of {own['batch_size']}, seed {config['seed']}. Its blocks have {raptor.cost.block_params:,} parameters, the teacher's "
        f"{teacher.cost.block_params:,}; an image takes {share:.2f} times the teacher's operations. Made by brh_jax "
        f"{results.about['environment']['brh-jax']}."
    )


def _table(spec: str, fits: dict[str, Fit], name: str) -> str:
    """What the Raptor keeps on a set of images, beside the baselines."""
    shown = {key: fit for key, fit in fits.items() if key == name or fit.kind == "baseline"}
    first = fits[name]
    header = ["", *(f"R² {token}, mean of layers / last" for token in first.r2), "top-1 kept", "same class as the teacher"]
    rows = [header, ["---"] * len(header), *(list(_cells(key, fit, name)) for key, fit in shown.items())]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    right = first.teacher_accuracy
    own = "" if right is None else f", of which the teacher gives {100 * right:.1f} % their class"
    return f"On {first.num_images:,} images of `{_last(spec)}`{own}:\n\n" + "\n".join(lines)


def _cells(key: str, fit: Fit, name: str) -> Iterator[str]:
    yield "**this Raptor**" if key == name else fit.label
    for values in fit.r2.values():
        yield f"{fmean(values):.3f} / {values[-1]:.3f}"
    kept = fit.kept
    interval = "" if kept is None or kept.low is None else f" ({100 * kept.low:.1f} to {100 * kept.high:.1f})"
    yield "" if kept is None else f"{100 * kept.value:.1f} %{interval}"
    yield "" if fit.same_class is None else f"{100 * fit.same_class:.1f} %"


def _last(spec: str) -> str:
    """A set of images without the folders of the machine it was read on."""
    kind, _, where = spec.partition(":")
    return f"{kind}:{pathlib.PurePath(where).name}" if kind == "folder" else spec


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = Parser("experiments.publish", __doc__)
    parser.add_argument("run", type=pathlib.Path, help="work directory of a finished run")
    parser.add_argument("folder", type=pathlib.Path, help="folder to write")
    parser.add_argument("--k", type=int, default=None, help="which Raptor; by default the one with most phases")
    return run_command(parser, _publish, argv)


def _publish(arguments: argparse.Namespace) -> None:
    workdir = arguments.run.expanduser()
    results = read_run(workdir)
    raptors = results.get(DistillResult)
    ks = sorted(raptor.k for raptor in raptors.raptors.values()) if raptors else []
    if not ks:
        raise UserError(f"{workdir} has no Raptor: expected a run with the stage distill")
    if arguments.k not in (None, *ks):
        raise UserError(f"{workdir} has no Raptor with k = {arguments.k}: expected --k=" + ", --k=".join(map(str, ks)))
    k = arguments.k or ks[-1]
    folder = export.write(load(workdir, k=k), arguments.folder, measured(results, f"k{k}"))
    print(f"wrote {folder}: look at its README.md, name the licence, then `hf upload`")


if __name__ == "__main__":
    sys.exit(main())
