"""Matrices and states that are not what a method expects of them."""

import numpy as np
from hostile.case import Case

from brh_jax import phases
from brh_jax.dynamics import angular_speed
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


def states_of(size, zero=()):
    states = np.random.default_rng(0).normal(size=(4, 3, 4, 8)).astype(np.float32)
    states[(0, slice(None), list(zero))] = 0
    return np.float32(size) * states


def states_too_large_for_their_squares(folder):
    found, expected = (phases.layer_dissimilarity(states_of(size), LAYOUT) for size in (3e19, 1.0))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def registers_that_begin_as_zero(folder):
    speed = angular_speed(states_of(1.0, zero=(1,)), LAYOUT)
    assert np.isnan(speed.registers[0]) and np.isfinite(speed.registers[1:]).all() and np.isfinite(speed.cls).all()


CASES = [
    Case(
        "more phases than a bisection has",
        more_phases_than_the_bisection_has,
        r"asks for 3 phases.* ends at 2: expected k up to 2",
    ),
    Case("states of 3e19", states_too_large_for_their_squares),
    Case("registers that begin as zero", registers_that_begin_as_zero),
    Case("no dissimilarity", no_dissimilarity_at_all),
    Case("threshold nan", lambda folder: PhaseSettings(threshold=float("nan")), "threshold is nan: expected a share"),
    Case("threshold above one", lambda folder: PhaseSettings(threshold=1.5), "threshold is 1.5: expected a share"),
    Case("no layer in a phase", lambda folder: PhaseSettings(min_length=0), "min_length is 0: expected a positive number"),
]
