import functools
import itertools

import jax
import numpy as np
import pytest

from brh_jax import phases
from brh_jax.phases import cka
from brh_jax.tokens import TokenLayout

LAYOUT = TokenLayout(1, 1, (2, 2))


def centred_cka(x, y):
    """Of all images at once, by the definition of Kornblith et al. (2019, equation 1) in feature space."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def hsic_by_tuples(x, y):
    """The U-statistic of order four that the unbiased HSIC is, over all ordered tuples of different images."""
    k, m, n = x @ x.T, y @ y.T, len(x)
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(n), 4)]
    return np.mean(terms)


def test_hsic_is_its_u_statistic():
    x = np.random.default_rng(0).normal(size=(3, 6, 4)) + 5.0
    found = cka.hsic(x)
    for l, m in itertools.product(range(3), repeat=2):
        assert found[l, m] == pytest.approx(hsic_by_tuples(x[l], x[m]), rel=1e-9)
    with pytest.raises(ValueError, match="needs four or more"):
        cka.hsic(x[:, :3])


def test_alignment_over_groups_is_that_of_all_images():
    """10,000 images in groups of 16 against one Gram matrix of features; the estimate is unbiased whatever the groups."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(10_000, 6))
    layers = np.stack([shared @ rng.normal(size=(6, 6)) + noise * rng.normal(size=(10_000, 6)) for noise in (0.1, 1.0, 3.0)])
    groups = layers.reshape(3, 625, 16, 6).transpose(1, 0, 2, 3)
    found = cka.alignment(cka.hsic(groups).mean(0))
    expected = np.array([[centred_cka(x, y) for y in layers] for x in layers])
    np.testing.assert_allclose(found, expected, atol=0.01)
    constant = np.concatenate([layers[:1, :16], np.ones((1, 16, 6))])
    np.testing.assert_allclose(cka.alignment(cka.hsic(constant)), [[1, 0], [0, 0]], atol=1e-12)


@pytest.fixture(scope="module")
def sampled():
    """Forty images in batches, the last one padded."""
    states = np.asarray(jax.random.normal(jax.random.key(0), (6, 40, LAYOUT.num_tokens, 8))).cumsum(0)
    batches = [(states[:, i : i + 12], np.ones(12, bool)) for i in (0, 12, 24)]
    batches.append((states[:, [36, 37, 38, 39] + [0] * 8], np.arange(12) < 4))
    return states, phases.layer_samples(iter(batches), LAYOUT)


def test_samples_of_batches_are_those_of_all_images(sampled):
    states, samples = sampled
    np.testing.assert_allclose(samples["cosine"].dissimilarity(), phases.layer_dissimilarity(states, LAYOUT), atol=1e-6)
    assert (samples["cosine"].num_units, samples["cka"].num_units) == (40, 2)  # 40 images have two groups of 16
    by_type = []
    for vectors in (states[1:, :32, 0], states[1:, :32, 2:].mean(2)):
        h = sum(cka.hsic(vectors[:, i : i + 16]) for i in (0, 16))
        by_type.append(h / np.sqrt(np.outer(h.diagonal(), h.diagonal())))
    np.testing.assert_allclose(1 - samples["cka"].dissimilarity(), np.mean(by_type, axis=0), atol=1e-6)
    first, second = samples["cosine"].halves()
    np.testing.assert_allclose(first.dissimilarity() + second.dissimilarity(), 2 * samples["cosine"].dissimilarity(), atol=1e-6)
    with pytest.raises(ValueError, match="unknown metric mmd"):
        phases.layer_samples(iter([]), LAYOUT, ("mmd",))
    with pytest.raises(ValueError, match="no images"):
        phases.layer_samples(iter([]), LAYOUT)
    with pytest.raises(ValueError, match="groups of 16"):
        phases.layer_samples(iter([(states[:, :8], np.ones(8, bool))]), LAYOUT)


def test_resamples_are_means_over_images_drawn_with_replacement(sampled):
    _, samples = sampled
    sample = samples["cosine"]
    rng = np.random.default_rng(3)
    expected = []
    for _ in range(4):
        mean = np.mean([sample.values[i] for i in rng.integers(40, size=40)], axis=0, dtype=np.float64)
        expected.append(mean * (1 - np.eye(5)))
    np.testing.assert_allclose(sample.resampled(4, seed=3), expected, atol=1e-12)
    spread = sample.resampled(2000, seed=0).std(0)
    np.testing.assert_allclose(spread, sample.values.std(0) / np.sqrt(40), rtol=0.1, atol=1e-6)


def test_views_of_one_photograph_are_drawn_together(sampled):
    """Every image three times says no more than once; the halves share no photograph."""
    states, samples = sampled
    thrice, names = np.concatenate([states] * 3, axis=1), np.tile(np.arange(40) + 100, 3)
    batches = [(thrice[:, i : i + 24], np.ones(24, bool), names[i : i + 24]) for i in range(0, 120, 24)]
    found = phases.layer_samples(iter(batches), LAYOUT)
    once, cosine, kernel = samples["cosine"], found["cosine"], found["cka"]
    assert (cosine.num_units, cosine.num_groups) == (120, 40)
    np.testing.assert_allclose(cosine.resampled(50, seed=0), once.resampled(50, seed=0), atol=1e-6)
    alone = phases.LayerSamples("cosine", cosine.values).resampled(2000, seed=0).std(0)
    np.testing.assert_allclose(alone, once.resampled(2000, seed=0).std(0) / np.sqrt(3), rtol=0.1, atol=1e-6)
    first, second = cosine.halves()
    assert first.num_units == second.num_units == 60 and first.num_groups == 20
    assert not set(first.groups) & set(second.groups)
    # 40 photographs are two sets of 16, each three times; the units of one set are one group.
    assert (kernel.num_units, kernel.num_groups) == (6, 2)
    np.testing.assert_allclose(kernel.dissimilarity(), samples["cka"].dissimilarity(), atol=1e-9)
    with pytest.raises(ValueError, match="24 images of 8 photographs: kernel alignment is measured over groups of 16 different"):
        phases.layer_samples(iter([(thrice[:, :24], np.ones(24, bool), np.arange(24) % 8)]), LAYOUT)


def rand_index(a, b):
    """Adjusted, by counting pairs of layers: (index - expected) / (largest - expected)."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    same_a, same_b = ([x[i] == x[j] for i, j in pairs] for x in (a, b))
    both, in_a, in_b = sum(p and q for p, q in zip(same_a, same_b, strict=True)), sum(same_a), sum(same_b)
    expected = in_a * in_b / len(pairs)
    return (both - expected) / ((in_a + in_b) / 2 - expected)


def test_stability_counts_partitions_and_boundaries():
    """Matrices whose max cut is known: seven of ten cut after layer 2, three after layer 4."""

    def planted(boundary):
        late = np.arange(6) >= boundary
        return (late[:, None] != late).astype(float)

    matrices = [planted(2)] * 7 + [planted(4)] * 3
    found = phases.Partition((2, 4))
    result = phases.stability(matrices, functools.partial(phases.max_cut, k=2), found)
    np.testing.assert_allclose(result.boundary_frequency, [0, 0.7, 0, 0.3, 0])
    assert list(result.frequencies.items()) == [(phases.Partition((2, 4)), 0.7), (phases.Partition((4, 2)), 0.3)]
    other = rand_index((0, 0, 1, 1, 1, 1), (0, 0, 0, 0, 1, 1))
    np.testing.assert_allclose(sorted(result.rand_index), [other] * 3 + [1.0] * 7)


def test_states_that_are_not_finite_are_cut_by_no_metric():
    layout = TokenLayout(1, 0, (2, 2))
    states = np.random.default_rng(0).normal(size=(5, 32, 5, 8)).astype(np.float32)
    states[2, 3, 0, 1] = np.nan
    for sample in phases.layer_samples([(states, np.ones(32, bool))], layout).values():
        with pytest.raises(ValueError, match="holds NaN or infinity: check the states"):
            phases.max_cut(sample.dissimilarity(), 2)


def test_random_cuts_hold_every_contiguous_partition():
    a = np.random.default_rng(0).random((8, 8))
    d = (a + a.T) * (1 - np.eye(8))
    best = phases.max_cut(d, 3)
    compared = phases.random_cuts(d, best, num_random=100)
    assert sorted(compared.contiguous) == sorted(phases.cut_weight(d, p) for p in phases.all_contiguous(8, 3))
    assert compared.weight == pytest.approx(max(compared.contiguous)) and compared.rank == 1.0
    sampled = phases.random_cuts(d, phases.Partition((1, 1, 6)), num_random=10)
    assert len(sampled.contiguous) == len(sampled.fragmented) == 10
    worst = min(phases.all_contiguous(8, 3), key=lambda p: phases.cut_weight(d, p))
    assert phases.random_cuts(d, worst, num_random=100).rank == pytest.approx(1 / 21)
