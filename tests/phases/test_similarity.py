import jax
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
