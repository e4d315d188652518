from collections.abc import Callable

import jax.monitoring
import pytest

from brh_jax.dynamics import DepthSystem


@pytest.fixture
def traces():
    """A list that grows with every function that jax traces."""
    found = []

    def listen(event, duration, **more):
        if event == "/jax/core/compile/jaxpr_trace_duration":
            found.append(more.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x + 1)(0)
    assert found  # it listens
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


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
