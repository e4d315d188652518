"""What becomes of the last state when a plan runs in place of the trained order."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.errors import UserError
from brh_jax.interventions.plans import unchanged
from brh_jax.models.encoder import Encoder, pooled_features, pooled_width
from brh_jax.models.head import apply_head
from brh_jax.system import DepthSystem, check_state
from brh_jax.types import State
from brh_jax.vectors import cosine_distance, length


class Effects(NamedTuple):
    """The last state under each plan against the trained order's, both after the final norm, `[plans, images]`.

    Attributes:
        change: 1 - cosine of [cls, mean patch].
        distance: |difference| / |trained order's|, of [cls, mean patch].
        token_change: 1 - cosine, mean over all tokens.
        token_distance: the same with the Frobenius norm over all tokens.
        predicted: the class of the largest logit; None without a head.
    """

    change: jax.Array
    distance: jax.Array
    token_change: jax.Array
    token_distance: jax.Array
    predicted: jax.Array | None


def apply_plans(
    encoder: Encoder,
    start: State,
    plans: Sequence[Sequence[int]],
    *,
    guest: Encoder | None = None,
    head: dict[str, Any] | None = None,
) -> Effects:
    """Runs plans from one first state, each from the place where it departs from the trained order.

    One compiled program does for any plans, as many of them and up to as long as before.

    Args:
        encoder: a ViT or a Raptor with its final norm.
        start: its a_0, `[batch, tokens, dim]`.
        plans: see `plans`; they may differ in length.
        guest: another encoder of the same width and tokens, a Raptor of this teacher say, whose layer l a plan calls
            `encoder.depth + l`.
        head: {"kernel": [features, classes], "bias": [classes]} on [cls, mean patch].

    Raises:
        UserError: no plans, a plan that names a half layer that is not there, a guest or a head that does not fit, an encoder
            that is blocks without their teacher.
        ValueError: not a state of the encoder's layout.
    """
    encoder.need("norm")
    system = encoder.system(sublayers=True)
    if guest is not None:
        system = join(system, guest.system(sublayers=True))
    start = jnp.asarray(start)
    check_state(start, encoder.layout)
    begins, ends, orders = _arrays(plans, encoder.depth, system.depth)
    if head is not None and head["kernel"].shape[0] != (width := pooled_width(encoder.dim, encoder.layout)):
        raise UserError(
            f"the head reads {head['kernel'].shape[0]} features, {encoder.name} has {width}: expected a head on [cls, mean patch]"
        )
    # Of the encoder its final norm, so that Raptors of one teacher are one program.
    bare = Encoder(encoder.config.vit, {"norm": encoder.params["norm"]}, encoder.preprocessing, "")
    return _run(bare, head, system, start, begins, ends, orders)


def join(first: DepthSystem, second: DepthSystem) -> DepthSystem:
    """Two systems of one layout as one that has the steps of the first, then those of the second.

    Raises:
        UserError: other tokens.
    """
    if first.layout != second.layout:
        raise UserError(f"states do not fit: {first.layout} and {second.layout}")
    step = jax.tree_util.Partial(_either, jnp.asarray(first.depth), first.step, second.step)
    return DepthSystem(step, first.depth + second.depth, first.layout)


def _either(depth, first, second, state, layer):
    def in_first():
        return first(state, layer)

    def in_second():
        return second(state, layer - depth)

    return jax.lax.cond(layer < depth, in_first, in_second)


def _arrays(plans, depth: int, num_halves: int):
    """Where each plan departs from the trained order, where it ends, and its halves, filled up to the longest."""
    trained = unchanged(depth)
    if not len(plans):
        raise UserError("no plans: expected one or more sequences of half layers")
    for plan in plans:
        wrong = [half for half in plan if not isinstance(half, int | np.integer) or not 0 <= half < num_halves]
        if wrong:
            raise UserError(
                f"plan {tuple(plan)} names {wrong[0]}: expected half layers from 0 to {num_halves - 1}, 2 l for the attention of "
                "layer l and 2 l + 1 for its feed-forward part"
            )
    begins = [
        next((n for n, (a, b) in enumerate(zip(p, trained, strict=False)) if a != b), min(len(p), len(trained))) for p in plans
    ]
    orders = np.zeros((len(plans), max(len(trained), *(len(plan) for plan in plans))), np.int32)
    for row, plan in zip(orders, plans, strict=True):
        row[: len(plan)] = plan
    return np.array(begins, np.int32), np.array([len(plan) for plan in plans], np.int32), orders


@jax.jit
def _run(encoder, head, system, start, begins, ends, orders):
    module, layout = encoder.module, encoder.layout

    def forward(state, half):
        state = system.step(state, half)
        return state, state

    def features(state):
        return module.apply({"params": encoder.params}, state, method="normalize")

    _, outputs = jax.lax.scan(forward, start, jnp.arange(2 * encoder.depth))
    trained = jnp.concatenate([start[None], outputs])
    target = features(trained[-1])
    pooled_target = pooled_features(target, layout)

    def one(plan):
        begin, end, order = plan
        # Loops of traced length: plans of any length, from any place, are one program.
        last = jax.lax.fori_loop(begin, end, lambda n, state: system.step(state, order[n]), trained[begin])
        final = features(last)
        pooled = pooled_features(final, layout)
        return Effects(
            change=jnp.asarray(cosine_distance(pooled, pooled_target)),
            distance=_relative(pooled - pooled_target, pooled_target, -1),
            token_change=cosine_distance(final, target).mean(-1),
            token_distance=_relative(final - target, target, (-2, -1)),
            predicted=None if head is None else jnp.argmax(apply_head(head, pooled), -1),
        )

    return jax.lax.map(one, (begins, ends, orders))


def _relative(difference, reference, axis):
    return length(difference, axis=axis) / jnp.maximum(length(reference, axis=axis), 1e-15)
