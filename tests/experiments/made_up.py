"""Finished runs that no one ran: results and records as the stages leave them."""

import json

from experiments import stages
from experiments.interval import Interval
from experiments.records import Record
from experiments.results import Results, to_json, write_json
from experiments.settings import flat
from experiments.stages.agreement.run import AgreementResult, Fit
from experiments.stages.distill.run import DistillResult, RaptorResult
from experiments.stages.phases.run import CutResult, PhasesResult
from experiments.stages.probes.choice import Choice
from experiments.stages.probes.linear import LinearProbe, LinearResult
from experiments.stages.probes.run import ProbesResult
from experiments.stages.teacher.run import CostResult, LayoutResult, TeacherResult

COST = CostResult(10, 5, 7, 320, 160, 1.0, 3.0, 163.0)


def fit(label, r2, relative_e, *, kind="raptor", raptor=""):
    """A fit of layers: `r2` by token type, the cosine of cls 0.1 and 0.9."""
    error = {"all": relative_e}
    last = r2["cls"][-1]
    return Fit(
        label,
        raptor or label,
        kind,
        r2,
        [0.0, last - 0.1],
        last + 0.1,
        {"cls": [0.1, 0.9]},
        error,
        error,
        0.9,
        None,
        None,
        40,
        40,
        {},
        {},
    )


def phases(k, **structure):
    """A partition of k single layers."""
    ks = list(range(k))
    cut = CutResult(" | ".join(str(i + 1) for i in ks), [1] * k, ks, 0.5, structure)
    return PhasesResult("max_cut", 40, 40, [[0.0] * k] * k, {k: cut}, [], [])


def teacher(name="a ViT"):
    """Of two layers."""
    return TeacherResult(name, [], 2, 8, LayoutResult(1, 0, (2, 2)), COST, [])


def distilled(name, k):
    return DistillResult({name: RaptorResult(k, " | ".join(str(i + 1) for i in range(k)), COST, {})})


def agreement(*fits):
    return AgreementResult({"digits:test": {one.label: one for one in fits}})


def probed(accuracies):
    """Linear probes of models, by name, that started from a classifier that was 10 points worse."""
    probes = {
        name: LinearProbe(Interval(value, value, value), value - 0.1, Choice(1e-3, {})) for name, value in accuracies.items()
    }
    return ProbesResult(linear=LinearResult("digits", "digits", 64, 40, "teacher", probes))


def write_run(folder, results: dict, config: dict | None = None, **settings):
    """Leaves results.json, and a record for each stage with the default settings but for these, `section.name` -> value."""
    about = {"seconds": {}, "config": config or {}, "environment": {}, "skipped_images": {}}
    left = set(settings)
    for stage in stages.STAGES:
        if stage.name in results:
            known = flat(stage.Settings())
            left -= set(known)
            (folder / stage.name).mkdir(parents=True)
            given = {name: json.loads(json.dumps(value)) for name, value in settings.items() if name in known}
            Record(known | given, done=True, result=to_json(results[stage.name])).write(folder / stage.name)
    assert not left, f"no stage of {', '.join(results)} has the settings {left}"
    write_json(folder / "results.json", Results(results, about).as_json())
