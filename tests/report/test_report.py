import numpy as np
import pytest

from brh_jax.phases import Partition
from brh_jax.report import figures, portrait
from brh_jax.report.html import FigureEntry, Table, render, save_figure

PARTITIONS = {"k2": Partition((4, 2)), "k3": Partition((2, 2, 2), (0, 1, 0))}


def fits(types=("cls", "registers", "patches")):
    rng = np.random.default_rng(0)
    return {
        name: {"r2": {t: (rng.random(6) - low).tolist() for t in types}}
        for name, low in (("identity", 3.0), ("k2_stage1", 0.2), ("k2", 0.1), ("k3", 0.0))
    }


def measures(types=("cls", "registers", "patches")):
    def band(length):
        mean = np.linspace(0, 1, length)
        return {"mean": mean.tolist(), "low": (mean - 0.1).tolist(), "high": (mean + 0.1).tolist()}

    states = ("convergence", "norm", "within", "between", "silhouette", "accuracy", "growth")
    layers = ("speed", "stable_rank", "raw_stable_rank", "token_stable_rank", "effective_rank", "participation")
    layers += ("attention_speed", "mlp_speed")
    one = {f"{name}_{t}": band(7) for name in states for t in types} | {f"{name}_{t}": band(6) for name in layers for t in types}
    one |= {f"{name}_{t}": {"mean": [0.1] * 5} for name in ("acceleration", "turn") for t in types}
    one |= {"coherence_patches": band(7), "gain": band(6), "from_identity": band(6), "antisymmetric": band(6)}
    one |= {f"{name}_{t}": {"mean": [0.1] * 20} for name in ("modulus", "horizon") for t in types}  # not along depth
    one |= {"exponents": band(4), "direction_exponents": band(4), "along": band(7), "from_patch": band(7)}
    return dict.fromkeys(("teacher", "k2", "k3"), one)


def test_dissimilarity_draws_every_partition():
    figure = figures.dissimilarity(np.random.default_rng(0).random((6, 6)), list(PARTITIONS.values()))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == ["k = 2:  1-4 | 5-6", "k = 2:  1-2,5-6 | 3-4"]


@pytest.mark.parametrize("types", [("cls", "registers", "patches"), ("patches",)])
def test_one_panel_for_each_token_type_that_is_there(types):
    figure = figures.fit_per_layer(fits(types), "r2", "R²", floor=-0.5)
    assert [a.get_title() for a in figure.axes] == list(types)
    axis = figure.axes[0]
    assert axis.get_ylim()[0] == -0.5
    lines = {line.get_label(): line.get_ydata() for line in axis.get_lines()}
    np.testing.assert_allclose(lines["k3"], fits(types)["k3"]["r2"][types[0]])
    assert min(min(y) for y in lines.values()) >= -0.5  # what lies lower is marked on the edge
    for rows in (portrait.DIRECTIONS, portrait.RANKS, portrait.BASINS, portrait.GROWTH):
        assert len(portrait.along_depth(measures(types), PARTITIONS, rows).axes) == len(rows) * len(types)


def test_curves_lie_at_states_at_layers_or_between_layers():
    figure = portrait.along_depth(measures(("cls",)), PARTITIONS, portrait.DIRECTIONS)
    first = [next(line for line in axis.get_lines() if line.get_label() == "teacher").get_xdata() for axis in figure.axes]
    assert [list(x[[0, -1]]) for x in first] == [[0, 6], [1, 6], [1.5, 5.5], [0, 6]]


@pytest.mark.parametrize("types", [("cls", "registers", "patches"), ("patches",)])
def test_dynamics_in_one_figure(types):
    figure = portrait.dynamics_summary(measures(types), PARTITIONS, "Title")
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert f"angular speed of {types[0]} (rad per layer)" in titles and "Lyapunov exponents of directions" in titles
    assert (len(portrait.exponents(measures(types)).axes), len(portrait.jacobians(measures(types), PARTITIONS).axes)) == (2, 3)


def test_modes_out_of_the_plane_are_marked_on_its_edge():
    phases = [{"phase": "1-4", "cls": [0.5 + 0.1j, 3j]}, {"phase": "5-6", "cls": [1.0]}]
    axis = portrait.modes({"teacher": phases, "k2": phases[:1]}, radius=1.5).axes[0]
    marks = {line.get_marker(): line.get_xydata() for line in axis.get_lines() if line.get_marker() != "None"}
    drawn = np.concatenate([line.get_xydata() for line in axis.get_lines() if line.get_marker() == "^"])
    np.testing.assert_allclose(drawn, [[0, 1.5]], atol=1e-12)
    assert set(marks) == {".", "^"}


def test_trajectories_influence_and_iterated_blocks(tiny_encoder):
    rng = np.random.default_rng(0)
    figure = portrait.projections({"teacher": rng.normal(size=(7, 20, 2))}, np.arange(20) % 3, num_paths=5)
    assert sum(len(line.get_xdata()) == 7 for line in figure.axes[0].get_lines()) == 5
    figure = portrait.influence({"layer 1": rng.random((19, 19))}, tiny_encoder.layout)
    assert figure.axes[0].get_title() == "layer 1"
    run = {"speed": [0.1, 0.01, None], "norm": [1.0, 1.0, 1.0, None]}
    figure = portrait.extrapolation({"teacher": {"1-4": run}, "k2": {"1-4": run, "5-6": run}})
    assert [len(axis.get_lines()) for axis in figure.axes] == [1, 1, 2, 2]


def test_eigenvalues_horizons_and_kinds_of_perturbation(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 3, 4)) + 1j * rng.normal(size=(6, 3, 4))
    figure = portrait.eigenvalues({"teacher": values, "k2": values})
    save_figure(figure, tmp_path, "eigenvalues")
    assert [axis.get_title() for axis in figure.axes[:2]] == ["teacher", "k2"]
    drawn = figure.axes[0].collections[0]
    np.testing.assert_allclose(drawn.get_offsets()[:, 1], values.imag.ravel())
    np.testing.assert_array_equal(drawn.get_array(), np.repeat(np.arange(1, 7), 12))
    curve = {"steps": [1, 2], "dmd": [0.9, 0.8], "identity": [0.7, 0.5], "linear": [0.95, 0.9]}
    phases = [{"phase": "1-4", "cls": curve, "patches": curve}, {"phase": "5-6", "cls": curve}]
    figure = portrait.horizons({"teacher": phases, "k2": phases})
    assert [len(axis.get_lines()) for axis in figure.axes] == [6, 6, 6, 0]
    figure = portrait.perturbations(measures(), PARTITIONS)
    assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == [
        "every token along its update",
        "the middle patch alone",
    ]


def test_training_curves_show_every_block():
    rows = [
        {"step": s, "loss": 1 / s, "loss_phase_1": 2 / s, "loss_phase_2": 3 / s, "teacher_forcing": 1 - s / 3} for s in (1, 2, 3)
    ]
    figure = figures.training_curves({"stage 1": rows, "stage 2": [{"step": 1, "loss": 1.0}], "stage 3": []})
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert labels[:3] == ["block 1", "block 2", "mean"]


def test_the_page_is_self_contained_and_escapes(tmp_path):
    figure = portrait.patch_coherence(measures(), PARTITIONS)
    png = save_figure(figure, tmp_path / "figures", "coherence")
    assert (tmp_path / "figures" / "coherence.svg").exists()
    sections = [FigureEntry(png, "A figure", "What to see"), Table("A table", ["a"], [["<script>"]], "a remark")]
    render(
        tmp_path / "index.html",
        title="Title",
        lead=["Found."],
        sections=sections,
        configuration="seed: 0",
        environment={"jax": "1"},
    )
    text = (tmp_path / "index.html").read_text()
    assert "data:image/png;base64," in text
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    for outside in ("http://", "https://", 'src="figures'):
        assert outside not in text
    for word in ("Title", "Found.", "What to see", "a remark", "seed: 0"):
        assert word in text
