"""What is measured again and does not come to its end leaves what belongs together; what was trained stays as it is."""

import dataclasses
import os

import numpy as np
import pytest
from ml_collections import ConfigDict

from brh_jax.errors import UserError
from experiments import pipeline, stages
from experiments.records import read_record
from experiments.settings import Seeded
from experiments.stage import Stage
from experiments.stages.probes.run import trained_with


class Killed(BaseException):
    pass


@dataclasses.dataclass(frozen=True)
class Section:
    """Attributes: rate, of a training; eval, what is measured."""

    rate: float = 1.0
    eval: str = ""


@dataclasses.dataclass(frozen=True)
class Settings(Seeded):
    """Attributes: made: a section."""

    made: Section = Section()


@dataclasses.dataclass(frozen=True)
class Found:
    """Attributes: seed: that it was measured with."""

    seed: int


def run(context, settings):
    for name in ("a", "b"):
        context.save_arrays(context.folder / f"{name}.npz", seed=settings.seed)
        if settings.made.eval == f"killed after {name}":
            raise Killed
    return Found(settings.seed)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A run of one stage that measures; called with settings, gives the results."""
    stage = Stage("made", Settings, Found, run, measures=True, trained_with=lambda settings: {"made.rate"})
    monkeypatch.setattr(stages, "STAGES", (*stages.STAGES, stage))

    def measure(mode="eval", seed=0, **section):
        config = ConfigDict({"stages": ("made",), "seed": seed, "made": section})
        return pipeline.run(config, tmp_path, mode=mode).get(Found)

    assert measure("train") == Found(0)
    return measure


def seeds(folder):
    return [int(np.load(folder / f"{name}.npz")["seed"]) for name in ("a", "b")]


@pytest.mark.parametrize("after", ["a", "b"])
def test_killed_as_it_measures(measured, tmp_path, after):
    """Everything stays as it was."""
    with pytest.raises(Killed):
        measured(seed=1, eval=f"killed after {after}")
    record = read_record(tmp_path / "made")
    assert record.done and record.result == {"seed": 0} and seeds(tmp_path / "made") == [0, 0]
    assert measured("report") == Found(0)
    assert measured(seed=2) == Found(2) and seeds(tmp_path / "made") == [2, 2]
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"a.npz", "b.npz", "record.json"}


def test_killed_as_arrays_take_their_places(measured, tmp_path, monkeypatch):
    """Then the stage is not done: nothing is shown of it, and it is measured again."""
    real, placed = os.replace, []

    def replace(source, target):
        if str(target).endswith(".npz"):
            placed.append(target)
            if len(placed) == 2:
                raise Killed
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", replace)
        measured(seed=1)
    assert sorted(seeds(tmp_path / "made")) == [0, 1] and not read_record(tmp_path / "made").done
    assert measured("train", seed=1) == Found(1) and seeds(tmp_path / "made") == [1, 1]


def test_what_was_trained_is_taken_as_it_is(measured, tmp_path):
    """One message before anything is done, where a checkpoint would refuse in the middle."""
    with pytest.raises(UserError, match=r"made.rate: 1.0 there, 2.0 here \(of the made\)\n--mode=eval takes what was trained as"):
        measured(rate=2.0, seed=3)
    assert seeds(tmp_path / "made") == [0, 0]
    assert measured(seed=3, eval="other") == Found(3)


def test_what_heads_were_trained_with():
    settings = {"probe.train": "digits:train", "probe.eval": "digits:test", "probe.num_eval": 3, "probe.epochs": 2, "seed": 0}
    assert trained_with(settings | {"depth.train": "", "depth.epochs": 3}) == {"probe.train", "probe.epochs"}
    assert not trained_with({"feature_probe.train": "digits:train"})  # is fitted each time
