"""What a family's table is made of: rules that take a source tensor to its places in the Flax tree, and back."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from brh_jax.models.vit import ViTConfig
from brh_jax.preprocessing import Preprocessing
from weights_convert.facts import Facts

Transform = Callable[[np.ndarray, ViTConfig], np.ndarray]


class Place(NamedTuple):
    """A place in the Flax tree: a path such as `blocks/attn/qkv/kernel`, and an index into the leaf where several source
    tensors share it (queries, keys and values). Paths under `blocks` get the rule's layer as first index."""

    path: str
    index: tuple = ()  # type: ignore[assignment]  # hides the method of tuples


class Rule(NamedTuple):
    """How tensors of one kind are read and written.

    Attributes:
        pattern: regular expression on the whole name, all spellings; group `layer` is the block's number.
        places: what the tensor fills; none where it is known and not needed.
        split: `(array, config) -> one array per place`; an empty one has no place.
        join: `(one array or None per place, config) -> array`, the way back.
        name: what transformers calls it, `{layer}` for the block's number; empty for a spelling that is only read.
        when: whether a model of this architecture has such tensors.
        why: the reason that a tensor is not needed.
    """

    pattern: str
    places: tuple[Place, ...]
    split: Callable = lambda a, c: [a]
    join: Callable = lambda parts, c: parts[0]
    name: str = ""
    when: Callable[[ViTConfig], bool] = lambda c: True
    why: str = ""

    def match(self, name: str) -> re.Match | None:
        return re.fullmatch(self.pattern, name)


class Family(NamedTuple):
    """A family of models.

    Attributes:
        name: for people.
        model_types: `model_type` in transformers' config.json.
        recognises: whether tensors without such a config are this family's.
        config: facts -> ViTConfig. Raises ValueError where the weights are not what the family has.
        preprocessing: `(facts, config) -> Preprocessing`, where the source has no preprocessor config.
        rules: the table.
        zeros: `(facts, config) -> places` that the family does not have and that stay zero.
        to_transformers: architecture -> transformers' configuration, or None where the family cannot express it.
    """

    name: str
    model_types: tuple[str, ...]
    recognises: Callable[[Facts], bool]
    config: Callable[[Facts], ViTConfig]
    preprocessing: Callable[[Facts, ViTConfig], Preprocessing]
    rules: tuple[Rule, ...]
    zeros: Callable[[Facts, ViTConfig], tuple[Place, ...]] = lambda facts, config: ()
    to_transformers: Callable[[ViTConfig], dict | None] = lambda config: None


def table_size(c: ViTConfig) -> tuple[int, int]:
    """Pixels, (height, width), of an image with as many patches as the position table, which the family must have."""
    assert c.position_grid is not None
    return c.position_grid[0] * c.patch_size, c.position_grid[1] * c.patch_size


def unused(pattern: str, why: str) -> Rule:
    """A tensor that is known and not needed."""
    return Rule(pattern, (), why=why)


def single(pattern: str, place: Place, to: Transform = lambda a, c: a, back: Transform = lambda a, c: a, name: str = "") -> Rule:
    """A tensor with one place."""
    return Rule(pattern, (place,), lambda a, c: [to(a, c)], lambda parts, c: back(parts[0], c), name)


def vector(pattern: str, path: str, name: str = "") -> Rule:
    """A tensor taken over as it is."""
    return single(pattern, Place(path), name=name)


def norm(pattern: str, path: str, name: str = "") -> tuple[Rule, Rule]:
    """LayerNorm: weight, bias -> scale, bias."""
    return (
        vector(rf"(?:{pattern})\.weight", f"{path}/scale", name and f"{name}.weight"),
        vector(rf"(?:{pattern})\.bias", f"{path}/bias", name and f"{name}.bias"),
    )


def linear(pattern: str, path: str, name: str = "") -> tuple[Rule, Rule]:
    """A linear layer, weight `[out, in]` -> kernel `[in, out]`."""
    return (
        single(rf"(?:{pattern})\.weight", Place(f"{path}/kernel"), _transpose, _transpose, name and f"{name}.weight"),
        vector(rf"(?:{pattern})\.bias", f"{path}/bias", name and f"{name}.bias"),
    )


def plain(*rules: Rule) -> tuple[Rule, ...]:
    """Rules of models whose MLP is not gated."""
    return tuple(rule._replace(when=lambda c: c.mlp != "swiglu") for rule in rules)


def gated(*rules: Rule) -> tuple[Rule, ...]:
    """Rules of models whose MLP is gated."""
    return tuple(rule._replace(when=lambda c: c.mlp == "swiglu") for rule in rules)


def first_layer(pattern: str, name: str = "") -> tuple[Rule, Rule]:
    """The MLP's first layer; where it is gated, gate and value stacked as `[2 hidden, in]` -> `[in, 2, hidden]`."""

    def kernel(a, c):
        return a.T.reshape(a.shape[1], 2, -1) if c.mlp == "swiglu" else a.T

    def bias(a, c):
        return a.reshape(2, -1) if c.mlp == "swiglu" else a

    return (
        single(
            rf"(?:{pattern})\.weight",
            Place("blocks/mlp/fc1/kernel"),
            kernel,
            lambda a, c: a.reshape(a.shape[0], -1).T,
            name and f"{name}.weight",
        ),
        single(
            rf"(?:{pattern})\.bias",
            Place("blocks/mlp/fc1/bias"),
            bias,
            lambda a, c: a.reshape(-1),
            name and f"{name}.bias",
        ),
    )


def half_of_first_layer(pattern: str, which: int, name: str = "") -> tuple[Rule, Rule]:
    """The gate (0) or the value (1) of a gated MLP whose halves are tensors of their own."""
    return (
        single(
            rf"(?:{pattern})\.weight",
            Place("blocks/mlp/fc1/kernel", (slice(None), which)),
            _transpose,
            _transpose,
            name and f"{name}.weight",
        ),
        single(rf"(?:{pattern})\.bias", Place("blocks/mlp/fc1/bias", (which,)), name=name and f"{name}.bias"),
    )


def patch_projection(pattern: str, name: str = "") -> tuple[Rule, Rule]:
    """A strided convolution `[dim, channels, p, p]` -> a matrix on flattened patches `[p p channels, dim]`.

    A linear layer on flattened patches, `[dim, p p channels]`, is transposed.
    """

    def kernel(a, c):
        return a.T if a.ndim == 2 else a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0])

    def back(a, c):
        return a.reshape(c.patch_size, c.patch_size, c.channels, -1).transpose(3, 2, 0, 1)

    return (
        single(rf"(?:{pattern})\.weight", Place("embedding/patch/kernel"), kernel, back, name and f"{name}.weight"),
        vector(rf"(?:{pattern})\.bias", "embedding/patch/bias", name and f"{name}.bias"),
    )


def tokens(pattern: str, path: str, name: str = "", row: int | None = None) -> Rule:
    """Learned tokens `[1, n, dim]`, `[n, dim]` or `[dim]` -> `[n, dim]`, or one row of a leaf that several tokens share."""
    if row is None:
        return single(pattern, Place(path), lambda a, c: a.reshape(-1, a.shape[-1]), lambda a, c: a[None], name)
    return single(pattern, Place(path, (row,)), lambda a, c: a.reshape(a.shape[-1]), lambda a, c: a[None, None], name)


def position_table(pattern: str, name: str = "", batched: bool = True) -> Rule:
    """`[1, num_cls + rows * columns, dim]` -> positions of the class tokens, where they have one, and of the patch grid.

    Args:
        batched: whether it is written with its leading 1.
    """

    def split(a, c):
        a = a.reshape(-1, a.shape[-1])
        first = len(a) - c.position_grid[0] * c.position_grid[1]
        cls, patches = a[:first], a[first:]
        if not c.cls_position and not cls.any():  # zeros, where `join` had to write some
            cls = cls[:0]
        return [cls, patches.reshape(*c.position_grid, a.shape[-1])]

    def join(parts, c):
        cls, patches = parts
        patches = patches.reshape(-1, patches.shape[-1])
        if cls is None:
            cls = np.zeros((c.num_cls, patches.shape[-1]), patches.dtype)
        table = np.concatenate([cls, patches])
        return table[None] if batched else table

    return Rule(pattern, (Place("embedding/cls_position"), Place("embedding/patch_position")), split, join, name)


def fused_attention(weight: str, bias: str, out: str, name: str = "", out_name: str = "") -> tuple[Rule, ...]:
    """Queries, keys and values in one matrix `[3 dim, dim]`; `out` is the layer after the heads.

    Args:
        weight, bias: patterns of the whole names; out: pattern of the layer.
        name: what precedes `weight` and `bias` where this is the spelling that is written.
    """
    return (
        single(
            weight,
            Place("blocks/attn/qkv/kernel"),
            lambda a, c: a.T.reshape(a.shape[1], 3, c.num_heads, -1),
            lambda a, c: a.reshape(a.shape[0], -1).T,
            name and f"{name}weight",
        ),
        single(
            bias,
            Place("blocks/attn/qkv/bias"),
            lambda a, c: a.reshape(3, c.num_heads, -1),
            lambda a, c: a.reshape(-1),
            name and f"{name}bias",
        ),
        *_heads_out(out, out_name),
    )


def attention(parts: Sequence[str], out: str, names: Sequence[str] = ("", "", ""), out_name: str = "") -> tuple[Rule, ...]:
    """Queries, keys and values as three layers `[dim, dim]`, and the layer `out` after the heads.

    Args:
        parts, out: patterns of the three layers, and of the one after them; `names`, `out_name` what they are written as.
    """
    rules = [rule for part in range(3) for rule in _part(f"(?:{parts[part]})", part, names[part])]
    return (*rules, *_heads_out(out, out_name))


def part_bias(pattern: str, part: int) -> Rule:
    """The bias of queries (0), keys (1) or values (2) alone."""
    return _part(pattern, part, "")[1]._replace(pattern=pattern)


def _part(pattern, part, name):
    return (
        single(
            rf"{pattern}\.weight",
            Place("blocks/attn/qkv/kernel", (slice(None), part)),
            lambda a, c: a.T.reshape(a.shape[1], c.num_heads, -1),
            lambda a, c: a.reshape(a.shape[0], -1).T,
            name and f"{name}.weight",
        ),
        single(
            rf"{pattern}\.bias",
            Place("blocks/attn/qkv/bias", (part,)),
            lambda a, c: a.reshape(c.num_heads, -1),
            lambda a, c: a.reshape(-1),
            name and f"{name}.bias",
        ),
    )


def _heads_out(pattern, name):
    return (
        single(
            rf"(?:{pattern})\.weight",
            Place("blocks/attn/proj/kernel"),
            lambda a, c: a.T.reshape(c.num_heads, -1, a.shape[0]),
            lambda a, c: a.reshape(-1, a.shape[-1]).T,
            name and f"{name}.weight",
        ),
        vector(rf"(?:{pattern})\.bias", "blocks/attn/proj/bias", name and f"{name}.bias"),
    )


def _transpose(a, c):
    return a.T
