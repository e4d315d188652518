"""Depth read as a dynamical system. Everything here takes arrays or a DepthSystem and knows nothing of training."""

from brh_jax.dynamics.directions import (
    angular_speed,
    angular_speed_per_image,
    directional_convergence,
    directional_convergence_per_image,
    patch_coherence,
    patch_coherence_per_image,
)
from brh_jax.dynamics.system import DepthSystem

__all__ = [
    "DepthSystem",
    "angular_speed",
    "angular_speed_per_image",
    "directional_convergence",
    "directional_convergence_per_image",
    "patch_coherence",
    "patch_coherence_per_image",
]
