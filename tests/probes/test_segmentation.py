import functools

import numpy as np
import optax
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from brh_jax.data.pipeline import measuring_batches, training_batches
from brh_jax.data.sources import Source
from brh_jax.data.transforms import Resize
from brh_jax.errors import UserError
from brh_jax.probes import dense, segmentation
from brh_jax.probes.segmentation import SegmentationSettings
from brh_jax.train.loop import LoopSettings, Run
from brh_jax.train.parallel import make_mesh

IGNORED = 255


def random_masks(seed=0, images=5, classes=6):
    """Class 4 is only predicted, class 5 in neither, class 3 only true."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 4, (images, 9, 7)).astype(np.uint8)
    predicted = np.where(rng.random(target.shape) < 0.6, target, rng.choice([0, 1, 2, 4], target.shape)).astype(np.uint8)
    predicted[predicted == 3] = 0
    target[rng.random(target.shape) < 0.2] = IGNORED
    return predicted, target, classes


def test_counts_and_mean_iou_are_those_of_scikit_learns_confusion_matrix():
    predicted, target, classes = random_masks()
    counts = np.asarray(segmentation.pixel_counts(predicted, target, classes))
    for image in range(len(target)):
        kept = target[image] != IGNORED
        matrix = confusion_matrix(target[image][kept], predicted[image][kept], labels=range(classes))
        np.testing.assert_array_equal(counts[image], [np.diag(matrix), matrix.sum(0), matrix.sum(1)])
    kept = target != IGNORED
    present = [0, 1, 2, 3, 4]
    expected = jaccard_score(target[kept], predicted[kept], labels=present, average=None, zero_division=0)
    found = segmentation.iou_of(counts.sum(0))
    np.testing.assert_allclose(found[:5], expected)
    assert np.isnan(found[5]) and found[3] == 0 and found[4] == 0
    assert segmentation.mean_iou(counts.sum(0)) == pytest.approx(expected.mean())


def test_mean_iou_is_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics")
    import torch

    predicted, target, classes = random_masks()
    metric = torchmetrics.JaccardIndex("multiclass", num_classes=classes, ignore_index=IGNORED)
    expected = float(metric(torch.from_numpy(predicted.astype(int)), torch.from_numpy(target.astype(int))))
    counts = np.asarray(segmentation.pixel_counts(predicted, target, classes)).sum(0)
    assert segmentation.mean_iou(counts) == pytest.approx(expected)


def test_cross_entropy_leaves_unlabelled_pixels_out():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(2, 3, 4, 5)).astype(np.float32), rng.integers(0, 5, (2, 3, 4)).astype(np.uint8)
    target[0, 0] = IGNORED
    kept = target != IGNORED
    expected = optax.softmax_cross_entropy_with_integer_labels(logits[kept], target[kept].astype(int)).mean()
    assert segmentation.cross_entropy(logits, target) == pytest.approx(float(expected), rel=1e-6)
    assert segmentation.cross_entropy(logits, np.full_like(target, IGNORED)) == 0


def test_maps_are_enlarged_as_torch_does():
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    channels_first = torch.from_numpy(values).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(channels_first, (14, 20), mode="bilinear").permute(0, 2, 3, 1)
    np.testing.assert_allclose(dense.enlarge(values, 14, 20), expected, atol=1e-5)


def test_token_maps_of_an_image_that_the_patch_does_not_divide(tiny_encoder):
    images = np.random.default_rng(0).integers(0, 256, (2, 7, 9, 3), dtype=np.uint8)
    patches, cls = dense.token_maps(tiny_encoder, images)
    assert dense.pad_amounts(tiny_encoder, 7, 9) == ((0, 1), (0, 1))
    assert patches.shape == (2, 4, 5, 16) and cls.shape == (2, 1, 16)
    padded = np.pad(np.asarray(tiny_encoder.normalize_pixels(images)), ((0, 0), (0, 1), (0, 1), (0, 0)))
    final = np.asarray(tiny_encoder.features(tiny_encoder.trajectory(padded)[-1]))
    np.testing.assert_allclose(patches.reshape(2, 20, 16), final[:, 3:], atol=1e-5)
    np.testing.assert_allclose(cls[:, 0], final[:, 0], atol=1e-5)


class Halves(Source):
    """Dark on one side, light on the other; the mask says which, but for a frame without label."""

    def __init__(self, count=32):
        super().__init__("halves", ("dark", "light", "never"))
        self.count = count

    def __len__(self):
        return self.count

    def read(self, index):
        rng = np.random.default_rng(index)
        mask = np.repeat(np.arange(8)[None] >= 4, 8, 0) ^ (index % 2 == 1)
        image = (rng.integers(0, 100, (8, 8, 3)) + 140 * mask[..., None]).astype(np.uint8)
        mask = mask.astype(np.uint8)
        mask[0] = IGNORED
        return {"image": image, "target": mask}


def test_a_probe_learns_what_patches_tell_and_knows_what_it_never_saw(tiny_encoder, tmp_path):
    resize, mesh = Resize((8, 8)), make_mesh()
    settings = SegmentationSettings(learning_rate=0.05, warmup_steps=2)

    def train(**more):
        batches = training_batches(Halves(), resize, 16, seed=0)
        run = Run(tmp_path, {}, mesh, "segmentation", LoopSettings(log_every=50), **more)
        return segmentation.train_segmentation(tiny_encoder, batches, 3, 60, settings, run, batch_size=16)

    train(stop_after=30)
    head, seen = train()
    assert seen.tolist() == [True, True, False]
    predict = functools.partial(segmentation.predictor(tiny_encoder), head)
    scores = segmentation.evaluate_segmentation(predict, 3, measuring_batches(Halves(20), resize, 8))
    assert scores.num_images == 20
    assert scores.miou > 0.9 and scores.low <= scores.miou <= scores.high
    assert np.isnan(scores.iou[2])
    predicted = predict(np.stack([Halves().read(0)["image"]]))
    assert predicted.shape == (1, 8, 8) and predicted.dtype == np.uint8
    batches = [{"image": np.zeros((8, 8, 8, 3), np.uint8), "target": np.full((8, 8, 8), IGNORED, np.uint8), "valid": [True] * 8}]
    batches[0]["photograph"] = np.arange(8)
    with pytest.raises(UserError, match="none of the 8 images has a labelled pixel"):
        segmentation.evaluate_segmentation(predict, 3, batches)
