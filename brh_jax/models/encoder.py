"""Encoder: a model with its parameters, ready to be asked for trajectories and features."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, Protocol

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from PIL import Image

from brh_jax.errors import UserError, expect, is_number
from brh_jax.models.head import apply_head, on_pooled
from brh_jax.models.raptor import Raptor
from brh_jax.models.stack import LayerStack, stack_layers
from brh_jax.models.vit import ViT, ViTConfig
from brh_jax.preprocessing import Preprocessing
from brh_jax.system import DepthSystem, check_layer
from brh_jax.tokens import TokenLayout
from brh_jax.train.parallel import shard
from brh_jax.types import Array, AttentionMaps, State, States, Trajectory


@functools.partial(jax.jit, static_argnames=("module", "method", "grid"))
def _apply(module, params, x, *, method, **grid):
    return module.apply({"params": params}, x, method=method, **grid)


@functools.partial(jax.jit, static_argnames=("module", "grid"))
def _attention(module, params, states, grid):
    config = module.config
    entered = list(range(config.depth))
    if getattr(config, "once", False):  # a block is applied to the state before its phase alone
        entered = [run.start for run in config.partition.runs for _ in range(run.start, run.stop)]

    def of_layer(layer):
        return module.apply({"params": params}, states[jnp.asarray(entered)[layer]], layer, grid, method="attention")

    return jax.lax.map(of_layer, jnp.arange(config.depth))


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A layer, or half of one, as a function of parameters. Equal ones are compiled once."""

    module: LayerStack | Raptor
    grid: tuple[int, int]
    sublayers: bool

    def __call__(self, params, state, layer):
        check_layer(layer, self.module.config.depth * (2 if self.sublayers else 1))

        def apply(part):
            index = layer if part is None else layer // 2
            return lambda state: self.module.apply({"params": params}, state, index, self.grid, part, method="step")

        if not self.sublayers:
            return apply(None)(state)
        return jax.lax.cond(layer % 2 == 0, apply("attention"), apply("mlp"), state)


_BEYOND = 10  # times the largest value that pixels become: no preprocessed image, whatever was done to it since


class ModelConfig(Protocol):
    """What ViTConfig and RaptorConfig have in common.

    Attributes:
        kind: "vit" or "raptor".
        vit: the architecture whose embedding, tokens and final norm the model has.
        depth, dim: number of layers, width of a token.
        mlp, mlp_dim: feed-forward layer of its blocks.
        applications: how many times a block is applied to an image.
    """

    @property
    def mlp(self) -> str: ...
    @property
    def mlp_dim(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def vit(self) -> ViTConfig: ...
    @property
    def depth(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def applications(self) -> int: ...
    def layout(self, height: int, width: int) -> TokenLayout: ...
    def module(self, dtype: Any = None, **options: Any) -> Any: ...


class Encoder(flax.struct.PyTreeNode, eq=False):
    """A ViT or a Raptor with its parameters: a pytree, so that it can be an argument of a jitted function.

    Attributes:
        config: ViTConfig or RaptorConfig.
        params: the parameters, a nested dictionary of arrays.
        preprocessing: how images are made ready for it; its crop is the image size that `layout` describes.
        name: what it is, for people.
        head: classifier weights {"kernel": [features, classes], "bias": [classes]}, where the source had one.
        head_reads: what it reads, one of `head.READS`; empty for what its width says, see `pooled_head`.
        classes: what its outputs are called, synonyms separated by commas; empty where the source did not say.
        dtype: precision of the matrix products (None: that of the parameters).
    """

    config: Any = flax.struct.field(pytree_node=False)
    params: Any = flax.struct.field()
    preprocessing: Preprocessing = flax.struct.field(pytree_node=False)
    name: str = flax.struct.field(pytree_node=False, default="encoder")
    head: Any = None
    head_reads: str = flax.struct.field(pytree_node=False, default="")
    classes: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    dtype: Any = flax.struct.field(pytree_node=False, default=None)

    def __repr__(self) -> str:
        """What it is, in two lines; the parameters are not printed."""
        config, vit, tokens = self.config, self.config.vit, self.layout
        kind = "ViT" if config.kind == "vit" else f"Raptor {config.partition}"
        (height, width), (rows, columns) = self.preprocessing.crop, tokens.grid
        return (
            f"{self.name}: {kind}, {self.depth} layers of width {self.dim}, {vit.num_heads} heads, "
            f"{count_params(self.params):,} parameters\n"
            f"  {height} x {width} pixels = {tokens.num_cls} cls + {tokens.num_registers} registers + "
            f"{rows} x {columns} patches of {vit.patch_size} pixels"
            + ("" if self.head is None else f"; a classifier of {len(self.head['bias'])} classes")
        )

    @property
    def module(self) -> ViT | Raptor:
        """The flax module."""
        return self.config.module(self.dtype)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.config.depth

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.config.dim

    @property
    def layout(self) -> TokenLayout:
        """The tokens of an image of the size that `preprocessing` gives."""
        return self.layout_for(*self.preprocessing.crop)

    @property
    def pooled_head(self) -> dict[str, Any] | None:
        """The classifier as one on `pooled_features`, [cls, mean patch], whatever of these it reads; None where there is none, or
        one that reads something else."""
        return None if self.head is None else on_pooled(self.head, self.dim, self.layout, self.head_reads)

    def layout_for(self, height: int, width: int) -> TokenLayout:
        """The tokens of an image of height x width pixels. Raises UserError if that is no multiple of the patch."""
        return self.config.layout(height, width)

    def preprocess(self, images: Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        """PIL images (or uint8 arrays `[height, width, 3]`) to float32 `[batch, height, width, 3]`.

        Raises:
            UserError: none, one image instead of several, or names of files.
        """
        several = [images] if isinstance(images, Image.Image | str | os.PathLike) else images
        if names := [str(one) for one in several if isinstance(one, str | os.PathLike)]:
            raise UserError(f"{names[0]} is the name of a file: open it first, preprocess([PIL.Image.open({names[0]!r})])")
        if isinstance(images, Image.Image):
            raise UserError("preprocess takes several images, and was given one: preprocess([image])")
        if not len(several):
            raise UserError("preprocess takes several images, and was given none")
        return np.asarray(self.normalize_pixels(np.stack([self.preprocessing.resize_and_crop(image) for image in images])))

    def normalize_pixels(self, images: Array) -> Array:
        """uint8 pixels to what the model takes: (pixels / 255 - mean) / std. Raises UserError for floats, of whatever scale."""
        if jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"pixels are {images.dtype}: expected uint8, or encoder.preprocess([...]), which knows other images")
        return self.preprocessing.normalize(images)

    def trajectory(self, images: Array) -> Trajectory:
        """Every state: preprocessed images `[batch, height, width, 3] -> [depth + 1, batch, tokens, dim]`; no final norm."""
        self.need("embedding")
        return _apply(self.module, self.params, self._check(images), method="__call__")

    def embed(self, images: Array) -> State:
        """a_0 of preprocessed images, `[batch, tokens, dim]`."""
        self.need("embedding")
        return _apply(self.module, self.params, self._check(images), method="embed")

    def rollout(self, state: State) -> Trajectory:
        """The trajectory from a_0, `[batch, tokens, dim] -> [depth + 1, batch, tokens, dim]`."""
        state = jnp.asarray(state)
        # States of another image size than the encoder's are taken for square ones.
        grid = self.layout.grid if state.shape[-2] == self.layout.num_tokens else None
        return _apply(self.module, self.params, state, method="rollout", grid=grid)

    def attention(self, images: Array) -> AttentionMaps:
        """Attention weights of every layer, `[batch, height, width, 3] -> [depth, batch, heads, tokens, tokens]`.

        Of preprocessed images. Row = query, column = key, rows sum to one; of a Raptor those along its own trajectory. They are
        tokens² numbers for each head, layer and image: 38 MB an image of a ViT-B with 257 tokens.
        """
        states = self.trajectory(images)
        return _attention(self.module, self.params, states, self.layout_for(*jnp.shape(images)[1:3]).grid)

    def features(self, states: States) -> States:
        """States after the final LayerNorm, of any leading shape."""
        self.need("norm")
        return _apply(self.module, self.params, jnp.asarray(states), method="normalize")

    def logits(self, images: Array) -> Array:
        """What the classifier gives for preprocessed images, `[batch, height, width, 3] -> [batch, classes]`.

        It reads the normalised last state: the class token, the mean patch or both, see `pooled_head`.

        Raises:
            UserError: there is no classifier, or one that reads something else.
        """
        if self.head is None:
            raise UserError(f"{self.name} has no classifier: load weights that have one, or train one, see brh_jax.probes")
        head = self.pooled_head
        if head is None:
            raise UserError(
                f"the classifier of {self.name} reads {len(self.head['kernel'])} features, which are not those of its class "
                "token, its mean patch or both"
            )
        images = self._check(images)
        layout = self.layout_for(images.shape[1], images.shape[2])
        return apply_head(head, pooled_features(self.features(self.trajectory(images)[-1]), layout))

    def system(self, *, sublayers: bool = False) -> DepthSystem:
        """Depth as a dynamical system: one step per layer; its `step` raises ValueError for a layer that is not there.

        Models of one shape, a ViT and its Raptors of any number of blocks, are one program: a Raptor's blocks are copied for each
        layer, at the first call, and kept with the encoder. (Blocks that are applied `once` are a program each.)

        Args:
            sublayers: two steps per layer, attention (even ones) and feed-forward (odd ones), so that whatever is measured
                of layers can be measured of each of them.
        """
        module, params = self._layers
        layer = _Layer(module, self.layout.grid, sublayers)
        return DepthSystem(jax.tree_util.Partial(layer, params), self.depth * (2 if sublayers else 1), self.layout)

    @functools.cached_property
    def _layers(self) -> tuple[LayerStack | Raptor, Any]:
        """What has a `step`, and its parameters."""
        module = self.module
        if isinstance(module, Raptor) and module.config.once:
            return module, self.params
        with jax.ensure_compile_time_eval():  # kept, so no value of a jitted function that happens to ask first
            return stack_layers(self.config, self.params["blocks"], self.dtype)

    def on(self, mesh: Mesh) -> "Encoder":
        """A copy with its parameters laid over a mesh, see `train.parallel.SPLIT`."""
        specs = {name: part for name, part in param_specs(self.module, self.image_shape()).items() if name in self.params}
        return self.replace(params=shard(self.params, mesh, specs))

    def image_shape(self) -> jax.ShapeDtypeStruct:
        """The shape of one image of the encoder's size."""
        return jax.ShapeDtypeStruct((1, *self.preprocessing.crop, self.config.vit.channels), jnp.float32)

    def at_size(self, size: int | Sequence[int]) -> "Encoder":
        """A copy for images of another size, an int or (height, width); resizing keeps its ratio to the crop.

        Raises:
            UserError: no size, or not a multiple of the patch.
        """
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        whole = len(sides) == 2 and all(is_number(side) and side == int(side) for side in sides)
        expect(whole, "image size", size, "pixels, a number or (height, width)")
        height, width = (int(side) for side in sides)
        self.layout_for(height, width)
        return self.replace(preprocessing=self.preprocessing.at_size((height, width)))

    def need(self, part: str) -> None:
        """Raises UserError where the parameters lack that part, `embedding` or `norm`: a Raptor's blocks without its teacher."""
        if part not in self.params:
            raise UserError(
                f"{self.name} is a Raptor's blocks without its teacher, so it has no {part}: load it with teacher=, the ViT that "
                "it was distilled from (an Encoder, or anything that load takes). system() and rollout(state) work as they are"
            )

    def _check(self, images: Array) -> jax.Array:
        self._check_scale(images)
        images = jnp.asarray(images)
        if images.ndim != 4 or images.shape[-1] != self.config.vit.channels:
            raise UserError(f"images must be [batch, height, width, {self.config.vit.channels}], got {tuple(images.shape)}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f"images must be preprocessed floats, got {images.dtype}: call encoder.normalize_pixels(images) first, "
                "or encoder.preprocess([...]) on PIL images"
            )
        self.layout_for(images.shape[1], images.shape[2])
        return images

    def _check_scale(self, images: Array) -> None:
        """Raises UserError for pixels in the place of what they become; looks at numpy's arrays alone, which are at hand."""
        if not (isinstance(images, np.ndarray) and images.size and images.dtype.kind == "f"):
            return
        scales = zip(self.preprocessing.mean, self.preprocessing.std, strict=True)
        most, seen = max(max(mean, 1 - mean) / std for mean, std in scales), np.abs(images).max()
        if seen > _BEYOND * most:
            raise UserError(
                f"images hold values up to {seen:.4g}, and pixels become {most:.3g} at most: call encoder.preprocess([...]) on "
                "them, or encoder.normalize_pixels(images) where they are uint8"
            )


def init_params(module: nn.Module, key: jax.Array, *args, **options) -> Any:
    """Fresh parameters of a flax module as plain arrays; `args` and `options` as its `init` takes them."""
    return nn.meta.unbox(module.init(key, *args, **options))["params"]


def boxed_params(module: nn.Module, *args, **options) -> Any:
    """Shapes of a module's parameters in boxes that name their dimensions, which `optax` takes for parameters too."""
    return jax.eval_shape(lambda key, *args: module.init(key, *args, **options), jax.random.key(0), *args)["params"]


def param_shapes(module: nn.Module, *args, **options) -> dict[str, tuple[int, ...]]:
    """The shape of each of a module's parameters, by its path, `norm/scale` say."""
    boxed = nn.meta.unbox(boxed_params(module, *args, **options))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(boxed, sep="/").items()}


def param_specs(module: nn.Module, *args, **options) -> Any:
    """The names of the dimensions of a module's parameters, a PartitionSpec each."""
    return nn.get_partition_spec(boxed_params(module, *args, **options))


def pooled_features(features: States, layout: TokenLayout) -> jax.Array:
    """[cls, mean patch] of normalised tokens, what the paper's linear probes read.

    Args:
        features: `[..., tokens, dim]` after the final norm.

    Returns:
        `[..., 2 dim]`, or `[..., dim]` for a model without class token or without patches.
    """
    by_token = layout.split(features)
    return jnp.concatenate([t.mean(-2) for t in (by_token.cls, by_token.patches) if t.shape[-2]], axis=-1)


def pooled_width(dim: int, layout: TokenLayout) -> int:
    """Number of `pooled_features` of tokens of width `dim`."""
    return dim * (bool(layout.num_cls) + bool(layout.num_patches))


def count_params(params: Any) -> int:
    """Number of parameters in a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
