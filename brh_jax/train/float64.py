"""float64 on the device that holds the states where it has it, else (a TPU) on the host's CPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from brh_jax.errors import UserError
from brh_jax.train.parallel import to_host

_WITH_FLOAT64 = ("cpu", "gpu", "cuda", "rocm")


@contextlib.contextmanager
def float64(tree: Any) -> Iterator[Any]:
    """A context in which JAX computes in float64, `with float64(states) as states`; arrays keep their type until they are cast.

    Arrays of a device that has no float64 come to the host, from all processes that hold a part of them, and JAX's CPU computes.

    Args:
        tree: of arrays, the ones that are computed with.

    Raises:
        UserError: the arrays' device has no float64, and JAX was started without its CPU.
    """
    with contextlib.ExitStack() as stack:
        if not all(platform in _WITH_FLOAT64 for platform in _platforms(tree)):
            cpu = _cpu()
            stack.enter_context(jax.default_device(cpu))
            tree = jax.device_put(to_host(tree), cpu)
        stack.enter_context(jax.enable_x64(True))
        # What is not float64 yet becomes so, whatever the user's setting.
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        yield tree


def _platforms(tree) -> set[str]:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)]
    return {device.platform for leaf in leaves for device in leaf.devices()} or {jax.default_backend()}


def _cpu() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise UserError(
            f"{jax.default_backend()} has no float64, and JAX_PLATFORMS leaves out the CPU that would compute it: set "
            f"JAX_PLATFORMS={jax.default_backend()},cpu"
        ) from None
