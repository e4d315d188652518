"""Training a Raptor's blocks. The frozen teacher runs inside the jitted step: no state ever touches the disk."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from brh_jax.distill.low_rank import LowRank
from brh_jax.distill.objectives import Objective, Target
from brh_jax.distill.states import StatesBatches
from brh_jax.distill.validation import Validation
from brh_jax.errors import UserError
from brh_jax.models.cost import vit_flops
from brh_jax.models.encoder import Encoder, boxed_params, pooled_features
from brh_jax.models.head import apply_head
from brh_jax.models.optimizer import optimized_specs, optimizer
from brh_jax.models.raptor import Blocks, RaptorConfig
from brh_jax.train.loop import Run, accumulate, train
from brh_jax.train.parallel import shard


def raptor_encoder(config: RaptorConfig, blocks: Any, teacher: Encoder, name: str) -> Encoder:
    """A Raptor of trained blocks between its teacher's embedding and norm, with the teacher's classifier."""
    params = {"embedding": teacher.params["embedding"], "blocks": blocks, "norm": teacher.params["norm"]}
    head = {"head": teacher.head, "head_reads": teacher.head_reads, "classes": teacher.classes}
    return Encoder(config, params, teacher.preprocessing, name=name, **head, dtype=teacher.dtype)


def train_blocks(
    objective: Objective,
    teacher: Encoder,
    config: RaptorConfig,
    blocks: Any,
    batches: Any,
    run: Run,
    *,
    batch_size: int,
    seed: int,
    remat: str = "auto",
    pieces: int = 1,
    validation: Validation | None = None,
    low_rank: LowRank | None = None,
) -> Any:
    """Trains the blocks of a Raptor; returns their parameters.

    Args:
        blocks: parameters to start from.
        batches: TrainingBatches of uint8 images, or StatesBatches of the teacher's states.
        batch_size: of all processes together.
        seed: of the noise.
        remat: what the backward pass keeps, one of `models.remat.NAMES`.
        pieces: parts that a batch goes through in, gradients accumulated.
        validation: what measures the blocks as they train, without effect on them.
        low_rank: what makes blocks of `config` of the parameters given; None where these are the blocks' own.

    Raises:
        UserError: the objective asks for classes, and the teacher has no classifier.
    """
    check_classes(objective, teacher)
    update, optimiser = make_update(objective, teacher, config, seed=seed, remat=remat, pieces=pieces, low_rank=low_rank)
    visits = validation.visits(config, run, objective.settings.steps, batch_size) if validation else {}
    layout, teacher = teacher.layout, teacher.on(run.mesh)
    frozen = teacher.params | ({"head": shard(teacher.pooled_head, run.mesh)} if objective.asks_classes else {})

    def step(state, batch, index):
        return update(state, frozen, batch, index, objective.variant(index))

    # Copied: the loop donates its state, and the caller may still want the blocks it gave.
    state = jax.tree.map(jnp.copy, {"params": blocks, "opt_state": optimiser.init(blocks)})
    # The teacher once; the blocks forwards and twice as much backwards. The teacher-forced pass is not counted.
    flops: dict[str, float] = {"student": 3 * vit_flops(config, layout)}
    if not isinstance(batches, StatesBatches):
        flops["teacher"] = vit_flops(teacher.config, layout)
    state = train(
        step,
        state,
        batches,
        run,
        num_steps=objective.settings.steps,
        batch_size=batch_size,
        specs=state_specs(config, teacher, optimiser) if low_rank is None else jax.tree.map(lambda leaf: PartitionSpec(), state),
        flops_per_image=flops,
        visits={step: _on_blocks(visit, low_rank) for step, visit in visits.items()},
    )
    return _blocks(state["params"], low_rank)


def check_classes(objective: Objective, teacher: Encoder) -> None:
    """Raises UserError where the objective asks for classes, and the teacher has none."""
    if objective.asks_classes and teacher.pooled_head is None:
        raise UserError(
            f"decisions is {objective.settings.decisions}, but {teacher.name} has no classifier on its class token or patches: "
            "set it to 0, or take weights that come with one"
        )


def _on_blocks(visit: Callable[[Any], None], low_rank: LowRank | None) -> Callable[[dict], None]:
    return lambda state: visit(_blocks(state["params"], low_rank))


def _blocks(params: Any, low_rank: LowRank | None) -> Any:
    return params if low_rank is None else low_rank.blocks(params)


def make_update(
    objective: Objective,
    teacher: Encoder,
    config: RaptorConfig,
    *,
    seed: int,
    remat: str = "auto",
    pieces: int = 1,
    fused: bool = True,
    low_rank: LowRank | None = None,
) -> tuple[Any, optax.GradientTransformation]:
    """The jitted step of an objective, and its optimiser.

    `update(state, teacher_params, batch, index, variant)` takes and gives `{"params", "opt_state"}` (donated), and gives metrics.
    The batch holds uint8 images as `image`, or the teacher's `states`, `[batch, depth + 1, tokens, dim]`. Of the teacher only its
    architecture and preprocessing matter here: it can be compiled without any weights. An objective that asks for classes finds
    the classifier beside the teacher's parameters, as `head`, on [cls, mean patch]. `fused` as in `models.layers.Attention`,
    `low_rank` as in `train_blocks`.
    """
    layout, module = teacher.layout, Blocks(config, teacher.dtype, remat, fused=fused)
    watched = teacher.module.clone(fused=fused)
    optimiser, schedule = clipped_optimizer(objective, [f"phase_{phase + 1}" for phase in range(config.partition.k)])
    key = jax.random.key(seed)

    @functools.partial(jax.jit, static_argnums=4, donate_argnums=0)
    def update(state, teacher_params, batch, index, variant):
        def gradients(batch):
            if "states" in batch:
                states: Any = jnp.moveaxis(batch["states"], 1, 0)
            else:
                pixels = teacher.normalize_pixels(batch["image"])
                states = jax.lax.stop_gradient(watched.apply({"params": teacher_params}, pixels))
            noise_key = jax.random.fold_in(jax.random.fold_in(key, index), batch["row"][0])

            def classify(state):
                features: Any = watched.apply({"params": teacher_params}, state, method="normalize")
                return apply_head(teacher_params["head"], pooled_features(features, layout))

            def loss(params):
                target = Target(states, layout, classify)
                return objective.loss(module, _blocks(params, low_rank), target, index, noise_key, variant)

            return jax.grad(loss, has_aux=True)(state["params"])

        used = {name: value for name, value in batch.items() if name in ("image", "states")}
        rows = jnp.arange(len(next(iter(used.values()))))
        grads, metrics = accumulate(gradients, used | {"row": rows}, pieces)
        updates, opt_state = optimiser.update(grads, state["opt_state"], state["params"])
        metrics |= {"gradient_norm": optax.tree.norm(grads), "learning_rate": schedule(index)}
        return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, metrics

    return update, optimiser


def clipped_optimizer(objective: Objective, blocks: list[str]) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """What updates blocks behind a clipped gradient norm, and its learning-rate schedule; `blocks` are the names of the
    parameters' parts."""
    settings = objective.settings
    update, schedule = optimizer(settings, settings.steps)
    clip = optax.clip_by_global_norm(settings.clip_norm)
    if objective.per_block:
        clip = optax.partition({name: clip for name in blocks}, {name: name for name in blocks})
    return optax.chain(clip, update), schedule


def state_specs(config: RaptorConfig, teacher: Encoder, optimiser: optax.GradientTransformation) -> Any:
    """The names of the dimensions of a training state's arrays, see `train.parallel.shardings`."""
    state = jax.ShapeDtypeStruct((1, teacher.layout.num_tokens, config.dim), jnp.float32)
    boxed = boxed_params(Blocks(config), state, grid=teacher.layout.grid, method="rollout")
    params, kept = optimized_specs(boxed, optimiser)
    return {"params": params, "opt_state": kept}
