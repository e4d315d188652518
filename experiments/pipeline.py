"""A run: the stages in order, each from and to the work directory, each skipped when it is done."""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import shlex
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from brh_jax.data.files import printable
from brh_jax.data.sources import Source
from brh_jax.errors import UserError, did_you_mean
from brh_jax.files import own_folder
from brh_jax.train.loop import LoopSettings
from brh_jax.train.metrics import clock
from brh_jax.train.parallel import differences, is_main, make_mesh, together, wait_for_all
from brh_jax.types import PathLike
from experiments import full_disk, report, stages
from experiments.data import check_classes, warn_of_same_images
from experiments.lock import Hold, hold
from experiments.records import Record, differing_content, differing_settings, read_record
from experiments.results import Results, from_json, to_json, write_json
from experiments.runs import read_results
from experiments.settings import check_names, check_plain, flat, merged_defaults, read, without_effect
from experiments.skips import Skips, holds_nothing_else
from experiments.stage import Context, Stage, check_same

MODES = ("train", "eval", "report")
_OF_A_HOST = ("data.data_dir", "data.threads", "data.workers")  # settings that may differ between the hosts of a run
_PACKAGES = ("brh-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The devices of a run.

    Attributes:
        data: ways that batches are split; -1 for all devices that are left.
        fsdp: ways that batches and parameters are split.
        tensor: ways that heads and hidden widths are split.
    """

    data: int = without_effect(-1)
    fsdp: int = without_effect(1)
    tensor: int = without_effect(1)


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What belongs to no stage.

    Attributes:
        stages: what is run, in this order. A stage that measures is run with the one that it follows.
    """

    stages: tuple[str, ...] = without_effect((*(s.name for s in stages.STAGES if not s.follows), "report"))
    mesh: MeshSettings = MeshSettings()
    loop: LoopSettings = LoopSettings()

    def __post_init__(self):
        # `teacher,phases` on a command line is one text.
        object.__setattr__(self, "stages", tuple(name.strip() for text in self.stages for name in text.split(",") if name))
        known = [*(s.name for s in stages.STAGES), "report"]
        if unknown := [s for s in self.stages if s not in known]:
            hint = did_you_mean(unknown[0], known)
            raise UserError(f"unknown stage {unknown[0]} in config.stages: {hint}expected some of {', '.join(known)}")


def settings_kinds() -> list[type]:
    """All settings dataclasses: the run's own and every stage's."""
    return [RunSettings, *(stage.Settings for stage in stages.STAGES)]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A run before it begins: its settings by stage, what stages left there, and what is to be done."""

    held: Hold
    workdir: pathlib.Path
    settings: dict[str, Any]
    records: dict[str, Record | None]
    chosen: tuple[str, ...]  # stages to do, where they are not done
    again: frozenset[str]  # stages to do whatever is there


def run(
    config: ConfigDict,
    workdir: PathLike,
    *,
    mode: str = "train",
    rerun: bool = False,
    command: Sequence[str] = (),
    profile: tuple[int, int] | None = None,
) -> Results:
    """Runs the stages that `config.stages` names and returns what results.json holds.

    Args:
        config: as configs/default.py has it.
        workdir: made if it is not there; stages done in it with these settings are skipped.
        mode: train, everything that is not done; eval, measure finished models again; report, the page alone.
        rerun: discard what was trained with other settings, rather than refuse.
        command: for the record.
        profile: (first, last) step of every training to trace, or None.

    Raises:
        UserError: anything that the user can put right.
    """
    workdir = own_folder(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: give a folder as --workdir")
    if (place := str(workdir.absolute())) != place.encode("utf-8", "replace").decode():  # tensorstore writes to no such path
        raise UserError(f"{printable(place)} is no name in UTF-8: give another --workdir")
    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}: expected one of {', '.join(MODES)}")
    if rerun and mode != "train":
        raise UserError(f"--rerun discards what other settings made, --mode={mode} makes nothing: leave one of them out")
    own, settings = together(lambda: read_settings(config))
    _check_processes(own, settings, {"mode": mode, "rerun": rerun})
    with full_disk.reported(workdir), hold(workdir) as held:
        plan = _planned(held, workdir, own, settings, mode, rerun)
        together(lambda: _check_ready(plan, settings))
        return _run(config, plan, own, mode, command, profile)


def _check_ready(plan: "_Plan", settings: dict[str, Any]) -> None:
    """Raises UserError where a stage that is to run lacks something that it reads from outside."""
    done = {name for name, record in plan.records.items() if record is not None and record.done} - plan.again
    waiting = [stage for stage in stages.STAGES if stage.name in plan.chosen and stage.name not in done]
    named = [one for stage in waiting for one in stage.reads(settings[stage.name])]
    for one in named:
        one.check_named()
    for stage in waiting:
        if stage.ready is not None:
            stage.ready(settings[stage.name])
    opened: dict[tuple, Source] = {}
    for one in named:
        if one[1:] not in opened:
            opened[one[1:]] = one.check()
    pairs = [(one, opened[one[1:]]) for one in named]
    check_classes(pairs)
    warn_of_same_images(pairs)


def _run(config: ConfigDict, plan: "_Plan", own: RunSettings, mode: str, command, profile) -> Results:
    """Runs what is planned."""
    workdir = plan.workdir
    mesh = make_mesh(**vars(own.mesh))
    page = "report" in own.stages or mode == "report"
    print(
        f"{workdir}: {', '.join((*plan.chosen, *(['report'] if page else [])))} on {len(jax.devices())} "
        f"{jax.devices()[0].device_kind} device(s)" + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""),
        flush=True,
    )
    begun = time.monotonic()
    context = Context(workdir, workdir, mesh, dataclasses.replace(own.loop, profile=profile), stages=plan.chosen)
    records, results = dict(plan.records), Results()
    for stage in stages.STAGES:
        if stage.name in plan.chosen:
            records[stage.name] = _do(stage, plan, dataclasses.replace(context, results=results), records)
        record = records[stage.name]
        if record is not None and record.done:
            results.stages[stage.name] = from_json(stage.Result, record.result, workdir / stage.name / "record.json")
    plan.held.check()
    if is_main():
        results.about = _about(config, command, records)
        write_json(workdir / "results.json", results.as_json())
        if page:
            report.write(workdir, results)
    print(f"all stages: {clock(time.monotonic() - begun)}")
    wait_for_all("results are written")
    return read_results(workdir / "results.json")


def read_settings(config: ConfigDict) -> tuple[RunSettings, dict[str, Any]]:
    """The run's own settings, and every stage's by name. Raises UserError at the first that is wrong."""
    check_names(config, merged_defaults(settings_kinds()))
    found = read(RunSettings, config), {stage.name: read(stage.Settings, config) for stage in stages.STAGES}
    check_plain(config)
    return found


def _check_processes(own: RunSettings, settings: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises UserError where processes of this run were started with other settings or versions than others."""
    items = {f"--{name}": value for name, value in asked.items()} | {name: _version(name) for name in _PACKAGES}
    for one in (own, *settings.values()):
        items |= {f"config.{name}": value for name, value in flat(one, all_fields=True).items() if name not in _OF_A_HOST}
    if lines := differences(items):
        said = "; ".join(f"{name}: {how}" for name, how in lines.items())
        raise UserError(f"the processes of this run differ ({said}): start all with the same command, settings and versions")


def _planned(held: Hold, workdir: pathlib.Path, own: RunSettings, settings, mode: str, rerun: bool) -> _Plan:
    """Looks at what is there. Raises UserError where it was trained with other settings; with `rerun` discards that."""
    records = {stage.name: read_record(workdir / stage.name) for stage in stages.STAGES}
    named = [s for s in stages.STAGES if s.name in own.stages or (s.follows in own.stages and s.follows)]
    if mode != "train":
        again = [s for s in named if s.measures] if mode == "eval" else []
        _check_finished(workdir, records, settings, again, mode)
        names = tuple(s.name for s in again)
        return _Plan(held, workdir, settings, records, names, frozenset(names))
    changed, chosen = _changed(records, settings), tuple(s.name for s in named)
    kept = [s.name for s in stages.STAGES if s.name in changed and not s.cheap]
    if kept and not rerun:
        said = dict.fromkeys(line for name in kept for line in changed[name].values())
        raise UserError(
            f"{workdir} was made with another configuration:\n  " + "\n  ".join(said) + "\nUse another --workdir, or give "
            f"--rerun to discard what differs ({', '.join(changed)}) and run it again"
        )
    for name, lines in changed.items():
        if name in kept:
            print(f"{name}: made with another configuration, discarded", flush=True)
            if is_main():
                shutil.rmtree(workdir / name)
        else:
            how = "measured again" if name in chosen else "not shown, as config.stages leaves it out"
            print(f"{name}: {how} ({'; '.join(lines.values())})", flush=True)
        records[name] = None
    wait_for_all("the work directory has been looked at")
    return _Plan(held, workdir, settings, records, chosen, frozenset(changed))


def _changed(records: dict[str, Record | None], settings) -> dict[str, dict[str, str]]:
    """Stages that would not come out as they are there -> why: those that differ, and those that take something from them."""
    changed: dict[str, dict[str, str]] = {}
    for stage in stages.STAGES:
        record, own = records[stage.name], settings[stage.name]
        if record is None:
            continue
        lines = differing_settings(record, own)
        lines |= differing_content(record, getattr(getattr(own, "data", None), "data_dir", ""))
        for name, then in record.needs.items():
            needed = records[name]
            if name in changed:
                lines |= changed[name]
            elif needed is not None and needed.fingerprint != then:
                lines[name] = f"{name}: another one there than here"
        if lines:
            changed[stage.name] = lines
    return changed


def _check_finished(workdir: pathlib.Path, records, settings, chosen: list[Stage], mode: str) -> None:
    """Raises UserError unless what the chosen stages need is there, made as the settings say but for those of measuring."""
    missing = dict.fromkeys(name for stage in chosen for name in stage.needs if not (records[name] and records[name].done))
    if missing or not any(record and record.done for record in records.values()):
        what = f" ({', '.join(missing)} not done)" if missing else ""
        raise UserError(f"{workdir} holds no finished run{what}: --mode={mode} needs one, made with --mode=train")
    measuring = {name for stage in stages.STAGES if stage.measures for name in flat(settings[stage.name])}
    lines = {
        name: line
        for stage in stages.STAGES
        if not stage.measures and (record := records[stage.name])
        for name, line in differing_settings(record, settings[stage.name]).items()
        if name not in measuring
    }
    for stage in chosen:
        if record := records[stage.name]:
            trained = stage.trained_with(record.settings)
            differing = differing_settings(record, settings[stage.name])
            lines |= {name: f"{line} (of the {stage.name})" for name, line in differing.items() if name in trained}
    if lines:
        raise UserError(
            f"{workdir} was made with another configuration:\n  " + "\n  ".join(lines.values()) + f"\n--mode={mode} takes "
            "what was trained as it is: give it the settings that it was made with, train again with --rerun, or use another "
            "--workdir"
        )


def _do(stage: Stage, plan: _Plan, context: Context, records: dict[str, Record | None]) -> Record:
    """Runs a stage unless it is done, and keeps its record."""
    folder, before = plan.workdir / stage.name, records[stage.name]
    needs = {name: r.fingerprint for name in (*stage.needs, *stage.uses) if (r := records[name]) is not None and r.done}
    again = stage.name in plan.again or (before is not None and before.done and before.needs != needs)
    plan.held.check()  # and what is there has been read
    if before and before.done and not again:
        print(f"{stage.name}: done before, skipped", flush=True)
        return before
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if full_disk.is_full(error):
            raise
        raise UserError(f"cannot write to {folder} ({error.strerror}): give another --workdir") from None
    settings = plan.settings[stage.name]
    # An attempt that stopped counts towards the stage's time, unless it was killed outright.
    spent, begun = before.seconds if before and not again else 0.0, time.monotonic()
    record = Record(flat(settings), needs=needs)

    def keep(**changes) -> Record:
        kept = dataclasses.replace(record, seconds=spent + time.monotonic() - begun, **changes)
        # What is measured again keeps its old record until the new one is whole.
        if is_main() and (kept.done or not again):
            kept.write(folder)
        return kept

    def outside(what: str, fingerprint: str) -> None:
        check_same(what, fingerprint)
        if record.outside.setdefault(what, fingerprint) != fingerprint:
            raise UserError(f"{what} has changed while it was in use: let it be, and run the same command again")
        keep()

    keep()
    skips = Skips(folder, goes_on=before is not None and not before.done and not again)
    context = dataclasses.replace(context, folder=folder, outside=outside, skipped=skips.add, waits=True, arrays=set())
    try:
        result = stage.run(context, settings)
    except BaseException as error:
        if not plan.held.is_there():
            raise plan.held.lost() from error
        keep()
        if is_main() and isinstance(error, UserError) and holds_nothing_else(folder, "record.json") and not again:
            shutil.rmtree(folder)  # nothing was done: the next attempt may be configured otherwise
        raise
    plan.held.check()
    if is_main():
        record.write(folder)  # not done while old arrays and new ones lie side by side
        context.place_arrays()
    done = keep(done=True, result=to_json(result), skipped=skips.of_all_processes())
    if is_main():
        skips.remove()
    wait_for_all(f"{stage.name}: done")
    print(f"{stage.name}: {clock(done.seconds)}", flush=True)
    return done


def _about(config: ConfigDict, command, records: dict[str, Record | None]) -> dict:
    """The part of results.json that is of no single stage: with which settings, where and how long."""
    done = {name: record for name, record in records.items() if record and record.done}
    device = jax.devices()[0]
    return {
        "skipped_images": {image: why for record in done.values() for image, why in record.skipped.items()},
        "seconds": {name: round(record.seconds, 1) for name, record in done.items()},
        "config": json.loads(config.to_json()),
        "environment": {
            "command": shlex.join(command),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {len(jax.devices())} x {device.device_kind}",
            **{name: _version(name) for name in _PACKAGES},
        },
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"
