"""A measure with its curve, distance and figure is one file and one line."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax import dynamics
from brh_jax.dynamics import MEASURES, DepthSystem, Measure, PortraitSettings
from brh_jax.dynamics.drawing import pictures, shown
from brh_jax.tokens import TokenLayout

# The file brh_jax/dynamics/measures/spread.py.
SPREAD = '''
"""How far the tokens of an image lie apart."""

import jax.numpy as jnp

from brh_jax.curves import by_token
from brh_jax.dynamics.directions import over_batches
from brh_jax.dynamics.measure import Measure, Picture, along_depth
from brh_jax.tokens import ByToken


def spread(states, layout):
    """Standard deviation over the tokens of each type, mean over dimensions, `[depth + 1, images]`."""
    return ByToken(*(t.std(2).mean(-1) if t.shape[2] > 1 else jnp.zeros((0, states.shape[1])) for t in layout.split(states)))


MEASURE = Measure(
    "spread",
    gather=lambda states, layout: over_batches(spread, [states], layout),
    compute=lambda seen: seen.gathered,
    curves=lambda found: by_token("spread", found, "states"),
    figures=(Picture("spread", "Spread", "Of {num_images} images.", along_depth(("spread", "deviation", "linear"))),),
)
'''
LAYOUT = TokenLayout(1, 0, (1, 2))
SMALL = PortraitSettings(tangent_images=0, linear_images=0)


@pytest.fixture
def registered(tmp_path, monkeypatch):
    (tmp_path / "spread_measure.py").write_text(SPREAD)
    monkeypatch.syspath_prepend(tmp_path)
    import spread_measure

    monkeypatch.setitem(MEASURES, "spread", spread_measure.MEASURE)  # the one line
    yield spread_measure
    del sys.modules["spread_measure"]


def shrinking(factor):
    return DepthSystem(lambda state, layer: factor * state, 3, LAYOUT)


def test_a_measure_is_one_file_and_one_line(registered):
    state = np.asarray(jax.random.normal(jax.random.key(0), (6, 3, 5)))
    both = dynamics.compare(shrinking(0.5), shrinking(0.25), [state[:4], state[4:]], key=jax.random.key(1), settings=SMALL)
    expected = (state[:, 1:].std(1).mean(-1) * 0.5 ** np.arange(4)[:, None]).astype(np.float32)
    np.testing.assert_allclose(both.first["spread"].patches, expected, rtol=1e-5)
    curve = dynamics.curves(both.first)["spread_patches"]
    assert (curve.values.shape, curve.axis, curve.token) == ((4, 6), "states", "patches")
    assert "spread_cls" not in dynamics.curves(both.first)
    assert 0 < both.distance["spread_patches"].relative < 1
    portraits = {"teacher": both.first, "k2": both.second}
    axis = dynamics.draw("spread", portraits).axes[0]
    assert (axis.get_ylabel(), axis.get_xlabel(), axis.get_title()) == ("deviation", "state", "patches")
    np.testing.assert_allclose(axis.get_lines()[0].get_ydata(), expected.mean(-1), rtol=1e-5)
    last = list(pictures())[-1]
    assert (last.title, last.caption_of(shown(portraits))) == ("Spread", "Of 6 images.")


def test_measures_on_whole_trajectories_and_on_tangent_images(monkeypatch):
    """What systems have to agree on they share; a measure without its images is left out."""
    shared = []
    monkeypatch.setitem(
        MEASURES,
        "longest",
        Measure(
            "longest",
            on="trajectories",
            share=lambda seen: shared.append(len(seen)) or max(float(jnp.abs(t).max()) for s in seen for t in s.trajectories),
            compute=lambda seen: (seen.shared, [t.shape for t in seen.trajectories]),
        ),
    )
    monkeypatch.setitem(MEASURES, "start", Measure("start", on="tangent", compute=lambda seen: np.asarray(seen.states[-1])))
    state = np.asarray(jax.random.normal(jax.random.key(0), (6, 3, 5)))
    settings = PortraitSettings(tangent_images=2, linear_images=5, num_values=1, num_exponents=1, extrapolated_steps=0, rank=2)
    systems, key = {"a": shrinking(0.5), "b": shrinking(2.0)}, jax.random.key(1)
    for name in ("perturbations", "exponents", "jacobians", "linear"):
        monkeypatch.delitem(MEASURES, name)
    both = dynamics.portraits(systems, [state[:4], state[4:]], key=key, settings=settings)
    largest = 8 * np.abs(state[:5]).max()
    assert both["a"]["longest"] == both["b"]["longest"] == (pytest.approx(largest), [(4, 4, 3, 5), (4, 1, 3, 5)])
    assert shared == [2]
    np.testing.assert_allclose(both["b"]["start"], 8 * state[:2], rtol=1e-6)
    without = dynamics.portraits(systems, [state], key=key, settings=SMALL)
    assert not {"longest", "start"} & set(without["a"].results)


def test_what_is_no_measure():
    with pytest.raises(
        ValueError, match="speed: on='images' is not known, expected one of stream, classes, trajectories, tangent"
    ):
        Measure("speed", on="images", compute=lambda seen: None)
    with pytest.raises(ValueError, match="speed: a measure on the stream of all images needs gather="):
        Measure("speed", compute=lambda seen: None)
