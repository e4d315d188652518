"""What one layer's map does when it is iterated far beyond its place in depth."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from brh_jax.readable import readable
from brh_jax.system import DepthSystem, check_state
from brh_jax.tokens import ByToken, mean_by_type
from brh_jax.types import State
from brh_jax.vectors import angle, directed, length, unit

FATES = ("fixed point", "cycle", "leaves", "vanishes", "wanders")


@readable(
    speed="rad per step",
    norm_growth="per step",
    fate="index into FATES",
    period="steps",
    direction_fate="index into FATES",
    direction_period="steps",
)
class Extrapolation(NamedTuple):
    """Where the iterates x_0 ... x_n of one layer's map end, for each image.

    State and directions are judged apart, as directions may settle while norms go on growing.

    Attributes:
        speed: angle turned in each step in radians, mean over tokens; per token type `[num_steps, batch]`.
        norm: norm of the tokens, mean over tokens; per token type `[num_steps + 1, batch]`.
        norm_growth: factor per step by which the mean norm grew over the last quarter of the steps, `[batch]`.
        fate: index into FATES of the state's fate, `[batch]`.
        period: period of the state, 1 at a fixed point and 0 where it is not periodic, `[batch]`.
        direction_fate: index into FATES of the fate of the directions: "fixed point", "cycle" or "wanders", `[batch]`.
        direction_period: period of the directions, `[batch]`.
    """

    speed: ByToken
    norm: ByToken
    norm_growth: jax.Array
    fate: jax.Array
    period: jax.Array
    direction_fate: jax.Array
    direction_period: jax.Array


def extrapolated_depth(
    system: DepthSystem, state: State, layer: int, num_steps: int = 200, *, tolerance: float = 1e-3, max_period: int = 16
) -> Extrapolation:
    """Iterates the map of one layer: does the state reach a fixed point or a cycle, or does it leave?

    x_{t+1} = F_layer(x_t). For a block that recurs, `layer` is the last of its phase: it is asked for more of the same, with the
    depth input, where it has one, held at that layer's.

    The last state is compared with those up to `max_period` steps before it. They are close where no token is further off than
    `tolerance`, relative to its norm (for directions: in radians). The fate of a state is, in this order:

    - "leaves": it is not finite any more, or its mean norm keeps growing: higher over the last quarter of the steps than ever in
      the first half, and gaining there without slowing down (at least 9/10 of the gain of the quarter before);
    - "vanishes": its mean norm goes to zero, the same being said of the logarithm of the norm, downwards;
    - "fixed point": close to every one of the states compared, so that a slow drift is not taken for rest;
    - "cycle": close for the first time p > 1 steps before, and again 2p, 3p, ... steps before;
    - "wanders": none of these in so many steps. It may be chaotic, quasi-periodic, of a longer period, or not there yet: `speed`
      tells, or more steps do.

    Directions are judged by the last three alone, wherever the norm goes. They are undefined (NaN, hence "wanders") once a norm
    has overflown or become zero.

    Args:
        system: the depth system.
        state: the state that enters the layer, `[batch, tokens, dim]`: `trajectory[layer]`.
        layer: which layer, from 0.
        num_steps: how many times the layer is applied.
        tolerance: what counts as close; well above rounding (1e-6 in float32).
        max_period: longest period looked for. As many states are held at once.

    Returns:
        Extrapolation.

    Raises:
        ValueError: not a state of the system's layout, a layer out of range, fewer steps than 4 or than max_period, a
            max_period below 1, or a tolerance that is not positive.
    """
    state = jnp.asarray(state)
    check_state(state, system.layout)
    system.check_layer(layer)
    if max_period < 1:
        raise ValueError(f"max_period {max_period} must be at least 1")
    if num_steps < max(4, max_period):
        raise ValueError(f"num_steps {num_steps} must be at least {max(4, max_period)}: 4, and max_period {max_period}")
    if not tolerance > 0:
        raise ValueError(f"tolerance {tolerance} must be positive")
    return _extrapolate(system, state, layer, tolerance, num_steps=num_steps, max_period=max_period)


@functools.partial(jax.jit, static_argnames=("num_steps", "max_period"))
def _extrapolate(system, state, layer, tolerance, *, num_steps, max_period):
    def body(state, _):
        output = system.step(state, layer)
        turned = mean_by_type(angle(_direction(output), _direction(state)), system.layout)
        return output, (turned, norms(output))

    def held(state, _):
        output, measured = body(state, None)
        return output, (state, measured)

    def norms(state):
        norm = length(state)
        return mean_by_type(norm, system.layout), jnp.mean(norm, axis=-1)

    with jax.default_matmul_precision("highest"):
        first = norms(state)
        state, early = jax.lax.scan(body, state, length=num_steps - max_period)
        state, (before, late) = jax.lax.scan(held, state, length=max_period)
    speed, later = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), early, late)
    norm, mean_norm = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later)

    # Beyond the root of the largest number a system's own squares (a LayerNorm's) overflow: what follows means nothing.
    gone = jax.lax.associative_scan(jnp.logical_or, ~(mean_norm <= jnp.sqrt(jnp.finfo(state.dtype).max)), axis=0)
    norm, mean_norm = jax.tree.map(lambda n: jnp.where(gone, jnp.inf, n) if n.size else n, (norm, mean_norm))
    speed = jax.tree.map(lambda s: jnp.where(gone[1:], jnp.nan, s) if s.size else s, speed)

    before = before[::-1]  # 1, 2, ... steps before the last state
    distance = length(state - before) / length(state)
    period = _period(jnp.max(distance, axis=-1) < tolerance)
    direction_period = _period(jnp.max(angle(_direction(state), _direction(before)), axis=-1) < tolerance)

    direction_period = jnp.where(gone[-1], 0, direction_period)
    leaves = gone[-1] | _keeps_rising(mean_norm, tolerance * mean_norm[-1])
    vanishes = (mean_norm[-1] == 0) | _keeps_rising(-jnp.log(mean_norm), tolerance)
    fate = jnp.where(vanishes, FATES.index("vanishes"), _periodic_fate(period))
    fate = jnp.where(leaves, FATES.index("leaves"), fate)
    quarter = num_steps // 4
    return Extrapolation(
        speed,
        norm,
        (mean_norm[-1] / mean_norm[-1 - quarter]) ** (1 / quarter),
        fate,
        jnp.where(leaves | vanishes, 0, period),
        _periodic_fate(direction_period),
        direction_period,
    )


def _direction(state):
    """Unit vectors; NaN where a token is zero."""
    return jnp.where(directed(state)[..., None], unit(state), jnp.nan)


def _period(close):
    """The first p with `close[p - 1]` if `close[2p - 1]`, ... hold too, else 0. `[max_period, batch] -> [batch]`.

    A slow drift is close for some steps, the first among them, and then no more.
    """
    steps = jnp.arange(1, close.shape[0] + 1)[:, None]
    period = jnp.argmax(close, axis=0) + 1
    recurs = jnp.any(close, axis=0) & jnp.all(close | (steps % period != 0), axis=0)
    return jnp.where(recurs, period, 0)


def _periodic_fate(period):
    return jnp.select([period == 1, period > 1], [FATES.index("fixed point"), FATES.index("cycle")], FATES.index("wanders"))


def _keeps_rising(series, least):
    """Whether `[steps, batch]` rises beyond its first half by more than `least` in its last quarter, without slowing down."""
    quarter = series.shape[0] // 4
    second, third, last = jnp.mean(jnp.stack(jnp.split(series[-3 * quarter :], 3)), axis=1)
    gain = last - third
    return (last > jnp.max(series[: -2 * quarter], axis=0)) & (gain > least) & (gain > 0.9 * (third - second))
