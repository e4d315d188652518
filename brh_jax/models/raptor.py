"""Raptor: a ViT's depth as k shared blocks applied recurrently (paper, section 3)."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from brh_jax.errors import UserError, expect, expect_whole, is_number
from brh_jax.models import layers
from brh_jax.models.remat import rematerialize
from brh_jax.models.vit import Embedding, ViTConfig
from brh_jax.partition import Partition, Run
from brh_jax.system import check_layer
from brh_jax.tokens import TokenLayout
from brh_jax.types import Array, AttentionWeights, Grid, Images, Layer, Outputs, RandomKey, Rotations, State, States, Trajectory


@dataclasses.dataclass(frozen=True)
class RaptorConfig:
    """The architecture of a Raptor.

    Attributes:
        teacher: architecture of the ViT it stands for; width, heads, embedding and final norm are the teacher's.
        partition: which layers share which block.
        mlp, mlp_dim: feed-forward layer of the blocks. SwiGLU of the same hidden width costs half as much again as GELU.
        depth_scaling: whether branches and output are scaled by a function of depth.
        layer_norm_eps, layer_scale_init: of the shared blocks.
        once: a control that shares nothing over depth: each block is applied once, and produces the last state of its phase. The
            layers of the phase before that hold the same state; it stands for them no more than it is trained to.
    """

    teacher: ViTConfig
    partition: Partition
    mlp: str = "swiglu"
    mlp_dim: int = 0
    depth_scaling: bool = True
    layer_norm_eps: float = 1e-5
    layer_scale_init: float = 1e-5
    once: bool = False

    def __post_init__(self):
        if self.once and not self.partition.contiguous:
            raise UserError(f"blocks that are applied once need phases of consecutive layers, got {self.partition}")
        if self.mlp not in layers.MLP_KINDS:
            raise UserError(f"unknown mlp {self.mlp!r}: expected one of {', '.join(layers.MLP_KINDS)}")
        expect_whole(self, 0, "mlp_dim")
        for name in ("layer_norm_eps", "layer_scale_init"):
            value = getattr(self, name)
            expect(is_number(value) and value > 0, name, value, "a positive number")
        if not self.mlp_dim:
            object.__setattr__(self, "mlp_dim", 4 * self.teacher.dim)
        if self.partition.depth != self.teacher.depth:
            raise UserError(
                f"the partition {self.partition} covers {self.partition.depth} layers, the teacher has {self.teacher.depth}"
            )

    @property
    def kind(self) -> str:
        """What a folder of weights calls it."""
        return "raptor"

    @property
    def vit(self) -> ViTConfig:
        """The architecture whose embedding, tokens and final norm the model has: its teacher's."""
        return self.teacher

    def module(self, dtype: Any = None, **options) -> "Raptor":
        """The flax module; options are its attributes."""
        return Raptor(self, dtype, **options)

    @property
    def depth(self) -> int:
        return self.teacher.depth

    @property
    def dim(self) -> int:
        return self.teacher.dim

    @property
    def applications(self) -> int:
        """How many times a block is applied to an image."""
        return self.partition.k if self.once else self.depth

    @property
    def modelled(self) -> tuple[bool, ...]:
        """Which of the layers' outputs it is to reproduce."""
        ends = {run.stop - 1 for run in self.partition.runs}
        return tuple(not self.once or layer in ends for layer in range(self.depth))

    def layout(self, height: int, width: int) -> TokenLayout:
        """The tokens of an image of height x width pixels."""
        return self.teacher.layout(height, width)


class DepthScaling(nn.Module):
    """Gains of the attention branch, the MLP branch and the output, as a small MLP of depth that starts at one."""

    dim: int

    @nn.compact
    def __call__(self, depth: Array) -> list[jax.Array]:
        """depth `[...]` -> three gains `[..., dim]`."""
        hidden = nn.silu(nn.Dense(16, name="fc1")(depth[..., None]))
        small = nn.initializers.normal(1e-4)
        gains = nn.Dense(3 * self.dim, kernel_init=small, bias_init=small, name="fc2")(hidden) + 1.0
        return jnp.split(gains, 3, axis=-1)


class RaptorBlock(nn.Module):
    """The shared block: a pre-norm transformer block whose branches and output are scaled by depth."""

    config: RaptorConfig
    dtype: Any = None
    fused: bool = False

    @nn.compact
    def __call__(
        self, x: State, depth: Array | float | int, rotations: Rotations | None = None, part: str | None = None
    ) -> State:
        """One application.

        Args:
            x: `[batch, tokens, dim]`.
            depth: 1-based index of the layer being produced, a scalar or `[batch]`.
            rotations: the teacher's rotary embedding, where it has one.
            part: "attention" or "mlp" for one half alone; the output's gain goes with the second.
        """
        cfg = self.config
        scale_attn = scale_mlp = scale_out = None
        if cfg.depth_scaling:
            gains = DepthScaling(cfg.dim, name="depth_scaling")(jnp.asarray(depth, x.dtype))
            if gains[0].ndim == 2:
                gains = [g[:, None, :] for g in gains]
            scale_attn, scale_mlp, scale_out = gains

        def branch(x, layer, scale, index, *args):
            out = layer(layers.LayerNorm(epsilon=cfg.layer_norm_eps, name=f"norm{index}")(x), *args).astype(x.dtype)
            out = layers.LayerScale(cfg.layer_scale_init, name=f"ls{index}")(out)
            return x + (out if scale is None else scale * out)

        if part != "mlp":
            attention = layers.Attention(cfg.teacher.num_heads, dtype=self.dtype, fused=self.fused, name="attn")
            x = branch(x, attention, scale_attn, 1, rotations)
        if part == "attention":
            return x
        x = branch(x, layers.Mlp(cfg.mlp_dim, cfg.mlp, self.dtype, self.fused, name="mlp"), scale_mlp, 2)
        return x if scale_out is None else scale_out * x


class Noise(NamedTuple):
    """Gaussian noise on a state before every application of a block: its standard deviation, and the key it is drawn with."""

    size: float
    key: RandomKey

    def on(self, state: State, depth: Layer) -> State:
        """The state that the layer `depth` (from 1) starts from."""
        return state + self.size * jax.random.normal(jax.random.fold_in(self.key, depth), state.shape, state.dtype)


class Restarts(NamedTuple):
    """Layers that start from the teacher's state instead of the rollout's own, in training.

    Attributes:
        states: the teacher's trajectory, `[depth + 1, batch, tokens, dim]`.
        where: which layers do for which images, `[depth, batch]`.
    """

    states: Trajectory
    where: Bool[Array, "depth batch"]

    def on(self, state: State, layer: Layer) -> State:
        """The state that the layer `layer` (from 0) starts from."""
        return jnp.where(jnp.asarray(self.where)[layer][:, None, None], jnp.asarray(self.states)[layer], state)


class Raptor(nn.Module):
    """k shared blocks that reproduce every state of a ViT.

    Parameters: `embedding` and `norm`, the teacher's, and `blocks`, a dictionary `phase_1` ... `phase_k`.

    Attributes:
        config: the architecture.
        dtype: precision of the matrix products (None: that of the parameters).
    """

    config: RaptorConfig
    dtype: Any = None

    def setup(self):
        cfg = self.config
        self.embedding = Embedding(cfg.teacher, self.dtype)
        self.blocks = Blocks(cfg, self.dtype)
        self.norm = layers.LayerNorm(epsilon=cfg.teacher.layer_norm_eps)

    def __call__(self, images: Images) -> Trajectory:
        """Images to a trajectory, `[batch, height, width, channels] -> [depth + 1, batch, tokens, dim]`; no final norm."""
        states = self.rollout(self.embed(images), self.config.layout(*images.shape[1:3]).grid)
        if self.is_initializing():
            self.norm(states[-1])
        return states

    def embed(self, images: Images) -> State:
        """a_0 of the images, `[batch, tokens, dim]`: the teacher's own."""
        return self.embedding(images)

    def rollout(self, state: State, grid: Grid = None) -> Trajectory:
        """The trajectory from a_0, `[batch, tokens, dim] -> [depth + 1, batch, tokens, dim]`; `grid` as in `ViT.rollout`."""
        return self.blocks.rollout(state, grid)

    def step(self, state: State, layer: Layer, grid: Grid = None, part: str | None = None) -> State:
        """Layer `layer` (from 0, may be traced) applied to a state: a_layer -> a_{layer + 1}; `part` and what is raised as in
        `ViT.step`."""
        return self.blocks.step(state, layer, grid, part)

    def attention(self, state: State, layer: Layer, grid: Grid = None) -> AttentionWeights:
        """See `ViT.attention` and `Blocks.attention`."""
        return self.blocks.attention(state, layer, grid)

    def normalize(self, states: States) -> States:
        """The final LayerNorm (the teacher's), on states of any leading shape."""
        return self.norm(states)


class Blocks(nn.Module):
    """The trained part of a Raptor: one shared block per phase, and the ways to run them.

    `grid`, an argument of all of them, is (rows, columns) of the patches where the teacher has a rotary embedding; None for a
    square. `noise` is added before every application, in training, and `restarts` put the teacher's states in the place of the
    rollout's; the states that come out are those the block made.

    Attributes:
        remat: what the backward pass keeps, one of `remat.NAMES`.
        fused: see `layers.Attention`.
    """

    config: RaptorConfig
    dtype: Any = None
    remat: str = "none"
    fused: bool = False

    def setup(self):
        for phase in range(self.config.partition.k):
            setattr(self, f"phase_{phase + 1}", RaptorBlock(self.config, self.dtype, self.fused))

    def _block(self, phase: int) -> RaptorBlock:
        return getattr(self, f"phase_{phase + 1}")

    def _scan(self, run, state, grid, noise, restarts=None):
        """One run of layers from the state before it: (last state, `[layers of the run, batch, tokens, dim]`)."""
        rotations = self.config.teacher.rotations(state.shape[-2], grid)
        if self.config.once:
            state = state if restarts is None else restarts.on(state, run.start)
            state = state if noise is None else noise.on(state, run.start + 1)
            state = self._block(run.phase)(state, jnp.asarray(run.stop, state.dtype), rotations)
            return state, jnp.broadcast_to(state, (run.stop - run.start, *state.shape))

        def body(block, x, layer):
            x = x if restarts is None else restarts.on(x, layer - 1)
            x = x if noise is None else noise.on(x, layer)
            x = block(x, layer, rotations)
            return x, x

        scan = nn.scan(rematerialize(body, self.remat, self.dtype), variable_broadcast="params", split_rngs={"params": False})
        return scan(self._block(run.phase), state, depths(run))

    def rollout(
        self, state: State, grid: Grid = None, noise: Noise | None = None, restarts: Restarts | None = None
    ) -> Trajectory:
        """All layers from a_0, each from the output of the one before: `[depth + 1, batch, tokens, dim]`."""
        pieces = [state[None]]
        for run in self.config.partition.runs:
            state, outputs = self._scan(run, state, grid, noise, restarts)
            pieces.append(outputs)
        return jnp.concatenate(pieces)

    def rollout_runs(self, states: Trajectory, grid: Grid = None, noise: Noise | None = None) -> Outputs:
        """Each run rolled out from the teacher's state before it (stage 1's autoregression).

        Args:
            states: the teacher's trajectory, `[depth + 1, batch, tokens, dim]`.

        Returns:
            predictions of a_1 ... a_L, `[depth, batch, tokens, dim]`.
        """
        return jnp.concatenate([self._scan(run, states[run.start], grid, noise)[1] for run in self.config.partition.runs])

    def teacher_forced(self, states: Trajectory, grid: Grid = None, noise: Noise | None = None) -> Outputs:
        """Every layer predicted from the teacher's state before it; all layers of a run go through as one batch.

        Args:
            states: the teacher's trajectory, `[depth + 1, batch, tokens, dim]`.

        Returns:
            predictions of a_1 ... a_L, `[depth, batch, tokens, dim]`.
        """
        if self.config.once:
            return self.rollout_runs(states, grid, noise)  # of one application there is nothing to force
        batch, rest = states.shape[1], states.shape[2:]
        rotations = self.config.teacher.rotations(rest[0], grid)
        pieces = []
        for run in self.config.partition.runs:
            inputs = states[run.start : run.stop]
            inputs = inputs if noise is None else jax.vmap(noise.on)(inputs, depths(run))
            outputs = self._block(run.phase)(inputs.reshape(-1, *rest), jnp.repeat(depths(run), batch), rotations)
            pieces.append(outputs.reshape(-1, batch, *rest))
        return jnp.concatenate(pieces)

    def step(self, state: State, layer: Layer, grid: Grid = None, part: str | None = None) -> State:
        """Layer `layer` (from 0, may be traced) applied to a state; `part` and what is raised as in `ViT.step`."""
        check_layer(layer, self.config.depth)
        partition = self.config.partition
        if self.config.once:
            starts = {run.start: run.stop for run in partition.runs}
            begins = jnp.asarray([i in starts for i in range(partition.depth)])[layer]
            stop = jnp.asarray([starts.get(i, 0) for i in range(partition.depth)])[layer]
            return jax.lax.cond(begins, lambda x: self._applied(x, layer, stop, grid, part), lambda x: x, state)
        return self._applied(state, layer, layer + 1, grid, part)

    def attention(self, state: State, layer: Layer, grid: Grid = None) -> AttentionWeights:
        """See `ViT.attention`. With `once` the state is the one before the layer's phase, whose block is applied to it alone."""
        check_layer(layer, self.config.depth)
        stops = [run.stop for run in self.config.partition.runs for _ in range(run.start, run.stop)]
        depth = jnp.asarray(stops)[layer] if self.config.once else layer + 1
        _, seen = self._applied(state, layer, depth, grid, "attention", mutable=["intermediates"])
        return seen["intermediates"]["attn"]["weights"][0]

    def _applied(self, state, layer, depth, grid, part, **options):
        """The block of a layer's phase, applied once at a depth.

        Of a traced layer the block's parameters are chosen, not one of k applications: one is compiled, for a copy of parameters.
        """
        params, partition = self.variables["params"], self.config.partition
        of_phase = [params[f"phase_{phase + 1}"] for phase in range(partition.k)]
        if isinstance(layer, jax.core.Tracer):
            own = jax.lax.switch(jnp.asarray(partition.labels)[layer], [lambda one=one: one for one in of_phase])
        else:
            own = of_phase[partition.labels[np.asarray(layer).item()]]
        rotations = self.config.teacher.rotations(state.shape[-2], grid)
        block: Any = RaptorBlock(self.config, self.dtype, parent=None)
        return block.apply({"params": own}, state, depth, rotations, part, **options)


def depths(run: Run) -> jax.Array:
    """1-based indices of the layers that a run produces."""
    return jnp.arange(run.start + 1, run.stop + 1)
