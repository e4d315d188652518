"""How alike the outputs of two layers are, over any number of images in constant memory (paper, section 2)."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from brh_jax.errors import UserError
from brh_jax.tokens import TokenLayout, check_trajectory
from brh_jax.train.parallel import to_host
from brh_jax.types import Array, Dissimilarity, TrajectoryBatch, ValidBatch
from brh_jax.vectors import directed, mean_where, unit


def layer_similarity(states: Array, layout: TokenLayout) -> Dissimilarity:
    """Mean cosine between block outputs: 1 - `layer_dissimilarity`, with a diagonal of ones."""
    return 1.0 - layer_dissimilarity(states, layout)


def layer_dissimilarity(states: Array, layout: TokenLayout) -> Dissimilarity:
    """Mean 1 - cosine between block outputs, of the class token and of the mean patch, averaged over both and over images.

    Args:
        states: trajectory `[depth + 1, batch, tokens, dim]`.

    Returns:
        `[depth, depth]` for a_1 ... a_L, zero on the diagonal. A model without class token is compared by patches alone, as are
        states whose class token is zero; where both are zero it is NaN.

    Raises:
        ValueError: not a trajectory of that layout.
    """
    return jnp.mean(image_dissimilarity(states, layout), axis=0)


def image_dissimilarity(states: Array, layout: TokenLayout) -> Float[Array, "batch depth depth"]:
    """`layer_dissimilarity` of each image: `[batch, depth, depth]`."""
    vectors = token_vectors(states, layout)
    units, defined = unit(vectors), directed(vectors)

    def to_all(layer):  # one layer at a time: chords of all pairs would be depth times the states
        chords = jnp.sum(jnp.square(units - units[:, layer, None]), axis=-1) / 2
        return mean_where(chords, defined & defined[:, layer, None], axis=0)

    return jnp.moveaxis(jax.lax.map(to_all, jnp.arange(vectors.shape[1])), 2, 0)


def token_vectors(states: Array, layout: TokenLayout) -> Float[Array, "types depth batch dim"]:
    """What layers are compared by: the class token and the mean patch of a_1 ... a_L, `[token types, depth, batch, dim]`.

    A model without class token has the mean patch alone. States of half precision are taken into float32.
    """
    check_trajectory(states, layout)
    outputs = layout.split(states[1:] if states.dtype.itemsize > 2 else states[1:].astype(jnp.float32))
    return jnp.stack([tokens.mean(-2) for tokens in (outputs.cls, outputs.patches) if tokens.shape[-2]])


def streaming_dissimilarity(
    trajectories: Iterable[tuple[TrajectoryBatch, ValidBatch]], layout: TokenLayout
) -> tuple[np.ndarray, int]:
    """`layer_dissimilarity` over batches that are never held together.

    Args:
        trajectories: yields `(states, valid)`, valid `[batch]` saying which images count (padding does not).

    Returns:
        `[depth, depth]` float64, and the number of images.

    Raises:
        UserError: no images.
    """
    total, count = np.zeros(()), 0
    dissimilarity = jax.jit(image_dissimilarity, static_argnums=1)
    for states, valid in trajectories:
        valid = np.asarray(valid)
        total = total + to_host(dissimilarity(states, layout)).astype(np.float64)[valid].sum(0)
        count += int(valid.sum())
    if not count:
        raise UserError("no images: the similarity of layers is a mean over images")
    return total / count, count
