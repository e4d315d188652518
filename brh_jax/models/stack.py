"""The layers of a model one by one, in one form for every model: a ViT and its Raptors are one program, compiled once."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from brh_jax.models import layers
from brh_jax.models.raptor import DepthScaling, RaptorConfig
from brh_jax.models.vit import ViTConfig
from brh_jax.system import check_layer
from brh_jax.types import Array, Grid, Layer, Rotations, State


class LayerStack(nn.Module):
    """Layers that share nothing, x + g1 Attn(LN x), then x + g2 MLP(LN x), then times g3.

    Parameters, which `stack_layers` makes of a model's, along a leading axis of `depth`: `layer`, those of norms, attention and
    feed-forward; `gains`, `[depth, 3, dim]`; `epsilon`, `[depth]`, of the norms.
    """

    config: ViTConfig
    dtype: Any = None

    def step(self, state: State, layer: Layer, grid: Grid = None, part: str | None = None) -> State:
        """See `ViT.step`."""
        check_layer(layer, self.config.depth)
        own = jax.tree.map(lambda leaf: leaf[layer], self.variables["params"])
        rotations = self.config.rotations(state.shape[-2], grid)
        one: Any = _OneLayer(self.config, self.dtype, parent=None)
        return one.apply({"params": own["layer"]}, state, own["gains"], own["epsilon"], rotations, part)


class _OneLayer(nn.Module):
    """A layer whose gains and epsilon are arguments, since models that are otherwise alike differ in them."""

    config: ViTConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, x: State, gains: Array, epsilon: Array, rotations: Rotations | None, part: str | None) -> State:
        def branch(x, layer, index, *args):
            norm = layers.LayerNorm(epsilon=epsilon, name=f"norm{index}")
            return x + gains[index - 1].astype(x.dtype) * layer(norm(x), *args).astype(x.dtype)

        if part != "mlp":
            x = branch(x, layers.Attention(self.config.num_heads, dtype=self.dtype, name="attn"), 1, rotations)
        if part == "attention":
            return x
        return gains[2].astype(x.dtype) * branch(x, layers.Mlp(self.config.mlp_dim, self.config.mlp, self.dtype, name="mlp"), 2)


def stack_layers(config: ViTConfig | RaptorConfig, blocks: Any, dtype: Any = None) -> tuple[LayerStack, Any]:
    """The layers of a ViT or a Raptor one by one. Not of a Raptor whose blocks are applied `once`, which has none.

    Args:
        blocks: the model's parameters of that name.

    Returns:
        The module, equal for all models of one shape, and its parameters: a Raptor's blocks copied as often as they are applied.
    """
    blocks = jax.tree.map(jnp.asarray, blocks)
    if isinstance(config, RaptorConfig):
        of_layers = [blocks[f"phase_{phase + 1}"] for phase in config.partition.labels]
        blocks = jax.tree.map(lambda *leaves: _placed(jnp.stack(leaves), leaves[0], stacked=True), *of_layers)
    layer = {name: jax.tree.map(lambda leaf: _placed(leaf, leaf), blocks[name]) for name in ("norm1", "attn", "norm2", "mlp")}
    qkv = layer["attn"]["qkv"]
    if "bias" not in qkv:  # as good as one of zeros
        bias = jnp.zeros_like(qkv["kernel"][:, 0])  # laid over devices as the kernel is
        layer["attn"] = layer["attn"] | {"qkv": qkv | {"bias": bias}}
    scale = layer["norm1"]["scale"]
    precision = jnp.promote_types(scale.dtype, jnp.float32)  # depths and 1e-6 would be others in bfloat16
    ones = jnp.ones_like(scale)
    gains = jnp.stack([*(blocks[name]["scale"] if name in blocks else ones for name in ("ls1", "ls2")), ones], axis=1)
    gains = gains.astype(precision)
    if "depth_scaling" in blocks:
        gains *= _depth_gains(config.dim, blocks["depth_scaling"], gains.dtype)
    epsilon = jnp.full((config.depth,), config.layer_norm_eps, precision)
    # What the program is made of: a Raptor has its teacher's `vit`.
    alike = dataclasses.replace(config.vit, mlp=config.mlp, mlp_dim=config.mlp_dim)
    return LayerStack(alike, dtype), {"layer": layer, "gains": _placed(gains, scale), "epsilon": _placed(epsilon, scale)}


def _placed(values: jax.Array, like: jax.Array, stacked: bool = False) -> jax.Array:
    """`values` laid over devices as `like` is, or as what it is one of, and said in one way: programs are told apart by it."""
    sharding = None if isinstance(like, jax.core.Tracer) else like.sharding
    if not isinstance(sharding, NamedSharding):
        return values
    names = [*((None,) if stacked else ()), *sharding.spec]
    while names and names[-1] is None:
        names.pop()
    return jax.device_put(values, NamedSharding(sharding.mesh, PartitionSpec(*names)))


def _depth_gains(dim: int, params: Any, precision: Any) -> jax.Array:
    """What depth scales layers by, `[depth, 3, dim]`, each with its own parameters."""
    scaling: Any = DepthScaling(dim)
    depths = jnp.arange(1, len(params["fc1"]["bias"]) + 1).astype(precision)
    with jax.default_matmul_precision("highest"):
        return jnp.stack(jax.vmap(lambda own, depth: scaling.apply({"params": own}, depth))(params, depths), axis=1)
