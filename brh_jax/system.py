"""DepthSystem: anything whose depth can be read as time."""

import dataclasses
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.errors import UserError, expect, is_whole
from brh_jax.tokens import TokenLayout
from brh_jax.types import Array, Layer, State, Trajectory


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class DepthSystem:
    """A state that is mapped on layer by layer.

    It is a pytree, so that it can be an argument of a jitted function: the arrays that `step` carries, if it is a
    `jax.tree_util.Partial` (as a model's is), are then arguments too and not constants. Any other function is told apart by
    identity: hand in the same one again, and nothing is compiled again.

    Attributes:
        step: `step(state, layer) -> state`, state `[batch, tokens, dim]`, layer from 0 and possibly traced. Images must not
            depend on one another. A model's raises ValueError for a layer that is not there, unless it is traced (see
            `check_layer`); any other function does with it what it does.
        depth: number of layers.
        layout: which tokens of the state are which.
    """

    step: Callable
    depth: int
    layout: TokenLayout

    def rollout(self, state: State) -> Trajectory:
        """Every state from a_0 on, `[batch, tokens, dim] -> [depth + 1, batch, tokens, dim]`.

        Raises:
            ValueError: not a state of the system's layout.
        """
        check_state(state, self.layout)
        return _rollout(self, state)

    def check_layer(self, layer: int) -> None:
        """Raises ValueError unless `layer` is one of the system's, counted from 0."""
        check_layer(layer, self.depth)

    def replace(self, layer: int, token: int | str, value: Array | float | Callable[[Array], Array]) -> "DepthSystem":
        """The same system with tokens of one layer's output changed: patched (by an array) or steered (by a function).

        All later layers go on from the changed state: `system.replace(3, "cls", other[4, :, :1]).rollout(first)` puts the class
        token that another image has after layer 3 there, `system.replace(3, "cls", lambda cls: cls + 5 * direction)` moves it.
        Changes add up, `system.replace(...).replace(...)`. The first state is what `rollout` is given.

        Args:
            layer: from 0; a_{layer + 1}, entry `layer + 1` of the trajectory, is what changes.
            token: one by its index, or all of a type, "cls", "registers" or "patches".
            value: what they become, broadcast to `[batch, tokens, dim]`, tokens being the number of those named; or a function of
                these. Equal systems are compiled once where the same function is handed in again.

        Raises:
            UserError: no such layer or token, or a value that is not finite; in a rollout, a value that does not fit.
        """
        expect(is_whole(layer) and 0 <= layer < self.depth, "layer", layer, f"one from 0 to {self.depth - 1}")
        if not callable(value):
            if not np.isfinite(np.asarray(value, np.float64)).all():
                raise UserError(f"the value for {token!r} is not finite: a state with it has no direction")
            value = jax.tree_util.Partial(_constant, jnp.asarray(value))
        change = value if isinstance(value, jax.tree_util.Partial) else jax.tree_util.Partial(value)
        changed = _Changed(int(layer), *self.layout.place(token))
        return DepthSystem(jax.tree_util.Partial(changed, self._partial, change), self.depth, self.layout)

    @property
    def _partial(self) -> jax.tree_util.Partial:
        return self.step if isinstance(self.step, jax.tree_util.Partial) else jax.tree_util.Partial(self.step)

    def __repr__(self) -> str:
        return f"DepthSystem of {self.depth} layers on {self.layout}"

    def tree_flatten(self):
        return (self._partial,), (self.depth, self.layout)

    @classmethod
    def tree_unflatten(cls, static: tuple, children: tuple):
        return cls(children[0], *static)


@dataclasses.dataclass(frozen=True)
class _Changed:
    """A step whose output changes in one layer. Equal ones are compiled once."""

    layer: int
    start: int
    stop: int

    def __call__(self, step, change, state, layer):
        state = step(state, layer)
        tokens = state[:, self.start : self.stop]
        try:
            changed = jnp.broadcast_to(change(tokens), tokens.shape).astype(tokens.dtype)
        except ValueError:
            found = jnp.shape(change(tokens))
            raise UserError(f"a value of shape {found} does not fit the tokens that it is for, {tokens.shape}") from None
        return state.at[:, self.start : self.stop].set(jnp.where(layer == self.layer, changed, tokens))


def _constant(value, tokens):
    return value


def check_layer(layer: Layer, depth: int) -> None:
    """Raises ValueError unless `layer` is one of `depth`, counted from 0.

    Says nothing of traced values, inside jit or scan, where an index out of range cannot be seen: jax takes the nearest.
    """
    if isinstance(layer, jax.core.Tracer):
        return
    number = np.asarray(layer).item()  # of numpy: jax would trace a comparison inside jit
    if number not in range(depth):
        raise ValueError(f"layer {layer} is out of range: layers are counted from 0, the system has {depth}")


def check_state(state: Array, layout: TokenLayout) -> None:
    """Raises ValueError unless `state` is `[batch, tokens, dim]` with the tokens of `layout`, and finite; see `check_values`."""
    if state.ndim != 3:
        raise ValueError(f"expected a state [batch, tokens, dim], got an array of shape {tuple(state.shape)}")
    layout.split(state)
    check_values(state)


def check_values(states: Array) -> None:
    """Raises ValueError if a token of `[..., tokens, dim]` is not finite or all are zero, warns if one is. Traced ones pass."""
    if isinstance(states, jax.core.Tracer) or not states.size:
        return
    smallest, largest = (float(value) for value in _norm_range(states))
    if not largest < jnp.inf:  # NaN too
        raise UserError("the states hold values that are not finite: look for the layer or the image that they come from")
    if largest == 0:
        raise ValueError("the states are zero throughout: they have no directions, and nothing moves them")
    if smallest == 0:  # Python says the same warning once
        warnings.warn(
            "the states hold tokens that are zero (registers before the first layer, say) and have no direction: they are left "
            "out of angles, cosines and ranks of directions, and not perturbed",
            stacklevel=1,
        )


@jax.jit
def _norm_range(states):
    norms = jnp.max(jnp.abs(states), axis=-1)
    return jnp.min(norms), jnp.max(norms)


@jax.jit
def _rollout(system, state):
    def body(state, layer):
        state = system.step(state, layer)
        return state, state

    with jax.default_matmul_precision("highest"):
        _, outputs = jax.lax.scan(body, state, jnp.arange(system.depth))
    return jnp.concatenate([state[None], outputs])
