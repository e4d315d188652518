"""Extending the library takes what docs/extending.md says: a loss is one function and one entry."""

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.data.pipeline import training_batches
from brh_jax.data.sources import ArraySource
from brh_jax.data.transforms import RandomResizedCrop
from brh_jax.distill import Joint, JointSettings, init_blocks, train_blocks
from brh_jax.distill.losses import LOSSES
from brh_jax.models import RaptorConfig
from brh_jax.phases import Partition
from brh_jax.train.loop import LoopSettings, Run
from brh_jax.train.metrics import read_metrics
from brh_jax.train.parallel import make_mesh


def mean_absolute_error(predicted, target, weights, layout):
    errors = jnp.mean(jnp.abs(predicted - target), axis=(1, 3))
    return jnp.sum(errors * jnp.asarray(weights, errors.dtype), axis=-1)


def test_a_loss_is_one_entry(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "mae", mean_absolute_error)
    config = RaptorConfig(tiny_encoder.config, Partition((4, 2)))
    blocks = init_blocks(config, tiny_encoder.layout, jax.random.key(0))
    images = ArraySource(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8))
    rows = {}
    for loss in ("mse", "mae"):
        run = Run(tmp_path / loss, {}, make_mesh(devices=jax.devices()[:1]), loss, LoopSettings(log_every=1))
        batches = training_batches(images, RandomResizedCrop((8, 8)), 8, seed=0, threads=1)
        objective = Joint(JointSettings(steps=2, warmup_steps=0, loss=loss))
        train_blocks(objective, tiny_encoder, config, blocks, batches, run, batch_size=8, seed=0)
        rows[loss] = read_metrics(tmp_path / loss / "metrics.jsonl")
    assert len(rows["mae"]) == 2 and 0 < rows["mae"][0]["loss"] != rows["mse"][0]["loss"]
