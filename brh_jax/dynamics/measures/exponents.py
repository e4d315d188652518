"""Finite-time Lyapunov exponents, of states and of directions."""

from typing import NamedTuple

import numpy as np

from brh_jax.curves import Curve
from brh_jax.dynamics.lyapunov import Lyapunov, exponents_by_phase, lyapunov_exponents
from brh_jax.dynamics.measure import Measure, Picture, Seen, Shown, styled
from brh_jax.readable import readable
from brh_jax.train.parallel import to_host


@readable(by_phase="per layer, natural logarithm")
class Exponents(NamedTuple):
    """Lyapunov exponents of each tangent image.

    Attributes:
        states: of the raw map.
        directions: of the map of directions.
        by_phase: those of directions within each phase of the partition, `[phases, images, exponents]`.
    """

    states: Lyapunov
    directions: Lyapunov
    by_phase: np.ndarray


def _compute(seen: Seen) -> Exponents:
    tokens, dim = seen.start.shape[1:]
    number = min(seen.settings.num_exponents, tokens * (dim - 1))
    states = to_host(lyapunov_exponents(seen.system, seen.start, number))
    directions = to_host(lyapunov_exponents(seen.system, seen.start, number, sphere=True))
    return Exponents(states, directions, np.asarray(exponents_by_phase(directions, seen.partition)))


def _curves(found: Exponents) -> dict[str, Curve]:
    return {
        "exponents": Curve(found.states.exponents.T, "exponents"),
        "direction_exponents": Curve(found.directions.exponents.T, "exponents"),
        "phase_exponents": Curve(found.by_phase[..., 0], "phases"),
    }


@styled
def _exponents(shown: Shown):
    from matplotlib.figure import Figure

    from brh_jax.report.portrait import draw_curve
    from brh_jax.report.style import legend

    if "exponents" not in shown.bands[shown.reference]:
        return None
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, title in zip(axes, ("exponents", "direction_exponents"), ("states", "directions"), strict=True):
        axis.axhline(0, color="#dddddd", lw=0.8, zorder=0)
        draw_curve(axis, shown.bands, name)
        axis.set_title(title)
    axes[0].set_ylabel("per layer, natural logarithm")
    legend(figure, axes[0])
    return figure


MEASURE = Measure(
    "exponents",
    on="tangent",
    compute=_compute,
    curves=_curves,
    figures=(
        Picture(
            "exponents",
            "Finite-time Lyapunov exponents",
            "Above zero small differences grow, below they die out. Mean growth of tangent vectors per layer over all of depth, "
            "{tangent_images} images; the directions' leave out the growth of norms, which is most of the states'.",
            _exponents,
        ),
    ),
)
