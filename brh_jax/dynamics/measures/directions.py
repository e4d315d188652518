"""Directions of states along depth, image by image."""

from brh_jax.curves import Curve, by_token
from brh_jax.dynamics.directions import Directions, direction_measures
from brh_jax.dynamics.measure import Measure, Picture, along_depth, side_by_side

_AXES = {"convergence": "states", "speed": "layers", "acceleration": "between layers", "norm": "states"}


def _curves(directions: Directions) -> dict[str, Curve]:
    found = {}
    for name, axis in _AXES.items():
        found |= by_token(name, getattr(directions, name), axis)
    coherence = directions.coherence
    return found | ({"coherence_patches": Curve(coherence, "states", "patches")} if coherence.size else {})


MEASURE = Measure(
    "directions",
    gather=lambda states, layout: direction_measures([states], layout),
    compute=lambda seen: seen.gathered,
    curves=_curves,
    figures=(
        Picture(
            "dynamics",
            "Directions along depth",
            "Directions converge where the cosine rises to one and the speed falls. Mean over {num_images} images, bands from "
            "the 10 to the 90 % quantile over images; everything is measured on the unit sphere but the norm, which grows "
            "along depth.",
            along_depth(
                ("convergence", "cosine with the last state", "linear"),
                ("speed", "angular speed (rad per layer)", "linear"),
                ("acceleration", "angular acceleration\n(rad per layer²)", "linear"),
                ("norm", "norm of a token", "log"),
            ),
        ),
        Picture(
            "coherence",
            "Patch coherence",
            "At one all patches point the same way. Mean cosine of the patch tokens with their mean direction.",
            side_by_side(("coherence_patches", "patch coherence", "linear")),
        ),
    ),
)
