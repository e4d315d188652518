import numpy as np
import pytest
from PIL import Image
from transformers import BitImageProcessorPil

from brh_jax.data.transforms import CenterCrop, RandomResizedCrop, turned_hue
from brh_jax.preprocessing import Preprocessing


def photograph(width, height):
    """A smooth picture with detail, so that resampling shows."""
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(x / 7 + y / 31), np.cos(x / 23 - y / 5), np.sin(x * y / 4000)]
    return Image.fromarray(np.uint8(127.5 + 127 * np.stack(channels, -1)))


@pytest.mark.parametrize("size", [(640, 427), (333, 500), (257, 256), (200, 210)])
def test_dinov2_preprocessing_is_that_of_transformers(size):
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    image = photograph(*size)
    expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])[0].transpose(1, 2, 0)
    preprocessing = Preprocessing((224, 224), 256)
    ours = preprocessing.normalize(preprocessing.resize_and_crop(image))
    assert np.abs(ours - expected).max() <= 1 / 255 / 0.224
    assert np.abs(ours - expected).mean() < 1e-3


def test_other_sizes_keep_the_ratio_of_resize_to_crop():
    assert Preprocessing((224, 224), 256).at_size((112, 112)).resize == 128
    assert Preprocessing((224, 224), None).at_size((112, 112)).resize is None
    # A crop that is not square is covered by the image, whichever side is the longer.
    white = Image.new("RGB", (300, 300), "white")
    assert Preprocessing((224, 224), 256).at_size((112, 224)).resize_and_crop(white).min() == 255


def test_random_crops_are_reproducible_varied_and_within_range():
    image = photograph(300, 200)
    crop = RandomResizedCrop((32, 48), scale=(0.2, 0.5))
    a, b = (crop(image, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert a.shape == (32, 48, 3)
    assert a.dtype == np.uint8
    assert not np.array_equal(a, crop(image, np.random.default_rng(4)))
    boxes = [crop._box(300, 200, np.random.default_rng(i)) for i in range(300)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 200
    areas = [(r - l) * (b - t) / 60_000 for l, t, r, b in boxes]
    assert min(areas) < 0.25
    assert max(areas) > 0.45
    assert max(areas) < 0.51


def test_flip_happens_half_the_time():
    left_dark = np.zeros((8, 8, 3), np.uint8)
    left_dark[:, 4:] = 255
    crop = RandomResizedCrop((8, 8), scale=(1, 1), ratio=(1, 1))
    flipped = [crop(left_dark, np.random.default_rng(i))[0, 0, 0] > 127 for i in range(400)]
    assert 0.4 < np.mean(flipped) < 0.6


def test_a_very_long_image_is_cropped_in_the_middle():
    crop = RandomResizedCrop((16, 16), scale=(0.9, 1.0))
    assert crop(photograph(2000, 10), np.random.default_rng(0)).shape == (16, 16, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_any_mode_become_rgb(mode):
    image = photograph(40, 40).convert(mode)
    assert CenterCrop(Preprocessing((28, 28), 32))(image, None).shape == (28, 28, 3)


def test_hues_turn_around_the_circle():
    """A third of the circle makes red green and blue red; grey has no hue to turn."""
    colours = Image.fromarray(np.array([[[200, 0, 0], [0, 0, 200], [90, 90, 90]]], np.uint8))
    turned = np.asarray(turned_hue(colours, 1 / 3)).astype(int)
    np.testing.assert_allclose(turned, [[[0, 200, 0], [200, 0, 0], [90, 90, 90]]], atol=4)
    assert np.abs(np.asarray(turned_hue(colours, -1 / 3)).astype(int)[0, 1] - [0, 200, 0]).max() <= 4


def test_jitter_leaves_the_target_and_other_draws_alone():
    image, depth = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8), np.arange(192.0).reshape(12, 16)
    plain, jittered = (RandomResizedCrop((6, 8), jitter=j, hue=h) for j, h in ((0, 0), (0.2, 0.1)))
    results = [crop(image, np.random.default_rng(3), depth.astype(np.float32)) for crop in (plain, jittered)]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert (results[0][0] != results[1][0]).any() and results[1][0].shape == (6, 8, 3)
