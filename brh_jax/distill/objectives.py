"""What distillation minimises, from one teacher pass (paper, section 4): two objectives behind one signature.

`Blockwise` trains each block on its own phase from the teacher's states, all side by side (the paper's stage 1); `Joint` rolls
the joined blocks out from a_0 (its stage 2).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from brh_jax.distill.losses import LOSSES, token_weights
from brh_jax.errors import UserError, expect, expect_not_negative, expect_one_of
from brh_jax.models.encoder import init_params
from brh_jax.models.optimizer import OptimizerSettings
from brh_jax.models.raptor import Blocks, Noise, RaptorConfig, Restarts
from brh_jax.partition import Partition
from brh_jax.tokens import TokenLayout
from brh_jax.types import Array, State, Step, Trajectory

TEACHER_FORCING = ("annealed", "throughout")


@dataclasses.dataclass(frozen=True)
class TrainingSettings(OptimizerSettings):
    """How blocks train; the defaults are the paper's.

    Attributes:
        steps: number of optimiser steps.
        noise: standard deviation of Gaussian noise on the state before every application of a block, as the paper's authors add
            it (0 in their published runs).
        loss: a key of `losses.LOSSES`.
        token_weights: of (cls, registers, patches) in the loss, () for the plain mean; of Blockwise for the last block alone.
    """

    steps: int = 312_500
    warmup_steps: int = 10_000
    noise: float = 0.0
    loss: str = "mse"
    token_weights: tuple[float, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "token_weights", tuple(self.token_weights))
        expect_not_negative(self, "steps", "noise")
        expect_one_of(self, "loss", LOSSES)
        weights = self.token_weights
        if weights and not (len(weights) == 3 and any(weights) and all(0 <= weight < float("inf") for weight in weights)):
            raise UserError(
                f"token_weights is {weights}: expected three, of cls, registers, patches, 0 or more and not all 0, or () for "
                "the plain mean"
            )


@dataclasses.dataclass(frozen=True)
class BlockwiseSettings(TrainingSettings):
    """How blocks train side by side.

    Attributes:
        teacher_forcing: "annealed", giving way to autoregression, or "throughout" for teacher forcing alone.
        annealed: share of the steps over which it gives way.
    """

    token_weights: tuple[float, ...] = (0.34, 0.33, 0.33)
    teacher_forcing: str = "annealed"
    annealed: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        expect_one_of(self, "teacher_forcing", TEACHER_FORCING)
        expect(0 <= self.annealed <= 1, "annealed", self.annealed, "a share of the steps, from 0 to 1")


@dataclasses.dataclass(frozen=True)
class JointSettings(TrainingSettings):
    """How joined blocks train.

    Attributes:
        restarts: share of the steps over which layers that start from the teacher's state instead of the blocks' own give way: an
            image does so at a layer with a probability that falls linearly from 1 to 0. The rollouts grow from one layer, which
            is teacher forcing, to all of them, at the cost of one rollout. 0 rolls out from the first step.
        decisions: weight of the Kullback-Leibler divergence, in nats, of the classes that the teacher's classifier gives the
            blocks' last state from those that it gives its own. It comes in as restarts give way. 0 asks no classifier.
    """

    token_weights: tuple[float, ...] = (0.45, 0.10, 0.45)
    restarts: float = 0.0
    decisions: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        expect(0 <= self.restarts <= 1, "restarts", self.restarts, "a share of the steps, from 0 to 1")
        expect_not_negative(self, "decisions")


class Target(NamedTuple):
    """What blocks are to reproduce of a batch.

    Attributes:
        states: the teacher's trajectory.
        layout: which tokens are which.
        classify: logits of the teacher's classifier on a state, `[batch, tokens, dim] -> [batch, classes]`; asked only by
            objectives that `asks_classes`.
    """

    states: Trajectory
    layout: TokenLayout
    classify: Callable[[State], jax.Array] | None = None


class Objective(Protocol):
    """What is minimised.

    Attributes:
        settings: how it is.
        per_block: whether gradients are clipped block by block: blocks that are trained side by side must not share a norm.
        asks_classes: whether the teacher's classifier has a part in it.
    """

    @property
    def settings(self) -> Any: ...
    @property
    def per_block(self) -> bool: ...
    @property
    def asks_classes(self) -> bool: ...

    def variant(self, step: int) -> bool:
        """What of the objective is compiled for this step, a static argument of `loss`."""

    def loss(
        self, module: Blocks, params: Any, target: Target, step: Step, key: jax.Array, variant: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the gradient is taken of, and metrics with a `loss`; `key` is of the noise."""


def _left(step: Step, share: float, steps: int) -> jax.Array:
    """What is left of something that falls linearly from 1 to 0 over a share of the steps; nothing where the share is 0."""
    if not share:
        return jnp.zeros((), jnp.float32)
    return jnp.clip(1.0 - jnp.asarray(step, jnp.float32) / max(share * steps, 1.0), 0.0, 1.0)


def _noise(size: float, key: jax.Array) -> Noise | None:
    return Noise(size, key) if size else None


@dataclasses.dataclass(frozen=True)
class Blockwise:
    """Each block on its own phase: share * teacher forcing + (1 - share) * autoregression, the share annealed from 1 to 0.

    Blocks start from the teacher's states, so a block's loss depends on no other block: the gradient of the sum is the gradient
    of each. The last block's loss has the settings' token weights, the others' the plain mean.
    """

    settings: BlockwiseSettings = BlockwiseSettings()
    per_block = True
    asks_classes = False

    def variant(self, step: int) -> bool:
        """Whether the teacher-forced pass is taken at all."""
        own = self.settings
        return own.teacher_forcing == "throughout" or step < own.annealed * own.steps

    def share(self, step: Step) -> jax.Array:
        """The weight of teacher forcing: falls linearly from 1 to 0 over the first `annealed` (a share) of the steps."""
        if self.settings.teacher_forcing == "throughout":
            return jnp.ones((), jnp.float32)
        return _left(step, self.settings.annealed, self.settings.steps)

    def losses(
        self,
        module: Blocks,
        params: Any,
        states: Trajectory,
        layout: TokenLayout,
        share: Array | float,
        forced: bool,
        noise: Noise | None = None,
    ) -> Any:
        """The loss of each block, `[k]`; without `forced` by autoregression alone."""
        partition = module.config.partition
        plain, last = token_weights(layout), token_weights(layout, self.settings.token_weights)
        weights = np.where(np.equal(partition.labels, partition.k - 1)[:, None], last, plain)

        def of(method: str) -> jax.Array:
            predicted = module.apply({"params": params}, states, layout.grid, noise, method=method)
            return by_phase(LOSSES[self.settings.loss](predicted, states[1:], weights, layout), partition, module.config.modelled)

        if self.settings.teacher_forcing == "throughout":
            return of("teacher_forced")
        rolled = of("rollout_runs")
        return share * of("teacher_forced") + (1.0 - share) * rolled if forced else rolled

    def loss(
        self, module: Blocks, params: Any, target: Target, step: Step, key: jax.Array, variant: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of the blocks' losses, and each of them."""
        share = self.share(step)
        each = self.losses(module, params, target.states, target.layout, share, variant, _noise(self.settings.noise, key))
        named = {f"loss_phase_{phase + 1}": each[phase] for phase in range(module.config.partition.k)}
        return each.sum(), {"loss": each.mean(), "teacher_forcing": share, **named}


@dataclasses.dataclass(frozen=True)
class Joint:
    """The joined blocks rolled out from a_0 to a_L, every state compared."""

    settings: JointSettings = JointSettings()
    per_block = False

    @property
    def asks_classes(self) -> bool:
        """Whether the decisions count."""
        return self.settings.decisions > 0

    def variant(self, step: int) -> bool:
        """Whether layers ever start from the teacher's state: one program for all steps, as choosing between states costs less
        than compiling another."""
        return self.settings.restarts > 0

    def share(self, step: Step) -> jax.Array:
        """How probable a layer's start from the teacher's state is."""
        return _left(step, self.settings.restarts, self.settings.steps)

    def restarts(self, states: Trajectory, step: Step, key: jax.Array) -> Restarts:
        """Which layers start from the teacher's states at this step."""
        return Restarts(states, jax.random.bernoulli(key, self.share(step), (len(states) - 1, states.shape[1])))

    def loss(
        self, module: Blocks, params: Any, target: Target, step: Step, key: jax.Array, variant: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean of the layers' losses; with `decisions` the weighted divergence of the classes besides."""
        noise, (states, layout, classify) = _noise(self.settings.noise, key), target
        restarts = self.restarts(states, step, jax.random.fold_in(key, 0)) if variant else None
        rolled: Any = module.apply({"params": params}, states[0], layout.grid, noise, restarts, method="rollout")
        predicted = rolled[1:]
        weights = token_weights(layout, self.settings.token_weights)
        losses = LOSSES[self.settings.loss](predicted, states[1:], weights, layout)
        loss = jnp.mean(losses[np.flatnonzero(module.config.modelled)])
        metrics = {"teacher_forcing": self.share(step)} if self.settings.restarts else {}
        if self.asks_classes:
            assert classify is not None  # `train_blocks` refuses a teacher without one
            wanted, found = (jax.nn.log_softmax(classify(state)) for state in (states[-1], predicted[-1]))
            metrics["decisions"] = optax.losses.kl_divergence_with_log_targets(found, wanted).mean()
            loss += self.settings.decisions * (1 - self.share(step)) * metrics["decisions"]
        return loss, {"loss": loss, **metrics}


def by_phase(values: Array, partition: Partition, modelled: Any = True) -> jax.Array:
    """Mean over the layers of each phase, `[depth] -> [k]`; over those that are `modelled`, `[depth]`, where some are not."""
    member = np.equal.outer(np.arange(partition.k), partition.labels) & np.asarray(modelled)
    return jnp.asarray(member / member.sum(1, keepdims=True), values.dtype) @ values


@functools.partial(jax.jit, static_argnames=("config", "layout"))
def init_blocks(config: RaptorConfig, layout: TokenLayout, key: jax.Array) -> Any:
    """Fresh parameters of the shared blocks."""
    state = jnp.zeros((1, layout.num_tokens, config.dim), jnp.float32)
    return init_params(Blocks(config), key, state, layout.grid, method="rollout")
