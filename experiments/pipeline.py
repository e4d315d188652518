"""The stages of a run, in order, each from and to the work directory, each skipped when it is done."""

import json
import pathlib
import shutil
import time
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from brh_jax.errors import UserError
from brh_jax.train.metrics import clock
from brh_jax.train.parallel import is_main, make_mesh, wait_for_all
from experiments.configuration import check_config
from experiments.context import Context, read_record, write_json
from experiments.stages import distill, dynamics, interventions, phases, probes, report, teacher


class Stage(NamedTuple):
    """A stage: what it does, and the sections of the configuration that its results depend on."""

    function: object
    depends: tuple[str, ...]


_PROBES = ("probe", "segmentation", "depth", "quick")
_DISTILL = ("seed", "compute_dtype", "teacher", "data", "phases", "raptor", "distill", "eval")
STAGES = {
    "teacher": Stage(teacher.run, ("seed", "teacher", "data", "eval")),
    "phases": Stage(phases.run, ("seed", "compute_dtype", "teacher", "data", "eval", "phases")),
    "distill": Stage(distill.run, _DISTILL),
    "probes": Stage(probes.run, (*_DISTILL, *_PROBES)),
    "interventions": Stage(interventions.run, (*_DISTILL, "probe", "interventions")),
    "dynamics": Stage(dynamics.run, (*_DISTILL, "dynamics")),
    "report": Stage(report.run, ()),
}
# Settings that change how a run goes, not what comes out.
_WITHOUT_EFFECT = {
    "data.threads",
    "data.workers",
    "data.data_dir",
    "distill.log_every",
    "distill.save_every",
    "distill.keep_last",
    "distill.keep_best",
    "distill.remat",
}
MODES = ("train", "eval", "report")
# What --mode=eval measures again, from models that stay as they are, and the settings that it may be given anew.
_MEASURING = ("distill", "probes", "interventions", "dynamics")
_MEASURED_WITH = ("eval.", "interventions.", "dynamics.", "data.eval", "compute_dtype", "mesh.")
_MEASURED_WITH += tuple(f"{probe}.{name}" for probe in _PROBES for name in ("eval", "num_eval"))


def run(config: ConfigDict, workdir, *, mode: str = "train", rerun: bool = False, command=(), profile=None) -> dict:
    """Runs the stages that `config.stages` names and returns what results.json holds.

    Args:
        config: as configs/default.py describes it.
        workdir: made if it is not there; stages done in it with this configuration are skipped.
        mode: train, everything that is not done; eval, measure finished models again; report, the page alone.
        rerun: discard stages made with another configuration, rather than refuse.
        command: for the record.
        profile: (first, last) step of every training to trace, or None.

    Raises:
        UserError: anything that the user can put right.
    """
    workdir = pathlib.Path(workdir).expanduser()
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: give a folder as --workdir")
    unknown = [s for s in config.stages if s not in STAGES]
    if unknown:
        raise UserError(f"unknown stage {', '.join(unknown)} in config.stages: expected some of {', '.join(STAGES)}")
    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}: expected one of {', '.join(MODES)}")
    check_config(config)
    if rerun and mode != "train":
        raise UserError(f"--rerun discards what another configuration made, --mode={mode} makes nothing: leave one of them out")
    stages = tuple(config.stages) if mode == "train" else ("report",)
    if mode == "eval":
        stages = tuple(s for s in config.stages if s in (*_MEASURING, "report"))
    _check_workdir(config, workdir, rerun, mode)
    mesh = make_mesh(**config.mesh)
    context = Context(config, workdir, mesh, tuple(command), profile, finished=mode == "eval")
    print(
        f"{workdir}: {', '.join(stages)} on {len(jax.devices())} {jax.devices()[0].device_kind} device(s)"
        + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""),
        flush=True,
    )
    begun = time.monotonic()
    for name, stage in STAGES.items():
        if name == "report" and is_main():  # the last one
            write_json(workdir / "results.json", report.results_of(context))
        if name in stages:
            _run_stage(name, stage, context, again=mode == "eval")
    print(f"all stages: {clock(time.monotonic() - begun)}")
    wait_for_all("results are written")
    return json.loads((workdir / "results.json").read_text())


def _run_stage(name: str, stage: Stage, context, again: bool) -> None:
    folder = context.workdir / name
    record = read_record(folder)
    wait_for_all(f"{name}: what is there has been read")
    if record.get("done") and stage.depends and not again:
        print(f"{name}: done before, skipped", flush=True)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): give another --workdir") from None
    # Measured again, a stage stays what it was trained as; a failure leaves the figures that there were.
    depends = record["config"] if again and record else dependencies(context.config, stage.depends)
    # An attempt that stopped counts towards the stage's time, unless it was killed outright.
    spent, begun = 0.0 if record.get("done") else record.get("seconds", 0.0), time.monotonic()

    def keep(**more):
        seconds = spent + time.monotonic() - begun
        if is_main():
            write_json(folder / "record.json", {"config": depends, "seconds": seconds, **more})
        return seconds

    if not again:
        keep(done=False)
    try:
        # The page is made by one process; everything else is done by all together.
        summary = stage.function(context, folder) if stage.depends or is_main() else {}
    except BaseException as error:
        if again:
            raise
        keep(done=False)
        if is_main() and isinstance(error, UserError) and [p.name for p in folder.iterdir()] == ["record.json"]:
            shutil.rmtree(folder)  # nothing was done: the next attempt may be configured otherwise
        raise
    seconds = keep(done=True, summary=summary)
    wait_for_all(f"{name}: done")
    print(f"{name}: {clock(seconds)}", flush=True)


def dependencies(config: ConfigDict, sections) -> dict:
    """The settings that a stage's results depend on, flat: `section.name` -> value."""
    flat = {}

    def add(prefix, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}", inner)
        elif prefix not in _WITHOUT_EFFECT:
            flat[prefix] = value

    whole = json.loads(config.to_json())
    for section in sections:
        add(section, whole[section])
    return flat


def _check_workdir(config, workdir, rerun, mode) -> None:
    """Refuses, or with `rerun` discards, stages that another configuration made."""
    differing, faults = [], {}
    if mode != "train" and not read_record(workdir / "teacher").get("done"):
        raise UserError(f"{workdir} holds no finished run: --mode={mode} needs one, made with --mode=train")
    if mode == "eval" and (missing := [s for s in ("phases", "distill") if not read_record(workdir / s).get("done")]):
        raise UserError(
            f"{workdir}: {', '.join(missing)} not finished; --mode=eval measures finished models, run --mode=train first"
        )
    for name, stage in STAGES.items():
        record = read_record(workdir / name)
        if not record or not stage.depends:
            continue
        now, then = dependencies(config, stage.depends), record["config"]
        changed = [k for k in {**then, **now} if then.get(k, "nothing") != now.get(k, "nothing")]
        if mode != "train":
            changed = [k for k in changed if not k.startswith(_MEASURED_WITH)]
        if changed:
            differing.append(name)
            faults |= {k: f"{k}: {then.get(k, 'nothing')} there, {now.get(k, 'nothing')} here" for k in changed}
    if differing and not rerun:
        listed = "\n  ".join(faults.values())
        raise UserError(
            f"{workdir} was made with another configuration:\n  {listed}\n"
            f"Use another --workdir, or give --rerun to discard what differs ({', '.join(differing)}) and run it again"
        )
    wait_for_all("the work directory has been checked")
    for name in differing:
        print(f"{name}: made with another configuration, discarded", flush=True)
        if is_main():
            shutil.rmtree(workdir / name)
    wait_for_all("the work directory is ready")
