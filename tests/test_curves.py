import json

import numpy as np
import pytest
from pydantic import TypeAdapter

from brh_jax.curves import Band, Curve, band, by_token
from brh_jax.report.portrait import along_depth, draw_curve, side_by_side
from brh_jax.tokens import ByToken


def test_a_band_is_mean_and_quantiles_over_images():
    values = np.random.default_rng(0).normal(size=(6, 20))
    found = band(Curve(values, "layers", "cls"))
    np.testing.assert_allclose(found.mean, values.mean(-1))
    np.testing.assert_allclose(found.high, np.quantile(values, 0.9, axis=-1))
    assert found.mean_low[0] < found.mean[0] < found.mean_high[0]
    assert (found.axis, found.token, found.depth) == ("layers", "cls", 6)
    of_all = band(Curve(values[:, 0], "states"))
    assert not of_all.low and not of_all.mean_low and of_all.depth == 5
    kind = TypeAdapter(Band)
    assert kind.validate_python(json.loads(json.dumps(kind.dump_python(found)))) == found


def test_what_is_not_finite_is_none():
    found = band(Curve(np.array([[0.1, 0.3], [0.2, -np.inf]]), "exponents"))
    assert found == Band([pytest.approx(0.2), None], "exponents")


@pytest.mark.parametrize(("axis", "first"), [("states", 0), ("layers", 1), ("between layers", 1.5), ("sizes", 1), ("modes", 1)])
def test_points_lie_where_the_axis_says(axis, first):
    np.testing.assert_array_equal(Band([0.0] * 4, axis).positions, first + np.arange(4))


def test_token_types_that_are_not_there_have_no_curve():
    found = by_token("speed", ByToken(np.ones((4, 3)), np.zeros((0, 3)), np.ones((4, 3))), "layers")
    assert {name: (curve.axis, curve.token) for name, curve in found.items()} == {
        "speed_cls": ("layers", "cls"),
        "speed_patches": ("layers", "patches"),
    }


def test_a_long_curve_of_sizes_moves_no_other():
    """14 sizes of perturbation on 12 layers: layers stay layers, where they are."""
    one = {
        "speed_cls": Band([0.1] * 12, "layers", "cls"),
        "norm_cls": Band([0.1] * 13, "states", "cls"),
        "gain": Band([1.0] * 12, "layers"),
        "recovery": Band(np.linspace(0, 1, 14).tolist(), "sizes"),
        "modulus_cls": Band([0.5] * 40, "modes", "cls"),
    }
    figure = along_depth({"teacher": one}, {}, (("speed", "speed", "linear"), ("norm", "norm", "linear")))
    drawn = [(axis.get_xlabel(), *axis.get_lines()[0].get_xdata()[[0, -1]], axis.get_xticks()[0]) for axis in figure.axes]
    assert drawn == [("layer", 1, 12, 1), ("state", 0, 12, 0)]
    gain, recovery = side_by_side({"teacher": one}, {}, (("gain", "gain", "log"), ("recovery", "recovery", "linear"))).axes
    assert (gain.get_xlabel(), recovery.get_xlabel()) == ("layer", "size of the perturbation")
    np.testing.assert_array_equal(recovery.get_lines()[0].get_xdata(), np.arange(1, 15))


def test_a_curve_that_only_one_system_has_is_drawn():
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    draw_curve(axis, {"teacher": {}, "k2": {"gain": Band([1.0, 2.0], "layers")}}, "gain")
    assert [line.get_label() for line in axis.get_lines()] == ["k2"]


def test_what_is_no_curve():
    with pytest.raises(ValueError, match="axis 'depth' is not known: expected one of states, layers"):
        Curve(np.zeros(3), "depth")
    with pytest.raises(ValueError, match="axis 'depth' is not known"):
        Band([0.0], "depth")
    with pytest.raises(ValueError, match=r"values of shape \(2, 2, 2\): expected \[points, images\]"):
        Curve(np.zeros((2, 2, 2)), "layers")
