"""The measures of a portrait, in the order of the page. A measure is one file here with a `MEASURE`, and one line."""

import importlib

from brh_jax.dynamics.measure import Measure

_FILES = (
    "directions",
    "ranks",
    "basins",
    "perturbations",
    "exponents",
    "jacobians",
    "sublayers",
    "linear",
    "influence",
    "extrapolation",
)

MEASURES: dict[str, Measure] = {name: importlib.import_module(f"{__name__}.{name}").MEASURE for name in _FILES}
