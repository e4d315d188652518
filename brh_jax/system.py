"""DepthSystem: anything whose depth can be read as time."""

import dataclasses
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

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

    def tree_flatten(self):
        step = self.step if isinstance(self.step, jax.tree_util.Partial) else jax.tree_util.Partial(self.step)
        return (step,), (self.depth, self.layout)

    @classmethod
    def tree_unflatten(cls, static: tuple, children: tuple):
        return cls(children[0], *static)


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
        raise ValueError("the states hold values that are not finite: look for the layer or the image that they come from")
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
