"""Depth read as a dynamical system. Everything here takes arrays or a DepthSystem and knows nothing of training.

One file per idea: `directions` and `basins` on the unit sphere, `rank` of updates, `dmd` (linear models of depth),
`perturbation`, `lyapunov`, `jacobian` and `influence` of a system's map, `extrapolation` beyond its depth. `measures` holds, one
file each, what a `portrait` has of these, with its curves and figures; `comparison` sets a surrogate beside its system, `drawing`
draws, `paths` animates, `attention` shows who looks where. What is not named here is imported from its file.
"""

from brh_jax.dynamics.attention import draw_attention
from brh_jax.dynamics.basins import angular_basins
from brh_jax.dynamics.comparison import compare, distance
from brh_jax.dynamics.directions import (
    angular_acceleration,
    angular_speed,
    direction_measures,
    directional_convergence,
    patch_coherence,
    token_norm,
)
from brh_jax.dynamics.dmd import dmd, dmd_horizon
from brh_jax.dynamics.drawing import curves, draw
from brh_jax.dynamics.extrapolation import FATES, extrapolated_depth
from brh_jax.dynamics.influence import token_influence
from brh_jax.dynamics.jacobian import jacobian_eigenvalues, jacobian_singular_values
from brh_jax.dynamics.lyapunov import lyapunov_exponents
from brh_jax.dynamics.measure import Measure, PortraitSettings
from brh_jax.dynamics.measures import MEASURES
from brh_jax.dynamics.paths import animate_paths, draw_paths, token_paths
from brh_jax.dynamics.perturbation import perturbation_growth
from brh_jax.dynamics.portrait import portrait, portraits
from brh_jax.dynamics.rank import update_rank
from brh_jax.statistics import boundary_jump_test, summarize
from brh_jax.system import DepthSystem

__all__ = [
    "FATES",
    "MEASURES",
    "DepthSystem",
    "Measure",
    "PortraitSettings",
    "angular_acceleration",
    "angular_basins",
    "angular_speed",
    "animate_paths",
    "boundary_jump_test",
    "compare",
    "curves",
    "direction_measures",
    "directional_convergence",
    "distance",
    "dmd",
    "dmd_horizon",
    "draw",
    "draw_attention",
    "draw_paths",
    "extrapolated_depth",
    "jacobian_eigenvalues",
    "jacobian_singular_values",
    "lyapunov_exponents",
    "patch_coherence",
    "perturbation_growth",
    "portrait",
    "portraits",
    "summarize",
    "token_influence",
    "token_norm",
    "token_paths",
    "update_rank",
]
