import base64
import collections
import csv
import html.parser
import warnings

import numpy as np
import pytest

from brh_jax.curves import Band
from brh_jax.phases import Partition, plot
from brh_jax.report.html import Answer, Card, Chapter, Listing, Table, figure_entry, render
from brh_jax.report.portrait import side_by_side
from brh_jax.report.training import training_curves, validation_curves
from brh_jax.report.values import GUIDE
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
    below = [layer for y in lines.values() for layer, value in enumerate(y, 1) if value < -0.5]
    marked = [layer for line in axis.get_lines() if line.get_gid() == GUIDE for layer in line.get_xdata()]
    assert below and sorted(marked) == sorted(below)


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
    assert [list(line.get_ydata()) for line in lines if line.get_gid() == GUIDE and len(line.get_ydata())]  # what lies below
    assert figure.axes[0].get_xscale() == "log"
    assert [list(line.get_ydata()) for line in figure.axes[5].get_lines()][-1] == [0.8, 0.8]  # the teacher
    alone = validation_curves({"k2": [[{"step": 1, "images": 8, "r2_patches": 0.1, "relative_error": 1.0}]]})
    assert not alone.axes[-1].get_visible()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not work out
        for drawn in (figure, alone):
            drawn.draw_without_rendering()


def test_the_page_is_self_contained_and_escapes(tmp_path):
    bands = {"<script>alert(1)</script>": {"coherence_patches": Band([0.1] * 7, "states", "patches")}}
    figure = side_by_side(bands, {}, (("coherence_patches", "patch coherence", "linear"),))
    entry = figure_entry(figure, tmp_path / "figures", "coherence", "A <figure>", "What to see. What was measured")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {f"coherence.{end}" for end in ("svg", "png", "csv")}
    table = Table('A "table"', ["<a>"], [["<script>"]], "a remark & more")
    card = Card("Card", "<b>", "</script>", True, [("<i>", "<u>")], table)
    render(
        tmp_path / "index.html",
        title="<Title>",
        lead=["Found."],
        answers=[Answer("<run>", [("Teacher", "<img src=x onerror=alert(1)>")], [card], "#000000")],
        chapters=[
            Chapter("One", "Why?", [entry, table]),
            Chapter("None", "", []),
            Chapter("Last", "", [Listing("All", "<pre>")]),
        ],
    )
    text = (tmp_path / "index.html").read_text()
    for outside in ("http://", "https://", 'src="figures'):
        assert outside not in text
    for word in ("&lt;Title&gt;", "Found.", "<strong>What to see.</strong>", "a remark &amp; more", "&lt;pre&gt;", "Why?"):
        assert word in text
    assert "None" not in text
    seen = Elements(text)
    assert len(seen.of["script"]) == 1 and len(seen.of["b"]) == len(seen.of["u"]) == len(seen.of["run"]) == 0
    images = [image for image in seen.of["img"] if image != {"alt": ""}]  # but the one that figures are enlarged in
    assert [image["src"][:22] for image in images] == ["data:image/png;base64,"] and "onerror" not in images[0]
    assert images[0]["alt"].startswith("A <figure>. Lines: patch coherence against state. Of <script>alert(1)</script>. From 0.1")
    (link,) = (link for link in seen.of["a"] if "download" in link)
    rows = list(csv.DictReader(base64.b64decode(link["href"].partition("base64,")[2]).decode().splitlines()))
    assert link["download"] == "coherence.csv" and [row["x"] for row in rows] == [str(x) for x in range(7)]
    targets = {link["href"] for link in seen.of["a"] if "download" not in link}
    assert targets == {"#answer", "#one", "#one-a-figure", "#one-a-table", "#last", "#last-all"}
    assert {target[1:] for target in targets} <= {one.get("id") for every in seen.of.values() for one in every}


class Elements(html.parser.HTMLParser):
    """The elements of a page: tag -> attributes of each."""

    def __init__(self, text):
        super().__init__()
        self.of = collections.defaultdict(list)
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.of[tag].append(dict(attrs))
