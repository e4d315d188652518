"""Optimisers of the two stages: AdamW, gradients clipped block by block in stage 1 and jointly in stage 2."""

import optax

from brh_jax.train.loop import adamw


def optimizer(settings, *, per_block: bool, blocks):
    """AdamW behind a clipped gradient norm, and its learning-rate schedule.

    Args:
        settings: `learning_rate`, `final_learning_rate`, `warmup_steps`, `steps`, `weight_decay`, `clip_norm`.
        per_block: clip each block's gradient by itself. Blocks that are trained side by side must not share a norm: one with
            large gradients would slow the others down.
        blocks: the parameters, a dictionary of blocks.
    """
    adam, schedule = adamw(settings, settings.steps)
    clip = optax.clip_by_global_norm(settings.clip_norm)
    if per_block:
        clip = optax.partition({name: clip for name in blocks}, {name: name for name in blocks})
    return optax.chain(clip, adam), schedule
