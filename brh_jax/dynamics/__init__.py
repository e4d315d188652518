"""Depth read as a dynamical system. Everything here takes arrays or a DepthSystem and knows nothing of training.

One file per idea: `directions` and `basins` on the unit sphere, `rank` of updates, `dmd` (linear models of depth),
`perturbation`, `lyapunov`, `jacobian` and `influence` of a system's map, `extrapolation` beyond its depth; `portrait` is all of
them at once (`tangent` what it takes small differences for), `comparison` sets a surrogate beside its system, and `statistics`
says how sure a curve is.
"""

from brh_jax.dynamics.basins import AngularBasins, angular_basins, image_directions
from brh_jax.dynamics.comparison import Comparison, Distance, bands, compare, curves, distance
from brh_jax.dynamics.directions import (
    Directions,
    angular_acceleration,
    angular_acceleration_per_image,
    angular_speed,
    angular_speed_per_image,
    direction_measures,
    directional_convergence,
    directional_convergence_per_image,
    over_batches,
    patch_coherence,
    patch_coherence_per_image,
    token_norm,
    token_norm_per_image,
)
from brh_jax.dynamics.dmd import DMD, Fidelity, Horizon, dmd, dmd_horizon, dmd_predict
from brh_jax.dynamics.extrapolation import FATES, Extrapolation, extrapolated_depth
from brh_jax.dynamics.influence import JacobianStructure, jacobian_structure, token_influence
from brh_jax.dynamics.jacobian import (
    Eigenvalues,
    SingularValues,
    jacobian_block,
    jacobian_eigenvalues,
    jacobian_singular_values,
)
from brh_jax.dynamics.lyapunov import Lyapunov, exponents_by_phase, lyapunov_exponents
from brh_jax.dynamics.perturbation import PerturbationGrowth, perturbation_growth
from brh_jax.dynamics.portrait import Portrait, PortraitSettings, portrait, portraits
from brh_jax.dynamics.rank import (
    UpdateRank,
    gram_rank,
    num_update_directions,
    principal_angles,
    update_grams,
    update_rank,
    update_rank_per_image,
)
from brh_jax.dynamics.tangent import Tangent, tangent_measures
from brh_jax.statistics import JumpTest, Summary, boundary_jump_test, crossing, summarize
from brh_jax.system import DepthSystem

__all__ = [
    "DMD",
    "FATES",
    "AngularBasins",
    "Comparison",
    "DepthSystem",
    "Directions",
    "Distance",
    "Eigenvalues",
    "Extrapolation",
    "Fidelity",
    "Horizon",
    "JacobianStructure",
    "JumpTest",
    "Lyapunov",
    "PerturbationGrowth",
    "Portrait",
    "PortraitSettings",
    "SingularValues",
    "Summary",
    "Tangent",
    "UpdateRank",
    "angular_acceleration",
    "angular_acceleration_per_image",
    "angular_basins",
    "angular_speed",
    "angular_speed_per_image",
    "bands",
    "boundary_jump_test",
    "compare",
    "crossing",
    "curves",
    "direction_measures",
    "directional_convergence",
    "directional_convergence_per_image",
    "distance",
    "dmd",
    "dmd_horizon",
    "dmd_predict",
    "exponents_by_phase",
    "extrapolated_depth",
    "gram_rank",
    "image_directions",
    "jacobian_block",
    "jacobian_eigenvalues",
    "jacobian_singular_values",
    "jacobian_structure",
    "lyapunov_exponents",
    "num_update_directions",
    "over_batches",
    "patch_coherence",
    "patch_coherence_per_image",
    "perturbation_growth",
    "portrait",
    "portraits",
    "principal_angles",
    "summarize",
    "tangent_measures",
    "token_influence",
    "token_norm",
    "token_norm_per_image",
    "update_grams",
    "update_rank",
    "update_rank_per_image",
]
