"""What the two stages of distillation minimise, from one teacher pass (paper, section 4)."""

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.distill.losses import layer_losses, token_weights
from brh_jax.models.raptor import Blocks, RaptorConfig
from brh_jax.partition import Partition
from brh_jax.tokens import TokenLayout


def teacher_forcing_share(step, num_steps: int, annealed: float):
    """lambda: falls linearly from 1 to 0 over the first `annealed` (a share) of the steps."""
    return jnp.clip(1.0 - step / max(annealed * num_steps, 1.0), 0.0, 1.0)


def by_phase(values, partition: Partition, modelled=True):
    """Mean over the layers of each phase, `[depth] -> [k]`; over those that are `modelled`, `[depth]`, where some are not."""
    member = np.equal.outer(np.arange(partition.k), partition.labels) & np.asarray(modelled)
    return jnp.asarray(member / member.sum(1, keepdims=True), values.dtype) @ values


def stage1_losses(
    blocks: Blocks,
    params,
    states,
    layout: TokenLayout,
    last_block_weights,
    share,
    *,
    forced: bool = True,
    rolled: bool = True,
    inputs=None,
):
    """The loss of each block on its own phase: share * teacher forcing + (1 - share) * autoregression.

    Blocks start from the teacher's states, so a block's loss depends on no other block: the gradient of the sum is the
    gradient of each.

    Args:
        blocks: the module; `params` its parameters.
        states: the teacher's trajectory `[depth + 1, batch, tokens, dim]`.
        last_block_weights: token weights of the last phase, or None; the others take the plain mean.
        share: weight of teacher forcing.
        forced, rolled: False leaves the teacher-forced pass out, where `share` is zero, or the autoregressive one,
            where it is one.
        inputs: what the blocks start from, if not `states` (noise added, say).

    Returns:
        `[k]`.
    """
    partition = blocks.config.partition
    plain, last = token_weights(layout), token_weights(layout, last_block_weights)
    weights = np.where(np.equal(partition.labels, partition.k - 1)[:, None], last, plain)
    inputs = states if inputs is None else inputs

    def losses(method):
        predicted = blocks.apply({"params": params}, inputs, layout.grid, method=method)
        return by_phase(layer_losses(predicted, states[1:], weights), partition, blocks.config.modelled)

    if not rolled:
        return losses("teacher_forced")
    autoregressive = losses("rollout_runs")
    if not forced:
        return autoregressive
    return share * losses("teacher_forced") + (1.0 - share) * autoregressive


def stage2_loss(blocks: Blocks, params, states, layout: TokenLayout, weights, *, start=None):
    """The joined blocks rolled out from a_0 (or `start`) to a_L, every state compared: a scalar."""
    start = states[0] if start is None else start
    predicted = blocks.apply({"params": params}, start, layout.grid, method="rollout")[1:]
    losses = layer_losses(predicted, states[1:], token_weights(layout, weights))
    return jnp.mean(losses[np.flatnonzero(blocks.config.modelled)])


def init_blocks(config: RaptorConfig, layout: TokenLayout, key):
    """Fresh parameters of the shared blocks."""
    state = jnp.zeros((1, layout.num_tokens, config.dim))
    return jax.jit(lambda key: Blocks(config).init(key, state, layout.grid, method="rollout"))(key)["params"]
