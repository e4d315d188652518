"""The matched contrast against planted effects, a regression, and what distance alone does."""

import numpy as np
import pytest

from brh_jax.errors import UserError
from brh_jax.interventions import Swap, boundary_test, layer_swaps, matched_contrast
from brh_jax.phases import Partition

PARTITION = Partition((6, 4, 2))
SWAPS = layer_swaps(PARTITION)
DISTANCE = np.array([s.distance for s in SWAPS])
INTER = np.array([s.is_inter(PARTITION) for s in SWAPS])


def noise(seed, images=20, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(len(SWAPS), images))


def test_a_planted_effect_is_found_whatever_distance_does():
    found = matched_contrast(noise(0) + 0.5 * INTER[:, None] + 3.0 * DISTANCE[:, None], INTER, DISTANCE)
    np.testing.assert_allclose(found.difference, 0.5, atol=0.15)
    assert found.low < 0.5 < found.high and found.low > 0
    assert found.p_value == 1 / 10_001
    assert found.inter - found.intra > 5  # what a comparison without strata would say


def test_a_pure_effect_of_distance_is_none():
    found = matched_contrast(np.repeat(np.exp(0.7 * DISTANCE)[:, None], 4, 1), INTER, DISTANCE)
    np.testing.assert_allclose([found.difference, found.low, found.high], 0, atol=1e-9)
    assert found.p_value == 1.0
    assert found.inter > 10 * found.intra


def test_without_an_effect_p_is_uniform():
    values = [noise(seed, images=2) + DISTANCE[:, None] for seed in range(300)]
    p = np.sort([matched_contrast(v, INTER, DISTANCE, num_permutations=199, seed=i).p_value for i, v in enumerate(values)])
    assert np.abs(p - (np.arange(300) + 0.5) / 300).max() < 1.63 / np.sqrt(300)  # Kolmogorov-Smirnov at 1 %


def test_the_difference_is_a_regression_with_a_constant_for_each_stratum():
    values = noise(3) + 0.3 * INTER[:, None]
    design = np.column_stack([INTER, DISTANCE[:, None] == np.unique(DISTANCE)]).astype(float)
    coefficient = np.linalg.lstsq(design, values.mean(1), rcond=None)[0][0]
    found = matched_contrast(values, INTER, DISTANCE)
    np.testing.assert_allclose(found.difference, coefficient, rtol=1e-9)
    both = [d for d in np.unique(DISTANCE) if len(set(INTER[d == DISTANCE])) == 2]
    assert found.num_inter == sum(INTER[np.isin(DISTANCE, both)]) < INTER.sum()
    assert found.num_intra == sum(~INTER[np.isin(DISTANCE, both)])


def test_strata_of_place_and_distance():
    place = np.array([s.places[0] for s in SWAPS])
    values = noise(4, scale=0.1) + np.square(place)[:, None]  # damage that depends on where, not on what
    plain = matched_contrast(values, INTER, DISTANCE)
    matched = matched_contrast(values, INTER, np.stack([place, DISTANCE], 1))
    assert abs(plain.difference) > 5 > 0.1 > abs(matched.difference)
    assert matched.num_intra == matched.num_inter  # pairs: one layer before the place, one behind it


def test_the_p_value_is_that_of_all_shuffles():
    values = np.array([0.0, 1.0, 2.0, 5.0])[:, None] + np.zeros(2)
    found = matched_contrast(values, [False, False, True, True], [1, 1, 1, 1], num_permutations=20_000)
    np.testing.assert_allclose(found.p_value, 1 / 6, atol=0.01)  # one of six ways to choose two of four
    assert found.difference == 3.0


def test_without_both_kinds_at_one_distance_there_is_no_contrast():
    assert matched_contrast(np.ones((3, 2)), [True, True, False], [1, 1, 2]) is None
    assert boundary_test(np.ones(len(SWAPS)), SWAPS, Partition((12,))) is None


def test_boundaries_that_were_planted_are_first_of_all():
    values = noise(5) + 2.0 * INTER[:, None]
    found = boundary_test(values, SWAPS, PARTITION)
    assert found.num_placements <= 55 and found.p_value == 1 / found.num_placements
    np.testing.assert_allclose(found.difference, matched_contrast(values, INTER, DISTANCE).difference, rtol=1e-9)
    elsewhere = boundary_test(values, SWAPS, Partition((1, 2, 9)))
    assert elsewhere.p_value > 0.2
    drawn = boundary_test(values, SWAPS, PARTITION, num_permutations=20)
    assert drawn.num_placements <= 21 and drawn.p_value <= 0.1


def test_boundaries_of_nothing_are_uniform():
    p = [boundary_test(noise(seed, 2), SWAPS, PARTITION).p_value for seed in range(150)]
    assert 0.4 < np.mean(p) < 0.6
    assert np.mean(np.array(p) <= 0.1) < 0.17


def test_bad_input():
    with pytest.raises(ValueError, match=r"expected values \[swaps, images\]"):
        matched_contrast(np.ones((3, 2)), [True, False], [1, 1])
    with pytest.raises(ValueError, match="num_permutations must be at least 1"):
        matched_contrast(np.ones((2, 2)), [True, False], [1, 1], num_permutations=0)
    with pytest.raises(ValueError, match="not all finite"):
        matched_contrast(np.full((2, 2), np.nan), [True, False], [1, 1])
    with pytest.raises(ValueError, match="3 values for"):
        boundary_test(np.ones(3), SWAPS, PARTITION)
    with pytest.raises(UserError, match="swaps of one layer"):
        boundary_test(np.ones(1), [Swap((0, 1), (2, 3))], PARTITION)
