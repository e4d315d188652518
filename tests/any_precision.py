"""Models, a step of distillation and every measure, in the type that they say: see test_any_precision.py."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

from brh_jax import dynamics, phases
from brh_jax.distill import Blockwise, BlockwiseSettings, Joint, JointSettings, init_blocks
from brh_jax.distill.baselines import fit_baselines
from brh_jax.distill.evaluation import evaluate
from brh_jax.distill.objectives import Target
from brh_jax.distill.trainer import clipped_optimizer
from brh_jax.models import Encoder, Raptor, RaptorConfig, ViT, ViTConfig
from brh_jax.models.encoder import init_params
from brh_jax.models.raptor import Blocks
from brh_jax.partition import Partition
from brh_jax.preprocessing import Preprocessing

VIT = ViTConfig(dim=16, depth=4, num_heads=2, mlp_dim=32, patch_size=2, position_grid=(3, 3), num_registers=2)
LAYOUT = VIT.layout(6, 6)


def single(tree):
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}, jax.tree.map(lambda leaf: leaf.dtype, tree)
    return tree


def models():
    images = np.random.default_rng(0).normal(size=(6, 6, 6, 3)).astype(np.float32)
    preprocessing = Preprocessing((6, 6), None, (0.5,) * 3, (0.5,) * 3)
    raptor = RaptorConfig(VIT, Partition((1, 3)))
    for config, kind in ((VIT, ViT), (raptor, Raptor)):
        params = single(init_params(kind(config), jax.random.key(0), images))
        yield Encoder(config, params, preprocessing), single(Encoder(config, params, preprocessing).trajectory(images))


def training(states):
    config = RaptorConfig(VIT, Partition((1, 3)))
    params = single(init_blocks(config, LAYOUT, jax.random.key(0)))
    for objective in (Blockwise(BlockwiseSettings(noise=0.1)), Joint(JointSettings(noise=0.1))):

        def loss(params, step, objective=objective):
            return objective.loss(Blocks(config), params, Target(states, LAYOUT), step, jax.random.key(1), objective.variant(0))

        transform, _ = clipped_optimizer(objective, list(params))
        (value, metrics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, jnp.asarray(3, jnp.int32))
        single((value, metrics, gradients))
        with jax.numpy_dtype_promotion("standard"):  # optax knows no other; the training loop does the same
            updates, _ = transform.update(gradients, transform.init(params), params)
        single(optax.apply_updates(params, updates))


def measures(encoder, states):
    single(phases.layer_dissimilarity(states, encoder.layout))
    few = dict.fromkeys(("tangent_images", "num_directions", "num_exponents", "num_values", "rank", "num_angles"), 2)
    settings = dynamics.PortraitSettings(**few, linear_images=4, influence_probes=2, extrapolated_steps=16)
    found = dynamics.portrait(
        encoder.system(),
        [(states[0], np.arange(6) % 2)],
        key=jax.random.key(1),
        settings=settings,
        partition=Partition((1, 3)),
        sublayers={"system": encoder.system(sublayers=True)},
    )
    for name, curve in dynamics.curves(found).items():
        assert np.isfinite(curve.mean).all(), name
    single(dynamics.angular_speed(states, encoder.layout))
    single(dynamics.lyapunov_exponents(encoder.system(), states[0], 2).exponents)


if __name__ == "__main__":
    warnings.simplefilter("error", DeprecationWarning)
    (vit, states), (raptor, of_raptor) = models()
    training(states)
    measures(vit, states)
    measures(raptor, of_raptor)
    baselines = fit_baselines([(states, np.ones(6, bool))], LAYOUT)
    batches = [{"image": np.zeros(6), "valid": np.ones(6, bool)}]
    fits = evaluate(lambda image: states, baselines, vit.features, batches, LAYOUT)
    assert all(np.isfinite(fit.cosine.cls).all() for fit in fits.values())
