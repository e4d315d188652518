"""Interventions on depth: layers replaced, deleted, repeated or handed to another model, and what it costs (paper, section 7).

`plans` says what runs, `effects` runs it, `contrast` compares swaps within phases with swaps across them.
"""

from brh_jax.interventions.contrast import BoundaryTest, Contrast, boundary_test, matched_contrast
from brh_jax.interventions.effects import Effects, apply_plans, join
from brh_jax.interventions.plans import PARTS, Swap, delete, layer_swaps, repeat, replace, unchanged

__all__ = [
    "PARTS",
    "BoundaryTest",
    "Contrast",
    "Effects",
    "Swap",
    "apply_plans",
    "boundary_test",
    "delete",
    "join",
    "layer_swaps",
    "matched_contrast",
    "repeat",
    "replace",
    "unchanged",
]
