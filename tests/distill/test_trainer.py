import dataclasses
import os

import chex
import jax
import numpy as np
import pytest

from brh_jax.data.pipeline import training_batches
from brh_jax.data.sources import ArraySource
from brh_jax.data.transforms import RandomResizedCrop
from brh_jax.distill import STAGE1, STAGE2, init_blocks, raptor_encoder, train_stage
from brh_jax.errors import UserError
from brh_jax.models import RaptorConfig
from brh_jax.phases import Partition
from brh_jax.train.loop import LoopSettings
from brh_jax.train.metrics import read_metrics
from brh_jax.train.parallel import make_mesh

THREE = Partition((3, 2, 1))
SETTINGS = {
    stage: dataclasses.replace(settings, steps=12, warmup_steps=2, learning_rate=3e-3)
    for stage, settings in ((1, STAGE1), (2, STAGE2))
}


@pytest.fixture(scope="module")
def source():
    return ArraySource(np.random.default_rng(0).integers(0, 256, (32, 12, 12, 3), dtype=np.uint8))


def run(
    teacher, source, folder, stage, *, blocks=None, devices=1, partition=THREE, settings=None, save_every=5, mesh=None, **options
):
    config = RaptorConfig(teacher.config, partition)
    blocks = init_blocks(config, teacher.layout, jax.random.key(0)) if blocks is None else blocks
    batches = training_batches(source, RandomResizedCrop((8, 8)), 8, seed=stage)
    return train_stage(
        stage,
        teacher,
        config,
        blocks,
        batches,
        settings or SETTINGS[stage],
        batch_size=8,
        seed=0,
        mesh=mesh or make_mesh(devices=jax.devices()[:1]),
        folder=folder,
        identity={"partition": str(partition)},
        label=f"stage {stage}",
        loop=LoopSettings(log_every=1, save_every=save_every),
        **options,
    )


def losses(folder):
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_learns_and_leaves_the_teacher_alone(tiny_encoder, source, tmp_path, stage):
    before = jax.tree.map(np.array, tiny_encoder.params)
    settings = dataclasses.replace(SETTINGS[stage], steps=60, annealed=0.0)
    run(tiny_encoder, source, tmp_path, stage, settings=settings)
    found = losses(tmp_path)
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    chex.assert_trees_all_equal(jax.tree.map(np.array, tiny_encoder.params), before)


def test_killed_after_stage_one_ends_as_if_it_had_not_been(tiny_encoder, source, tmp_path):
    whole = run(tiny_encoder, source, tmp_path / "a1", 1)
    whole = run(tiny_encoder, source, tmp_path / "a2", 2, blocks=whole)
    run(tiny_encoder, source, tmp_path / "b1", 1)  # and dies; started again, stage 1 is read from its checkpoint
    again = run(tiny_encoder, source, tmp_path / "b1", 1)
    again = run(tiny_encoder, source, tmp_path / "b2", 2, blocks=again)
    chex.assert_trees_all_equal(again, whole)


@pytest.mark.parametrize("stage", [1, 2])
def test_killed_within_a_stage_ends_as_if_it_had_not_been(tiny_encoder, source, tmp_path, stage):
    whole = run(tiny_encoder, source, tmp_path / "whole", stage)
    run(tiny_encoder, source, tmp_path / "cut", stage, stop_after=7)
    again = run(tiny_encoder, source, tmp_path / "cut", stage)
    chex.assert_trees_all_equal(again, whole)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert [r["step"] for r in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_losses_do_not_depend_on_the_mesh(tiny_encoder, source, tmp_path, stage):
    """20 steps on one device, and on meshes of eight: 4 x 2 fsdp and all three axes; more with BRH_JAX_TEST_MESHES=all."""
    shapes = [(4, 2, 1), (2, 2, 2)] if stage == 2 else [(2, 2, 2)]
    if os.environ.get("BRH_JAX_TEST_MESHES") == "all":
        shapes = [(8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2)]
    settings = dataclasses.replace(SETTINGS[stage], steps=20)
    run(tiny_encoder, source, tmp_path / "one", stage, settings=settings)
    for shape in shapes:
        mesh, folder = make_mesh(*shape), tmp_path / "x".join(map(str, shape))
        trained = run(tiny_encoder, source, folder, stage, settings=settings, mesh=mesh)
        np.testing.assert_allclose(losses(folder), losses(tmp_path / "one"), rtol=1e-5, err_msg=str(shape))
        kernel = trained["phase_1"]["attn"]["qkv"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (16 // shape[1], 3, 2 // shape[2], 8)


def test_gradients_are_accumulated_over_parts_of_a_batch(tiny_encoder, source, tmp_path):
    for pieces in (1, 4):
        run(tiny_encoder, source, tmp_path / str(pieces), 2, pieces=pieces)
        np.testing.assert_allclose(losses(tmp_path / str(pieces)), losses(tmp_path / "1"), rtol=1e-5)


def test_a_fragmented_partition_trains(tiny_encoder, source, tmp_path):
    partition = Partition((2, 1, 3), (0, 1, 0))
    blocks = run(tiny_encoder, source, tmp_path, 1, partition=partition)
    raptor = raptor_encoder(RaptorConfig(tiny_encoder.config, partition), blocks, tiny_encoder, "raptor")
    states = raptor.trajectory(np.zeros((2, 8, 8, 3), np.float32))
    assert states.shape == (7, 2, 19, 16)
    np.testing.assert_array_equal(states[0], tiny_encoder.embed(np.zeros((2, 8, 8, 3), np.float32)))


def test_noise_on_the_inputs_changes_the_loss(tiny_encoder, source, tmp_path):
    noisy = dataclasses.replace(SETTINGS[1], noise=0.5)
    run(tiny_encoder, source, tmp_path / "plain", 1, stop_after=2)
    run(tiny_encoder, source, tmp_path / "noisy", 1, settings=noisy, stop_after=2)
    assert losses(tmp_path / "noisy")[0] > losses(tmp_path / "plain")[0] * 1.05


def test_a_checkpoint_of_another_partition_is_refused(tiny_encoder, source, tmp_path):
    run(tiny_encoder, source, tmp_path, 1, stop_after=5)
    with pytest.raises(UserError, match=r"was made with .*1-3 \| 4-5 \| 6.*use another --workdir"):
        run(tiny_encoder, source, tmp_path, 1, partition=Partition((2, 2, 2)))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tiny_encoder, source, tmp_path):
    run(tiny_encoder, source, tmp_path, 2, stop_after=5)
    wild = dataclasses.replace(SETTINGS[2], noise=float("inf"))
    with pytest.raises(UserError, match=r"the loss is nan between steps .* the last good checkpoint is kept"):
        run(tiny_encoder, source, tmp_path, 2, settings=wild)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [5]


def test_parameters_that_are_not_finite_are_not_saved(tiny_encoder, source, tmp_path):
    """A gradient can be NaN while the loss, of the step before, is not."""
    run(tiny_encoder, source, tmp_path, 2, stop_after=5)
    wild = dataclasses.replace(SETTINGS[2], learning_rate=float("nan"))
    with pytest.raises(UserError, match="parameters are not finite after step|the loss is nan"):
        run(tiny_encoder, source, tmp_path, 2, settings=wild, save_every=1)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [5]
