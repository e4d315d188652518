"""Training a ViT from scratch on labelled images: teachers for small-scale studies."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from brh_jax.errors import expect, expect_one_of, expect_positive
from brh_jax.models.cost import vit_flops
from brh_jax.models.encoder import Encoder, boxed_params, init_params, pooled_features, pooled_width
from brh_jax.models.head import apply_head, zero_head
from brh_jax.models.optimizer import OptimizerSettings, optimized_specs, optimizer
from brh_jax.models.remat import NAMES
from brh_jax.models.vit import ViT, ViTConfig
from brh_jax.preprocessing import Preprocessing
from brh_jax.train.loop import Run, train


@dataclasses.dataclass(frozen=True)
class SupervisedSettings(OptimizerSettings):
    """How the ViT trains, with the config's stochastic depth.

    Attributes:
        steps: number of optimiser steps.
        batch_size: images of a step.
        label_smoothing: share of a label that is spread over all classes.
        remat: what the backward pass keeps, one of `models.remat.NAMES`.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    remat: str = "dots"

    def __post_init__(self):
        super().__post_init__()
        expect_positive(self, "steps", "batch_size")
        expect(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a share, from 0 to below 1")
        expect_one_of(self, "remat", NAMES)


def train_vit(
    config: ViTConfig,
    preprocessing: Preprocessing,
    num_classes: int,
    batches: Any,
    settings: SupervisedSettings,
    run: Run,
    *,
    seed: int,
    name: str,
    snapshots: tuple[int, ...] = (),
    keep: Callable[[int, Encoder], None] = lambda step, encoder: None,
) -> Encoder:
    """Trains a ViT with a linear classifier on [cls, mean patch] of its last state.

    Args:
        batches: TrainingBatches of uint8 images and labels.
        snapshots: numbers of steps after which `keep(step, encoder)` is called, 0 for the untrained ViT. The learning rate does
            not know of them: it falls over the whole training.

    Returns:
        The trained ViT, its classifier as `head`.
    """
    module, layout = ViT(config, remat=settings.remat), config.layout(*preprocessing.crop)
    init_key, drop_key = jax.random.split(jax.random.key(seed))
    image = jnp.zeros((1, *preprocessing.crop, config.channels))
    optimiser = optax.chain(optax.clip_by_global_norm(settings.clip_norm), optimizer(settings, settings.steps)[0])

    def loss_fn(trained, batch, key):
        variables = {"params": trained["vit"]}
        states = module.apply(variables, preprocessing.normalize(batch["image"]), False, rngs={"drop_path": key})
        final: Any = module.apply(variables, states[-1], method="normalize")
        logits = apply_head(trained["head"], pooled_features(final, layout))
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], num_classes), settings.label_smoothing)
        right = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        return jnp.mean(optax.softmax_cross_entropy(logits, targets)), right

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch, index):
        key = jax.random.fold_in(drop_key, index)
        (loss, right), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["trained"], batch, key)
        updates, opt_state = optimiser.update(grads, state["opt_state"], state["trained"])
        trained = optax.apply_updates(state["trained"], updates)
        return {"trained": trained, "opt_state": opt_state}, {"loss": loss, "accuracy": right}

    head = zero_head(pooled_width(config.dim, layout), num_classes)
    trained = {"vit": jax.jit(functools.partial(init_params, module))(init_key, image), "head": head}
    state = {"trained": trained, "opt_state": optimiser.init(trained)}
    boxed = {"vit": boxed_params(module, image), "head": jax.eval_shape(lambda: head)}
    params, kept = optimized_specs(boxed, optimiser)

    def encoder(state, name):
        return Encoder(config, state["trained"]["vit"], preprocessing, name=name, head=state["trained"]["head"])

    def keeper(number):
        return lambda state: keep(number, encoder(state, f"{name}, step {number} of {settings.steps}"))

    state = train(
        step,
        state,
        batches,
        run,
        num_steps=settings.steps,
        batch_size=settings.batch_size,
        specs={"trained": params, "opt_state": kept},
        flops_per_image={"student": 3 * vit_flops(config, layout)},
        visits={number: keeper(number) for number in snapshots},
    )
    return encoder(state, name)
