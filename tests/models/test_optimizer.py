"""Muon on a ViT, whose layers are stacked: every layer's matrices by themselves, on one device as on a mesh."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from brh_jax.data.pipeline import training_batches
from brh_jax.data.sources import ArraySource
from brh_jax.data.transforms import RandomResizedCrop
from brh_jax.errors import UserError
from brh_jax.models import ViT
from brh_jax.models.encoder import init_params
from brh_jax.models.optimizer import OptimizerSettings, optimizer
from brh_jax.preprocessing import Preprocessing
from brh_jax.supervised import SupervisedSettings, train_vit
from brh_jax.train.loop import LoopSettings, Run
from brh_jax.train.parallel import make_mesh

MUON = {"optimizer": "muon", "learning_rate": 0.03, "vector_learning_rate": 2e-3}


def test_stacked_layers_move_as_each_of_them_by_itself(tiny_config, tiny_images):
    transform, _ = optimizer(OptimizerSettings(warmup_steps=0, **MUON), 10)
    params = init_params(ViT(tiny_config), jax.random.key(0), tiny_images)["blocks"]
    grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)

    def updates(params, grads):
        return transform.update(grads, transform.init(params), params)[0]

    stacked = updates({"blocks": params}, {"blocks": grads})["blocks"]
    for layer in range(tiny_config.depth):
        own = [{"phase_1": jax.tree.map(lambda leaf, at=layer: leaf[at], tree)} for tree in (params, grads)]
        alone = updates(*own)["phase_1"]
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, at=layer: leaf[at], stacked), alone, rtol=1e-4, atol=1e-6)
    # Matrices by orthogonal steps, their columns and rows of about one length; vectors by Adam's, all of one size.
    values = np.linalg.svd(np.asarray(stacked["attn"]["proj"]["kernel"]).reshape(-1, 16, 16), compute_uv=False)
    assert 0.3 * 0.03 < values.min() < values.max() < 1.25 * 0.03
    np.testing.assert_allclose(jnp.abs(stacked["norm1"]["scale"]), np.full((6, 16), (1 + 0.9 / 1.9) * 2e-3), rtol=0.01)


def train(config, folder, mesh, **changes):
    rng = np.random.default_rng(0)
    source = ArraySource(rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8), rng.integers(3, size=32))
    encoder = train_vit(
        config,
        Preprocessing((8, 8), None, (0.5,) * 3, (0.5,) * 3),
        3,
        training_batches(source, RandomResizedCrop((8, 8)), 8, seed=0, threads=1),
        SupervisedSettings(steps=4, batch_size=8, warmup_steps=1, **changes),
        Run(folder, {}, mesh, "teacher", LoopSettings(log_every=1, save_every=4)),
        seed=0,
        name="ViT",
    )
    return jax.tree.map(np.asarray, (encoder.params, encoder.head))


def test_a_vit_trains_by_muon_on_a_mesh_as_on_one_device(tiny_config, tmp_path):
    one = train(tiny_config, tmp_path / "one", make_mesh(devices=jax.devices()[:1]), **MUON)
    split = train(tiny_config, tmp_path / "split", make_mesh(2, 2, 2), **MUON)
    chex.assert_trees_all_close(one, split, atol=2e-4)
    adamw = train(tiny_config, tmp_path / "adamw", make_mesh(devices=jax.devices()[:1]))
    assert optax.tree.norm(optax.tree.sub(one, adamw)) > 0.1


def test_another_optimiser_is_refused():
    with pytest.raises(UserError, match="optimizer is 'sgd': expected one of adamw, muon"):
        OptimizerSettings(optimizer="sgd")
