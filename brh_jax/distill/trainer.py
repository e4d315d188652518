"""The two stages of distillation. The frozen teacher runs inside the jitted step: no state ever touches the disk."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import optax

from brh_jax.distill import objectives
from brh_jax.distill.optim import optimizer
from brh_jax.distill.states import StatesBatches
from brh_jax.errors import UserError
from brh_jax.models.cost import vit_flops
from brh_jax.models.encoder import Encoder
from brh_jax.models.raptor import Blocks, RaptorConfig
from brh_jax.train.loop import accumulate, train
from brh_jax.train.parallel import shard

TEACHER_FORCING = ("annealed", "throughout")


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """How a stage trains; the defaults are the paper's.

    Attributes:
        steps: number of optimiser steps.
        token_weights: of (cls, registers, patches): in stage 1 for the last block, in stage 2 for all; () for the plain mean.
        teacher_forcing: of stage 1, "annealed", or "throughout" for teacher forcing alone.
        annealed: share of the steps over which teacher forcing gives way to autoregression (stage 1).
        noise: standard deviation of Gaussian noise on the states that blocks start from.
    """

    steps: int = 312_500
    learning_rate: float = 3e-4
    final_learning_rate: float = 1e-6
    warmup_steps: int = 10_000
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    token_weights: tuple[float, ...] = (0.45, 0.10, 0.45)
    teacher_forcing: str = "annealed"
    annealed: float = 0.25
    noise: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "token_weights", tuple(self.token_weights))
        if self.teacher_forcing not in TEACHER_FORCING:
            raise UserError(f"unknown teacher_forcing {self.teacher_forcing!r}: expected one of {', '.join(TEACHER_FORCING)}")


STAGE1 = StageSettings(token_weights=(0.34, 0.33, 0.33))
STAGE2 = StageSettings()


def raptor_encoder(config: RaptorConfig, blocks, teacher: Encoder, name: str) -> Encoder:
    """A Raptor of trained blocks between its teacher's embedding and norm, with the teacher's classifier."""
    params = {"embedding": teacher.params["embedding"], "blocks": blocks, "norm": teacher.params["norm"]}
    return Encoder(config, params, teacher.preprocessing, name=name, head=teacher.head, dtype=teacher.dtype)


def train_stage(
    stage: int,
    teacher: Encoder,
    config: RaptorConfig,
    blocks,
    batches,
    settings: StageSettings,
    *,
    batch_size: int,
    seed: int,
    mesh,
    folder,
    identity: dict,
    label: str,
    remat: str = "dots",
    pieces: int = 1,
    **options,
):
    """Trains the blocks of a Raptor.

    Args:
        stage: 1, each block on its own phase from the teacher's states; 2, the blocks joined, autoregressive from a_0.
        blocks: parameters to start from.
        batches: TrainingBatches of uint8 images.
        remat: what the backward pass keeps, a key of `models.remat.POLICIES`.
        pieces: parts that a batch goes through in, gradients accumulated.
        folder, identity, label, options: see `training.train`.

    Returns:
        The trained parameters.
    """
    update, optimiser = make_update(stage, teacher, config, settings, seed=seed, remat=remat, pieces=pieces)
    layout, always = teacher.layout, settings.teacher_forcing == "throughout"
    teacher_params = shard(teacher.params, mesh)

    def step(state, batch, index):
        forced = stage == 1 and (always or index < settings.annealed * settings.steps)
        return update(state, teacher_params, batch, index, forced=forced)

    # Copied: the loop donates its state, and the caller may still want the blocks it gave.
    state = jax.tree.map(jnp.copy, {"params": blocks, "opt_state": optimiser.init(blocks)})
    state = train(
        step,
        state,
        batches,
        num_steps=settings.steps,
        folder=pathlib.Path(folder),
        identity=identity,
        mesh=mesh,
        label=label,
        batch_size=batch_size,
        # The teacher once; the blocks forwards and twice as much backwards. The teacher-forced pass of stage 1 is not counted.
        flops_per_image={"student": 3 * vit_flops(config, layout)}
        | ({} if isinstance(batches, StatesBatches) else {"teacher": vit_flops(teacher.config, layout)}),
        **options,
    )
    return state["params"]


def make_update(
    stage: int,
    teacher: Encoder,
    config: RaptorConfig,
    settings: StageSettings,
    *,
    seed: int,
    remat: str = "dots",
    pieces: int = 1,
):
    """The jitted step of a stage, and its optimiser.

    `update(state, teacher_params, batch, index, forced)` takes and gives `{"params", "opt_state"}` (donated), and gives metrics.
    The batch holds uint8 images as `image`, or the teacher's `states`, `[batch, depth + 1, tokens, dim]`. Of the teacher only its
    architecture and preprocessing matter here: it can be compiled without any weights.
    """
    layout, module = teacher.layout, Blocks(config, teacher.dtype, remat, fused=True)
    watched = teacher.module.clone(fused=True)
    blocks = [f"phase_{phase + 1}" for phase in range(config.partition.k)]
    optimiser, schedule = optimizer(settings, per_block=stage == 1, blocks=blocks)
    key = jax.random.key(seed)
    weights, rolled = settings.token_weights or None, settings.teacher_forcing != "throughout"

    def losses(params, states, index, row, forced):
        noise_key = jax.random.fold_in(jax.random.fold_in(key, index), row)
        inputs = states
        if settings.noise:
            inputs = states + settings.noise * jax.random.normal(noise_key, states.shape, states.dtype)
        if stage == 2:
            loss = objectives.stage2_loss(module, params, states, layout, weights, start=inputs[0])
            return loss, {"loss": loss}
        share = objectives.teacher_forcing_share(index, settings.steps, settings.annealed) if rolled else jnp.ones(())
        each = objectives.stage1_losses(
            module, params, states, layout, weights, share, forced=forced, rolled=rolled, inputs=inputs
        )
        named = {f"loss_{name}": each[i] for i, name in enumerate(sorted(params, key=_phase_number))}
        return each.sum(), {"loss": each.mean(), "teacher_forcing": share, **named}

    @functools.partial(jax.jit, static_argnames="forced", donate_argnums=0)
    def update(state, teacher_params, batch, index, forced):
        def gradients(batch):
            if "states" in batch:
                states = jnp.moveaxis(batch["states"], 1, 0)
            else:
                pixels = teacher.normalize_pixels(batch["image"])
                states = jax.lax.stop_gradient(watched.apply({"params": teacher_params}, pixels))
            return jax.grad(losses, has_aux=True)(state["params"], states, index, batch["row"][0], forced)

        used = {key: value for key, value in batch.items() if key in ("image", "states")}
        rows = jnp.arange(len(next(iter(used.values()))))
        grads, metrics = accumulate(gradients, used | {"row": rows}, pieces)
        updates, opt_state = optimiser.update(grads, state["opt_state"], state["params"])
        metrics |= {"gradient_norm": optax.tree.norm(grads), "learning_rate": schedule(index)}
        return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, metrics

    return update, optimiser


def _phase_number(name: str) -> int:
    return int(name.removeprefix("phase_"))
