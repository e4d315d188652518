"""What becomes of perturbations of the first state, of every token or of one type of token."""

from typing import Any, NamedTuple

import jax
import numpy as np

from brh_jax.curves import Curve, by_token
from brh_jax.dynamics.measure import Measure, Picture, Seen, Shown, along_depth, styled
from brh_jax.dynamics.perturbation import PerturbationGrowth, perturbation_growth
from brh_jax.readable import readable
from brh_jax.train.parallel import to_host


@readable(total="rad")
class Perturbations(NamedTuple):
    """What becomes of perturbations, by what is perturbed: every token by a random vector (`isotropic`), by its own update
    (`along`), towards the next image's (`towards`, of two images or more); by random vectors the class tokens (`cls`), the
    registers (`registers`) or the middle patch (`patch`) alone.

    Attributes:
        growth: angles, distances and recovery, with a leading axis of sizes.
        total: angle of all tokens together, of a type as many times as it has tokens, `[sizes, depth + 1, images]`.
    """

    growth: dict[str, PerturbationGrowth]
    total: dict[str, np.ndarray]


def _compute(seen: Seen) -> Perturbations:
    layout, settings = seen.layout, seen.settings
    middle = layout.num_cls + layout.num_registers + layout.grid[0] // 2 * layout.grid[1] + layout.grid[1] // 2
    kinds: dict[str, dict[str, Any]] = {"isotropic": {}, "along": {"kind": "along"}}
    if len(seen.start) > 1:
        kinds["towards"] = {"kind": "towards"}
    tokens = {"cls": "cls", "registers": "registers", "patch": middle}
    present = zip(tokens.items(), layout.counts, strict=True)
    kinds |= {name: {"token": token} for (name, token), count in present if 0 < count < layout.num_tokens}
    options: dict[str, Any] = {"relative_size": settings.relative_sizes, "num_directions": settings.num_directions}
    growth = {
        name: to_host(perturbation_growth(seen.system, seen.start, seen.key, 0, **options, **kind))
        for name, kind in kinds.items()
    }
    total = {
        name: sum(count * angle for count, angle in zip(layout.counts, one.angle, strict=True) if count)
        for name, one in growth.items()
    }
    return Perturbations(growth, total)


def _curves(found: Perturbations) -> dict[str, Curve]:
    """`growth_cls`: angle to the clean trajectory over the injected one, every token perturbed by a random vector; `recovery`:
    its last value over all tokens, a point for each size; `along`, `towards`, `from_cls`, ...: that of all tokens likewise."""
    isotropic = found.growth["isotropic"]
    curves = by_token("growth", jax.tree.map(_relative, isotropic.angle), "states")
    curves["recovery"] = Curve(isotropic.recovery, "sizes")
    for kind, angles in found.total.items():
        if kind != "isotropic":
            curves[kind if kind in ("along", "towards") else f"from_{kind}"] = Curve(_relative(angles), "states")
    return curves


def _relative(angles):
    """Takes the middle one of the sizes, `[sizes, states, images]` to `[states, images]`."""
    if not angles.size:
        return angles
    middle = angles[len(angles) // 2]
    with np.errstate(divide="ignore", invalid="ignore"):  # tokens that are zero are not perturbed
        return middle / middle[0]


_LABEL = "angle to the clean trajectory\n/ injected angle"
_KINDS = {
    "along": "every token along its update",
    "towards": "every token towards the next image's",
    "from_cls": "cls alone",
    "from_registers": "registers alone",
    "from_patch": "the middle patch alone",
}


@styled
def _perturbations(shown: Shown):
    from matplotlib.figure import Figure

    from brh_jax.report.portrait import draw_curve
    from brh_jax.report.style import legend

    curves = [name for name in _KINDS if name in shown.bands[shown.reference]]
    if not curves:
        return None
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(3.3 * columns + 1.2, 2.5 * lines + 0.2), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis, name in zip(axes.ravel(), curves, strict=False):
        draw_curve(axis, shown.bands, name, shown.partitions, "log")
        axis.set_title(_KINDS[name])
    for axis in axes.ravel()[len(curves) :]:
        axis.set_visible(False)
    for line in axes:
        line[0].set_ylabel(_LABEL)
    legend(figure, axes[0][0])
    return figure


MEASURE = Measure(
    "perturbations",
    on="tangent",
    compute=_compute,
    curves=_curves,
    figures=(
        Picture(
            "growth",
            "What becomes of a perturbation",
            "Below one directions recover, above one the disturbance grows. Every token of the first state is moved by a random "
            "vector, of the middle one of the sizes tried: the angle to the clean trajectory later, over the injected one; "
            "{tangent_images} images.",
            along_depth(("growth", _LABEL, "log")),
        ),
        Picture(
            "perturbations",
            "Perturbations of other kinds",
            "Above one a disturbance has spread to the other tokens, or grown. The same angle, mean over all tokens, where "
            "tokens are moved along their own update, towards another image's tokens, or where one type of token alone is "
            "moved at random.",
            _perturbations,
        ),
    ),
)
