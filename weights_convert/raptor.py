"""Raptors as bare state dicts, in the names of the paper's authors: `blocks.0.attn.in_proj_weight`, `blocks.0.t_proj.2.bias`.

Their blocks are torch modules with LayerNorm epsilon 1e-5. A state dict holds the blocks alone: embedding, norm and the
number of heads are the teacher's, and the partition is not in it.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from brh_jax.errors import UserError
from brh_jax.models.encoder import Encoder, init_params
from brh_jax.models.raptor import Blocks, RaptorConfig
from brh_jax.models.vit import ViTConfig
from brh_jax.partition import Partition
from brh_jax.preprocessing import Preprocessing
from weights_convert.families.rules import Place, first_layer, fused_attention, linear, norm, vector
from weights_convert.sources import Source
from weights_convert.table import fill

B = r"blocks\.(?P<layer>\d+)"
NAME = "blocks.{layer}"
RULES = (
    *norm(rf"{B}\.norm1", "blocks/norm1", f"{NAME}.norm1"),
    *fused_attention(
        rf"{B}\.attn\.in_proj_weight",
        rf"{B}\.attn\.in_proj_bias",
        rf"{B}\.attn\.out_proj",
        f"{NAME}.attn.in_proj_",
        f"{NAME}.attn.out_proj",
    ),
    vector(rf"{B}\.ls1\.gamma", "blocks/ls1/scale", f"{NAME}.ls1.gamma"),
    *norm(rf"{B}\.norm2", "blocks/norm2", f"{NAME}.norm2"),
    *first_layer(rf"{B}\.mlp\.0", f"{NAME}.mlp.0"),
    *linear(rf"{B}\.mlp\.2", "blocks/mlp/fc2", f"{NAME}.mlp.2"),
    vector(rf"{B}\.ls2\.gamma", "blocks/ls2/scale", f"{NAME}.ls2.gamma"),
    *linear(rf"{B}\.t_proj\.0", "blocks/depth_scaling/fc1", f"{NAME}.t_proj.0"),
    *linear(rf"{B}\.t_proj\.2", "blocks/depth_scaling/fc2", f"{NAME}.t_proj.2"),
)
ANCHOR = r"(?P<prefix>(?:.*\.)?)blocks\.0\.attn\.in_proj_weight"
EPSILON = 1e-5
# The authors' files are named after the variant, whose thresholds are fixed in their code (for 12 layers).
PUBLISHED = {"raptor2": (7, 5), "raptor3": (7, 3, 2), "raptor4": (4, 3, 3, 2)}


def locate(place: Place, match: re.Match | dict) -> tuple[str, tuple]:
    """Blocks are trees of their own, `phase_1` ..."""
    if not place.path.startswith("blocks/"):
        return place
    return f"blocks/phase_{int(match['layer']) + 1}/{place.path.removeprefix('blocks/')}", place.index


def recognises(source: Source) -> bool:
    """Whether the tensors are a Raptor's blocks and nothing of a ViT."""
    return _prefix(source) is not None


def _prefix(source: Source) -> str | None:
    found = [m["prefix"] for name in source.tensors if (m := re.fullmatch(ANCHOR, name))]
    if len(found) != 1 or any("patch_embed" in name or "conv1" in name for name in source.tensors):
        return None
    return found[0]


def read(
    source: Source, partition: Partition | Sequence[int] | None, num_heads: int | None, dtype: DTypeLike
) -> tuple[Encoder, list[str]]:
    """The blocks as an Encoder without embedding and norm; `with_teacher` gives it those.

    Raises:
        UserError: no partition where the file name does not tell, or one that does not fit; faults of the tensors.
    """
    prefix, assumed = _prefix(source) or "", list[str]()
    names = {name.removeprefix(prefix): name for name in source.tensors}
    shapes = {short: source.tensors[full].shape for short, full in names.items()}
    k = 1 + max(int(m["layer"]) for name in shapes if (m := re.match(B, name)))
    partition = _partition(source.origin, partition, k, assumed)
    dim = shapes["blocks.0.attn.in_proj_weight"][1]
    if num_heads is None:
        num_heads = max(dim // 64, 1)
        assumed.append(f"{num_heads} heads of width {dim // num_heads}, as DINOv2 has; num_heads= says otherwise")
    hidden = shapes.get("blocks.0.mlp.2.weight", (dim, 4 * dim))[1]
    gated = shapes.get("blocks.0.mlp.0.weight", (hidden,))[0] == 2 * hidden
    assumed.append("1 cls + 4 registers + 16 x 16 patches, a DINOv2 with registers at 224 px; teacher= says otherwise")
    assumed.append(f"LayerNorm epsilon {EPSILON:g}, as the authors' block has")
    teacher = ViTConfig(
        dim=dim,
        depth=partition.depth,
        num_heads=num_heads,
        mlp_dim=hidden,
        mlp="swiglu" if gated else "gelu",
        patch_size=14,
        position_grid=(37, 37),
        num_registers=4,
        layer_scale=True,
        position_resampling="cubic-antialias",
    )
    config = RaptorConfig(
        teacher,
        partition,
        mlp=teacher.mlp,
        mlp_dim=hidden,
        depth_scaling=any(".t_proj." in name for name in shapes),
        layer_norm_eps=EPSILON,
    )
    tree, _, _ = fill(
        source, names, RULES, wanted_shapes(config), teacher, dtype, locate=locate, about=f"a Raptor of {partition}"
    )
    return Encoder(config, tree, Preprocessing((224, 224), 256), name=re.sub(r"\.\w+$", "", source.files[0].name)), assumed


def _partition(origin: str, given, k: int, assumed: list[str]) -> Partition:
    if given is None:
        named = [lengths for name, lengths in PUBLISHED.items() if name in origin.rpartition("/")[2] and len(lengths) == k]
        if not named:
            raise UserError(
                f"{origin} holds the {k} blocks of a Raptor, but not which layers each stands for: give the number of layers of "
                "each phase, for example partition=(7, 3, 2), on the command line --partition=7,3,2"
            )
        given = named[0]
        assumed.append(f"partition {Partition(given)} of the published {k}-block Raptors, from the file's name")
    partition = given if isinstance(given, Partition) else Partition(tuple(int(n) for n in given))
    if partition.k != k:
        raise UserError(f"{origin} holds {k} blocks, the partition {partition} has {partition.k} phases")
    return partition


def wanted_shapes(config: RaptorConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the blocks, by path."""
    state = jax.ShapeDtypeStruct((1, config.teacher.num_cls + config.teacher.num_registers + 1, config.dim), jnp.float32)
    shapes = jax.eval_shape(
        lambda key, x: init_params(Blocks(config), key, x, (1, 1), method="rollout"), jax.random.key(0), state
    )
    return {f"blocks/{path}": leaf.shape for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}


def with_teacher(encoder: Encoder, teacher: Encoder) -> Encoder:
    """A Raptor with the embedding, norm, heads and image size of its teacher.

    Raises:
        UserError: a teacher of another width or depth.
    """
    if teacher.config.kind != "vit":
        raise UserError(f"the teacher {teacher.name} is a Raptor: expected the ViT that it was distilled from")
    ours, theirs = (encoder.dim, encoder.depth), (teacher.dim, teacher.depth)
    if ours != theirs:
        raise UserError(
            f"{encoder.name} has width {ours[0]} and {ours[1]} layers, its teacher {teacher.name} {theirs[0]} and {theirs[1]}: "
            "give the ViT that it was distilled from, and a partition of its depth"
        )
    blocks = encoder.params["blocks"]
    if encoder.config.teacher.num_heads != teacher.config.num_heads:
        blocks = jax.tree_util.tree_map_with_path(lambda path, leaf: _reheaded(path, leaf, teacher.config.num_heads), blocks)
    params = {"embedding": teacher.params["embedding"], "blocks": blocks, "norm": teacher.params["norm"]}
    raptor: Any = encoder.config
    config = dataclasses.replace(raptor, teacher=teacher.config)
    head = {"head": teacher.head, "head_reads": teacher.head_reads, "classes": teacher.classes}
    return encoder.replace(config=config, params=params, preprocessing=teacher.preprocessing, **head)


def _reheaded(path, leaf, heads: int):
    """Attention's parameters cut into another number of heads: the matrices are the same."""
    keys = [entry.key for entry in path]
    if "qkv" in keys:
        return leaf.reshape(*leaf.shape[:-2], heads, -1)
    if "proj" in keys and keys[-1] == "kernel":
        return np.reshape(leaf, (heads, -1, leaf.shape[-1]))
    return leaf
