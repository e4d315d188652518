"""DepthSystem: anything whose depth can be read as time."""

import dataclasses
from collections.abc import Callable

from brh_jax.tokens import TokenLayout


@dataclasses.dataclass(frozen=True)
class DepthSystem:
    """A state that is mapped on layer by layer.

    Attributes:
        step: `step(state, layer) -> state`, state `[batch, tokens, dim]`, layer from 0 and possibly traced.
        depth: number of layers.
        layout: which tokens of the state are which.
    """

    step: Callable
    depth: int
    layout: TokenLayout
