import numpy as np
import pytest

from experiments.interval import Interval
from experiments.stages.probes import figures


def test_probe_intervals_are_wilsons():
    figure = figures.probe_accuracy({"teacher": 0.9, "k2": 1.0}, 100)
    segments = next(c for c in figure.axes[0].collections if len(c.get_segments()) == 2).get_segments()
    low, high = segments[0][:, 1]
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-3)
    assert segments[1][1, 1] <= 1.0 + 1e-9


def test_unlabelled_pixels_are_white_and_classes_differ():
    colours = figures.class_colours(150)
    assert len(np.unique(colours.round(4), axis=0)) == 150
    targets = np.array([[[0, 1], [255, 255]]])
    images = np.zeros((1, 2, 2, 3), np.uint8)
    figure = figures.segmentation_examples(images, targets, {"teacher": targets}, 2)
    assert [axis.get_title() for axis in figure.axes] == ["image", "truth", "teacher"]
    drawn = figure.axes[1].get_images()[0].get_array()
    np.testing.assert_allclose(drawn[1], 1)
    np.testing.assert_allclose(drawn[0], colours[:2])


def test_depth_shares_one_scale():
    targets = np.array([[[1.0, 4.0], [0.0, 2.0]]])
    figure = figures.depth_examples(np.zeros((1, 2, 2, 3), np.uint8), targets, {"teacher": targets + 1})
    truth, teacher = (figure.axes[i].get_images()[0] for i in (1, 2))
    assert truth.get_clim() == teacher.get_clim() == (1.0, 4.0)
    assert np.isnan(np.asarray(truth.get_array())[1, 0])
    assert (
        len(figures.score_bars({"teacher": Interval(0.5, 0.4, 0.6), "k2": Interval(0.4, 0.3, 0.5)}, "mIoU").axes[0].patches) == 2
    )
