import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax import dynamics
from brh_jax.curves import band
from brh_jax.dynamics import DepthSystem, PortraitSettings
from brh_jax.dynamics.drawing import pictures
from brh_jax.errors import UserError
from brh_jax.partition import Partition
from brh_jax.tokens import TokenLayout

LAYOUT = TokenLayout(1, 0, (1, 2))
SMALL = PortraitSettings(
    tangent_images=3,
    linear_images=6,
    num_directions=2,
    num_exponents=2,
    num_values=2,
    num_probes=2,
    num_angles=2,
    rank=6,
    extrapolated_steps=20,
    influence_probes=0,
)
KEY = jax.random.key(0)


def turning(angle):
    """Four layers that turn every token in the plane of its first two dimensions and stretch it by 1.1."""
    turn = np.eye(6, dtype=np.float32)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return DepthSystem(jax.tree_util.Partial(stretched_turn, jnp.asarray(turn)), 4, LAYOUT)


def stretched_turn(matrix, state, layer):
    return 1.1 * state @ matrix.T


@pytest.fixture(scope="module")
def states():
    rng = np.random.default_rng(0)
    classes = np.arange(10) % 3
    state = rng.normal(size=(10, 3, 6)) + 3 * np.eye(6)[classes + 2][:, None]
    return state.astype(np.float32), classes


@pytest.fixture(scope="module")
def comparison(states):
    state, classes = states
    batches = [(state[:6], classes[:6]), (state[6:], classes[6:])]
    return dynamics.compare(turning(0.1), turning(0.2), batches, key=KEY, partition=Partition((3, 1)), settings=SMALL)


def test_one_call_gives_every_measure_of_both(comparison, states):
    state, classes = states
    for angle, portrait in ((0.1, comparison.first), (0.2, comparison.second)):
        trajectory = turning(angle).rollout(jnp.asarray(state))
        whole = dynamics.direction_measures([trajectory], LAYOUT)
        np.testing.assert_allclose(portrait["directions"].speed.cls, whole.speed.cls, rtol=1e-5)
        ranks = dynamics.update_rank(trajectory, LAYOUT)
        np.testing.assert_allclose(portrait["ranks"].angular.stable.patches, ranks.stable.patches, rtol=1e-6)
        with_mean = dynamics.update_rank(trajectory, LAYOUT, center=False)
        np.testing.assert_allclose(portrait["ranks"].uncentred.stable.cls, with_mean.stable.cls, rtol=1e-6)
        raw = dynamics.update_rank(trajectory, LAYOUT, kind="raw")
        np.testing.assert_allclose(portrait["ranks"].raw.stable.patches, raw.stable.patches, rtol=1e-6)
        np.testing.assert_array_equal(portrait["basins"].labels, classes)
        growth, exponents, jacobians = (portrait[name] for name in ("perturbations", "exponents", "jacobians"))
        assert growth.growth["isotropic"].angle.cls.shape == (3, 5, 3)
        assert list(growth.growth) == ["isotropic", "along", "towards", "cls", "patch"]
        np.testing.assert_allclose(exponents.states.exponents, np.log(1.1), atol=1e-5)
        np.testing.assert_allclose(exponents.directions.exponents, 0.0, atol=1e-5)
        np.testing.assert_allclose(jacobians.singular_values, np.ones((4, 3, 2)), atol=1e-4)
        np.testing.assert_allclose(jacobians.raw_singular_values, np.full((4, 3, 2), 1.1), atol=1e-4)
        modes, horizons = portrait["linear"].modes, portrait["linear"].horizons
        assert portrait["directions"].speed.registers.size == 0 and modes[0].registers is None
        assert portrait["linear"].phases == ("1-3", "4")
        assert [model.span for model in (by_token.cls for by_token in modes)] == [(1, 3), (4, 4)]
        np.testing.assert_allclose(np.abs(modes[0].patches.eigenvalues), 1.1, rtol=1e-4)
        # Of a linear system K^p is right at any distance, but for the ridge.
        horizon = horizons[0].patches
        np.testing.assert_array_equal(horizon.steps, [1, 2, 3])
        np.testing.assert_allclose(horizon.dmd.cosine, [1, 1, 1], atol=0.01)
        assert (horizon.dmd.relative_error < horizon.identity.relative_error).all() and horizons[0].registers is None
        per_image = dynamics.update_rank(trajectory[:, :6], LAYOUT, over="tokens")
        np.testing.assert_allclose(portrait["ranks"].tokens.stable.patches.mean(-1), per_image.stable.patches, rtol=1e-6)
        np.testing.assert_allclose(np.abs(jacobians.eigenvalues.values), 1.0, atol=1e-3)
        fates = [[dynamics.FATES[i] for i in run.fate] for run in portrait["extrapolation"].ends]
        assert fates == [["leaves"] * 3] * 2  # it grows by a tenth in each step


def test_curves_and_their_distance(comparison):
    ours, theirs = dynamics.curves(comparison.first), dynamics.curves(comparison.second)
    assert set(comparison.distance) == set(ours) == set(theirs)
    assert ours["speed_cls"].values.shape == (4, 10) and ours["stable_rank_cls"].values.shape == (4,)
    axes = {
        name: ours[name].axis for name in ("norm_cls", "speed_cls", "turn_cls", "recovery", "exponents", "gain", "growth_cls")
    }
    assert list(axes.values()) == ["states", "layers", "between layers", "sizes", "exponents", "layers", "states"]
    assert ours["speed_cls"].token == "cls" and ours["gain"].token == ""
    np.testing.assert_allclose(ours["growth_cls"].values[0], 1.0)
    np.testing.assert_allclose(ours["raw_gain"].values, 1.1, atol=1e-4)
    np.testing.assert_allclose(ours["modulus_patches"].values, 1.1, rtol=1e-4)
    speeds = ours["speed_patches"].mean, theirs["speed_patches"].mean
    found = comparison.distance["speed_patches"]
    assert found.absolute == pytest.approx(np.sqrt(np.mean((speeds[1] - speeds[0]) ** 2)))
    assert found.relative == pytest.approx(np.linalg.norm(speeds[1] - speeds[0]) / np.linalg.norm(speeds[0]))
    assert all(d.absolute == 0 for d in dynamics.distance(comparison.first, comparison.first).values())


def test_every_figure_of_a_comparison(comparison):
    both = {"teacher": comparison.first, "raptor": comparison.second}
    drawn = {picture.name: dynamics.draw(picture.name, both) for picture in pictures()}
    assert {name for name, figure in drawn.items() if figure is None} == {"sublayers", "influence"}  # not asked for
    cuts = [line for line in drawn["coherence"].axes[0].get_lines() if line.get_linestyle() == ":"]
    assert len(cuts) == 1  # the second system's
    with pytest.raises(ValueError, match="no figure 'speeds': expected one of summary, dynamics, "):
        dynamics.draw("speeds", both)


def test_images_without_classes_are_clustered(states):
    state, _ = states
    portrait = dynamics.portrait(turning(0.1), [state], key=KEY, settings=SMALL)
    assert len(np.unique(portrait["basins"].labels)) >= 2
    alone = dynamics.portrait(turning(0.1), [(state, np.arange(10))], key=KEY, settings=SMALL)
    np.testing.assert_array_equal(alone["basins"].labels, portrait["basins"].labels)


@pytest.mark.parametrize("classes", [None, np.zeros(10, int)])
def test_clusters_are_those_of_the_first_system_for_all(states, classes):
    state, _ = states
    batch = state if classes is None else (state, classes)
    other = DepthSystem(lambda state, layer: 1.1 * jnp.tanh(state[..., ::-1]), 4, LAYOUT)
    both = dynamics.portraits({"a": turning(0.1), "b": other}, [batch], key=KEY, settings=SMALL)
    np.testing.assert_array_equal(both["a"]["basins"].labels, both["b"]["basins"].labels)


def test_classes_of_one_image_are_left_out(states):
    state, classes = states
    portrait = dynamics.portrait(turning(0.1), [(state, np.r_[classes[:9], 7])], key=KEY, settings=SMALL)
    np.testing.assert_array_equal(portrait["basins"].labels, classes[:9])
    assert portrait["directions"].speed.cls.shape == (4, 10)
    some = dynamics.portrait(turning(0.1), [(state, np.r_[classes[:8], -1, -1])], key=KEY, settings=SMALL)
    np.testing.assert_array_equal(some["basins"].labels, classes[:8])


def test_views_of_photographs_and_images_of_classes(states):
    """Bands draw photographs; linear models are tested on photographs that they were not fitted to; basins have images of their
    own."""
    state, classes = states
    few = dataclasses.replace(SMALL, tangent_images=0, extrapolated_steps=0, linear_images=20)
    twice, views = np.concatenate([state, state]), np.tile(np.arange(10), 2)
    nothing = -np.ones(20, int)
    portrait = dynamics.portrait(turning(0.1), [(twice, nothing, views)], key=KEY, settings=few, of_classes=[(state, classes)])
    assert (portrait.num_images, portrait.num_photographs) == (20, 10)
    np.testing.assert_array_equal(portrait["basins"].labels, classes)
    assert not set(views[portrait["linear"].tested]) & set(np.delete(views, portrait["linear"].tested))
    once = dynamics.portrait(turning(0.1), [(state, classes)], key=KEY, settings=few)
    curve, single = dynamics.curves(portrait)["coherence_patches"], dynamics.curves(once)["coherence_patches"]
    grouped, alone = band(curve, portrait.photographs), band(single, once.photographs)
    np.testing.assert_allclose((grouped.mean_low, grouped.mean_high), (alone.mean_low, alone.mean_high), atol=1e-6)
    assert band(curve).mean_high[0] - band(curve).mean_low[0] < 0.85 * (alone.mean_high[0] - alone.mean_low[0])
    horizon = dynamics.curves(portrait)["horizon_cls"]
    assert horizon.of_images(portrait.photographs).tolist() == views[portrait["linear"].tested].tolist()
    with pytest.raises(ValueError, match=r"photographs have shape \(9,\), expected \(20,\)"):
        dynamics.portrait(turning(0.1), [(twice, nothing, views[:9])], key=KEY, settings=few)


def attending(state, layer):
    """The class token, the same in every image, takes up what the patches of an image have in common."""
    return state.at[:, 0].add(0.2 * state[:, 1:].mean(1))


def test_class_basins_of_a_known_system():
    """At first all class tokens are in one place: chance, one in three. After a layer each points to its class."""
    rng, classes = np.random.default_rng(1), np.repeat([0, 1, 2], (4, 4, 4))
    state = 0.05 * rng.normal(size=(12, 3, 6)) + np.eye(6)[classes + 2][:, None]
    state[:, 0] = [1, 0, 0, 0, 0, 0]
    few = dataclasses.replace(SMALL, tangent_images=0, extrapolated_steps=0, linear_images=0)
    stream = rng.normal(size=(5, 3, 6)).astype(np.float32)
    options = {"key": KEY, "settings": few, "of_classes": [(state.astype(np.float32), classes, np.arange(12))]}
    found = dynamics.portrait(DepthSystem(attending, 4, LAYOUT), [stream], **options)
    np.testing.assert_allclose(found["basins"].accuracy.cls, [1 / 3, 1, 1, 1, 1])
    np.testing.assert_allclose(found["basins"].accuracy.patches, 1)
    np.testing.assert_allclose(dynamics.curves(found)["accuracy_cls"].values, [1 / 3, 1, 1, 1, 1])
    assert found.num_images == 5 and dynamics.draw("basins", {"teacher": found}) is not None


def test_systems_that_do_not_go_together(states):
    with pytest.raises(ValueError, match="expected 3 layers, those of the partition 1-3"):
        dynamics.portrait(turning(0.1), [states[0]], key=KEY, partition=Partition((3,)), settings=SMALL)


@pytest.mark.wrong_types
def test_what_is_missing(states):
    state, classes = states
    with pytest.raises(ValueError, match="no systems"):
        dynamics.portraits({}, [state], key=KEY)
    with pytest.raises(ValueError, match=r"classes have shape \(9,\), expected \(10,\)"):
        dynamics.portrait(turning(0.1), [(state, classes[:9])], key=KEY, settings=SMALL)
    both = {"a": turning(0.1), "b": turning(0.2)}
    with pytest.raises(ValueError, match="no partition for b: partition has a"):
        dynamics.portraits(both, [state], key=KEY, partition={"a": Partition((4,))}, settings=SMALL)


def test_what_is_measured_is_told(states):
    told = []
    settings = dataclasses.replace(SMALL, tangent_images=0, linear_images=0)
    dynamics.portrait(turning(0.3), [states[0]], key=KEY, settings=settings, watch=lambda *what: told.append(what))
    assert told[0] == ("directions of system", 0, told[0][2]) and told[-1] == ("", told[0][2], told[0][2])
    assert [done for _, done, _ in told[:-1]] == list(range(len(told) - 1)) and len(told) - 1 < told[0][2]  # some were left out


def test_a_second_portrait_compiles_nothing(states, traces):
    """Of other parameters and other states of the same shapes: every function compiles once."""
    state, classes = states
    dynamics.portrait(turning(0.1), [(state, classes)], key=KEY, settings=SMALL)
    traces.clear()
    dynamics.portrait(turning(0.3), [(state[::-1].copy(), classes[::-1])], key=jax.random.key(1), settings=SMALL)
    assert not traces


def test_sublayers_and_influence_where_they_are_asked_for(states):
    state, classes = states
    halves = {name: DepthSystem(half_turn, 8, LAYOUT) for name in ("a", "b")}
    settings = dataclasses.replace(SMALL, influence_probes=1, linear_images=0, extrapolated_steps=0)
    systems = {"a": turning(0.1), "b": turning(0.2)}
    both = dynamics.portraits(systems, [(state, classes)], key=KEY, settings=settings, sublayers=halves)
    found = dynamics.curves(both["b"])
    assert found["attention_speed_cls"].values.shape == found["mlp_speed_cls"].values.shape == (4, 3)
    np.testing.assert_allclose(found["mlp_speed_cls"].values, 0.0, atol=1e-6)
    assert (found["attention_speed_cls"].values > 0).all()
    assert both["a"]["influence"].layers.tolist() == [1, 3, 4] and "influence" not in both["b"].results
    assert "linear" not in both["a"].results and both["a"]["ranks"].tokens is None
    alone = dynamics.portrait(turning(0.1), [state], key=KEY, settings=dataclasses.replace(settings, tangent_images=0))
    assert list(alone.results) == ["directions", "ranks", "basins"]
    assert dynamics.draw("perturbations", {"teacher": alone}) is None


def half_turn(state, layer):
    """Attention turns, feed-forward leaves directions as they are."""
    return jnp.where(layer % 2 == 0, state + 0.1 * state[..., ::-1], 1.1 * state)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tangent_images": -1}, "tangent_images is -1: expected 0 or more"),
        ({"num_probes": 1}, "num_probes is 1: expected 2 or more"),
        ({"rank": 0}, "rank is 0: expected a positive number"),
        ({"extrapolated_steps": 8}, "extrapolated_steps is 8: expected 0, or 16 or more"),
        ({"relative_sizes": ()}, r"relative_sizes is \(\): expected positive sizes"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(UserError, match=message):
        PortraitSettings(**values)


def test_no_images():
    with pytest.raises(ValueError, match="no images: portraits need at least one batch"):
        dynamics.portrait(turning(0.1), [], key=KEY)
