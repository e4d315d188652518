"""Eight CPU devices for every test; must run before jax is imported."""

import os
import pathlib
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
# Steps of eight devices that are in flight together wait for one another's threads where cores are few and busy: XLA then takes a
# collective for dead after 40 s and aborts the process. One step at a time, and with more patience.
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "0"
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=300"
# A device that waits for the others holds a thread, sometimes two: in a loop of its program, and beside that loop. All devices
# share as many threads as there are devices, unless told otherwise: when all are held, none is left for the device that they
# wait for.
os.environ["PJRT_NPROC"] = "64"
# Nearly all of the time goes into compiling programs that run a few times on a few numbers. Without optimisation, without the
# emitters of fusions that go by way of MLIR, and with one LLVM module a program it takes less than half as long; such a program
# runs three times as long.
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] += " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
# What one test compiles no other of the same worker compiles again, subprocesses included. Workers have a folder each: jax writes
# entries in place, and a worker that reads one half-written crashes.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="brh_jax_compiled_"))
os.environ["JAX_COMPILATION_CACHE_DIR"] += "/" + os.environ.get("PYTEST_XDIST_WORKER", "")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network

from collections.abc import Callable

import jax
import jax.monitoring
import numpy as np
import pytest
from jaxtyping import config as type_checks
from jaxtyping import install_import_hook

# Types and shapes of arguments and results are checked at every call; what is imported before this is not.
install_import_hook(["brh_jax.models", "brh_jax.phases", "brh_jax.distill", "brh_jax.dynamics"], "type_checks.checked")

from brh_jax.models import Encoder, ViT, ViTConfig  # noqa: E402
from brh_jax.models.encoder import init_params  # noqa: E402
from brh_jax.preprocessing import Preprocessing  # noqa: E402
from brh_jax.system import DepthSystem  # noqa: E402

assert jax.device_count() == 8  # the devices are made now: tests change XLA_FLAGS for the processes that they start


def pytest_collection_modifyitems(items):
    """Files with slow tests first."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def wrong_types(request):
    """Tests of the messages that answer what annotations forbid are marked: types are not checked in them."""
    type_checks.update("jaxtyping_disable", request.node.get_closest_marker("wrong_types") is not None)
    yield
    type_checks.update("jaxtyping_disable", False)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
    """Forgets compiled programs before they are too many: each takes several memory maps, of which Linux gives a process 65,530:
    one that wants more crashes."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def conversions(tmp_path_factory):
    """Conversions are kept for the session, and nowhere else."""
    os.environ["BRH_JAX_CACHE"] = str(tmp_path_factory.mktemp("conversions"))


@pytest.fixture(scope="session")
def tiny_config() -> ViTConfig:
    """Six layers, cls and two registers, 4 x 4 patches of 2 pixels."""
    return ViTConfig(
        dim=16, depth=6, num_heads=2, mlp_dim=32, patch_size=2, position_grid=(4, 4), num_registers=2, layer_scale=False
    )


@pytest.fixture(scope="session")
def tiny_encoder(tiny_config) -> Encoder:
    """A randomly initialised ViT at 8 x 8 pixels."""
    images = np.zeros((1, 8, 8, 3), np.float32)
    params = init_params(ViT(tiny_config), jax.random.key(0), images)
    return Encoder(tiny_config, params, Preprocessing((8, 8), None, (0.5,) * 3, (0.5,) * 3), name="tiny")


@pytest.fixture(scope="session")
def tiny_images(tiny_encoder) -> np.ndarray:
    """Eight preprocessed images."""
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    return tiny_encoder.normalize_pixels(pixels)


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
