"""Statistics over runs against scipy."""

import numpy as np
import pytest
from scipy import stats

from brh_jax.report.run_statistics import correlation, mean_over_seeds


def test_mean_has_students_interval():
    values = [0.2, 0.5, 0.4]
    found = mean_over_seeds(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 3)
    assert mean_over_seeds([0.3]) == (0.3, None, None, 1)
    with pytest.raises(ValueError, match="needs finite values"):
        mean_over_seeds([])


def test_coefficients_are_scipys():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = np.round(x + rng.normal(size=30))  # with ties
    found = correlation(x, y, range(30))
    assert found.pearson == pytest.approx(stats.pearsonr(x, y)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(x, y)[0])
    low, high = found.pearson_interval
    options = {"paired": True, "vectorized": False, "method": "percentile", "n_resamples": 1000}
    theirs = stats.bootstrap((x, y), lambda a, b: stats.pearsonr(a, b)[0], **options)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.06)


def test_copies_of_a_group_tell_nothing_new():
    rng = np.random.default_rng(1)
    x = rng.normal(size=12)
    y = x + rng.normal(size=12)
    single = correlation(x, y, range(12))
    copied = correlation(np.tile(x, 5), np.tile(y, 5), list(range(12)) * 5)
    assert copied.pearson_interval == pytest.approx(single.pearson_interval)
    assert (copied.num_points, copied.num_groups) == (60, 12)


def test_what_does_not_vary_has_no_correlation():
    assert correlation([1, 1, 1], [1, 2, 3], "abc").pearson is None
    with pytest.raises(ValueError, match="three or more points"):
        correlation([1, 2], [1, 2], "ab")
    with pytest.raises(ValueError, match="not all finite"):
        correlation([1, 2, np.nan], [1, 2, 3], "abc")
