"""What the paper's authors compute, as formulas in numpy written from what their code does: the statistics that ours stand beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax.distill import evaluate
from brh_jax.probes import depth
from brh_jax.probes.depth import DepthSettings
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
