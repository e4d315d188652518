"""What a classifier reads of the last state."""

import numpy as np
import pytest

from brh_jax.models import pooled_features, store
from brh_jax.models.head import apply_head, on_pooled
from brh_jax.tokens import TokenLayout

FULL, PATCHES, DISTILLED = TokenLayout(1, 2, (2, 2)), TokenLayout(0, 0, (2, 2)), TokenLayout(2, 0, (2, 2))


def head_of(width):
    rng = np.random.default_rng(width)
    return {"kernel": rng.normal(size=(width, 3)).astype(np.float32), "bias": rng.normal(size=3).astype(np.float32)}


@pytest.mark.parametrize(
    ("layout", "width", "reads", "what"),
    [
        (FULL, 8, "", lambda cls, patches: cls[:, 0]),
        (FULL, 8, "cls", lambda cls, patches: cls[:, 0]),
        (FULL, 8, "patches", lambda cls, patches: patches.mean(1)),
        (FULL, 16, "", lambda cls, patches: np.concatenate([cls[:, 0], patches.mean(1)], -1)),
        (PATCHES, 8, "", lambda cls, patches: patches.mean(1)),
        (PATCHES, 8, "patches", lambda cls, patches: patches.mean(1)),
        (DISTILLED, 16, "", lambda cls, patches: np.concatenate([cls.mean(1), patches.mean(1)], -1)),
    ],
)
def test_a_classifier_of_cls_or_patches_or_both_is_one_on_pooled_features(layout, width, reads, what):
    states = np.random.default_rng(0).normal(size=(5, layout.num_tokens, 8)).astype(np.float32)
    head, by_token = head_of(width), layout.split(states)
    expected = apply_head(head, what(by_token.cls, by_token.patches))
    pooled = on_pooled(head, 8, layout, reads)
    np.testing.assert_allclose(apply_head(pooled, pooled_features(states, layout)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "width", "reads"),
    [(DISTILLED, 8, ""), (FULL, 12, ""), (FULL, 40, ""), (PATCHES, 8, "cls"), (FULL, 8, "cls+patches"), (FULL, 16, "cls")],
)
def test_what_reads_something_else_is_none(layout, width, reads):
    """One of several class tokens, four layers, what the model lacks, or another width than it says."""
    assert on_pooled(head_of(width), 8, layout, reads) is None


def test_what_it_reads_is_kept_with_it(tiny_encoder, tmp_path):
    encoder = tiny_encoder.replace(head=head_of(tiny_encoder.dim), head_reads="patches", classes=("ant", "bee, wasp"))
    again = store.read(store.save(encoder, tmp_path / "encoder"))
    assert again.head_reads == "patches" and tiny_encoder.pooled_head is None and again.classes == ("ant", "bee, wasp")
    np.testing.assert_array_equal(again.pooled_head["kernel"][tiny_encoder.dim :], encoder.head["kernel"])
    assert not np.any(again.pooled_head["kernel"][: tiny_encoder.dim])
