from collections.abc import Callable

import pytest

from brh_jax.dynamics import DepthSystem


@pytest.fixture
def compiles_once() -> Callable:
    """Asserts that a second measurement, of other values of the same shape, traces a system's step no more.

    Called with the layout of the system and two functions of it.
    """

    def check(layout, first, second):
        traces = []

        def step(state, layer):
            traces.append(1)
            return 1.1 * state

        system = DepthSystem(step, 3, layout)
        first(system)
        before = len(traces)
        second(system)
        assert len(traces) == before > 0

    return check
