"""What the paper's authors compute, as formulas in numpy written from what their code does: the statistics that ours stand
beside."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax.distill import evaluate
from brh_jax.probes import depth
from brh_jax.probes.depth import DepthSettings
from brh_jax.probes.segmentation import SegmentationSettings
from brh_jax.tokens import TokenLayout


def test_their_rmse():
    """sqrt(sum of squared errors / number of valid pixels) of all test images, rows 45-470 and columns 41-600."""
    rng = np.random.default_rng(0)
    predicted, target = rng.uniform(0.5, 9.5, (2, 5, 480, 640)).astype(np.float32)
    target[0, 60:400] = 0  # few pixels count of the first image
    target[1, 100, 100:300] = 10.0
    squares = count = 0.0
    for p, t in zip(predicted, target, strict=True):
        p, t = p[45:471, 41:601].astype(np.float64), t[45:471, 41:601].astype(np.float64)
        valid = (t > 0) & (t >= 0.001) & (t <= 10)
        squares, count = squares + np.sum((p - t)[valid] ** 2), count + valid.sum()
    scores = depth.depth_scores(np.asarray(depth.image_errors(predicted, target, DepthSettings()), np.float64))
    assert scores.rmse == pytest.approx(np.sqrt(squares / count), rel=1e-5)


def silog(p, t):
    """Variance of g = log(p + 1e-3) - log(t + 1e-3) but for 0.85 of its mean's share, over pixels of positive depth; and dL/dp.

    With n pixels and m the mean of g, L = sum g_i^2 / n - 0.85 m^2; dg_i/dp_i = 1 / (p_i + 1e-3) and dm/dg_i = 1 / n, hence
    dL/dp_i = 2 (g_i - 0.85 m) / (n (p_i + 1e-3)).
    """
    valid = t > 0
    g = np.where(valid, np.log(p + 1e-3) - np.log(np.where(valid, t, 1) + 1e-3), 0)
    n, m = valid.sum(), g.sum() / valid.sum()
    return np.sum(g**2) / n - 0.85 * m**2, np.where(valid, 2 * (g - 0.85 * m) / (n * (p + 1e-3)), 0)


def test_their_depth_loss_and_its_gradient():
    rng = np.random.default_rng(0)
    predicted, target = rng.uniform(0.3, 9.5, (2, 3, 6, 5))
    target[0, 2], target[1, 0, 0] = 0, 10.0  # without a measurement; the end of the range counts
    value, slope = jax.value_and_grad(depth.scale_invariant_log)(jnp.asarray(predicted), jnp.asarray(target), DepthSettings())
    expected, gradient = silog(predicted, target)
    assert value == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(slope, gradient, rtol=1e-3, atol=1e-7)
    # By hand: ratios 1 and e in the shifted depths have g = 0 and 1, L = 1/2 - 0.85/4, and slopes of -0.425 and 0.575 over x +
    # 1e-3.
    p, t = np.array([[[1.0, np.e * 1.001 - 1e-3]]]), np.array([[[1.0, 1.0]]])
    value, slope = jax.value_and_grad(depth.scale_invariant_log)(jnp.asarray(p), jnp.asarray(t), DepthSettings())
    assert value == pytest.approx(0.2875, rel=1e-5)
    np.testing.assert_allclose(slope.ravel(), [-0.425 / 1.001, 0.575 / (np.e * 1.001)], rtol=1e-4)
    ours = depth.scale_invariant_log(jnp.asarray(predicted), jnp.asarray(target), DepthSettings(recipe="ours"))
    assert ours == pytest.approx(np.sqrt(expected), rel=0.01)  # but for the millimetre


def test_their_bins_and_the_gradient_of_the_cross_entropy():
    """256 bins of equal width on 0.001 to 10 m; dL/dlogit = (softmax - one-hot) / n, over measured pixels alone (theirs trains
    the others as the deepest bin, which is not followed)."""
    logits = np.random.default_rng(0).normal(size=(1, 2, 2, 256))
    target = np.array([[[0.5, 10.0], [0.0, 3.3]]])
    slope = jax.grad(depth.bin_cross_entropy)(jnp.asarray(logits), jnp.asarray(target), DepthSettings())
    edges = np.linspace(0.001, 10, 257)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) / 3
    for row, column in ((0, 0), (0, 1), (1, 1)):
        expected[0, row, column, np.searchsorted(edges, min(target[0, row, column], 10 - 1e-6)) - 1] -= 1 / 3
    expected[0, 1, 0] = 0
    np.testing.assert_allclose(slope, expected, atol=1e-6)


def test_their_schedules():
    assert SegmentationSettings().final_learning_rate == 1e-5
    settings = DepthSettings()
    assert (settings.recipe, settings.learning_rate, settings.weight_decay, settings.epochs, settings.batch_size) == (
        "paper", 1e-3, 1e-3, 25, 128
    )  # fmt: skip
    crop = settings.crop()
    assert (crop.size, crop.scale, crop.ratio, crop.jitter, crop.hue) == ((420, 560), (0.5, 2.0), (4 / 3, 4 / 3), 0.2, 0.1)


@pytest.mark.wrong_types
def test_their_depth_probe_has_one_rate_and_clips_nothing(monkeypatch):
    """Its optimiser is AdamW itself (Loshchilov and Hutter, 2019), written out here, also for gradients that grow."""
    options = {}
    monkeypatch.setattr(depth, "train_head", lambda *_, **given: options.update(given) or (None, None))
    encoder = SimpleNamespace(dim=3, layout=SimpleNamespace(num_cls=1))
    depth.train_depth(encoder, None, 10, DepthSettings(), None, batch_size=1)
    value, state = jnp.ones(2), options["optimiser"].init(jnp.ones(2))
    expected, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    for step in range(1, 51):
        gradient = np.array([1.0, -3.0]) * step**2
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rise = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        expected = expected - 1e-3 * (rise + 1e-3 * expected)
        updates, state = options["optimiser"].update(jnp.asarray(gradient), state, value)
        value = value + updates
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    depth.train_depth(encoder, None, 10, DepthSettings(recipe="ours"), None, batch_size=1)
    assert options["optimiser"] is None  # the clipped AdamW of the settings


def test_their_r2():
    """Of the last layer: 1 - mse / variance of the prediction about one number (1e-6 added), weighted by images over batches."""
    truth = 3 + jax.random.normal(jax.random.key(0), (3, 6, 5, 4)) * jnp.arange(1, 5)
    guess = truth + 0.7 * jax.random.normal(jax.random.key(1), truth.shape)
    at, rows = {}, ([0, 1, 2, 3], [4, 5, 4, 4])
    batches = [{"image": np.array(r), "valid": np.array([True, True, n == 0, n == 0])} for n, r in enumerate(rows)]

    def teacher(images):
        at["rows"] = images
        return truth[:, images]

    fit = evaluate(teacher, {"g": lambda a0: guess[:, at["rows"]]}, lambda s: s, batches, TokenLayout(1, 0, (2, 2)))["g"]
    total = 0.0
    for part in (slice(0, 4), slice(4, 6)):
        p, t = (np.asarray(x[-1, part], np.float64) for x in (guess, truth))
        total += (1 - np.mean((p - t) ** 2) / (np.mean((p - p.mean()) ** 2) + 1e-6)) * (part.stop - part.start)
    assert fit.r2_one_mean == pytest.approx(total / 6, abs=1e-5)
