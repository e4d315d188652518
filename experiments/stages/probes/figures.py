"""Figures of probes, from arrays."""

from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib import colormaps
from matplotlib.figure import Figure

from brh_jax.data.dense import IGNORED
from brh_jax.report.style import BASELINE, TEACHER, colour, order_of, styled
from brh_jax.types import Array
from experiments.interval import Interval, edges

Images = UInt8[Array, "images height width 3"]
Masks = Integer[Array, "images height width"]
Metres = Float[Array, "images height width"]


@styled
def probe_accuracy(accuracies: dict[str, float], num_images: int) -> Figure:
    """Accuracy of linear probes by model, with binomial 95 % intervals."""
    values = np.array(list(accuracies.values()))
    # Wilson's interval: stays within 0 ... 1 also for accuracies near one.
    z = 1.96
    centre = (values + z**2 / (2 * num_images)) / (1 + z**2 / num_images)
    half = z * np.sqrt(values * (1 - values) / num_images + z**2 / (4 * num_images**2)) / (1 + z**2 / num_images)
    figure, axis = _bars(list(accuracies), values, centre - half, centre + half)
    for i, value in enumerate(values):
        axis.text(i, 0.03, f"{100 * value:.1f} %", ha="center", color="white", fontsize=8)
    axis.set_ylim(0, 1)
    axis.set_ylabel("accuracy of a linear probe")
    return figure


@styled
def score_bars(scores: dict[str, Interval], label: str) -> Figure:
    """A score by model with its interval.

    Args:
        label: of the axis.
    """
    values, low, high = edges(list(scores.values()))
    figure, axis = _bars(list(scores), values, low, high)
    for i, value in enumerate(values):
        axis.annotate(f"{value:.3f}", (i, 0), (0, 4), textcoords="offset points", ha="center", color="white", fontsize=8)
    axis.set_ylabel(label)
    return figure


def _bars(names: list[str], values, low, high):
    """A figure of bars with their intervals, and its axis."""
    figure = Figure(figsize=(1.0 + 1.0 * len(names), 2.8), layout="constrained")
    axis, order = figure.subplots(), order_of(names)
    axis.bar(names, values, color=[TEACHER if n == "teacher" else colour(order[n]) for n in names], width=0.6)
    axis.errorbar(names, values, np.clip([values - low, high - values], 0, None), fmt="none", ecolor=BASELINE, capsize=3)
    return figure, axis


@styled
def segmentation_examples(
    images: Images, targets: Masks, predictions: dict[str, Masks], num_classes: int, ignored: int = IGNORED
) -> Figure:
    """A row for each image: itself, the true mask and every model's; unlabelled pixels are white."""
    colours = class_colours(num_classes)

    def painted(mask):
        return np.where((mask == ignored)[..., None], 1.0, colours[np.minimum(mask, num_classes - 1)])

    columns = {"image": images, "truth": painted(targets)} | {name: painted(p) for name, p in predictions.items()}
    return _grid(columns)[0]


@styled
def depth_examples(images: Images, targets: Metres, predictions: dict[str, Metres]) -> Figure:
    """A row for each image: itself, the true depth and every model's; white where there is no measurement.

    Args:
        targets: 0 for no measurement.
        predictions: by model.
    """
    measured = targets[targets > 0]
    low, high = (float(measured.min()), float(measured.max())) if measured.size else (0.0, 1.0)
    columns = {"image": images, "truth": np.where(targets > 0, targets, np.nan), **predictions}
    figure, drawn = _grid(columns, cmap="viridis_r", vmin=low, vmax=high)
    figure.colorbar(drawn, ax=figure.axes, label="depth (m)", shrink=0.8)
    return figure


def class_colours(num_classes: int) -> np.ndarray:
    """A colour for each class, neighbours far apart, `[classes, 3]`."""
    listed: Any = [colormaps[name] for name in ("tab10", "tab20b", "tab20c")]
    palette = np.concatenate([one.colors for one in listed])
    shade = 1 - 0.12 * (np.arange(num_classes) // len(palette))
    return palette[np.arange(num_classes) % len(palette)] * shade[:, None]


def _grid(columns: dict[str, Any], **style):
    """Images side by side, one column for each entry; (figure, what was drawn last)."""
    count, height, width = next(iter(columns.values())).shape[:3]
    side = 1.5
    size = (side * len(columns) + 0.8, side * count * height / width + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(count, len(columns), squeeze=False)
    for column, (title, values) in enumerate(columns.items()):
        axes[0, column].set_title(title)
        for row in range(count):
            drawn = axes[row, column].imshow(values[row], **(style if values[row].ndim == 2 else {}))
            axes[row, column].axis("off")
    return figure, drawn
