"""The stages of a run, in order, each from and to the work directory, each skipped when it is done."""

import json
import pathlib
import shutil
import time
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from brh_jax.errors import UserError
from brh_jax.metrics import clock
from brh_jax.parallel import make_mesh
from experiments.configuration import check_config
from experiments.context import Context, read_record, write_json
from experiments.stages import distill, dynamics, phases, probes, report, teacher


class Stage(NamedTuple):
    """A stage: what it does, and the sections of the configuration that its results depend on."""

    function: object
    depends: tuple[str, ...]


_DISTILL = ("seed", "compute_dtype", "teacher", "data", "phases", "raptor", "distill", "eval")
STAGES = {
    "teacher": Stage(teacher.run, ("seed", "teacher", "data", "eval")),
    "phases": Stage(phases.run, ("seed", "compute_dtype", "teacher", "data", "eval", "phases")),
    "distill": Stage(distill.run, _DISTILL),
    "probes": Stage(probes.run, (*_DISTILL, "probe")),
    "dynamics": Stage(dynamics.run, (*_DISTILL, "dynamics")),
    "report": Stage(report.run, ()),
}
# Settings that change how a run goes, not what comes out.
_WITHOUT_EFFECT = {"data.threads", "data.data_dir", "distill.log_every", "distill.save_every", "distill.remat"}


def run(config: ConfigDict, workdir, *, rerun: bool = False, command=()) -> dict:
    """Runs the stages that `config.stages` names and returns what results.json holds.

    Args:
        config: as configs/default.py describes it.
        workdir: made if it is not there; stages done in it with this configuration are skipped.
        rerun: discard stages made with another configuration, rather than refuse.
        command: for the record.

    Raises:
        UserError: anything that the user can put right.
    """
    workdir = pathlib.Path(workdir).expanduser()
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: give a folder as --workdir")
    unknown = [s for s in config.stages if s not in STAGES]
    if unknown:
        raise UserError(f"unknown stage {', '.join(unknown)} in config.stages: expected some of {', '.join(STAGES)}")
    check_config(config)
    _check_workdir(config, workdir, rerun)
    mesh = make_mesh(**config.mesh)
    context = Context(config, workdir, mesh, tuple(command))
    print(
        f"{workdir}: {', '.join(config.stages)} on {len(jax.devices())} {jax.devices()[0].device_kind} device(s)",
        flush=True,
    )
    begun = time.monotonic()
    for name, stage in STAGES.items():
        if name in config.stages:
            _run_stage(name, stage, context)
    print(f"all stages: {clock(time.monotonic() - begun)}")
    results = workdir / "results.json"
    return json.loads(results.read_text()) if results.exists() else {}


def _run_stage(name: str, stage: Stage, context) -> None:
    folder = context.workdir / name
    record = read_record(folder)
    if record.get("done") and stage.depends:
        print(f"{name}: done before, skipped", flush=True)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): give another --workdir") from None
    depends = dependencies(context.config, stage.depends)
    # An attempt that stopped counts towards the stage's time, unless it was killed outright.
    spent, begun = 0.0 if record.get("done") else record.get("seconds", 0.0), time.monotonic()

    def keep(**more):
        seconds = spent + time.monotonic() - begun
        write_json(folder / "record.json", {"config": depends, "seconds": seconds, **more})
        return seconds

    keep(done=False)
    try:
        summary = stage.function(context, folder)
    except BaseException as error:
        keep(done=False)
        if isinstance(error, UserError) and [p.name for p in folder.iterdir()] == ["record.json"]:
            shutil.rmtree(folder)  # nothing was done: the next attempt may be configured otherwise
        raise
    seconds = keep(done=True, summary=summary)
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


def _check_workdir(config, workdir, rerun) -> None:
    """Refuses, or with `rerun` discards, stages that another configuration made."""
    differing, faults = [], {}
    for name, stage in STAGES.items():
        record = read_record(workdir / name)
        if not record or not stage.depends:
            continue
        now, then = dependencies(config, stage.depends), record["config"]
        changed = [k for k in {**then, **now} if then.get(k, "nothing") != now.get(k, "nothing")]
        if changed:
            differing.append(name)
            faults |= {k: f"{k}: {then.get(k, 'nothing')} there, {now.get(k, 'nothing')} here" for k in changed}
    if differing and not rerun:
        listed = "\n  ".join(faults.values())
        raise UserError(
            f"{workdir} was made with another configuration:\n  {listed}\n"
            f"Use another --workdir, or give --rerun to discard what differs ({', '.join(differing)}) and run it again"
        )
    for name in differing:
        print(f"{name}: made with another configuration, discarded", flush=True)
        shutil.rmtree(workdir / name)
