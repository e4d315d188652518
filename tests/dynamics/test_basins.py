import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from brh_jax.dynamics import basins
from brh_jax.dynamics.basins import angular_basins, image_directions
from brh_jax.tokens import ByToken, TokenLayout
from brh_jax.train.parallel import make_mesh

ONE = TokenLayout(1, 0, (0, 0))


def caps(angle, width, num_images=40, dim=12, num_classes=2, seed=0):
    """Directions at `width` radians around axes that are `angle` apart, and their classes: [images, dim], [images]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % num_classes
    centres = np.eye(dim)[:num_classes]
    if num_classes == 2:
        centres[1, :2] = np.cos(angle), np.sin(angle)
    around = np.zeros((num_images, dim))
    around[:, num_classes:] = rng.normal(size=(num_images, dim - num_classes))
    around /= np.linalg.norm(around, axis=-1, keepdims=True)
    return np.cos(width) * centres[labels] + np.sin(width) * around, labels


def trajectory(*states):
    """States [images, dim] of one class token each, of growing norm."""
    return jnp.asarray(np.stack([(1 + l) * x for l, x in enumerate(states)])[:, :, None], jnp.float32)


def test_two_points_have_their_angles():
    for width in (0.0, 1e-3):
        x, labels = caps(0.7, width)
        measured = angular_basins(trajectory(x), labels, ONE)
        np.testing.assert_allclose(measured.within.cls, 0, atol=2 * width)
        np.testing.assert_allclose(measured.between.cls, 0.7, atol=2 * width)
        assert measured.accuracy.cls == 1
        assert measured.silhouette.cls == pytest.approx(1, abs=4 * width)
    assert angular_basins(trajectory(caps(0.7, 0.0)[0]), labels, ONE).separation.cls == np.inf


def test_measures_are_those_of_all_pairs():
    x, _ = caps(0.4, 0.5)
    y = np.random.default_rng(1).normal(size=x.shape)
    labels = np.array([3, 0, 7, 0] * 10)
    measured = angular_basins(trajectory(x, y), labels, ONE)
    for depth, directions in enumerate((x, y / np.linalg.norm(y, axis=-1, keepdims=True))):
        angles = np.arccos(np.clip(directions @ directions.T, -1, 1))
        np.fill_diagonal(angles, 0)
        same, pair = labels[:, None] == labels, ~np.eye(40, dtype=bool)
        np.testing.assert_allclose(measured.within.cls[depth], angles[same & pair].mean(), rtol=1e-5)
        np.testing.assert_allclose(measured.between.cls[depth], angles[~same].mean(), rtol=1e-5)
        np.testing.assert_allclose(
            measured.silhouette.cls[depth], silhouette_score(angles, labels, metric="precomputed"), atol=1e-5
        )
        right = np.zeros(40)
        for i in range(40):
            others = np.arange(40) != i
            means = np.stack([directions[others & (labels == c)].mean(0) for c in (0, 3, 7)])
            cosines = means @ directions[i] / np.linalg.norm(means, axis=-1)
            right[i] = (0, 3, 7)[np.argmax(cosines)] == labels[i]
        np.testing.assert_array_equal(measured.hits.cls[depth], right)
        assert measured.accuracy.cls[depth] == pytest.approx(np.mean([right[labels == c].mean() for c in (0, 3, 7)]))
    np.testing.assert_allclose(measured.separation.cls, measured.between.cls / measured.within.cls)
    assert measured.labels.tolist() == labels.tolist()
    assert measured.within.registers.size == measured.accuracy.patches.size == 0


def test_random_directions_are_classified_by_chance():
    x = np.random.default_rng(0).normal(size=(300, 200))
    # Each image is among the mean of its own class of ten: unless it is left out, nearly all would be right.
    accuracy = angular_basins(trajectory(x), np.arange(300) % 30, ONE).accuracy.cls
    assert accuracy < 0.08


def test_chance_is_one_over_the_number_of_classes_whatever_their_sizes():
    """Of images in one place all classes are equally near: 90 of 100 in one class make it no likelier."""
    x, labels = np.ones((100, 5)), np.repeat([0, 1], (90, 10))
    measured = angular_basins(trajectory(x), labels, ONE, num_components=1)
    np.testing.assert_allclose(measured.hits.cls[0], 0.5)
    assert measured.accuracy.cls[0] == pytest.approx(0.5)
    # Every image of the small class right, every one of the large class at a third of its images: (1 / 3 + 1) / 2, not 36 / 90.
    x[:60], x[60:90], x[90:] = [0, 1, 0, 0, 0], [1, 0.2, 0, 0, 0], [0, 1, 0.2, 0, 0]
    found = angular_basins(trajectory(x), labels, ONE, num_components=1)
    assert found.accuracy.cls[0] == pytest.approx(np.mean([found.hits.cls[0, :90].mean(), found.hits.cls[0, 90:].mean()]))


def test_other_views_of_a_photograph_are_left_out_with_it():
    """Random directions twice each: with its twin in the class mean nearly every image would be right."""
    once = np.random.default_rng(0).normal(size=(150, 200))
    x, labels, photographs = np.tile(once, (2, 1)), np.tile(np.arange(150) % 15, 2), np.tile(np.arange(150), 2)
    alone, grouped = (angular_basins(trajectory(x), labels, ONE, photographs=names) for names in (None, photographs))
    first = angular_basins(trajectory(once), labels[:150], ONE)
    assert alone.accuracy.cls > 0.6 > 5 * first.accuracy.cls
    for measure in ("within", "between", "silhouette", "accuracy"):
        assert getattr(grouped, measure).cls == pytest.approx(getattr(first, measure).cls, abs=1e-6)
    with pytest.raises(ValueError, match="15 of 15 classes have one photograph only"):
        angular_basins(trajectory(x), labels, ONE, photographs=labels)


def test_images_in_one_place_are_not_apart():
    # Class tokens before the first layer are the same in every image.
    x, labels = caps(0.7, 0.2, num_classes=3)
    measured = angular_basins(trajectory(np.ones_like(x), x), labels[::-1], ONE)
    first = [measured.within, measured.between, measured.separation, measured.silhouette, measured.accuracy]
    np.testing.assert_allclose([m.cls[0] for m in first], [0, 0, 1, 0, 1 / 3])


def test_clusters_are_found():
    x, labels = caps(None, 0.3, num_images=60, num_classes=3)
    for num_clusters in (None, 3):
        found = angular_basins(trajectory(np.roll(x, 1, axis=0), x), None, ONE, num_clusters=num_clusters)
        assert len(np.unique(found.labels)) == 3
        for c in range(3):
            assert len(set(found.labels[labels == c].tolist())) == 1
        assert found.accuracy.cls[1] == 1
    chex.assert_trees_all_equal(found, angular_basins(trajectory(np.roll(x, 1, axis=0), x), None, ONE, num_clusters=3))


def test_the_projection_spreads_the_last_state_as_its_principal_components():
    x, labels = caps(0.9, 0.2)
    states = trajectory(np.roll(x, 3, axis=1), x)
    projection = angular_basins(states, labels, ONE, num_components=3).projection
    assert projection.shape == (2, 40, 3)
    variances = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    np.testing.assert_allclose(np.cov(projection[1].T), np.diag(variances[:3]), atol=1e-6)
    # The first component is the line through the two classes, 2 sin(0.45) cos(0.2) long.
    gap = projection[1][labels == 0].mean(0) - projection[1][labels == 1].mean(0)
    assert abs(gap[0]) == pytest.approx(2 * np.sin(0.45) * np.cos(0.2), rel=0.02)


def test_directions_of_a_stream_are_those_of_the_whole(tiny_encoder, tiny_images):
    states, layout = tiny_encoder.trajectory(tiny_images), tiny_encoder.layout
    streamed = image_directions((states[:, a:b] for a, b in ((0, 3), (3, 6), (6, 8))), layout)
    units = np.asarray(states, np.float64)
    units /= np.linalg.norm(units, axis=-1, keepdims=True)
    mean = units[:, :, 3:].mean(2)
    np.testing.assert_allclose(streamed.patches, mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(streamed.cls, units[:, :, 0], atol=1e-6)
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    measured = angular_basins(streamed, labels, layout)
    assert measured.within.patches.shape == (7,)
    assert measured.within.cls[0] == 0
    assert measured.separation.registers[0] == 1
    chex.assert_trees_all_close(measured, angular_basins(states, labels, layout), rtol=1e-5, atol=1e-6)


def test_equal_shapes_compile_once():
    before = basins._mean_directions._cache_size()
    image_directions([jnp.full((3, 2, 5, 4), value) for value in (1.0, 2.0)], TokenLayout(1, 2, (1, 2)))
    assert basins._mean_directions._cache_size() == before + 1


def test_without_class_token_patches_lead():
    layout = TokenLayout(0, 0, (1, 2))
    x, labels = caps(0.7, 0.1)
    measured = angular_basins(jnp.asarray(np.repeat(x[None, :, None], 2, axis=2), jnp.float32), labels, layout)
    assert measured.projection.shape == (1, 40, 2)
    assert measured.within.cls.size == 0
    assert measured.accuracy.patches == 1


def test_a_batch_over_eight_devices_has_the_same_directions():
    layout = TokenLayout(1, 0, (2, 2))
    states = jax.random.normal(jax.random.key(1), (3, 8, 5, 6))
    sharded = jax.device_put(states, jax.NamedSharding(make_mesh(), jax.P(None, ("data", "fsdp"))))
    chex.assert_trees_all_close(image_directions([sharded], layout), image_directions([states], layout), atol=1e-6)
    assert not basins._mean_directions(sharded, layout).cls.sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1], {}, r"labels of shape \(2,\) for 6 images"),
        ([0.0, 1, 0, 1, 0, 1], {}, "labels must be integers from 0, got float64"),
        ([-1, 0, -1, 0, -1, 0], {}, "labels must be integers from 0, got int64 from -1"),
        ([4] * 6, {}, "all 6 images are of class 4: basins need two classes"),
        ([0, 0, 0, 1, 1, 5], {}, r"1 of 3 classes have one photograph only \(class 5, say\)"),
        ([0, 1] * 3, {"num_components": 6}, "num_components 6 is out of range: 6 images"),
        ([0, 1] * 3, {"num_clusters": 2}, "num_clusters 2 is for labels=None"),
        (None, {"num_clusters": 4}, "num_clusters 4 is out of range: 6 images make 2 to 3"),
    ],
)
def test_bad_arguments(labels, options, message):
    x, _ = caps(0.5, 0.2, num_images=6)
    with pytest.raises(ValueError, match=message):
        angular_basins(trajectory(x), labels, ONE, **options)


def test_too_few_images_and_bad_states():
    x, _ = caps(0.5, 0.2, num_images=6)
    with pytest.raises(ValueError, match="two clusters of two images need four images, got 3"):
        angular_basins(trajectory(x[:3]), None, ONE)
    with pytest.raises(ValueError, match="zero throughout"):
        angular_basins(image_directions([trajectory(0 * x)], ONE), [0, 1] * 3, ONE)
    directions = image_directions([trajectory(x)], ONE)
    with pytest.raises(ValueError, match="not finite"):
        angular_basins(directions._replace(cls=np.nan * directions.cls), [0, 1] * 3, ONE)
    with pytest.raises(ValueError, match="expected a trajectory"):
        angular_basins(jnp.asarray(x), [0, 1] * 3, ONE)
    # Five images in one place and one elsewhere: the second cluster has a single image.
    alone = np.eye(12)[[0, 0, 0, 0, 0, 1]] + 1e-3 * x
    with pytest.raises(ValueError, match="leaves a cluster of one image"):
        angular_basins(ByToken(trajectory(alone)[:, :, 0], *[np.zeros((0, 6, 12))] * 2), None, ONE, num_clusters=2)
