import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import r2_score

from brh_jax.distill import evaluate, repeat_state
from brh_jax.dynamics import summarize
from brh_jax.models import pooled_features
from brh_jax.tokens import TokenLayout

LAYOUT = TokenLayout(1, 2, (2, 2))


def drawn():
    """Ten images; a mean far from zero, where sums of squares would lose digits."""
    truth = 30.0 + jax.random.normal(jax.random.key(0), (4, 10, 7, 5))
    return truth, truth + 0.3 * jax.random.normal(jax.random.key(1), truth.shape)


def fits_of(truth, guess):
    """In batches of four, the last one padded."""
    # The "image" of an example is its index.
    batches = [
        {"image": np.array([0, 1, 2, 3]), "valid": np.ones(4, bool)},
        {"image": np.array([4, 5, 6, 7]), "valid": np.ones(4, bool)},
        {"image": np.array([8, 9, 8, 8]), "valid": np.array([True, True, False, False])},
    ]
    at = {}

    def teacher(indices):
        at["now"] = indices
        return truth[:, indices]

    predictors = {"guess": lambda a0: guess[:, at["now"]], "identity": repeat_state(3)}
    return evaluate(teacher, predictors, lambda states: 2 * states, iter(batches), LAYOUT)


@pytest.fixture(scope="module")
def measured():
    truth, guess = drawn()
    return np.asarray(truth, np.float64), np.asarray(guess, np.float64), fits_of(truth, guess)


@pytest.mark.parametrize("scale", [2.0**64, 2.0**110])  # 1.8e19, 1.3e33; by powers of two nothing is rounded
def test_states_of_any_size_have_the_same_r2_and_e(measured, scale):
    """Their squares overflow float32, which once gave R² of NaN and e of infinity."""
    truth, guess = drawn()
    found, expected = fits_of(truth * scale, guess * scale), measured[2]
    lengths = {"error", "error_all"}  # in the states' own unit
    for name in found:
        for field in ("r2", "r2_all", "r2_one_mean", "cosine", "relative_error", "relative_error_all", "final_cosine", *lengths):
            values, wanted = (getattr(fit[name], field) for fit in (found, expected))
            for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(a / scale if field in lengths else a, b, rtol=1e-5, err_msg=f"{name} {field}")


def test_a_massive_channel_takes_no_digits():
    """One channel of 1e4 and more in all tokens, as in DINOv2-g: what R² is about is a ten-thousandth of it."""
    truth, guess = (np.array(states) for states in drawn())
    truth[..., 0] += 3e4
    guess[..., 0] += 3e4
    fit = fits_of(jnp.asarray(truth), jnp.asarray(guess))["guess"]
    a, b = (states[1:].astype(np.float64).reshape(3, -1, 5) for states in (truth, guess))
    expected = [r2_score(*layer, multioutput="variance_weighted") for layer in zip(a, b, strict=True)]
    np.testing.assert_allclose(fit.r2_all, expected, atol=1e-4)
    difference = (truth.astype(np.float64) - guess)[1:].reshape(3, 10, -1)
    np.testing.assert_allclose(fit.images.error_all, np.linalg.norm(difference, axis=-1), rtol=1e-4)


def test_r2_is_pooled_over_images_and_tokens(measured):
    truth, guess, fits = measured
    for token, true, predicted in zip(("cls", "registers", "patches"), LAYOUT.split(truth), LAYOUT.split(guess), strict=True):
        for layer in range(3):
            a, b = true[layer + 1].reshape(-1, 5), predicted[layer + 1].reshape(-1, 5)
            # sklearn's variance-weighted average over dimensions is the ratio of pooled sums.
            expected = r2_score(a, b, multioutput="variance_weighted")
            assert getattr(fits["guess"].r2, token)[layer] == pytest.approx(expected, abs=1e-4)


def test_r2_of_all_tokens_together_and_about_one_mean(measured):
    truth, guess, fits = measured
    for layer in range(3):
        a, b = truth[layer + 1].reshape(-1, 5), guess[layer + 1].reshape(-1, 5)
        expected = r2_score(a, b, multioutput="variance_weighted")
        assert fits["guess"].r2_all[layer] == pytest.approx(expected, abs=1e-4)
    batches = [slice(0, 4), slice(4, 8), slice(8, 10)]
    each = [1 - np.mean((truth[-1, rows] - guess[-1, rows]) ** 2) / guess[-1, rows].var() for rows in batches]
    assert fits["guess"].r2_one_mean == pytest.approx(np.average(each, weights=[4, 4, 2]), abs=1e-4)


def test_r2_by_hand():
    """Two images of one cls and one patch, one dimension: all tokens 1, 3, 5, 7 about their mean 4 have squares 20 in sum."""
    truth = jnp.broadcast_to(jnp.array([[1.0, 5.0], [3.0, 7.0]])[None, :, :, None], (2, 2, 2, 1))
    guess = truth + jnp.array([1.0, -1.0])[:, None]  # 2, 4, 4, 6, also about 4: squares 8
    batch = {"image": np.arange(2), "valid": np.ones(2, bool)}
    fit = evaluate(lambda i: truth, {"g": lambda a0: guess}, lambda s: s, [batch], TokenLayout(1, 0, (1, 1)))["g"]
    assert fit.r2_all[-1] == pytest.approx(1 - 4 / 20)
    assert fit.r2.cls[-1] == fit.r2.patches[-1] == pytest.approx(1 - 2 / 2)
    assert fit.r2_one_mean == pytest.approx(1 - (4 / 4) / (8 / 4), abs=1e-5)


def test_the_classes_that_a_head_gives():
    """Three of four labelled images are right on the prediction, which has the class of the true state for two of five."""
    truth, guess = (
        np.eye(3, dtype=np.float32)[np.array(rows)][None, :, None].repeat(2, 0) for rows in ([0, 1, 2, 0, 1], [0, 2, 1, 1, 1])
    )
    batch = {"image": np.arange(5), "valid": np.ones(5, bool), "label": np.array([0, 2, 1, 2, -1])}
    head, layout = {"kernel": np.eye(3), "bias": np.zeros(3)}, TokenLayout(1, 0, (0, 0))
    options = ({"g": lambda a0: jnp.asarray(guess)}, lambda s: s, [batch], layout)
    fit = evaluate(lambda i: jnp.asarray(truth), *options, head=head)["g"]
    assert (fit.classes.accuracy, fit.classes.true_accuracy, fit.classes.agreement) == (0.75, 0.25, 0.4)
    without = evaluate(lambda i: jnp.asarray(truth), *options, head=head, labelled=False)["g"]
    assert (without.classes.accuracy, without.classes.agreement) == (None, 0.4)
    assert evaluate(lambda i: jnp.asarray(truth), *options)["g"].classes is None


def test_cosine_and_e(measured):
    truth, guess, fits = measured
    fit = fits["guess"]
    assert fit.num_images == 10
    difference = np.linalg.norm((truth - guess)[1:].reshape(3, 10, -1), axis=-1)
    norm = np.linalg.norm(truth[1:].reshape(3, 10, -1), axis=-1)
    np.testing.assert_allclose(fit.images.error_all, difference, rtol=1e-4)
    np.testing.assert_allclose(fit.images.relative_error_all, difference / norm, rtol=1e-4)
    np.testing.assert_allclose(fit.error_all, difference.mean(1), rtol=1e-4)
    np.testing.assert_allclose(fit.relative_error_all, (difference / norm).mean(1), rtol=1e-4)
    a, b = LAYOUT.split(truth)[2][1:], LAYOUT.split(guess)[2][1:]
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(fit.cosine.patches, cosine.mean((1, 2)), rtol=1e-5)
    assert [v.shape for v in fit.images.relative_error] == [(3, 10)] * 3
    np.testing.assert_allclose(fit.error.patches, np.linalg.norm((a - b).reshape(3, 10, -1), axis=-1).mean(1), rtol=1e-4)
    features = [np.asarray(pooled_features(jnp.asarray(2 * x[-1]), LAYOUT)) for x in (truth, guess)]
    final = (features[0] * features[1]).sum(-1) / np.prod([np.linalg.norm(f, axis=-1) for f in features], axis=0)
    assert fit.final_cosine == pytest.approx(final.mean(), rel=1e-5)


def test_intervals_of_e_are_scipys(measured):
    """Percentile bootstrap over images; two random number generators, hence the tolerance."""
    _, _, fits = measured
    values = fits["guess"].images.relative_error_all
    band = jax.tree.map(summarize, fits["guess"].images).relative_error_all
    expected = scipy.stats.bootstrap((values,), np.mean, axis=-1, method="percentile", n_resamples=5000, rng=0)
    width = band.high - band.low
    np.testing.assert_allclose(band.low, expected.confidence_interval.low, atol=0.1 * width.max())
    np.testing.assert_allclose(band.high, expected.confidence_interval.high, atol=0.1 * width.max())
    assert (width > 0).all()


def test_identity_baseline_repeats_the_first_state(measured):
    truth, _, fits = measured
    a, b = LAYOUT.split(truth)[0][3].reshape(-1, 5), LAYOUT.split(truth)[0][0].reshape(-1, 5)
    assert fits["identity"].r2.cls[2] == pytest.approx(r2_score(a, b, multioutput="variance_weighted"), abs=1e-3)


def test_a_missing_type_is_empty_and_a_perfect_prediction_perfect():
    layout = TokenLayout(0, 0, (2, 2))
    truth = jax.random.normal(jax.random.key(0), (3, 4, 4, 5))
    batch = {"image": np.arange(4), "valid": np.ones(4, bool)}
    fit = evaluate(lambda i: truth, {"same": lambda a0: truth}, lambda s: s, [batch], layout)["same"]
    assert fit.r2.cls.size == fit.error.cls.size == 0
    assert [v.shape for v in fit.images.error] == [(0, 4), (0, 4), (2, 4)]
    np.testing.assert_allclose(fit.r2.patches, [1, 1])
    np.testing.assert_allclose(fit.error_all, [0, 0])
    with pytest.raises(ValueError, match="no images"):
        evaluate(lambda i: truth, {"same": lambda a0: truth}, lambda s: s, [], layout)
