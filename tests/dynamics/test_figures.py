import jax
import numpy as np
import pytest

from brh_jax.curves import Band
from brh_jax.dynamics import DepthSystem, PortraitSettings, compare
from brh_jax.dynamics.drawing import draw, pictures
from brh_jax.dynamics.measure import Shown
from brh_jax.dynamics.measures.basins import projections
from brh_jax.errors import UserError
from brh_jax.partition import Partition
from brh_jax.phases import plot
from brh_jax.report.html import save_figure
from brh_jax.tokens import TokenLayout

PARTITIONS = {"k2": Partition((4, 2)), "k3": Partition((2, 2, 2), (0, 1, 0))}
ALL = ("cls", "registers", "patches")
LAYOUT = TokenLayout(1, 2, (4, 4))


def band(axis, points, token=""):
    mean = np.linspace(0, 1, points)
    return Band(mean.tolist(), axis, token, (mean - 0.1).tolist(), (mean + 0.1).tolist())


def shown(types=ALL, **arrays):
    """Three systems of six layers with equal curves; of `arrays`, `linear__phases` is linear/phases of all of them."""
    states = ("convergence", "norm", "within", "between", "silhouette", "accuracy", "growth")
    layers = ("speed", "stable_rank", "raw_stable_rank", "token_stable_rank", "effective_rank", "participation")
    layers += ("uncentred_stable_rank", "attention_speed", "mlp_speed")
    one = {f"{name}_{t}": band("states", 7, t) for name in states for t in types}
    one |= {f"{name}_{t}": band("layers", 6, t) for name in layers for t in types}
    one |= {f"{name}_{t}": Band([0.1] * 5, "between layers", t) for name in ("acceleration", "turn") for t in types}
    one |= {
        f"{name}_{t}": Band([0.1] * 20, axis, t) for name, axis in (("modulus", "modes"), ("horizon", "horizon")) for t in types
    }
    one |= {name: band("layers", 6) for name in ("gain", "from_identity", "antisymmetric")}
    one |= {name: band("exponents", 4) for name in ("exponents", "direction_exponents")}
    one |= {"coherence_patches": band("states", 7, "patches"), "along": band("states", 7), "from_patch": band("states", 7)}
    systems = ("teacher", "k2", "k3")
    arrays = {name.replace("__", "/"): array for name, array in arrays.items()}
    return Shown(dict.fromkeys(systems, one), dict.fromkeys(systems, arrays), PARTITIONS, LAYOUT, 20, 10, 8)


@pytest.mark.parametrize("types", [ALL, ("patches",)])
def test_a_row_for_each_measure_and_a_column_for_each_token_type(types):
    rows = {"dynamics": 4, "ranks": 7, "basins": 4, "growth": 1, "sublayers": 2}
    assert {name: len(draw(name, shown(types)).axes) for name in rows} == {name: n * len(types) for name, n in rows.items()}


def test_curves_lie_at_states_at_layers_or_between_layers():
    figure = draw("dynamics", shown(("cls",)))
    first = [next(line for line in axis.get_lines() if line.get_label() == "teacher").get_xdata() for axis in figure.axes]
    assert [list(x[[0, -1]]) for x in first] == [[0, 6], [1, 6], [1.5, 5.5], [0, 6]]


@pytest.mark.parametrize("types", [ALL, ("patches",)])
def test_dynamics_in_one_figure(types):
    titles = [axis.get_title() for axis in draw("summary", shown(types)).axes if axis.get_visible()]
    assert f"angular speed of {types[0]} (rad per layer)" in titles and "Lyapunov exponents of directions" in titles
    assert (len(draw("exponents", shown(types)).axes), len(draw("jacobians", shown(types)).axes)) == (2, 3)


def test_modes_out_of_the_plane_are_marked_on_its_edge():
    modes = np.array([[0.5 + 0.1j, 3j], [1.0, np.nan]])
    axis = draw("modes", shown(linear__phases=np.array(["1-4", "5-6"]), linear__modes_cls=modes)).axes[0]
    marks = {line.get_marker() for line in axis.get_lines() if line.get_marker() != "None"}
    drawn = np.concatenate([line.get_xydata() for line in axis.get_lines() if line.get_marker() == "^"])
    np.testing.assert_allclose(drawn, [[0, 1.8]], atol=1e-12)
    assert marks == {".", "^"}
    labels = [line.get_label() for line in axis.get_lines() if line.get_marker() == "."]
    assert labels == ["layers 1-4", "layers 5-6"]


def test_horizons_of_phases_of_different_lengths():
    cls = np.array([[[0.9, 0.8], [0.95, 0.9], [0.7, 0.5]], [[0.9, np.nan], [0.95, np.nan], [0.7, np.nan]]])
    phases = np.array(["1-4", "5"])
    figure = draw("horizons", shown(linear__phases=phases, linear__horizon_cls=cls, linear__horizon_patches=cls[:, :, :1]))
    assert [len(axis.get_lines()) for axis in figure.axes] == [9] * 4
    assert [len(axis.get_lines()[0].get_xdata()) for axis in figure.axes] == [2, 1, 1, 1]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["layers 1-4", "layers 5"]


def test_trajectories_influence_and_iterated_blocks():
    rng = np.random.default_rng(0)
    figure = projections({"teacher": rng.normal(size=(7, 20, 2))}, np.arange(20) % 3, num_paths=5)
    assert sum(len(line.get_xdata()) == 7 for line in figure.axes[0].get_lines()) == 5
    figure = draw("influence", shown(influence__layers=np.array([1, 6]), influence__matrices=rng.random((2, 19, 19))))
    assert [axis.get_title() for axis in figure.axes[:2]] == ["layer 1", "layer 6"]
    speed, norm = np.array([[0.1, 0.01, np.nan]] * 2), np.array([[1.0, 1.0, 1.0, np.nan]] * 2)
    runs = np.array(["1-4", "5-6"])
    figure = draw("extrapolation", shown(extrapolation__runs=runs, extrapolation__speed=speed, extrapolation__norm=norm))
    assert [len(axis.get_lines()) for axis in figure.axes] == [2] * 6


def test_eigenvalues_and_kinds_of_perturbation(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 3, 4)) + 1j * rng.normal(size=(6, 3, 4))
    figure = draw("eigenvalues", shown(jacobians__eigenvalues=values))
    save_figure(figure, tmp_path, "eigenvalues")
    assert [axis.get_title() for axis in figure.axes[:3]] == ["teacher", "k2", "k3"]
    drawn = figure.axes[0].collections[0]
    np.testing.assert_allclose(drawn.get_offsets()[:, 1], values.imag.ravel())
    np.testing.assert_array_equal(drawn.get_array(), np.repeat(np.arange(1, 7), 12))
    figure = draw("perturbations", shown())
    assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == [
        "every token along its update",
        "the middle patch alone",
    ]


def test_every_figure_has_a_name_of_its_own_a_title_and_a_caption():
    found = list(pictures())
    assert len({picture.name for picture in found}) == len(found) == 16
    assert all(picture.title and "{" not in picture.caption_of(shown()) for picture in found)
    assert draw("dynamics", shown()).axes[0].get_title() == "cls"
    bare = Shown({"teacher": {}}, {"teacher": {}}, {}, LAYOUT, 1, 1, 0)
    assert all(picture.draw(bare) is None for picture in found if picture.name != "summary")


def test_portraits_and_comparisons_draw_themselves():
    layout = TokenLayout(1, 0, (1, 2))
    systems = [DepthSystem(lambda state, layer, rate=rate: rate * state + layer, 3, layout) for rate in (0.5, 0.25)]
    state = jax.random.normal(jax.random.key(0), (4, 3, 8))
    settings = PortraitSettings(tangent_images=0, linear_images=0)
    both = compare(*systems, [state], key=jax.random.key(1), partition=Partition((2, 1)), settings=settings)
    figure = both.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    curves = [line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")]
    assert [line.get_label() for line in curves] == ["teacher", "Raptor"]
    assert both.first.plot(name="teacher").axes[0].get_lines()[-1].get_xdata()[0] == 2  # its own cut, in black
    drawn = both.first.plot("dynamics", "mine").axes[0].get_lines()
    assert drawn[0].get_label() == "mine"
    np.testing.assert_allclose(drawn[0].get_ydata(), both.first["directions"].convergence.cls.mean(-1), rtol=1e-6)
    assert [line.get_xdata()[0] for line in drawn[1:]] == [2.5 - 0.5]  # the cut after layer 2, at state 2
    with pytest.raises(ValueError, match="nothing that the figure 'jacobians' shows was measured: there are directions"):
        both.plot("jacobians")
    with pytest.raises(ValueError, match="no figure 'sumary'"):
        both.first.plot("sumary")


def test_phases_in_one_line():
    D = 1 - np.eye(4)
    figure = plot(D, Partition((1, 3)), Partition((2, 2)))
    assert [axis.get_title() for axis in figure.axes[:2]] == ["k = 2:  1 | 2-4", "k = 2:  1-2 | 3-4"]
    boxes = [line.get_xdata()[[0, 1]].tolist() for line in figure.axes[0].get_lines()]
    assert boxes == [[0.5, 1.5], [1.5, 4.5]]
    assert len(plot(D).axes[0].get_lines()) == 0
    for wrong in (np.ones((2, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(UserError, match=r"expected \[depth, depth\]"):
            plot(wrong)
    with pytest.raises(UserError, match="the partition 1-2 | 3 has 3 layers, the matrix 4"):
        plot(D, Partition((2, 1)))
