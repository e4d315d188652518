"""Matrices and states that are not what a method expects of them."""

import numpy as np
from hostile.case import Case

from brh_jax import phases
from brh_jax.tokens import TokenLayout
from experiments.stages.phases.run import PhaseSettings, partitions_of

LAYOUT = TokenLayout(1, 1, (1, 2))


def more_phases_than_the_bisection_has(folder):
    """A chain whose first cut leaves three layers, which two of two layers do not fit into."""
    matrix = np.zeros((6, 6))
    matrix[:3, 3:] = matrix[3:, :3] = 1.0
    partitions_of(matrix, PhaseSettings(method="recursive_bisection", k=(3,), min_length=2))


def no_dissimilarity_at_all(folder):
    assert phases.recursive_bisection(np.zeros((6, 6)), 0.1).k == 1
    assert phases.bisection(np.zeros((6, 6))).most == 3
    assert phases.max_cut(np.zeros((6, 6)), 3).k == 3


CASES = [
    Case(
        "more phases than a bisection has",
        more_phases_than_the_bisection_has,
        r"asks for 3 phases.* ends at 2: expected k up to 2",
    ),
    Case("no dissimilarity", no_dissimilarity_at_all),
    Case("threshold nan", lambda folder: PhaseSettings(threshold=float("nan")), "threshold is nan: expected a share"),
    Case("threshold above one", lambda folder: PhaseSettings(threshold=1.5), "threshold is 1.5: expected a share"),
    Case("no layer in a phase", lambda folder: PhaseSettings(min_length=0), "min_length is 0: expected a positive number"),
]
