import dataclasses
import functools

import numpy as np
import pytest

from brh_jax.data.pipeline import measuring_batches, training_batches
from brh_jax.data.sources import Source
from brh_jax.data.transforms import Resize
from brh_jax.errors import UserError
from brh_jax.probes import dense, depth
from brh_jax.probes.depth import DepthSettings
from brh_jax.train.loop import LoopSettings, Run
from brh_jax.train.parallel import make_mesh

PLAIN = DepthSettings(eval_crop=(), eval_size=(8, 10))


def test_scale_invariant_log_loss_is_its_formula():
    rng = np.random.default_rng(0)
    predicted, target = rng.uniform(0.5, 9, (2, 3, 5, 4)).astype(np.float32)
    target[0, 0, 0], target[1, 1] = 0, 12  # no measurement, beyond the range
    kept = (target > 0) & (target < 10)
    g = np.log(predicted[kept]) - np.log(target[kept])
    ours = dataclasses.replace(PLAIN, recipe="ours")  # the paper's is in tests/parity
    found = depth.scale_invariant_log(predicted, target, ours)
    assert found == pytest.approx(np.sqrt(g.var() + 0.15 * g.mean() ** 2), rel=1e-4)
    for settings in (ours, PLAIN):
        assert depth.scale_invariant_log(predicted, np.zeros_like(target), settings) < 1e-3


def test_bins_and_the_cross_entropy_of_valid_pixels_only():
    settings = DepthSettings(min_depth=0.0, max_depth=8.0, num_bins=4, eval_crop=())
    np.testing.assert_allclose(settings.centres, [1, 3, 5, 7])
    logits = np.random.default_rng(0).normal(size=(1, 2, 2, 4)).astype(np.float32)
    target = np.array([[[0.5, 7.9], [0.0, 9.0]]], np.float32)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(logs[0, 0, 0, 0] + logs[0, 0, 1, 3]) / 2
    assert depth.bin_cross_entropy(logits, target, settings) == pytest.approx(expected, rel=1e-5)
    # Pixels without a measurement pull on no bin.
    assert depth.bin_cross_entropy(logits, np.zeros_like(target), settings) == 0
    chances = np.exp(logs)
    np.testing.assert_allclose(depth.expected_depth(logits, settings), chances @ [1, 3, 5, 7], rtol=1e-5)


def test_errors_are_those_of_the_field_in_the_crop():
    rng = np.random.default_rng(0)
    settings = DepthSettings()
    predicted, target = rng.uniform(0.5, 9, (2, 3, 480, 640)).astype(np.float32)
    target[0, 100:200], target[2] = 0, 0
    scores = depth.depth_scores(np.asarray(depth.image_errors(predicted, target, settings), np.float64))
    rmse, relative, within, squares = [], [], [], []
    for p, t in zip(predicted[:2], target[:2], strict=True):
        # As BTS does it: a mask of the crop and of valid pixels.
        mask = np.zeros((480, 640), bool)
        mask[45:471, 41:601] = True
        mask &= (t > 0.001) & (t < 10)
        p, t = p[mask].astype(np.float64), t[mask].astype(np.float64)
        rmse.append(np.sqrt(np.mean((p - t) ** 2)))
        relative.append(np.mean(np.abs(p - t) / t))
        within.append(np.mean(np.maximum(p / t, t / p) < 1.25))
        squares.append((p - t) ** 2)
    assert scores.rmse == pytest.approx(np.sqrt(np.mean(np.concatenate(squares))), rel=1e-5)
    assert scores.rmse_per_image == pytest.approx(np.mean(rmse), rel=1e-5)
    assert scores.abs_rel == pytest.approx(np.mean(relative), rel=1e-5)
    assert scores.delta1 == pytest.approx(np.mean(within), rel=1e-5)
    assert (scores.num_images, scores.num_without) == (2, 1)
    assert scores.low <= scores.rmse <= scores.high
    assert scores.per_image_low <= scores.rmse_per_image <= scores.per_image_high
    with pytest.raises(UserError, match="none of 2 images has ground truth within the range"):
        depth.depth_scores(np.zeros((2, 4)))


def test_the_error_is_of_all_pixels_together():
    """One image with 1 pixel off by 3 m, one with 3 pixels off by 1 m: sqrt((9 + 3) / 4), not (3 + 1) / 2."""
    target = np.array([[[5.0, 0, 0, 0]], [[5.0, 5, 0, 5]]], np.float32)
    predicted = np.array([[[8.0, 1, 1, 1]], [[6.0, 4, 9, 6]]], np.float32)
    scores = depth.depth_scores(np.asarray(depth.image_errors(predicted, target, PLAIN), np.float64))
    assert scores.rmse == pytest.approx(np.sqrt(3)) and scores.rmse_per_image == pytest.approx(2)
    # The ends of the range are measurements.
    ends = np.array([[[0.001, 10.0, 10.5, 0.0]]], np.float32)
    np.testing.assert_array_equal(PLAIN.valid(ends), [[[True, True, False, False]]])


def test_the_head_before_the_upsampling_is_the_head_after_it(tiny_encoder):
    """Upsampling [LN(patch), LN(cls)] and then a 1 x 1 convolution, as the paper says it."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 8, 9, 3), dtype=np.uint8)
    head = {"kernel": rng.normal(size=(32, 5)).astype(np.float32), "bias": rng.normal(size=5).astype(np.float32)}
    patches, cls = dense.token_maps(tiny_encoder, images)
    tokens = np.concatenate([patches, np.broadcast_to(np.asarray(cls)[:, :, None], patches.shape)], -1)
    expected = np.asarray(dense.enlarge(tokens, 16, 20)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(depth.bin_logits(tiny_encoder, head, images), expected, atol=1e-4)
    settings = DepthSettings(num_bins=5, eval_crop=())
    predicted = depth.predictor(tiny_encoder, settings)(head, images)
    assert predicted.shape == (2, 8, 9)
    whole = dense.enlarge(depth.expected_depth(expected, settings), 8, 10)
    np.testing.assert_allclose(predicted, whole[:, :, :9], atol=1e-3)  # a column of padding on the right


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match=r"eval_crop is \(45, 471, 41, 601\): it does not lie in images of \(240, 320\)"):
        DepthSettings(eval_size=(240, 320))
    with pytest.raises(UserError, match="256 bins on 10.0 to 10.0 m"):
        DepthSettings(min_depth=10.0)
    with pytest.raises(UserError, match="recipe is 'adabins': expected one of paper, ours"):
        DepthSettings(recipe="adabins")
    with pytest.raises(UserError, match="hue is 0.7: expected a share of the circle, at most 0.5"):
        DepthSettings(hue=0.7)
    with pytest.raises(UserError, match=r"crop_scale is \(2.0, 0.5\): expected two positive shares"):
        DepthSettings(crop_scale=(2.0, 0.5))


class Slopes(Source):
    """The brighter the nearer; some pixels have no measurement."""

    def __init__(self, count=32):
        super().__init__("slopes")
        self.count = count

    def __len__(self):
        return self.count

    def read(self, index):
        metres = np.random.default_rng(index).uniform(1, 9, (2, 2)).repeat(4, 0).repeat(4, 1).astype(np.float32)
        image = np.repeat((255 - 25 * metres)[..., None], 3, -1).astype(np.uint8)
        metres[0] = 0
        return {"image": image, "target": metres}


def test_a_probe_learns_what_tokens_tell(tiny_encoder, tmp_path):
    settings = DepthSettings(num_bins=16, learning_rate=0.05, warmup_steps=2, eval_crop=())
    resize, train = Resize((8, 8)), training_batches(Slopes(), Resize((8, 8)), 16, seed=0)
    run = Run(tmp_path, {}, make_mesh(), "depth", LoopSettings(log_every=50))
    head = depth.train_depth(tiny_encoder, train, 150, settings, run, batch_size=16)
    zeros = {name: 0 * value for name, value in head.items()}
    predict = depth.predictor(tiny_encoder, settings)
    before, after = (
        depth.evaluate_depth(functools.partial(predict, h), settings, measuring_batches(Slopes(24), resize, 8))
        for h in (zeros, head)
    )
    one = depth.train_depth(tiny_encoder, train, 3, settings, dataclasses.replace(run, folder=tmp_path / "few"), batch_size=16)
    # Adam's steps are of the learning rate's size while gradients keep their sign: all three of them, however large these are.
    assert np.abs(one["bias"]).max() == pytest.approx(3 * 0.05, rel=0.05)
    assert before.num_images == after.num_images == 24
    assert after.rmse < 0.6 * before.rmse
