"""Phase-structure metrics against matrices whose structure is known, and formulas written another way."""

import numpy as np
import pytest

from brh_jax.phases import Partition, max_cut, phase_structure


def blocks(lengths, within, across):
    labels = np.repeat(np.arange(len(lengths)), lengths)
    similarity = np.where(np.equal.outer(labels, labels), within, across).astype(float)
    np.fill_diagonal(similarity, 1.0)
    return 1.0 - similarity


def drift(depth, rate=0.05):
    """Layers that drift apart evenly: S depends on |i - j| alone."""
    return rate * np.abs(np.subtract.outer(np.arange(depth), np.arange(depth)))


def test_blocks_have_the_contrast_that_they_were_made_with():
    d = blocks((4, 4), 0.9, 0.3)
    found = phase_structure(d, Partition((4, 4)))
    assert found.within == pytest.approx(0.9) and found.across == pytest.approx(0.3)
    assert found.contrast == pytest.approx(0.6) and found.matched_contrast == pytest.approx(0.6)
    assert found.mean_similarity == pytest.approx((12 * 0.9 + 16 * 0.3) / 28)
    assert phase_structure(d, Partition((2, 6))).matched_contrast < 0.6


def test_even_drift_has_contrast_but_none_at_equal_distance():
    found = phase_structure(drift(10), Partition((3, 4, 3)))
    assert found.contrast > 0.1
    assert found.matched_contrast == pytest.approx(0, abs=1e-12)


def test_modularity_of_two_cliques_is_a_half_and_of_one_group_zero():
    assert phase_structure(blocks((5, 5), 1.0, 0.0), Partition((5, 5))).modularity == pytest.approx(0.5)
    assert phase_structure(drift(6), Partition((6,))).modularity == pytest.approx(0, abs=1e-12)


def test_modularity_agrees_with_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-0.5, 1, (7, 7))
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, 1.0)
    partition = Partition((2, 3, 2))
    labels, score, size = partition.labels, 0.0, 0.0
    for sign in (1, -1):
        weights = {(i, j): max(sign * similarity[i, j], 0) for i in range(7) for j in range(7) if i != j}
        total = sum(weights.values())
        strength = [sum(w for (i, _), w in weights.items() if i == node) for node in range(7)]
        for i in range(7):
            for j in range(7):
                if labels[i] == labels[j]:
                    score += sign * (weights.get((i, j), 0.0) - strength[i] * strength[j] / total)
        size += total
    assert phase_structure(1 - similarity, partition).modularity == pytest.approx(score / size)


def test_gain_is_over_all_contiguous_partitions():
    d = blocks((3, 2, 4), 0.8, 0.1)
    best = max_cut(d, 3)
    found = phase_structure(d, best)
    total = d.sum()

    def weight(a, b):
        labels = np.repeat([0, 1, 2], [a, b - a, 9 - b])
        return d[labels[:, None] != labels[None, :]].sum() / total

    weights = [weight(a, b) for a in range(1, 8) for b in range(a + 1, 9)]
    assert best.lengths == (3, 2, 4)
    assert found.gain == pytest.approx(max(weights) - np.mean(weights))
    assert found.z == pytest.approx((max(weights) - np.mean(weights)) / np.std(weights))


def test_what_there_are_no_pairs_for_is_none():
    whole = phase_structure(drift(4), Partition((4,)))
    assert whole.across is None and whole.contrast is None and whole.matched_contrast is None and whole.z is None
    single = phase_structure(drift(3), Partition((1, 1, 1)))
    assert single.within is None and single.gain == pytest.approx(0)


def test_another_depth_is_refused():
    with pytest.raises(ValueError, match="expected one depth, 2 or more"):
        phase_structure(drift(5), Partition((4, 2)))
