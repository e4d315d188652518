"""The layers that ViT and Raptor blocks are made of. Normalisation and softmax run in the residual stream's precision."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from brh_jax.models import rotary
from brh_jax.types import Array, HeadTokens, Rotations, State

# Activations of the plain feed-forward layer; "swiglu" is the gated one.
ACTIVATIONS = {
    # By erf as PyTorch has it; flax's, by erfc, takes twice as long on CPUs.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),  # SigLIP
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}
MLP_KINDS = (*ACTIVATIONS, "swiglu")


_KERNEL, _BIAS = nn.initializers.lecun_normal(), nn.initializers.zeros_init()


def named(init: Callable, *names: str | None) -> Callable:
    """An initialiser that names the dimensions of its array, for `train.parallel` to split them by."""
    return nn.with_logical_partitioning(init, names)


class LayerNorm(nn.LayerNorm):
    """flax's LayerNorm with the two-pass variance: where a state's mean is large, E[x²] - E[x]² loses digits."""

    epsilon: Any = 1e-6  # a number, or an array that holds one, where models of one program differ in it
    use_fast_variance: bool = False


class Dense(nn.Module):
    """A linear layer between several axes: flax's `DenseGeneral` with all axes before the inputs as one.

    Attributes:
        features: sizes of the axes that come out.
        inputs: how many of the last axes go in.
        dtype: precision of the product (None: that of the parameters).
        fused: a gradient that CPUs have a kernel for in bfloat16. It has no forward-mode derivative.
        kernel_init, bias_init: of the kernel as a matrix, of the bias as a vector.
    """

    features: tuple[int, ...]
    inputs: int = 1
    use_bias: bool = True
    dtype: Any = None
    fused: bool = False
    kernel_init: Callable = _KERNEL
    bias_init: Callable = _BIAS

    @nn.compact
    def __call__(self, x: Array) -> jax.Array:
        """`[..., *inputs] -> [..., *features]` in `dtype`, but float32 where one CPU is asked for bfloat16; see `linear`."""
        before, inputs = x.shape[: x.ndim - self.inputs], x.shape[x.ndim - self.inputs :]
        matrix = (math.prod(inputs), math.prod(self.features))
        kernel = self.param("kernel", _reshaped(self.kernel_init, matrix), (*inputs, *self.features), jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", _reshaped(self.bias_init, matrix[1:]), self.features, jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        out = linear(x.reshape(-1, *inputs), kernel, bias, matrices=_on_one_cpu(), fused=self.fused)
        if self.dtype is None:  # no precision was asked for but that of the parameters
            out = out.astype(x.dtype)
        return out.reshape(*before, *self.features)


def linear(x: Array, kernel: Array, bias: Array | None, *, matrices: bool, fused: bool = False) -> jax.Array:
    """`[rows, *inputs]` and `[*inputs, *features]` to `[rows, *features]`; float32 of bfloat16 where `matrices`: what follows
    on CPUs is computed in float32 anyway.

    Args:
        matrices: as a product of matrices. XLA does it so on CPUs either way, but in the backward pass it copies what has more
            axes into place first. Axes that are split over devices could not be joined.
        fused: see `Dense`.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    rows, inputs, features = x.shape[0], x.shape[1:], kernel.shape[x.ndim - 1 :]
    if not matrices:
        out = jnp.tensordot(x, kernel, len(inputs))
        return out if bias is None else out + bias
    size, width = math.prod(inputs), math.prod(features)
    product = jnp.matmul if x.dtype != jnp.bfloat16 else _bfloat16_product if fused else _in_float32
    out = product(x.reshape(rows, size), kernel.reshape(size, width))
    out = out if bias is None else out + _on_rows(bias.reshape(width).astype(out.dtype), rows)
    return out.reshape(rows, *features)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _on_rows(bias, rows):
    """`[width] -> [rows, width]`; its gradient is a product with ones, on CPUs several times faster than XLA's sum over rows."""
    return jnp.broadcast_to(bias, (rows, bias.shape[0]))


@_on_rows.defjvp
def _on_rows_jvp(rows, primals, tangents):
    return _on_rows(*primals, rows), jnp.ones((rows, 1), tangents[0].dtype) @ tangents[0][None]


def _in_float32(a, b):
    """The product of two matrices with sums and result in float32: in bfloat16 the one that XLA has a kernel for on CPUs."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _bfloat16_product(x, kernel):
    """`[rows, inputs] @ [inputs, outputs]`, whose gradients are such products too."""
    return _in_float32(x, kernel)


def _bfloat16_forward(x, kernel):
    return _in_float32(x, kernel), (x, kernel)


def _bfloat16_backward(kept, gradient):
    x, kernel = kept
    gradient = gradient.astype(x.dtype)
    return _in_float32(gradient, _transposed(kernel)).astype(x.dtype), _in_float32(_transposed(x), gradient).astype(kernel.dtype)


_bfloat16_product.defvjp(_bfloat16_forward, _bfloat16_backward)


def _transposed(matrix):
    # Written out: a product of a transposed matrix, which XLA would make of it, has no kernel. The barrier keeps it from that,
    # and the way over a vector gives the copy rows one after another.
    rows, columns = matrix.shape
    return jax.lax.optimization_barrier(matrix.T.reshape(-1)).reshape(columns, rows)


def _on_one_cpu() -> bool:
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _reshaped(init: Callable, shape: tuple[int, ...]) -> Callable:
    """An initialiser that makes arrays of `shape` and gives them the shape that it is asked for; names of dimensions are kept."""

    def initialise(key, wanted, dtype):
        made = init(key, shape, dtype)
        return jax.tree.map(lambda array: array.reshape(wanted), made)

    return initialise


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values.

    `qkv/kernel` is `[dim, 3, heads, head_dim]` and `proj/kernel` `[heads, head_dim, dim]`, so that heads can be sharded.

    Attributes:
        fused: one kernel for the attention where `fused_attention` has one, and see `Dense`. It has no forward-mode derivative.
    """

    num_heads: int
    qkv_bias: bool = True
    dtype: Any = None
    fused: bool = False

    @nn.compact
    def __call__(self, x: State, rotations: Rotations | None = None) -> State:
        """[batch, tokens, dim] -> [batch, tokens, dim]; `rotations` of the patches' queries and keys, see `rotary`."""
        dim = x.shape[-1]
        head_dim = dim // self.num_heads
        qkv = Dense(
            (3, self.num_heads, head_dim),
            use_bias=self.qkv_bias,
            dtype=self.dtype,
            fused=self.fused,
            kernel_init=named(_KERNEL, "embed", None, "heads", None),
            bias_init=named(_BIAS, None, "heads", None),
            name="qkv",
        )(x)
        # [3, batch, heads, tokens, head_dim]: plain batched matmuls, about 1.5x faster on CPU than einsum over [b, t, h, d].
        by_head = jnp.moveaxis(qkv.astype(qkv.dtype if self.dtype is None else self.dtype), (2, 3), (0, 2))
        # Split, whose gradient joins the three; that of indexing would fill each up with zeros and add.
        parts: Any = jax.lax.split(by_head, (1, 1, 1), 0)
        q, k, v = (part[0] for part in parts)
        if rotations is not None:
            q, k = rotary.rotate(q, rotations), rotary.rotate(k, rotations)
        out = fused_attention(q, k, v) if self.fused else None
        if out is None:
            # On CPUs a maximum over the last axis does not vectorise, one over the axis before it does.
            axes = "bhkq" if jax.default_backend() == "cpu" else "bhqk"
            logits = jnp.einsum(f"bhqd,bhkd->{axes}", q * head_dim**-0.5, k, preferred_element_type=x.dtype)
            weights = nn.softmax(logits, axis=axes.index("k")).astype(v.dtype)
            if self.is_mutable_collection("intermediates"):
                self.sow("intermediates", "weights", weights if axes == "bhqk" else jnp.swapaxes(weights, -1, -2))
            out = jnp.einsum(f"{axes},bhkd->bhqd", weights, v, preferred_element_type=qkv.dtype)
        kernel_init = named(_KERNEL, "heads", None, "embed")
        proj = Dense((dim,), inputs=2, dtype=self.dtype, fused=self.fused, kernel_init=kernel_init, name="proj")
        return proj(jnp.moveaxis(out, 1, 2))


def fused_attention(
    q: HeadTokens, k: HeadTokens, v: HeadTokens, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> HeadTokens | None:
    """Attention `[batch, heads, tokens, head_dim]` in one kernel: cuDNN's on NVIDIA GPUs in half precision; None elsewhere."""
    if implementation == "cudnn" and not (jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16)):
        return None
    q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q, k, v))
    try:
        return jnp.moveaxis(jax.nn.dot_product_attention(q, k, v, implementation=implementation), 2, 1)
    except (NotImplementedError, RuntimeError, ValueError):
        return None  # a shape or a version that it does not take


# Where the kernels of a block have their inputs and outputs; axes that are neither number matrices side by side.
KERNELS: dict[tuple[str, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {
    ("attn", "qkv", "kernel"): ((0,), (2, 3)),
    ("attn", "proj", "kernel"): ((0, 1), (2,)),
    ("mlp", "fc1", "kernel"): ((0,), (-1,)),
    ("mlp", "fc2", "kernel"): ((0,), (1,)),
}


class Mlp(nn.Module):
    """The feed-forward layer: a key of ACTIVATIONS (`gelu` is the exact one), or `swiglu`, silu(a) * b, `a` first in `fc1`.

    Attributes:
        fused: see `Dense`.
    """

    hidden_dim: int
    kind: str = "gelu"
    dtype: Any = None
    fused: bool = False

    @nn.compact
    def __call__(self, x: State) -> State:
        """[batch, tokens, dim] -> [batch, tokens, dim]."""
        dim = x.shape[-1]
        if self.kind in ACTIVATIONS:
            hidden = ACTIVATIONS[self.kind](self._first((self.hidden_dim,))(x))
        else:
            gate_and_value = self._first((2, self.hidden_dim))(x)
            gate, value = (half[..., 0, :] for half in jax.lax.split(gate_and_value, (1, 1), x.ndim - 1))
            hidden = nn.silu(gate) * value
        kernel_init = named(_KERNEL, "hidden", "embed")
        return Dense((dim,), dtype=self.dtype, fused=self.fused, kernel_init=kernel_init, name="fc2")(hidden)

    def _first(self, features: tuple[int, ...]) -> Dense:
        gates = (None,) * (len(features) - 1)
        return Dense(
            features,
            dtype=self.dtype,
            fused=self.fused,
            kernel_init=named(_KERNEL, "embed", *gates, "hidden"),
            bias_init=named(_BIAS, *gates, "hidden"),
            name="fc1",
        )


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch."""

    init_value: float

    @nn.compact
    def __call__(self, x: State) -> State:
        """Scales the channels."""
        return x * self.param("scale", nn.initializers.constant(self.init_value), (x.shape[-1],), jnp.float32)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole samples with probability `rate` (rng stream `drop_path`)."""

    rate: float

    @nn.compact
    def __call__(self, x: State, deterministic: bool = True) -> State:
        """Leaves `x` as it is where `deterministic`."""
        if deterministic or self.rate == 0.0:
            return x
        keep = jax.random.bernoulli(self.make_rng("drop_path"), 1.0 - self.rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(keep, x / (1.0 - self.rate), 0.0)
