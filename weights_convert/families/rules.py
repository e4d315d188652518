"""What a family's table is made of: rules from a source tensor to places in the Flax tree, and their transforms."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from brh_jax.data.transforms import Preprocessing
from brh_jax.models.vit import ViTConfig


class Target(NamedTuple):
    """A place in the Flax tree.

    Attributes:
        path: such as `blocks/attn/qkv/kernel`; paths under `blocks` get the rule's layer as first index.
        transform: `(array, config) -> array` of the place's shape.
        index: further index into the leaf, where several source tensors share it (queries, keys and values).
    """

    path: str
    transform: Callable
    index: tuple = ()


class Rule(NamedTuple):
    """A regular expression on the whole name (group `layer` = the block's number) and the places its tensor fills.

    A rule without targets says that the tensor is known and not needed; `why` tells the reason.
    """

    pattern: str
    targets: tuple[Target, ...]
    why: str = ""

    def match(self, name: str) -> re.Match | None:
        return re.fullmatch(self.pattern, name)


class Family(NamedTuple):
    """A family of models.

    Attributes:
        name: for people.
        model_types: `model_type` in transformers' config.json.
        recognises: whether bare tensor names are this family's.
        config: `(shapes, config.json or None) -> (ViTConfig, what had to be assumed)`.
        preprocessing: `(config, tensor names) -> Preprocessing`, where the source has no preprocessor config.
        rules: the table.
    """

    name: str
    model_types: tuple[str, ...]
    recognises: Callable[[set[str]], bool]
    config: Callable[[dict, dict | None], tuple[ViTConfig, list[str]]]
    preprocessing: Callable[[ViTConfig, dict], Preprocessing]
    rules: tuple[Rule, ...]


def unused(pattern: str, why: str) -> Rule:
    """A tensor that is known and not needed."""
    return Rule(pattern, (), why)


def vector(pattern: str, path: str) -> Rule:
    """A tensor taken over as it is."""
    return Rule(pattern, (Target(path, lambda a, c: a),))


def norm(pattern: str, path: str) -> tuple[Rule, Rule]:
    """LayerNorm: weight, bias -> scale, bias."""
    return vector(rf"{pattern}\.weight", f"{path}/scale"), vector(rf"{pattern}\.bias", f"{path}/bias")


def linear(pattern: str, path: str, parts: int = 1) -> tuple[Rule, Rule]:
    """A linear layer, weight `[out, in]` -> kernel `[in, out]`; `parts` > 1 splits the outputs, `[in, parts, out / parts]`."""

    def kernel(a, c):
        return a.T if parts == 1 else a.T.reshape(a.shape[1], parts, -1)

    def bias(a, c):
        return a if parts == 1 else a.reshape(parts, -1)

    return (
        Rule(rf"{pattern}\.weight", (Target(f"{path}/kernel", kernel),)),
        Rule(rf"{pattern}\.bias", (Target(f"{path}/bias", bias),)),
    )


PATCH = r"(?:embeddings\.patch_embeddings\.projection|patch_embed\.proj)"
POSITION = r"embeddings\.position_embeddings|pos_embed"


def patch_projection(pattern: str) -> tuple[Rule, Rule]:
    """A strided convolution `[dim, channels, p, p]` -> a matrix on flattened patches `[p p channels, dim]`."""

    def kernel(a, c):
        return a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0])

    return (
        Rule(rf"{pattern}\.weight", (Target("embedding/patch/kernel", kernel),)),
        vector(rf"{pattern}\.bias", "embedding/patch/bias"),
    )


def tokens(pattern: str, path: str, first: int | None = None) -> Rule:
    """Learned tokens `[1, n, dim]` -> `[n, dim]`, or row `first` of a shared leaf."""
    if first is None:
        return Rule(pattern, (Target(path, lambda a, c: a[0]),))
    return Rule(pattern, (Target(path, lambda a, c: a[0, 0], (first,)),))


def position_table(pattern: str) -> Rule:
    """`[1, num_cls + rows * columns, dim]` -> positions of the class tokens and of the patch grid."""

    def cls(a, c):
        return a[0, : c.num_cls]

    def patches(a, c):
        return a[0, c.num_cls :].reshape(*c.position_grid, a.shape[-1])

    return Rule(pattern, (Target("embedding/cls_position", cls), Target("embedding/patch_position", patches)))


def attention(block: str) -> tuple[Rule, ...]:
    """Attention of the block that the pattern `block` matches, -> the fused `qkv` and `proj`.

    transformers: three projections `[dim, dim]`, `attention.attention.query` or, newer, `attention.q_proj`, and
    `attention.output.dense` or `attention.o_proj`. DINOv2's, DeiT's and timm's own: `attn.qkv` `[3 dim, dim]` and `attn.proj`.
    """

    def part_kernel(a, c):
        return a.T.reshape(a.shape[1], c.num_heads, -1)

    def part_bias(a, c):
        return a.reshape(c.num_heads, -1)

    def fused_kernel(a, c):
        return a.T.reshape(a.shape[1], 3, c.num_heads, -1)

    def fused_bias(a, c):
        return a.reshape(3, c.num_heads, -1)

    def out_kernel(a, c):
        return a.T.reshape(c.num_heads, -1, a.shape[0])

    kernel, bias, out = "blocks/attn/qkv/kernel", "blocks/attn/qkv/bias", r"(?:attention\.(?:output\.dense|o_proj)|attn\.proj)"
    rules = [
        Rule(rf"{block}\.attn\.qkv\.weight", (Target(kernel, fused_kernel),)),
        Rule(rf"{block}\.attn\.qkv\.bias", (Target(bias, fused_bias),)),
        Rule(rf"{block}\.{out}\.weight", (Target("blocks/attn/proj/kernel", out_kernel),)),
        vector(rf"{block}\.{out}\.bias", "blocks/attn/proj/bias"),
    ]
    for part, (old, new) in enumerate((("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))):
        source = rf"{block}\.attention\.(?:attention\.{old}|{new})"
        rules.append(Rule(rf"{source}\.weight", (Target(kernel, part_kernel, (slice(None), part)),)))
        rules.append(Rule(rf"{source}\.bias", (Target(bias, part_bias, (part,)),)))
    return tuple(rules)


def square_grid(positions: int, shape) -> tuple[int, int]:
    """Side of a square position table, from its number of patch positions."""
    side = int(np.sqrt(max(positions, 0)) + 0.5)
    if side * side != positions or not side:
        raise ValueError(f"a position table {tuple(shape)} is not a square grid of patches after its class tokens")
    return side, side


def find_shape(shapes: dict[str, tuple], pattern: str) -> tuple | None:
    """Shape of the first tensor whose whole name matches."""
    return next((shape for name, shape in shapes.items() if re.fullmatch(pattern, name)), None)


def need_shape(shapes: dict[str, tuple], pattern: str, what: str) -> tuple:
    """`find_shape`; ValueError naming what is missing where nothing matches."""
    shape = find_shape(shapes, pattern)
    if shape is None:
        raise ValueError(f"it has no {what}")
    return shape


def count_layers(shapes: dict[str, tuple], pattern: str) -> int:
    """One more than the largest block number that the pattern's group `layer` finds."""
    found = [int(m["layer"]) for name in shapes if (m := re.match(pattern, name))]
    return max(found) + 1 if found else 0
