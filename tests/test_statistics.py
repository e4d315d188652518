import jax
import numpy as np
import pytest

from brh_jax.phases import Partition
from brh_jax.probes.heads import bootstrap_interval
from brh_jax.statistics import bootstrap_counts, bootstrap_draws, boundary_jump_test, crossing, num_groups, ratio, summarize
from brh_jax.tokens import ByToken


def test_the_band_is_that_of_the_normal_formula():
    values = np.random.default_rng(0).normal(3.0, [[1.0], [2.0]], (2, 400))
    summary = summarize(values, num_resamples=4000)
    error = values.std(-1, ddof=1) / 20
    np.testing.assert_allclose(summary.mean, values.mean(-1))
    np.testing.assert_allclose(summary.low, summary.mean - 1.96 * error, atol=0.1 * error.min())
    np.testing.assert_allclose(summary.high, summary.mean + 1.96 * error, atol=0.1 * error.min())
    np.testing.assert_allclose(summary.quantiles, np.quantile(values, (0.1, 0.5, 0.9), axis=-1))
    assert summary.quantiles.shape == (3, 2)


def test_the_band_covers_the_mean_as_often_as_it_says():
    # 600 rows are 600 experiments of 60 images each: 90 +- 2.4 % at two standard deviations, less about 1 % of the percentile
    # bootstrap's own.
    summary = summarize(np.random.default_rng(1).exponential(size=(600, 60)), num_resamples=600, level=0.9)
    covered = np.mean((summary.low <= 1) & (summary.high >= 1))
    assert 0.84 < covered < 0.94


def test_the_band_of_a_quotient_is_that_of_the_delta_method_and_knows_what_both_have_in_common():
    rng = np.random.default_rng(0)
    teacher = rng.random(2000) < 0.6
    raptor = np.where(rng.random(2000) < 0.9, teacher, rng.random(2000) < 0.5)
    found = ratio(raptor, teacher, num_resamples=4000)
    value = raptor.sum() / teacher.sum()
    error = (raptor - value * teacher).std() / teacher.mean() / np.sqrt(2000)
    assert found.value == pytest.approx(value)
    np.testing.assert_allclose((found.low, found.high), (value - 1.96 * error, value + 1.96 * error), atol=0.1 * error)
    assert ratio(teacher, teacher) == (1, 1, 1)
    twice, names = ratio(np.tile(raptor, 2), np.tile(teacher, 2), num_resamples=4000, groups=[*range(2000)] * 2), found
    np.testing.assert_allclose(twice, names, atol=1e-12)
    for wrong in ((raptor[:3], teacher), (raptor, np.zeros(2000))):
        with pytest.raises(ValueError, match="expected one value of each for every image|denominator is 0 in sum"):
            ratio(*wrong)


def test_duplicates_leave_a_grouped_band_as_it_is_and_narrow_an_ungrouped_one():
    """Every image twice is no more than once: drawn by photograph the band is the same to rounding, by image sqrt(2) narrower."""
    values = np.random.default_rng(3).normal(size=300)
    once, names = summarize(values, num_resamples=4000), [f"{i}.jpg" for i in range(300)]
    for twice, groups in ((np.tile(values, 2), names * 2), (np.repeat(values, 2), np.repeat(names, 2))):
        grouped, alone = (summarize(twice, num_resamples=4000, groups=g) for g in (groups, None))
        np.testing.assert_allclose((grouped.low, grouped.high), (once.low, once.high), atol=1e-12)
        assert (once.high - once.low) / (alone.high - alone.low) == pytest.approx(np.sqrt(2), rel=0.05)
    interval = bootstrap_interval(np.tile(values, 2), float, groups=names * 2)
    assert interval == pytest.approx(bootstrap_interval(2 * values, float))


def test_a_photograph_counts_by_its_views():
    """One photograph in two is seen three times: draws of {A}, {A, B} and {B} have means 0, 3 / 4 and 1."""
    band = summarize([0.0, 1.0, 1.0, 1.0], groups=["a", "b", "b", "b"], level=0.4)
    assert (band.mean, band.low, band.high) == (0.75, 0.75, 0.75)
    counts = list(bootstrap_counts(4, 200, 0, ["a", "b", "b", "b"]))
    assert {tuple(count) for count in counts} == {(2, 0, 0, 0), (1, 1, 1, 1), (0, 2, 2, 2)}
    assert num_groups(["a", "b", "b"], 3) == 2 and num_groups(None, 3) == 3
    with pytest.raises(ValueError, match="2 groups for 3 units: expected one group for each"):
        summarize([1.0, 2.0, 3.0], groups=[0, 1])


def test_summaries_of_token_types_are_resampled_together():
    values = np.random.default_rng(2).normal(size=(5, 30))
    summaries = jax.tree.map(summarize, ByToken(values, values[:0], 2 * values))
    assert summaries.registers.mean.shape == (0,)
    assert summaries.registers.quantiles.shape == (3, 0)
    np.testing.assert_allclose(summaries.patches.low, 2 * summaries.cls.low)
    assert not np.allclose(summarize(values, seed=1).low, summaries.cls.low)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.ones((3, 1)), {}, "two images or more"),
        (np.array([1.0, np.nan]), {}, "not all finite"),
        (np.ones(3), {"level": 95}, "level 95 must lie between 0 and 1"),
        (np.ones(3), {"num_resamples": 0}, "num_resamples 0"),
        (np.ones(3), {"quantiles": (10, 90)}, r"quantiles are shares from 0 to 1, got \(10, 90\)"),
    ],
)
def test_bad_values(values, options, message):
    with pytest.raises(ValueError, match=message):
        summarize(values, **options)


def test_a_step_curve_jumps_at_its_steps_and_nowhere_else():
    partition = Partition((7, 3, 2))
    steps = np.array([1.0, 3.0, 0.5])[list(partition.labels)]
    jumps = boundary_jump_test(steps, partition.boundaries)
    assert jumps.num_placements == 55
    assert jumps.p_value == pytest.approx(1 / 55)
    assert jumps.statistic == pytest.approx((2 + 2.5) / 2)
    # One of the two steps and a place without one: beaten by (7, 10), and by 10 with any of the nine other places.
    elsewhere = boundary_jump_test(steps, (7, 9))
    assert elsewhere.p_value == pytest.approx((1 + 9 + 9) / 55)
    assert elsewhere.statistic == pytest.approx(2 / 2 - 2.5 / 9)


def test_one_boundary_in_twelve_layers_is_one_of_eleven():
    images = np.where(np.arange(12) < 5, 1.0, 2.0)[:, None] + np.random.default_rng(0).normal(0, 1e-3, (12, 50))
    test = boundary_jump_test(images, (5,))
    assert test.num_placements == 11
    assert test.p_value == pytest.approx(1 / 11)
    assert test.statistic == pytest.approx(1, abs=1e-3)


def test_a_steady_curve_never_jumps():
    assert boundary_jump_test(0.1 * np.arange(12), (4, 8)).p_value == 1


def test_sampled_placements_agree_with_all_of_them():
    values = np.random.default_rng(3).normal(size=14)
    exact = boundary_jump_test(values, (3, 7, 11))
    sampled = boundary_jump_test(values, (3, 7, 11), num_permutations=280)
    assert exact.num_placements == 286
    assert sampled.num_placements == 281
    assert sampled.statistic == exact.statistic
    assert abs(sampled.p_value - exact.p_value) < 4 * np.sqrt(0.25 / 280)
    # What never happens by chance still has p > 0.
    steps = np.repeat(np.arange(6.0), 8)
    assert boundary_jump_test(steps, range(8, 48, 8), num_permutations=500).p_value == pytest.approx(1 / 501)


@pytest.mark.parametrize(
    ("values", "boundaries", "message"),
    [
        (np.ones((2, 3, 4)), (1,), r"expected values \[depth\] or \[depth, images\]"),
        (np.array([1, np.inf, 2]), (1,), "not all finite"),
        (np.ones(6), (), "must be one or more different numbers from 1 to 5"),
        (np.ones(6), (0,), r"boundaries \(0,\)"),
        (np.ones(6), (6,), r"boundaries \(6,\)"),
        (np.ones(6), (2, 2), r"boundaries \(2, 2\)"),
        (np.ones(3), (1, 2), "no other change to compare with"),
    ],
)
def test_bad_curves_and_boundaries(values, boundaries, message):
    with pytest.raises(ValueError, match=message):
        boundary_jump_test(values, boundaries)


@pytest.mark.parametrize(("level", "where"), [(0.5, 1.25), (0.9, 3.8), (0.0, 0.0), (1.5, None), (0.4, 1.0)])
def test_a_curve_comes_up_to_a_level_between_its_points(level, where):
    found = crossing([0.1, 0.4, 0.8, 0.5, 1.0], level)
    assert found == (where if where is None else pytest.approx(where))


def test_curves_that_are_none():
    with pytest.raises(ValueError, match="one curve of finite values"):
        crossing([[0.1, 0.2]], 0.5)
    with pytest.raises(ValueError, match="one curve of finite values"):
        crossing([0.1, np.nan], 0.5)


def test_draws_are_with_replacement_and_a_seed_has_its_own():
    draws, counts = np.stack(list(bootstrap_draws(5, 200, seed=3))), np.stack(list(bootstrap_counts(5, 200, seed=3)))
    np.testing.assert_array_equal(counts, [np.bincount(draw, minlength=5) for draw in draws])
    assert draws.shape == (200, 5) and (counts.sum(1) == 5).all() and counts.max() > 2
    assert not np.array_equal(draws, list(bootstrap_draws(5, 200, seed=4)))
