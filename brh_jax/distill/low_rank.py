"""Layers of few parameters that need not be the same, from a teacher's own weights: W_l = S of its phase + A_l B_l.

Between a ViT and its Raptor. Without S every layer is by itself and of rank r: what a depth that is compressible, recurrent or
not, can be squeezed to. With S the layers of a phase share a matrix, from which each departs by rank r (relaxed sharing; Bae et
al., 2024). At full rank, the teacher itself is left.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from brh_jax.errors import UserError
from brh_jax.models.encoder import Encoder
from brh_jax.models.layers import KERNELS, Dense
from brh_jax.models.raptor import RaptorBlock, RaptorConfig
from brh_jax.partition import Partition
from brh_jax.tokens import TokenLayout
from brh_jax.types import Array, Trajectory


def unrolled(teacher: Encoder) -> tuple[RaptorConfig, Any]:
    """A ViT as a Raptor that shares nothing: its architecture, each layer a phase, and the ViT's own weights as its blocks.

    Raises:
        UserError: the teacher is a Raptor.
    """
    vit = teacher.config
    if vit.kind != "vit":
        raise UserError(f"{teacher.name} is a Raptor: expected a ViT, whose layers have weights of their own")
    partition = Partition((1,) * vit.depth)
    config = RaptorConfig(
        vit.vit,
        partition,
        mlp=vit.mlp,
        mlp_dim=vit.mlp_dim,
        depth_scaling=False,
        layer_norm_eps=vit.vit.layer_norm_eps,
        layer_scale_init=1.0,
    )
    stacked = jax.tree.map(lambda leaf: leaf, teacher.params["blocks"])  # dictionaries of our own
    # What a Raptor's blocks have and a ViT may lack: biases of queries, keys and values, and gains.
    kernel = stacked["attn"]["qkv"]["kernel"]
    stacked["attn"]["qkv"].setdefault("bias", np.zeros((config.depth, *kernel.shape[2:]), kernel.dtype))
    for name in ("ls1", "ls2"):
        stacked.setdefault(name, {"scale": np.ones((config.depth, config.dim), kernel.dtype)})
    return config, _by_phase(stacked, config.depth)


@dataclasses.dataclass(frozen=True)
class LowRank:
    """How the blocks of an `unrolled` ViT are made of fewer parameters.

    These are `a` and `b`, factors of each kernel, `[depth, ..., inputs, rank]` and `[depth, ..., rank, outputs]`, where queries,
    keys and values have factors each; `vectors`, the norms, biases and gains of every layer; and, where phases share matrices,
    `shared`, `[k, ...]` of each kernel.

    Attributes:
        config: of the blocks that come out.
        rank: of A_l B_l.
        partition: the layers that share a matrix; None where none do.
    """

    config: RaptorConfig
    rank: int
    partition: Partition | None = None

    def __post_init__(self):
        if not 1 <= self.rank <= self.config.dim:
            raise UserError(f"rank is {self.rank}: expected 1 to {self.config.dim}, the width of a token")

    def start(self, blocks: Any, moments: dict[tuple, np.ndarray]) -> Any:
        """Parameters whose A_l B_l is nearest to the blocks' own kernels on what these read; S begins as zero.

        Args:
            blocks: of `unrolled`.
            moments: of `input_moments`.
        """
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks.values())
        params: dict[str, dict] = {"a": {}, "b": {}, "vectors": {}, "shared": {}}
        for path, leaf in flatten_dict(stacked).items():
            if path not in KERNELS:
                params["vectors"][path] = leaf
                continue
            pairs = [
                _nearest(_matrices(kernel, path), moment, self.rank) for kernel, moment in zip(leaf, moments[path], strict=True)
            ]
            params["a"][path], params["b"][path] = (np.stack(factors) for factors in zip(*pairs, strict=True))
            if self.partition is not None:
                params["shared"][path] = np.zeros((self.partition.k, *leaf.shape[1:]), leaf.dtype)
        return {name: unflatten_dict(tree) for name, tree in params.items() if tree}

    def blocks(self, params: Any) -> Any:
        """The blocks that the parameters stand for; a Raptor of `config` runs them as any others."""
        flat = {name: flatten_dict(tree) for name, tree in params.items()}
        stacked = dict(flat["vectors"])
        for path, a in flat["a"].items():
            stacked[path] = jax.vmap(lambda m, path=path: _kernel(m, path, self.config))(a @ flat["b"][path])
            if self.partition is not None:
                stacked[path] += flat["shared"][path][np.asarray(self.partition.labels)]
        return _by_phase(unflatten_dict(stacked), self.config.depth)


def input_moments(
    config: RaptorConfig, blocks: Any, trajectories: Iterable[Trajectory], layout: TokenLayout
) -> dict[tuple, np.ndarray]:
    """Second moments of what each kernel of a ViT's layers reads, E[x xᵀ] over images and tokens.

    Args:
        config, blocks: of `unrolled`.
        trajectories: the teacher's, `[depth + 1, batch, tokens, dim]` each.

    Returns:
        a kernel's place in its block -> `[depth, inputs, inputs]`.
    """
    rotations = config.teacher.rotations(layout.num_tokens, layout.grid)

    def of_layer(params: Any, state: Array) -> dict[tuple, jax.Array]:
        moments = {}

        def watch(call, args, kwargs, context):
            if isinstance(context.module, Dense):
                path = (*context.module.path[-2:], "kernel")
                rows = args[0].reshape(-1, _inputs(path, config))
                moments[path] = rows.T @ rows / len(rows)
            return call(*args, **kwargs)

        with nn.intercept_methods(watch):
            RaptorBlock(config).apply({"params": params}, state, 1, rotations)
        return moments

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks.values())
    every = jax.jit(jax.vmap(of_layer))
    found = [jax.device_get(every(stacked, states[:-1])) for states in trajectories]
    return {path: np.stack([moments[path] for moments in found]).mean(0, np.float64) for path in found[0]}


def _nearest(matrices: np.ndarray, moment: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A `[..., inputs, rank]` and B `[..., rank, outputs]` with the least E|x (W - A B)|² for rows x of that second moment."""
    # With R Rᵀ = E[x xᵀ], it is |Rᵀ (W - A B)|²: the truncated singular values of Rᵀ W (Eckart and Young).
    damped = moment + 1e-6 * np.trace(moment) / len(moment) * np.eye(len(moment))
    root = np.linalg.cholesky(damped)
    u, s, v = np.linalg.svd(root.T @ matrices.astype(np.float64), full_matrices=False)
    sizes = np.sqrt(s[..., :rank])
    a = np.linalg.solve(root.T, u[..., :rank] * sizes[..., None, :])
    b = sizes[..., None] * v[..., :rank, :]
    return a.astype(matrices.dtype), b.astype(matrices.dtype)


def _inputs(path: tuple, config: RaptorConfig) -> int:
    return config.mlp_dim if path[-2] == "fc2" else config.dim


def _matrices(kernel: np.ndarray, path: tuple) -> np.ndarray:
    """A kernel as a matrix, or as several side by side: `[..., inputs, outputs]`."""
    inputs, outputs = (tuple(axis % kernel.ndim for axis in axes) for axes in KERNELS[path])
    beside = [axis for axis in range(kernel.ndim) if axis not in inputs + outputs]
    sizes = [kernel.shape[axis] for axis in beside]
    return kernel.transpose(*beside, *inputs, *outputs).reshape(*sizes, math.prod(kernel.shape[i] for i in inputs), -1)


def _kernel(matrices: jax.Array, path: tuple, config: RaptorConfig) -> jax.Array:
    """What `_matrices` undoes: the kernel of a block's layer from its matrices."""
    heads = (config.teacher.num_heads, config.dim // config.teacher.num_heads)
    if path[-2] == "proj":
        return matrices.reshape(*heads, config.dim)
    if matrices.ndim == 2:
        return matrices
    beside_second = jnp.moveaxis(matrices, 0, 1)  # [inputs, q k v or gate and value, outputs]
    return beside_second.reshape(*beside_second.shape[:2], *heads) if path[-2] == "qkv" else beside_second


def _by_phase(stacked: Any, depth: int) -> dict[str, Any]:
    return {f"phase_{layer + 1}": jax.tree.map(lambda leaf, i=layer: leaf[i], stacked) for layer in range(depth)}
