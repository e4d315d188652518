import dataclasses
import json
import os

import chex
import jax
import numpy as np
import pytest

from brh_jax.data.pipeline import measuring_batches, training_batches
from brh_jax.data.sources import ArraySource
from brh_jax.data.transforms import CenterCrop, RandomResizedCrop
from brh_jax.distill import (
    Blockwise,
    BlockwiseSettings,
    Joint,
    JointSettings,
    Validation,
    init_blocks,
    raptor_encoder,
    train_blocks,
)
from brh_jax.distill.validation import figures
from brh_jax.errors import UserError
from brh_jax.models import RaptorConfig
from brh_jax.phases import Partition
from brh_jax.train.loop import LoopSettings, Run
from brh_jax.train.metrics import read_metrics
from brh_jax.train.parallel import make_mesh, shard_batch

THREE = Partition((3, 2, 1))
SHORT = {"steps": 12, "warmup_steps": 2, "learning_rate": 3e-3}
BLOCKWISE, JOINT = Blockwise(BlockwiseSettings(**SHORT)), Joint(JointSettings(**SHORT))
# All that the joint recipe of configs/pretrained.py adds.
MUON = Joint(JointSettings(**SHORT | {"learning_rate": 0.02}, optimizer="muon", loss="log", restarts=0.5))
BOTH = pytest.mark.parametrize("objective", [BLOCKWISE, JOINT], ids=["blockwise", "joint"])


def changed(objective, **settings):
    return dataclasses.replace(objective, settings=dataclasses.replace(objective.settings, **settings))


@pytest.fixture(scope="module")
def source():
    return ArraySource(np.random.default_rng(0).integers(0, 256, (32, 12, 12, 3), dtype=np.uint8))


def run(teacher, source, folder, objective, *, blocks=None, partition=THREE, save_every=5, mesh=None, stop_after=None, **options):
    config = RaptorConfig(teacher.config, partition)
    blocks = init_blocks(config, teacher.layout, jax.random.key(0)) if blocks is None else blocks
    batches = training_batches(source, RandomResizedCrop((8, 8)), 8, seed=1)
    mesh, loop = mesh or make_mesh(devices=jax.devices()[:1]), LoopSettings(log_every=1, save_every=save_every)
    where = Run(folder, {"partition": str(partition)}, mesh, type(objective).__name__, loop, stop_after)
    return train_blocks(objective, teacher, config, blocks, batches, where, batch_size=8, seed=0, **options)


def validation_of(teacher, mesh=None, **options):
    """On twelve labelled images, in batches of eight; the classifier's four classes are theirs. Its `asked` counts."""
    pixels = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    mesh, asked = mesh or make_mesh(devices=jax.devices()[:1]), []

    def batches():
        asked.append(1)
        for batch in measuring_batches(ArraySource(pixels, np.arange(12) % 4), CenterCrop(teacher.preprocessing), 8):
            yield batch | {"image": shard_batch(batch["image"], mesh)}

    kernel = np.random.default_rng(2).normal(size=(32, 4)).astype(np.float32)
    found = Validation(teacher, batches, head={"kernel": kernel, "bias": np.zeros(4, np.float32)}, **{"times": 3, **options})
    found.asked = asked
    return found


def validated(folder):
    return read_metrics(folder / "validation" / "metrics.jsonl")


def test_validation_leaves_the_training_alone_and_says_what_a_finished_one_would(tiny_encoder, source, tmp_path, capsys):
    without = run(tiny_encoder, source, tmp_path / "without", JOINT)
    validation = validation_of(tiny_encoder)
    blocks = run(tiny_encoder, source, tmp_path / "with", JOINT, validation=validation)
    chex.assert_trees_all_equal(blocks, without)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    rows = validated(tmp_path / "with")
    assert [(row["step"], row["images"]) for row in rows] == [(4, 32), (8, 64), (12, 96)]
    fit = validation.measure(RaptorConfig(tiny_encoder.config, THREE), blocks)
    assert len(validation.asked) == 1 and fit.num_images == 12
    assert rows[-1] == pytest.approx({"step": 12, "images": 96} | figures(fit))
    assert {"r2_registers", "r2_cls_last", "relative_error", "same_class", "accuracy"} < set(rows[-1])
    said = [line for line in capsys.readouterr().out.splitlines() if "on 12 images: R² cls" in line]
    assert [line.split()[1] for line in said] == ["4/12", "8/12", "12/12"]
    assert not validated(tmp_path / "without") and not validation_of(tiny_encoder, times=0).asked


def test_killed_within_a_training_its_validation_ends_as_if_it_had_not_been(tiny_encoder, source, tmp_path):
    whole = run(tiny_encoder, source, tmp_path / "whole", JOINT, validation=validation_of(tiny_encoder, times=6))
    # Killed at the sixth step with the checkpoint of the fifth: what was measured at the sixth is measured again.
    run(tiny_encoder, source, tmp_path / "cut", JOINT, stop_after=5, validation=validation_of(tiny_encoder, times=6))
    later = tmp_path / "cut" / "validation" / "metrics.jsonl"
    later.write_text(later.read_text() + json.dumps({"step": 6, "images": 48, "r2_cls": 7.0}) + "\n")
    again = run(tiny_encoder, source, tmp_path / "cut", JOINT, validation=validation_of(tiny_encoder, times=6))
    chex.assert_trees_all_equal(again, whole)
    assert validated(tmp_path / "cut") == validated(tmp_path / "whole") and len(validated(tmp_path / "cut")) == 6


def test_decisions_are_the_classes_of_the_teachers_own_classifier(tiny_encoder, source, tmp_path):
    objective = changed(JOINT, decisions=0.5, steps=3)
    with pytest.raises(UserError, match="decisions is 0.5, but .* has no classifier"):
        run(tiny_encoder, source, tmp_path / "none", objective)
    kernel = np.random.default_rng(2).normal(size=(16, 4)).astype(np.float32)
    teacher = tiny_encoder.replace(head={"kernel": kernel, "bias": np.arange(4.0, dtype=np.float32)}, head_reads="cls")
    run(teacher, source, tmp_path / "some", objective)
    first = read_metrics(tmp_path / "some" / "metrics.jsonl")[0]
    config = RaptorConfig(teacher.config, THREE)
    raptor = raptor_encoder(config, init_blocks(config, teacher.layout, jax.random.key(0)), teacher, "untrained")
    images = teacher.normalize_pixels(next(training_batches(source, RandomResizedCrop((8, 8)), 8, seed=1))["image"])
    wanted, found = (np.asarray(jax.nn.log_softmax(one.logits(images)), np.float64) for one in (teacher, raptor))
    assert first["decisions"] == pytest.approx((np.exp(wanted) * (wanted - found)).sum(-1).mean(), rel=1e-3)


@pytest.mark.slow
def test_validation_does_not_depend_on_the_mesh(tiny_encoder, source, tmp_path):
    run(tiny_encoder, source, tmp_path / "one", JOINT, validation=validation_of(tiny_encoder))
    mesh = make_mesh(2, 2, 2)
    run(tiny_encoder, source, tmp_path / "eight", JOINT, mesh=mesh, validation=validation_of(tiny_encoder.on(mesh), mesh))
    one, eight = validated(tmp_path / "one"), validated(tmp_path / "eight")
    assert len(one) == 3
    for a, b in zip(one, eight, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def losses(folder):
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


@BOTH
def test_blocks_learn_and_the_teacher_is_left_alone(tiny_encoder, source, tmp_path, objective):
    before = jax.tree.map(np.array, tiny_encoder.params)
    without = {"annealed": 0.0} if objective is BLOCKWISE else {}
    run(tiny_encoder, source, tmp_path, changed(objective, steps=60, **without))
    found = losses(tmp_path)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    chex.assert_trees_all_equal(jax.tree.map(np.array, tiny_encoder.params), before)


def test_killed_after_stage_one_ends_as_if_it_had_not_been(tiny_encoder, source, tmp_path):
    whole = run(tiny_encoder, source, tmp_path / "a1", BLOCKWISE)
    whole = run(tiny_encoder, source, tmp_path / "a2", JOINT, blocks=whole)
    run(tiny_encoder, source, tmp_path / "b1", BLOCKWISE)  # and dies; started again, stage 1 is read from its checkpoint
    again = run(tiny_encoder, source, tmp_path / "b1", BLOCKWISE)
    again = run(tiny_encoder, source, tmp_path / "b2", JOINT, blocks=again)
    chex.assert_trees_all_equal(again, whole)


@pytest.mark.parametrize("objective", [BLOCKWISE, MUON], ids=["blockwise", "muon"])  # joint is killed above
def test_killed_within_a_training_ends_as_if_it_had_not_been(tiny_encoder, source, tmp_path, objective):
    whole = run(tiny_encoder, source, tmp_path / "whole", objective)
    run(tiny_encoder, source, tmp_path / "cut", objective, stop_after=7)
    again = run(tiny_encoder, source, tmp_path / "cut", objective)
    chex.assert_trees_all_equal(again, whole)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert [r["step"] for r in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", [pytest.param(BLOCKWISE, marks=pytest.mark.long), JOINT, MUON], ids=["blockwise", "joint", "muon"]
)
def test_losses_do_not_depend_on_the_mesh(tiny_encoder, source, tmp_path, objective):
    """12 steps on one device, and on meshes of eight: 4 x 2 fsdp and all three axes; more with BRH_JAX_TEST_MESHES=all."""
    shapes = [(4, 2, 1)] if objective is JOINT else [(2, 2, 2)]
    if os.environ.get("BRH_JAX_TEST_MESHES") == "all":
        shapes = [(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2)]
    run(tiny_encoder, source, tmp_path / "one", objective)
    for shape in shapes:
        mesh, folder = make_mesh(*shape), tmp_path / "x".join(map(str, shape))
        trained = run(tiny_encoder, source, folder, objective, mesh=mesh)
        np.testing.assert_allclose(losses(folder), losses(tmp_path / "one"), rtol=1e-5, err_msg=str(shape))
        kernel = trained["phase_1"]["attn"]["qkv"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (16 // shape[1], 3, 2 // shape[2], 8)


def test_gradients_are_accumulated_over_parts_of_a_batch(tiny_encoder, source, tmp_path):
    for pieces in (1, 4):
        run(tiny_encoder, source, tmp_path / str(pieces), JOINT, pieces=pieces)
        np.testing.assert_allclose(losses(tmp_path / str(pieces)), losses(tmp_path / "1"), rtol=1e-5)


def test_a_fragmented_partition_trains(tiny_encoder, source, tmp_path):
    partition = Partition((2, 1, 3), (0, 1, 0))
    blocks = run(tiny_encoder, source, tmp_path, BLOCKWISE, partition=partition)
    raptor = raptor_encoder(RaptorConfig(tiny_encoder.config, partition), blocks, tiny_encoder, "raptor")
    states = raptor.trajectory(np.zeros((2, 8, 8, 3), np.float32))
    assert states.shape == (7, 2, 19, 16)
    np.testing.assert_array_equal(states[0], tiny_encoder.embed(np.zeros((2, 8, 8, 3), np.float32)))


def test_noise_on_the_inputs_changes_the_loss(tiny_encoder, source, tmp_path):
    run(tiny_encoder, source, tmp_path / "plain", BLOCKWISE, stop_after=2)
    run(tiny_encoder, source, tmp_path / "noisy", changed(BLOCKWISE, noise=0.5), stop_after=2)
    assert losses(tmp_path / "noisy")[0] > losses(tmp_path / "plain")[0] * 1.05


def test_a_checkpoint_of_another_partition_is_refused(tiny_encoder, source, tmp_path):
    run(tiny_encoder, source, tmp_path, BLOCKWISE, stop_after=5)
    with pytest.raises(UserError, match=r"was made with .*1-3 \| 4-5 \| 6.*use another folder"):
        run(tiny_encoder, source, tmp_path, BLOCKWISE, partition=Partition((2, 2, 2)))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tiny_encoder, source, tmp_path):
    run(tiny_encoder, source, tmp_path, JOINT, stop_after=5)
    wild = changed(JOINT, noise=1e30)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) between steps .* the last good checkpoint is kept"):
        run(tiny_encoder, source, tmp_path, wild)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [5]


def test_parameters_that_are_not_finite_are_not_saved(tiny_encoder, source, tmp_path):
    """A gradient can be NaN while the loss, of the step before, is not."""
    run(tiny_encoder, source, tmp_path, JOINT, stop_after=5)
    wild = changed(JOINT)
    object.__setattr__(wild.settings, "learning_rate", float("nan"))  # settings refuse it
    with pytest.raises(UserError, match="parameters are not finite after step|the loss is nan"):
        run(tiny_encoder, source, tmp_path, wild, save_every=1)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [5]
