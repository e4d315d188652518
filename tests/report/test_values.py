"""What is read off a figure is what was drawn."""

import csv

import numpy as np
from matplotlib.figure import Figure

from brh_jax.report.values import GUIDE, as_csv, in_words, panels


def rows(figure):
    return list(csv.DictReader(as_csv(panels(figure)).splitlines()))


def test_lines_have_their_bands_and_the_labels_of_their_row_and_column():
    figure = Figure()
    axes = figure.subplots(2, 2)
    for axis, title in zip(axes[0], ("cls", "patches"), strict=True):
        axis.set_title(title)
    axes[1][0].set_ylabel("angular\nspeed")
    axes[1][1].set_xlabel("layer")
    axes[1][1].plot([1, 2, 3], [0.5, np.nan, -7.25], label="k2")
    axes[1][1].fill_between([1, 2, 3], [0.25, 0, -8], [0.75, 0, -7], gid="k2")
    axes[1][1].plot([0, 9], [0, 9], gid=GUIDE)
    axes[1][1].axhline(3)
    axes[1][1].set_ylim(-1, 1)  # values beyond the axis are values
    axes[0][1].set_visible(False)
    found = rows(figure)
    assert [list(row.values()) for row in found] == [
        ["patches", "layer", "angular speed", "k2", "1", "0.5", "0.25", "0.75", ""],
        ["patches", "layer", "angular speed", "k2", "3", "-7.25", "-8", "-7", ""],
    ]
    words = in_words(panels(figure))
    assert words.startswith("Lines in 3 panels (cls; patches): ") and words.endswith(". Of k2. From -7.25 to 0.5.")


def test_bars_are_called_by_their_names_and_have_their_intervals():
    figure = Figure()
    one, two = figure.subplots(1, 2)
    one.bar(["teacher", "=k2"], [0.9, 0.8])
    one.errorbar(["teacher", "=k2"], [0.9, 0.8], [[0.1, 0.2], [0.05, 0.1]], fmt="none")
    for shift, label in ((-0.2, "a"), (0.2, "b")):
        two.bar(np.arange(2) + shift, [1, 2], yerr=[[0.5, 0.5], [0.5, 1]], label=label)
    two.set_xticks([0, 1], ["1-4", "5-12"])
    found = rows(figure)
    assert [(row["x"], row["y"], row["low"], row["high"]) for row in found[:2]] == [
        ("teacher", "0.9", "0.8", "0.95"),
        ("'=k2", "0.8", "0.6", "0.9"),
    ]
    assert [(row["series"], row["x"], row["low"]) for row in found[2:]] == [
        ("a", "1-4", "0.5"),
        ("a", "5-12", "1.5"),
        ("b", "1-4", "0.5"),
        ("b", "5-12", "1.5"),
    ]


def test_points_set_apart_lie_where_they_belong():
    figure = Figure()
    axis = figure.subplots()
    axis.errorbar(np.array([2, 3]) - 0.08, [0.5, 0.6], [[0.1, 0.1], [0.1, 0.1]], fmt="o", label="random")
    axis.scatter([0.5, 1.5], [1.0, 2.0], c=[7, 8], label="points")
    found = rows(figure)
    assert [(row["x"], row["y"], row["value"]) for row in found if row["series"] == "points"] == [
        ("0.5", "1", "7"),
        ("1.5", "2", "8"),
    ]
    assert [(row["x"], row["low"], row["high"]) for row in found if row["series"] == "random"] == [
        ("2", "0.4", "0.6"),
        ("3", "0.5", "0.7"),
    ]


def test_heat_maps_have_a_row_for_each_cell_and_pictures_none():
    figure = Figure()
    one, two = figure.subplots(1, 2)
    figure.colorbar(one.imshow([[1.0, np.nan], [0.0, 0.5]], extent=(0.5, 2.5, 2.5, 0.5)), ax=one)
    two.imshow(np.zeros((2, 2, 3)))
    assert [(row["x"], row["y"], row["value"]) for row in rows(figure)] == [
        ("1", "1", "1"),
        ("2", "1", ""),
        ("1", "2", "0"),
        ("2", "2", "0.5"),
    ]
    assert in_words(panels(figure)) == "Heat map in 2 panels. From 0 to 1."
    alone = Figure()
    alone.subplots().imshow(np.zeros((2, 2, 3)))
    assert as_csv(panels(alone)) == "" and in_words(panels(alone)) == "Pictures."
