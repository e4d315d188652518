import itertools
import time

import numpy as np
import pytest

from brh_jax import phases


def random_matrix(depth, seed=0):
    a = np.random.default_rng(seed).random((depth, depth))
    a = a + a.T
    np.fill_diagonal(a, 0)
    return a


def across(d, partition):
    labels = np.array(partition.labels)
    return d[labels[:, None] != labels].sum()


def contrast(d, partition):
    labels, upper = np.array(partition.labels), np.triu_indices(len(d), 1)
    same = (labels[:, None] == labels)[upper]
    values = d[upper]
    return (values[~same].mean() if (~same).any() else 0) - (values[same].mean() if same.any() else 0)


@pytest.mark.parametrize(("cut", "objective"), [(phases.max_cut, across), (phases.contrast_cut, contrast)])
def test_optimum_equals_brute_force(cut, objective):
    cases = itertools.product(range(2, 13), range(1, 6), (1, 2))
    for depth, k, shortest in ((d, k, s) for d, k, s in cases if k * s <= d):
        d = random_matrix(depth, seed=depth * 10 + k)
        best = max(objective(d, p) for p in phases.all_contiguous(depth, k, shortest))
        found = cut(d, k, shortest)
        assert (found.k, found.depth) == (k, depth)
        assert min(found.lengths) >= shortest
        assert objective(d, found) == pytest.approx(best, abs=1e-9)


def test_planted_phases_are_found_by_every_method():
    labels = np.repeat([0, 1, 2], [7, 3, 2])
    d = np.where(labels[:, None] == labels, 0.05, 1.0) * (1 - np.eye(12))
    for found in (phases.max_cut(d, 3), phases.contrast_cut(d, 3), phases.recursive_bisection(d, 0.1)):
        assert str(found) == "1-7 | 8-10 | 11-12"


def test_a_higher_threshold_gives_fewer_phases():
    d = np.abs(np.subtract.outer(np.arange(12.0), np.arange(12.0)))
    ks = [phases.recursive_bisection(d, t).k for t in (2.0, 0.3, 0.05, 0.01)]
    assert ks[0] == 1
    assert ks == sorted(ks)
    assert ks[-1] > 2


def test_a_bisection_says_at_which_threshold_each_cut_is_made():
    for seed, min_length in itertools.product(range(5), (1, 2, 3)):
        d = random_matrix(11, seed)
        found = phases.bisection(d, min_length)
        assert list(found.thresholds) == sorted(found.thresholds, reverse=True)
        for k in range(2, found.most + 1):
            threshold = found.thresholds[k - 2]
            assert phases.recursive_bisection(d, threshold, min_length) == found.partition(k)
            assert phases.recursive_bisection(d, threshold * (1 + 1e-9), min_length).k < k
            assert min(found.partition(k).lengths) >= min_length
        with pytest.raises(ValueError, match=f"ends at {found.most} phases of this matrix, {found.most + 1} were asked for"):
            found.partition(found.most + 1)
    assert found.partition(1).lengths == (11,)


def test_sixty_four_layers_are_no_work():
    d = random_matrix(64)
    start = time.perf_counter()
    assert phases.max_cut(d, 8).depth == 64
    print(f"max cut of 64 layers: {time.perf_counter() - start:.3f} s")


def test_random_contiguous_is_uniform():
    counts = {}
    for seed in range(3000):
        p = phases.random_contiguous(6, 3, seed)
        counts[p.lengths] = counts.get(p.lengths, 0) + 1
    assert len(counts) == 10  # C(5, 2) ways
    assert max(abs(n - 300) for n in counts.values()) < 80
    assert all(min(phases.random_contiguous(9, 3, seed, 2).lengths) >= 2 for seed in range(50))
    assert phases.random_contiguous(12, 3, 5) == phases.random_contiguous(12, 3, 5)


def test_random_fragmented_keeps_the_sizes_of_phases():
    for seed in range(20):
        p = phases.random_fragmented((7, 3, 2), seed)
        assert sorted(p.labels.count(i) for i in range(3)) == [2, 3, 7]


def test_cut_weight():
    d = np.ones((4, 4)) - np.eye(4)
    assert phases.cut_weight(d, phases.Partition((2, 2))) == pytest.approx(8 / 12)


@pytest.mark.parametrize(
    ("matrix", "k", "fault"),
    [
        (np.zeros((3, 4)), 2, "square matrix"),
        (np.full((3, 3), np.nan), 2, "NaN or infinity"),
        (np.triu(np.ones((4, 4))), 2, "not symmetric"),
        (np.full((4, 4), 0.5) + np.eye(4) / 2, 2, "of a layer to itself is 1, expected 0: of similarities give 1 - similarity"),
        (np.zeros((6, 6)), 7, "6 layers cannot be cut into 7 phases: k must be between 1 and 6"),
        (np.zeros((6, 6)), 0, "k must be between 1 and 6"),
    ],
)
def test_what_cannot_be_cut(matrix, k, fault):
    with pytest.raises(ValueError, match=fault):
        phases.max_cut(matrix, k)
