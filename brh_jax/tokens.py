"""TokenLayout: which tokens of a state are cls, registers and patches."""

import dataclasses
import itertools
from typing import Generic, NamedTuple, TypeVar

import jax.numpy as jnp

from brh_jax.errors import UserError, expect, is_whole
from brh_jax.readable import readable
from brh_jax.types import Array

T = TypeVar("T")


@readable()
class ByToken(NamedTuple, Generic[T]):
    """One value per token type; where a model lacks the type the value is empty (size 0) or None."""

    cls: T
    registers: T
    patches: T


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """How the token axis of a state `[batch, tokens, dim]` is made up: cls, then registers, then patches.

    Attributes:
        num_cls: number of class tokens (2 for a DeiT with a distillation token, 0 for SigLIP).
        num_registers: number of register tokens.
        grid: (rows, columns) of patches; (0, 0) for a system without patches.
    """

    num_cls: int
    num_registers: int
    grid: tuple[int, int]

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        return self.num_cls + self.num_registers + self.num_patches

    @property
    def counts(self) -> ByToken:
        """Number of tokens of each type."""
        return ByToken(self.num_cls, self.num_registers, self.num_patches)

    def split(self, states: Array) -> ByToken:
        """Slices `[..., tokens, dim]` by token type, each `[..., tokens of the type, dim]`.

        Raises:
            ValueError: the token axis does not have `num_tokens` entries.
        """
        if states.ndim < 2 or states.shape[-2] != self.num_tokens:
            raise ValueError(
                f"states of shape {tuple(states.shape)} do not fit the layout: expected {self.num_tokens} tokens on the "
                f"second last axis ({self.num_cls} cls + {self.num_registers} registers + {self.grid[0]} x {self.grid[1]}"
                " patches). Use the layout of the image size that the states come from: encoder.layout_for(height, width)."
            )
        patches = self.num_cls + self.num_registers
        return ByToken(states[..., : self.num_cls, :], states[..., self.num_cls : patches, :], states[..., patches:, :])

    def place(self, token: int | str) -> tuple[int, int]:
        """(first, behind the last) of the tokens named: one by its index, or all of a type, "cls", "registers" or "patches".

        Raises:
            UserError: the layout has no such token.
        """
        if isinstance(token, str):
            expect(token in ByToken._fields, "token", token, f"one of {', '.join(ByToken._fields)}, or an index")
            ends = (0, *itertools.accumulate(self.counts))
            first, end = ends[ByToken._fields.index(token) :][:2]
            if first == end:
                raise UserError(f"there are no tokens {token!r}: the system has {self}")
            return first, end
        inside = is_whole(token) and 0 <= token < self.num_tokens
        expect(inside, "token", token, f"one of cls, registers, patches, or an index from 0 to {self.num_tokens - 1}")
        return int(token), int(token) + 1


def check_trajectory(states: Array, layout: TokenLayout) -> None:
    """Raises ValueError unless `states` is `[depth + 1, batch, tokens, dim]` with the tokens of `layout`."""
    if states.ndim != 4:
        raise ValueError(f"expected a trajectory [depth + 1, batch, tokens, dim], got an array of shape {tuple(states.shape)}")
    layout.split(states)


def mean_by_type(values: Array, layout: TokenLayout) -> ByToken:
    """Mean of `[batch, tokens]` over the tokens of each type, `[batch]`; `[0]` for a type that the layout lacks."""

    def mean(tokens):
        return jnp.mean(tokens[..., 0], axis=-1) if tokens.shape[-2] else jnp.zeros(0, values.dtype)

    return ByToken(*(mean(tokens) for tokens in layout.split(values[..., None])))
