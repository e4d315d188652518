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
            "Mean over {num_images} images, bands from the 10 to the 90 % quantile over images. Everything is measured on the "
            "unit sphere but the norm, which grows along depth.",
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
            "Mean cosine of the patch tokens with their mean direction: one when all patches point the same way.",
            side_by_side(("coherence_patches", "patch coherence", "linear")),
        ),
    ),
)
