import warnings

import numpy as np
import pytest

from brh_jax.curves import Band
from brh_jax.phases import Partition, plot
from brh_jax.report.html import FigureEntry, Table, render, save_figure
from brh_jax.report.portrait import side_by_side
from brh_jax.report.training import training_curves, validation_curves
from experiments.stages.agreement.figures import error_per_layer, fit_per_layer
from experiments.stages.agreement.run import Edges, Fit

PARTITIONS = {"k2": Partition((4, 2)), "k3": Partition((2, 2, 2), (0, 1, 0))}


KINDS = {"identity": ("", "baseline"), "k2_stage1": ("k2", "blockwise"), "k2": ("k2", "raptor"), "k3": ("k3", "raptor")}


def fits(types=("cls", "registers", "patches")):
    rng = np.random.default_rng(0)
    made = {}
    for shift, (name, (raptor, kind)) in zip((3.0, 0.2, 0.1, 0.0), KINDS.items(), strict=True):
        r2 = {t: (rng.random(6) - shift).tolist() for t in types}
        error = {t: (rng.random(6) + 0.1).tolist() for t in (*types, "all")}
        edges = {"error": {t: Edges([0.9 * e for e in v], [1.1 * e for e in v]) for t, v in error.items()}}
        made[name] = Fit(name, raptor, kind, r2, [0.3, 0.6], 0.7, r2, error, error, 0.5, None, None, 9, 3, edges, {})
    return made


def test_dissimilarity_draws_every_partition():
    figure = plot(np.random.default_rng(0).random((6, 6)), *PARTITIONS.values())
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == ["k = 2:  1-4 | 5-6", "k = 2:  1-2,5-6 | 3-4"]


@pytest.mark.parametrize("types", [("cls", "registers", "patches"), ("patches",)])
def test_one_panel_for_each_token_type_that_is_there(types):
    figure = fit_per_layer(fits(types), "r2", "R²", floor=-0.5)
    assert [a.get_title() for a in figure.axes] == list(types)
    axis = figure.axes[0]
    assert axis.get_ylim()[0] == -0.5
    lines = {line.get_label(): line.get_ydata() for line in axis.get_lines()}
    np.testing.assert_allclose(lines["k3"], fits(types)["k3"].r2[types[0]])
    assert min(min(y) for y in lines.values()) >= -0.5  # what lies lower is marked on the edge


def test_errors_have_a_column_for_each_token_type_and_their_bands():
    figure = error_per_layer(fits())
    assert [axis.get_title() for axis in figure.axes[:4]] == ["cls", "registers", "patches", "all tokens"]
    below = figure.axes[4]
    colours = {line.get_label(): line.get_color() for line in below.get_lines()}
    assert colours["k2"] == colours["k2_stage1"] != colours["k3"] and len(below.collections) == 4


def test_training_curves_show_every_block():
    rows = [
        {"step": s, "loss": 1 / s, "loss_phase_1": 2 / s, "loss_phase_2": 3 / s, "teacher_forcing": 1 - s / 3} for s in (1, 2, 3)
    ]
    figure = training_curves({"stage 1": rows, "stage 2": [{"step": 1, "loss": 1.0}], "stage 3": []})
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert labels[:3] == ["block 1", "block 2", "mean"]


def test_losses_below_zero_are_drawn_too():
    falling = [{"step": step, "loss": 0.5 - step} for step in range(5)]
    below, above = training_curves({"log": falling, "mse": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}).axes
    assert (below.get_yscale(), above.get_yscale()) == ("linear", "log")
    low, high = below.get_ylim()
    assert low < -3.5 and high > 0.5


def test_validation_curves_have_a_panel_for_each_token_type_and_one_for_the_classifier():
    def rows(*images):
        return [
            {"images": n, "r2_cls": -7.0, "r2_cls_last": 0.1, "r2_patches": 0.2, "r2_patches_last": float("nan")}
            | {"relative_error": 0.5, "same_class": 0.4, "accuracy": 0.3, "teacher_accuracy": 0.8}
            for n in images
        ]

    figure = validation_curves({"k2": [rows(10, 20), rows(30, 200)], "k3": [rows(10, 20), []]})
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:3] == ["R² cls, mean of layers", "R² patches, mean of layers", "e / norm of the state"]
    assert titles[3:] == ["R² cls, last", "R² patches, last", "accuracy; dotted: same class"]
    lines = figure.axes[0].get_lines()
    assert [line.get_linestyle() for line in lines if line.get_label() == "k2"] == ["-"]  # the last training's
    assert min(min(line.get_ydata(), default=0) for line in lines) == -1  # what lies lower is marked on the edge
    assert figure.axes[0].get_xscale() == "log"
    assert [list(line.get_ydata()) for line in figure.axes[5].get_lines()][-1] == [0.8, 0.8]  # the teacher
    alone = validation_curves({"k2": [[{"step": 1, "images": 8, "r2_patches": 0.1, "relative_error": 1.0}]]})
    assert not alone.axes[-1].get_visible()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not work out
        for drawn in (figure, alone):
            drawn.draw_without_rendering()


def test_the_page_is_self_contained_and_escapes(tmp_path):
    bands = {"teacher": {"coherence_patches": Band([0.1] * 7, "states", "patches")}}
    figure = side_by_side(bands, PARTITIONS, (("coherence_patches", "patch coherence", "linear"),))
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
