import dataclasses

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from brh_jax.data.pipeline import measuring_batches, training_batches
from brh_jax.data.sources import ArraySource
from brh_jax.data.transforms import CenterCrop
from brh_jax.models import pooled_features
from brh_jax.probes import classification
from brh_jax.probes.classification import ProbeSettings
from brh_jax.train.loop import LoopSettings, Run
from brh_jax.train.parallel import make_mesh

LOOP = LoopSettings(log_every=50, save_every=1000)
SETTINGS = ProbeSettings(learning_rate=0.05, warmup_steps=5, batch_size=32, cache=True)


@pytest.fixture(scope="module")
def two_classes():
    """Dark and light noise: told apart by brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 2
    images = rng.integers(0, 120, (96, 8, 8, 3)) + 110 * labels[:, None, None, None]
    return ArraySource(images.astype(np.uint8), labels, classes=("dark", "light"))


def test_features_are_normalised_cls_and_mean_patch(tiny_encoder, two_classes):
    batches = list(measuring_batches(two_classes, CenterCrop(tiny_encoder.preprocessing), 40))
    features, labels, photographs = classification.extract_features(tiny_encoder, batches)
    assert sorted(photographs) == list(range(len(two_classes)))
    assert features.shape == (96, 32)
    assert sorted(labels) == sorted(two_classes.labels)
    states = tiny_encoder.trajectory(tiny_encoder.normalize_pixels(batches[0]["image"]))
    final = np.asarray(tiny_encoder.features(states[-1]))
    np.testing.assert_allclose(features[:40, :16], final[:, 0], atol=1e-5)
    np.testing.assert_allclose(features[:40, 16:], final[:, 3:].mean(1), atol=1e-5)
    np.testing.assert_allclose(features[:40], pooled_features(final, tiny_encoder.layout), atol=1e-5)


def test_cached_and_streamed_probes_learn_what_logistic_regression_learns(tiny_encoder, two_classes, tmp_path):
    transform = CenterCrop(tiny_encoder.preprocessing)
    features, labels, _ = classification.extract_features(tiny_encoder, measuring_batches(two_classes, transform, 48))
    reference = LogisticRegression(max_iter=500).fit(features, labels).score(features, labels)
    mesh = make_mesh()
    cached = classification.train_probe(
        None,
        classification.CachedBatches(features, labels, 32, 0),
        32,
        2,
        150,
        SETTINGS,
        Run(tmp_path / "cached", {}, mesh, "probe", LOOP),
        batch_size=32,
    )
    streamed = classification.train_probe(
        tiny_encoder,
        training_batches(two_classes, transform, 32, seed=0),
        32,
        2,
        150,
        dataclasses.replace(SETTINGS, cache=False),
        Run(tmp_path / "streamed", {}, mesh, "probe", LOOP),
        batch_size=32,
    )
    assert reference > 0.95
    for head in (cached, streamed):
        assert classification.accuracy(head, features, labels) > reference - 0.05


def test_cached_batches_go_through_each_epoch_and_go_on_where_they_were():
    features = np.arange(10.0)[:, None]
    batches = classification.CachedBatches(features, np.zeros(10, int), 5, seed=3)
    first = np.concatenate([next(batches)["features"] for _ in range(2)]).ravel()
    assert sorted(first) == list(range(10))
    expected = [next(batches)["features"] for _ in range(3)]
    again = classification.CachedBatches(features, np.zeros(10, int), 5, seed=3)
    again.seek(2)
    jax.tree.map(np.testing.assert_array_equal, [next(again)["features"] for _ in range(3)], expected)


def test_accuracy():
    head = {"kernel": np.eye(3), "bias": np.zeros(3)}
    assert classification.accuracy(head, np.eye(3), np.array([0, 1, 0])) == pytest.approx(2 / 3)
