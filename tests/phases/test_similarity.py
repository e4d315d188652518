import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax import phases
from brh_jax.tokens import TokenLayout


def by_hand(states, layout):
    """The definition, with loops: mean over images and over (cls, mean patch) of the cosine between block outputs."""
    states = np.asarray(states, np.float64)[1:]
    depth, batch = states.shape[:2]
    out = np.zeros((depth, depth))
    for i in range(depth):
        for j in range(depth):
            cosines = []
            for b in range(batch):
                patches = layout.num_cls + layout.num_registers
                pairs = [(states[i, b, patches:].mean(0), states[j, b, patches:].mean(0))]
                if layout.num_cls:
                    pairs.append((states[i, b, 0], states[j, b, 0]))
                cosines += [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in pairs]
            out[i, j] = np.mean(cosines)
    return out


@pytest.mark.parametrize("layout", [TokenLayout(1, 2, (2, 3)), TokenLayout(0, 0, (3, 3))])
def test_definition(layout):
    states = jax.random.normal(jax.random.key(0), (5, 4, layout.num_tokens, 8)) + 0.5
    expected = by_hand(states, layout)
    np.testing.assert_allclose(phases.layer_similarity(states, layout), expected, atol=1e-6)
    np.testing.assert_allclose(phases.layer_dissimilarity(states, layout), 1 - expected, atol=1e-6)


def test_a_channel_far_larger_than_the_rest():
    """As some channels of DINOv2-g and CLIP are: alike in all layers, and a cosine of float32 is lost in its rounding."""
    layout = TokenLayout(1, 2, (2, 3))
    states = np.asarray(jax.random.normal(jax.random.key(0), (5, 4, layout.num_tokens, 64)) + 0.5)
    for size in (1.0, 1e3, 1e4):
        massive = states.copy()
        massive[..., 7] = 64 * size
        expected = 1 - by_hand(massive, layout)
        np.testing.assert_allclose(phases.layer_dissimilarity(massive, layout), expected, rtol=1e-5, atol=1e-16)
        samples = phases.layer_samples([(massive, np.ones(4, bool))], layout, ["cosine"])["cosine"]
        np.testing.assert_allclose(samples.dissimilarity(), expected, rtol=1e-5, atol=1e-16)


def test_states_of_any_size_give_the_same_dissimilarity():
    layout = TokenLayout(1, 2, (2, 3))
    states = np.asarray(jax.random.normal(jax.random.key(0), (5, 4, layout.num_tokens, 8)) + 0.5)
    expected = phases.layer_dissimilarity(states, layout)
    for size in (3e19, 1e-30):
        np.testing.assert_allclose(phases.layer_dissimilarity(np.float32(size) * states, layout), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_states_of_half_precision_are_compared_in_float32(dtype):
    """A bfloat16 keeps three digits: a matrix of such would cut where its rounding says."""
    layout = TokenLayout(1, 0, (2, 2))
    states = jax.random.normal(jax.random.key(0), (5, 4, layout.num_tokens, 8)).astype(dtype)
    found = phases.layer_dissimilarity(states, layout)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, phases.layer_dissimilarity(states.astype(jnp.float32), layout), atol=1e-6)


def test_a_class_token_that_is_zero_is_left_out():
    layout = TokenLayout(1, 0, (2, 2))
    states = jax.random.normal(jax.random.key(0), (4, 3, 5, 8)).at[2, :, 0].set(0)
    found = phases.layer_dissimilarity(states, layout)
    patches = phases.layer_dissimilarity(states[:, :, 1:], TokenLayout(0, 0, (2, 2)))
    np.testing.assert_allclose(found[1], patches[1], rtol=1e-5, atol=1e-7)
    assert not np.allclose(found[0, 2], patches[0, 2])


def test_streaming_equals_one_batch_and_leaves_padding_out():
    layout = TokenLayout(1, 0, (2, 2))
    states = jax.random.normal(jax.random.key(0), (4, 10, 5, 8)) + 0.5
    whole = phases.layer_dissimilarity(states, layout)
    padded = [(states[:, :6], np.ones(6, bool)), (states[:, [6, 7, 8, 9, 0, 0]], np.arange(6) < 4)]
    streamed, count = phases.streaming_dissimilarity(iter(padded), layout)
    assert count == 10
    np.testing.assert_allclose(streamed, whole, atol=1e-6)
    with pytest.raises(ValueError, match="no images"):
        phases.streaming_dissimilarity(iter([]), layout)
