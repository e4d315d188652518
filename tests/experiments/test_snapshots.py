"""Snapshots of a teacher's training are what a training stopped there has, and survive a kill."""

import pathlib
import sys

import chex
import jax
import numpy as np
import pytest

from brh_jax.data.pipeline import training_batches
from brh_jax.data.sources import ArraySource
from brh_jax.data.transforms import RandomResizedCrop
from brh_jax.errors import UserError
from brh_jax.models import store
from brh_jax.preprocessing import Preprocessing
from brh_jax.supervised import SupervisedSettings, train_vit
from brh_jax.train.loop import LoopSettings, Run
from brh_jax.train.parallel import make_mesh
from experiments import pipeline
from experiments.stages.accuracy import AccuracyResult

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny

SETTINGS = SupervisedSettings(steps=7, batch_size=8, warmup_steps=2)


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    return ArraySource(rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8), rng.integers(3, size=32))


def train(tiny_config, source, folder, stop_after=None, **options):
    return train_vit(
        tiny_config,
        Preprocessing((8, 8), None, (0.5,) * 3, (0.5,) * 3),
        3,
        training_batches(source, RandomResizedCrop((8, 8)), 8, seed=0, threads=1),
        SETTINGS,
        Run(folder, {}, make_mesh(devices=jax.devices()[:1]), "teacher", LoopSettings(log_every=1, save_every=4), stop_after),
        seed=0,
        name="ViT",
        **options,
    )


def keep_in(found):
    return lambda step, encoder: found.__setitem__(step, jax.tree.map(np.array, (encoder.params, encoder.head)))


def test_a_snapshot_is_what_a_training_stopped_there_has(tiny_config, source, tmp_path):
    found = {}
    whole = train(tiny_config, source, tmp_path / "whole", snapshots=(0, 3, 7), keep=keep_in(found))
    assert set(found) == {0, 3, 7}
    stopped = train(tiny_config, source, tmp_path / "stopped", stop_after=3)
    chex.assert_trees_all_equal(found[3], (stopped.params, stopped.head))
    chex.assert_trees_all_equal(found[7], (whole.params, whole.head))
    assert not np.array_equal(found[0][0]["norm"]["scale"], found[7][0]["norm"]["scale"])


def test_killed_a_training_leaves_the_same_snapshots(tiny_config, source, tmp_path):
    class Killed(BaseException):
        pass

    def dies_at(step, keep):
        def visit(number, encoder):
            keep(number, encoder)
            if number == step:
                raise Killed

        return visit

    whole, found, steps = {}, {}, (0, 3, 4, 5)
    train(tiny_config, source, tmp_path / "whole", snapshots=steps, keep=keep_in(whole))
    for step in (3, 5):  # before the first checkpoint, and after it
        with pytest.raises(Killed):
            train(tiny_config, source, tmp_path / "killed", snapshots=steps, keep=dies_at(step, keep_in(found)))
    train(tiny_config, source, tmp_path / "killed", snapshots=steps, keep=keep_in(found))
    chex.assert_trees_all_equal(found, whole)


def test_the_stage_leaves_snapshots_with_accuracies(tmp_path):
    config = tiny.get_config().unlock()
    config.stages = ("teacher",)
    config.teacher.train.update({"snapshots": (0, 10), "num_images": 48})
    accuracy = pipeline.run(config, tmp_path / "run").get(AccuracyResult)
    assert set(accuracy.snapshots) == {0, 10} and accuracy.snapshots[10] == accuracy.teacher
    folder = tmp_path / "run/teacher/snapshots/step0"
    assert store.read(folder).name == "ViT trained on digits:train, step 0 of 10"
    config.teacher.source = str(folder)  # another run's teacher, with its accuracies
    assert pipeline.run(config, tmp_path / "other").get(AccuracyResult).teacher == accuracy.snapshots[0]
    config.teacher.source = "train"
    config.teacher.train.snapshots = (11,)
    with pytest.raises(UserError, match=r"config.teacher.train.snapshots is \(11,\): expected numbers of steps from 0 to 10"):
        pipeline.run(config, tmp_path / "wrong")
