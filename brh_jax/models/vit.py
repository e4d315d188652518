"""ViT: embed -> one nn.scan over unshared blocks -> norm, returning every state on the way."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from brh_jax.errors import UserError, expect, expect_whole, is_number
from brh_jax.models import layers, position, rotary
from brh_jax.models.remat import rematerialize
from brh_jax.system import check_layer
from brh_jax.tokens import TokenLayout
from brh_jax.types import AttentionWeights, Grid, Images, Layer, Rotations, State, States, Trajectory


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The architecture of a ViT.

    Attributes:
        dim, depth, num_heads, mlp_dim: width, number of blocks, attention heads, hidden width of the feed-forward layer.
        patch_size: side of a patch in pixels.
        position_grid: (rows, columns) of the position table; other image sizes resample it. None without a table.
        mlp: a key of `layers.MLP_KINDS`.
        num_cls, num_registers: tokens before the patches. Registers carry no position.
        cls_position: whether class tokens carry a position of their own (with a table).
        rope_periods: periods of the rotary embedding of patches, head_dim / 4 of them; None without (see `rotary`).
        pre_norm: whether the embedded tokens go through a LayerNorm before the first block (CLIP).
        layer_scale: whether residual branches carry a learned gain.
        qkv_bias: whether queries, keys and values have a bias.
        channels: of the images.
        layer_norm_eps: epsilon of every LayerNorm (DINOv2 1e-6, transformers' ViT 1e-12).
        drop_remainder: whether pixels beyond whole patches, right and below, are left out (SigLIP so400m at 384 px) or refused.
        position_resampling: a key of `position.RESAMPLINGS`.
        drop_path: probability of stochastic depth in training, the same at every depth.
    """

    dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int
    position_grid: tuple[int, int] | None
    mlp: str = "gelu"
    num_cls: int = 1
    num_registers: int = 0
    cls_position: bool = True
    rope_periods: tuple[float, ...] | None = None
    pre_norm: bool = False
    layer_scale: bool = False
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    drop_remainder: bool = False
    position_resampling: str = "cubic"
    drop_path: float = 0.0
    channels: int = 3

    @classmethod
    def read(cls, about: dict[str, Any]) -> "ViTConfig":
        """The architecture that JSON keeps, which has lists for tuples. Raises TypeError for a field that is none."""
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in about.items()}
        return cls(**fields)

    def __post_init__(self):
        for field in ("position_grid", "rope_periods"):
            value = getattr(self, field)
            object.__setattr__(self, field, None if value is None else tuple(value))
        self._check_numbers()
        if self.dim % self.num_heads:
            raise UserError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        if self.rope_periods is not None and 4 * len(self.rope_periods) * self.num_heads != self.dim:
            raise UserError(
                f"{len(self.rope_periods)} rope_periods for heads of width {self.dim // self.num_heads}: expected a quarter of it"
            )
        if self.mlp not in layers.MLP_KINDS:
            raise UserError(f"unknown mlp {self.mlp!r}: expected one of {', '.join(layers.MLP_KINDS)}")
        if self.position_resampling not in position.RESAMPLINGS:
            raise UserError(
                f"unknown position_resampling {self.position_resampling!r}: expected one of " + ", ".join(position.RESAMPLINGS)
            )

    def _check_numbers(self) -> None:
        expect_whole(self, 1, "dim", "depth", "num_heads", "mlp_dim", "patch_size", "channels")
        expect_whole(self, 0, "num_cls", "num_registers")
        eps, grid, periods = self.layer_norm_eps, self.position_grid, self.rope_periods
        expect(is_number(eps) and eps > 0, "layer_norm_eps", eps, "a positive number")
        expect(is_number(self.drop_path) and 0 <= self.drop_path < 1, "drop_path", self.drop_path, "0 or more, below 1")
        whole = grid is None or (len(grid) == 2 and all(is_number(n) and n == int(n) > 0 for n in grid))
        expect(whole, "position_grid", grid, "(rows, columns) of 1 or more, or None")
        positive = periods is None or all(is_number(period) and period > 0 for period in periods)
        expect(positive, "rope_periods", periods, "positive numbers, or None")

    @property
    def kind(self) -> str:
        """What a folder of weights calls it."""
        return "vit"

    @property
    def vit(self) -> "ViTConfig":
        """The architecture whose embedding, tokens and final norm the model has: its own."""
        return self

    @property
    def applications(self) -> int:
        """How many times a block is applied to an image."""
        return self.depth

    def module(self, dtype: Any = None, **options) -> "ViT":
        """The flax module; options are its attributes."""
        return ViT(self, dtype, **options)

    def layout(self, height: int, width: int) -> TokenLayout:
        """The tokens of an image of height x width pixels.

        Raises:
            UserError: the size is not a multiple of the patch.
        """
        p = self.patch_size
        if height < p or width < p or (not self.drop_remainder and (height % p or width % p)):

            def near(n):
                return max(p, round(n / p) * p)

            raise UserError(
                f"image size {height} x {width} is not a multiple of the patch size {p}: "
                f"use for example {near(height)} x {near(width)}"
            )
        return TokenLayout(self.num_cls, self.num_registers, (height // p, width // p))

    def rotations(self, num_tokens: int, grid: Grid) -> Rotations | None:
        """What attention turns the patches by; None where the model has no rotary embedding.

        Args:
            num_tokens: of the state.
            grid: its (rows, columns) of patches; None for a square.

        Raises:
            ValueError: the patches do not make up the grid.
        """
        if self.rope_periods is None:
            return None
        patches = num_tokens - self.num_cls - self.num_registers
        grid = grid or (math.isqrt(max(patches, 0)),) * 2
        if grid[0] * grid[1] != patches:
            raise ValueError(
                f"a state of {num_tokens} tokens has {patches} patches, which are no {grid[0]} x {grid[1]} grid: this model "
                "needs to know where patches lie, use encoder.at_size((height, width)) of the images that the states come from"
            )
        return rotary.rotations(self.rope_periods, grid)


class Embedding(nn.Module):
    """Patch projection, class and register tokens, position table, norm where there is one: images to a_0."""

    config: ViTConfig
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Images) -> State:
        """[batch, height, width, channels] -> [batch, tokens, dim]."""
        cfg = self.config
        batch, height, width, channels = images.shape
        rows, columns = cfg.layout(height, width).grid
        p = cfg.patch_size
        # Of the patches' own size: with the usual 0.02 a small ViT takes long to tell places apart.
        init = nn.initializers.normal(cfg.dim**-0.5)

        patches = images[:, : rows * p, : columns * p].reshape(batch, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(batch, rows * columns, p * p * channels)
        kernel_init = layers.named(nn.initializers.lecun_normal(), None, "embed")
        patches = nn.Dense(cfg.dim, dtype=self.dtype, kernel_init=kernel_init, name="patch")(patches)
        # The residual stream starts here, in the precision of the parameters.
        patches = patches.astype(self.get_variable("params", "patch")["bias"].dtype)
        if cfg.position_grid is not None:
            named = layers.named(init, None, None, "embed")
            table = self.param("patch_position", named, (*cfg.position_grid, cfg.dim), jnp.float32)
            patches += position.resample(table, (rows, columns), cfg.position_resampling).reshape(1, rows * columns, cfg.dim)

        tokens = []
        if cfg.num_cls:
            tokens.append(self.param("cls_token", init, (cfg.num_cls, cfg.dim), jnp.float32))
            if cfg.position_grid is not None and cfg.cls_position:
                tokens[0] += self.param("cls_position", init, (cfg.num_cls, cfg.dim), jnp.float32)
        if cfg.num_registers:
            tokens.append(self.param("register_tokens", init, (cfg.num_registers, cfg.dim), jnp.float32))
        tokens = [jnp.broadcast_to(t, (batch, *t.shape)) for t in tokens]
        state = jnp.concatenate([*tokens, patches], axis=1)
        return layers.LayerNorm(epsilon=cfg.layer_norm_eps, name="pre_norm")(state) if cfg.pre_norm else state


class Block(nn.Module):
    """A pre-norm transformer block: x + ls1 Attn(LN x), then x + ls2 MLP(LN x)."""

    config: ViTConfig
    dtype: Any = None
    fused: bool = False

    @nn.compact
    def __call__(
        self, x: State, deterministic: bool = True, rotations: Rotations | None = None, part: str | None = None
    ) -> State:
        """[batch, tokens, dim] -> [batch, tokens, dim]; `part` is "attention" or "mlp" for one half alone."""
        cfg = self.config

        def branch(x, layer, index, *args):
            out = layer(layers.LayerNorm(epsilon=cfg.layer_norm_eps, name=f"norm{index}")(x), *args).astype(x.dtype)
            if cfg.layer_scale:
                out = layers.LayerScale(1e-5, name=f"ls{index}")(out)
            return x + layers.DropPath(cfg.drop_path, name=f"drop_path{index}")(out, deterministic)

        if part != "mlp":
            x = branch(x, layers.Attention(cfg.num_heads, cfg.qkv_bias, self.dtype, self.fused, name="attn"), 1, rotations)
        if part != "attention":
            x = branch(x, layers.Mlp(cfg.mlp_dim, cfg.mlp, self.dtype, self.fused, name="mlp"), 2)
        return x


class ViT(nn.Module):
    """A vision transformer that hands back its whole trajectory.

    Parameters: `embedding`, `blocks` (stacked along a leading axis of `depth`), `norm`.

    Attributes:
        config: the architecture.
        dtype: precision of the matrix products (None: that of the parameters). The residual stream keeps the parameters'.
        remat: what the backward pass keeps, one of `remat.NAMES`.
        fused: see `layers.Attention`.
    """

    config: ViTConfig
    dtype: Any = None
    remat: str = "none"
    fused: bool = False

    def setup(self):
        self.embedding = Embedding(self.config, self.dtype)
        self.blocks = Block(self.config, self.dtype, self.fused)
        self.norm = layers.LayerNorm(epsilon=self.config.layer_norm_eps)

    def __call__(self, images: Images, deterministic: bool = True) -> Trajectory:
        """Images to a trajectory, `[batch, height, width, channels] -> [depth + 1, batch, tokens, dim]`; no final norm."""
        grid = self.config.layout(*images.shape[1:3]).grid
        states = self.rollout(self.embed(images), deterministic, grid)
        if self.is_initializing():
            self.norm(states[-1])
        return states

    def embed(self, images: Images) -> State:
        """a_0 of the images, `[batch, tokens, dim]`."""
        return self.embedding(images)

    def rollout(self, state: State, deterministic: bool = True, grid: Grid = None) -> Trajectory:
        """The trajectory from a_0, `[batch, tokens, dim] -> [depth + 1, batch, tokens, dim]`.

        Args:
            grid: (rows, columns) of the state's patches, where the model has a rotary embedding; None for a square.
        """
        rotations = self.config.rotations(state.shape[-2], grid)

        def body(block, x, _):
            x = block(x, deterministic, rotations)
            return x, x

        scan = nn.scan(
            rematerialize(body, self.remat, self.dtype),
            variable_axes={"params": 0},
            split_rngs={"params": True, "drop_path": True},
            length=self.config.depth,
            metadata_params={nn.PARTITION_NAME: None},
        )
        _, outputs = scan(self.blocks, state, None)
        return jnp.concatenate([state[None], outputs])

    def step(self, state: State, layer: Layer, grid: Grid = None, part: str | None = None) -> State:
        """Layer `layer` (from 0, may be traced) applied to a state: a_layer -> a_{layer + 1}; `grid` as in `rollout`.

        Args:
            part: "attention" or "mlp" for one half of the layer; None for both.

        Raises:
            ValueError: no such layer. A traced one is not checked: jax takes the nearest that there is.
        """
        return self._layer(state, layer, grid, part)

    def attention(self, state: State, layer: Layer, grid: Grid = None) -> AttentionWeights:
        """Attention weights of layer `layer` in the state that enters it, `[batch, heads, tokens, tokens]`.

        Arguments and errors as of `step`.
        """
        _, seen = self._layer(state, layer, grid, "attention", mutable=["intermediates"])
        return seen["intermediates"]["attn"]["weights"][0]

    def _layer(self, state, layer, grid, part, **options):
        check_layer(layer, self.config.depth)
        params = jax.tree.map(lambda p: p[layer], self.variables["params"]["blocks"])
        rotations = self.config.rotations(state.shape[-2], grid)
        block: Any = Block(self.config, self.dtype, parent=None)
        return block.apply({"params": params}, state, rotations=rotations, part=part, **options)

    def normalize(self, states: States) -> States:
        """The final LayerNorm, on states of any leading shape."""
        return self.norm(states)
