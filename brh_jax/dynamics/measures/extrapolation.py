"""The last layer of each phase, iterated beyond its place."""

from typing import NamedTuple

import numpy as np

from brh_jax.dynamics.extrapolation import Extrapolation, extrapolated_depth
from brh_jax.dynamics.measure import Measure, Picture, Seen, Shown, styled
from brh_jax.readable import readable
from brh_jax.tokens import ByToken, TokenLayout
from brh_jax.train.parallel import to_host


@readable(speed="rad per step")
class IteratedBlocks(NamedTuple):
    """The last layer of each run of the partition, iterated.

    Attributes:
        runs: their layers, as a partition prints them.
        ends: where the iterates of each image end.
        speed: angle turned in each step, mean over all tokens and the images that stay finite, `[runs, steps]`; NaN where none
            does.
        norm: of a token, likewise, `[runs, steps + 1]`.
    """

    runs: tuple[str, ...]
    ends: tuple[Extrapolation, ...]
    speed: np.ndarray
    norm: np.ndarray


def _compute(seen: Seen) -> IteratedBlocks | None:
    steps, runs = seen.settings.extrapolated_steps, seen.partition.runs
    if not steps:
        return None
    ends = tuple(to_host(extrapolated_depth(seen.system, seen.states[run.stop], run.stop - 1, steps)) for run in runs)
    means = (np.stack([_over_tokens(getattr(one, name), seen.layout) for one in ends]) for name in ("speed", "norm"))
    return IteratedBlocks(tuple(map(str, runs)), ends, *means)


def _over_tokens(values: ByToken, layout: TokenLayout) -> np.ndarray:
    """Mean over all tokens and over the images for which it is finite: `[steps, batch]` to `[steps]`."""
    total = sum(count * v for count, v in zip(layout.counts, values, strict=True) if v.size) / layout.num_tokens
    finite = np.isfinite(total)
    mean = np.where(finite, total, 0).sum(-1) / np.where(finite.any(-1), finite.sum(-1), np.nan)
    return np.where(np.isfinite(mean), mean, np.nan)


@styled
def _draw(shown: Shown):
    from matplotlib.figure import Figure

    from brh_jax.report.style import colour

    runs = shown.each("extrapolation/runs")
    if not runs:
        return None
    figure = Figure(figsize=(8.8, 2.4 * len(runs) + 0.4), layout="constrained")
    axes = figure.subplots(len(runs), 2, squeeze=False)
    for line, system in zip(axes, runs, strict=True):
        for axis, name, label in zip(line, ("speed", "norm"), ("angle turned (rad)", "norm of a token"), strict=True):
            for i, (run, values) in enumerate(zip(runs[system], shown.arrays[system][f"extrapolation/{name}"], strict=True)):
                axis.plot(np.arange(len(values)) + (name == "speed"), values, color=colour(i), lw=1.3, label=f"after {run}")
            axis.set_yscale("log")
            axis.set_ylabel(label)
            axis.set_xlabel("applications after its place")
        line[0].set_title(system)
        line[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


MEASURE = Measure(
    "extrapolation",
    on="tangent",
    compute=_compute,
    arrays=lambda blocks: {"runs": np.array(blocks.runs), "speed": blocks.speed, "norm": blocks.norm},
    figures=(
        Picture(
            "extrapolation",
            "Blocks iterated beyond their place",
            "A falling angle is a direction that comes to rest, whatever the norm does. The last layer of each phase applied "
            "on, to the state that it left, its depth held; mean over all tokens and the images that stay finite.",
            _draw,
        ),
    ),
)
