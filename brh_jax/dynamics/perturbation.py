"""Self-correction: what becomes of a small perturbation of a state on its way through depth (paper, section 8)."""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from brh_jax.readable import readable
from brh_jax.system import DepthSystem, check_state, check_values
from brh_jax.tokens import ByToken, TokenLayout, mean_by_type
from brh_jax.types import RandomKey, State
from brh_jax.vectors import angle, directed, length, unit

KINDS = ("isotropic", "along", "towards")


@readable(angle="rad", distance="of the norm", recovery="of the injected angle")
class PerturbationGrowth(NamedTuple):
    """How far perturbed states are from the clean ones, from the state that was perturbed on.

    Where several sizes were asked for, every field but `layers` has a leading axis of sizes.

    Attributes:
        angle: angle between perturbed and clean tokens in radians, mean over the tokens of a type and over directions; per
            token type `[states, batch]`, entry 0 being the injected angle. The growth in layer i is `angle[i + 1] / angle[i]`.
        distance: |x' - x| / |x| likewise, which also sees changes of the norm; per token type `[states, batch]`.
        recovery: mean angle of all tokens at the last state over that at injection, `[batch]`: below 1 directions recover,
            above 1 they are driven apart. All tokens count alike, whichever were perturbed, so that what one token hands on to
            the others is not lost; of one type it is `angle.cls[-1] / angle.cls[0]`. NaN if nothing was turned.
        layers: index of each state in the trajectory, `[states]`: layer, ..., depth.
    """

    angle: ByToken
    distance: ByToken
    recovery: jax.Array
    layers: jax.Array


def perturbation_growth(
    system: DepthSystem,
    state: State,
    key: RandomKey | None = None,
    layer: int = 0,
    relative_size: float | Sequence[float] = 1e-2,
    num_directions: int = 16,
    *,
    kind: str = "isotropic",
    towards: State | None = None,
    token: str | int | None = None,
) -> PerturbationGrowth:
    """Perturbs the state that enters a layer and compares the trajectory from there with the clean one (paper, section 8).

    Each perturbed token x becomes x + relative_size |x| u, with a unit vector u for each token:

    - `"isotropic"`: u is uniform on the sphere, drawn anew for each token, image and direction;
    - `"along"`: u points along the token's own update in that layer, a_{l+1} - a_l;
    - `"towards"`: u points to the same token of another state.

    A token whose u would be zero (one that its layer leaves alone, say) is not perturbed, nor is one that is zero itself;
    where a token is zero its angle and distance count as none.

    Sizes are bounded on two sides. Growth is that of the linearised map only while the angle stays small at every layer: halve
    the size and see that `recovery` stays. And every layer rounds: in float32 that moves directions by some 1e-7, which put
    `recovery` of a randomly initialised ViT of 12 layers off by 0.05 % at a size of 1e-4, 0.5 % at 1e-5, 8 % at 1e-6, and by a
    factor of two or three at 1e-7; more where perturbations shrink much on the way. Below 1e-4 go to float64, or to
    `lyapunov_exponents`. A model whose matrix products are in bfloat16 rounds by about 1e-3 and needs sizes well above that.

    Args:
        system: the depth system; it is compiled once for each value of `layer`.
        state: a_0, `[batch, tokens, dim]`, whatever the layer.
        key: random key, needed by `"isotropic"` alone.
        layer: the layer whose input is perturbed, from 0 (the embedding itself).
        relative_size: size relative to the norm of the token, or a sequence of sizes; all are tried on the same directions.
        num_directions: number of random directions averaged over; the others are only one direction.
        kind: "isotropic", "along" or "towards".
        towards: the states to point to, `[batch, tokens, dim]`, at the same depth as the perturbed ones. By default those of
            the next image of the batch (and of the first one for the last).
        token: which tokens are perturbed: all of them (None), those of a type ("cls", "registers", "patches"), or the one
            with this index (int).

    Returns:
        PerturbationGrowth over depth + 1 - layer states; memory is that of a trajectory, as directions are taken in turn.

    Raises:
        ValueError: not a state of the system's layout, a layer, kind or token that does not exist, a size that is not positive,
            no direction, a missing key, or fewer than two images to point from one to the next.
    """
    state = jnp.asarray(state)
    check_state(state, system.layout)
    system.check_layer(layer)
    sizes = _check_sizes(relative_size, state.dtype)
    _check_kind(kind, towards, state, num_directions, key)
    drawn = key if kind == "isotropic" and key is not None else jax.random.key(0)
    keys = jax.random.split(drawn, num_directions if kind == "isotropic" else 1)
    mask = _mask(token, system.layout).astype(state.dtype)
    measured = _growth(system, state, jnp.atleast_1d(sizes), keys, towards, mask, layer=layer, kind=kind)
    angles, distances, recovery = measured if sizes.ndim else jax.tree.map(lambda values: values[0], measured)
    return PerturbationGrowth(angles, distances, recovery, jnp.arange(layer, system.depth + 1))


@functools.partial(jax.jit, static_argnames=("layer", "kind"))
def _growth(system, state, sizes, keys, towards, mask, *, layer, kind):
    with jax.default_matmul_precision("highest"):
        entering = jax.lax.fori_loop(0, layer, lambda index, state: system.step(state, index), state)
        clean = _states(system, entering, layer)
        norm = length(entering, keepdims=True)

        def direction(key):
            if kind == "along":
                return unit(clean[1] - entering)
            if kind == "towards":
                return unit((jnp.roll(entering, -1, axis=0) if towards is None else towards) - entering)
            return unit(jax.random.normal(key, state.shape, state.dtype))

        def deviation(perturbed, reference):
            there = directed(perturbed) & directed(reference)
            turned = jnp.where(there, angle(unit(perturbed), unit(reference)), 0)
            change = jnp.where(there, length(perturbed - reference) / jnp.where(there, length(reference), 1), 0)
            return mean_by_type(turned, system.layout), mean_by_type(change, system.layout)

        def follow(key, size):
            def body(perturbed, inputs):
                index, reference = inputs
                perturbed = system.step(perturbed, index)
                return perturbed, deviation(perturbed, reference)

            perturbed = entering + size * norm * mask[:, None] * direction(key)
            _, later = jax.lax.scan(body, perturbed, (jnp.arange(layer, system.depth), clean[1:]))
            return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), deviation(perturbed, entering), later)

        def of_size(size):
            return jax.tree.map(lambda values: jnp.mean(values, axis=0), jax.lax.map(lambda key: follow(key, size), keys))

        angles, distances = jax.lax.map(of_size, sizes)
        total = sum(count * values for count, values in zip(system.layout.counts, angles, strict=True) if count)
        return angles, distances, total[:, -1] / total[:, 0]


def _states(system, state, start):
    """States from the one that enters layer `start` to the last."""

    def body(state, layer):
        state = system.step(state, layer)
        return state, state

    _, outputs = jax.lax.scan(body, state, jnp.arange(start, system.depth))
    return jnp.concatenate([state[None], outputs])


def _mask(token, layout: TokenLayout):
    """Which tokens are perturbed, `[tokens]`."""
    index = jnp.arange(layout.num_tokens)
    if token is None:
        return jnp.ones_like(index)
    if isinstance(token, str):
        if token not in ByToken._fields:
            raise ValueError(f"token {token!r} is no type of token: expected one of {ByToken._fields}, an index, or None for all")
        types = jnp.repeat(jnp.arange(3), jnp.asarray(layout.counts), total_repeat_length=layout.num_tokens)
        if not getattr(layout.counts, token):
            raise ValueError(f"token {token!r} asks for tokens that the system lacks: it has {layout}")
        return types == ByToken._fields.index(token)
    token = operator.index(token)
    if not 0 <= token < layout.num_tokens:
        raise ValueError(f"token {token} is out of range: tokens are counted from 0, the system has {layout.num_tokens}")
    return index == token


def _check_sizes(relative_size, dtype):
    sizes = jnp.asarray(relative_size, dtype)
    if sizes.ndim > 1 or not sizes.size or not bool(jnp.all((sizes > 0) & jnp.isfinite(sizes))):
        raise ValueError(f"relative_size {relative_size} must be a positive number, or a sequence of them")
    return sizes


def _check_kind(kind, towards, state, num_directions, key):
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} of perturbation is unknown: expected one of {KINDS}")
    if kind == "isotropic":
        if key is None:
            raise ValueError("isotropic perturbations are drawn at random: give key=jax.random.key(...)")
        if num_directions < 1:
            raise ValueError(f"num_directions {num_directions} must be at least 1")
    if towards is not None and kind != "towards":
        raise ValueError(f'towards is given, but kind is {kind!r}: use kind="towards"')
    if kind == "towards":
        if towards is None and state.shape[0] < 2:
            raise ValueError("one image has no other to point to: give towards=, or a batch of at least two images")
        if towards is not None and jnp.shape(towards) != state.shape:
            raise ValueError(f"towards has shape {jnp.shape(towards)}, expected that of the state, {state.shape}")
        if towards is not None:
            check_values(jnp.asarray(towards))
