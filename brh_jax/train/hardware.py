"""What the devices can do, and how full they and the host are."""

import os
import pathlib
import sys
import warnings

import jax
import jaxlib

from brh_jax.errors import UserError

# Dense bfloat16 operations per second and device as the makers give them, by the start of jax's device_kind; longer names first.
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v6": 918e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,  # a device of jax is a core, half a chip
    "TPU v2": 22.5e12,
}


# Fuses sums of products on CPUs so that some are silently wrong in these versions (github.com/jax-ml/jax/issues/39103): the
# Jacobian of a LayerNorm, vmapped over images of 19 tokens, is off by 40 %.
_WRONG_FUSIONS = ("0.10.2", "0.11.0")
_WITHOUT_THEM = "--xla_cpu_experimental_ynn_fusion_type=-reduce"


def avoid_wrong_fusions() -> None:
    """Switches off fusions that compute wrong sums on CPUs, in versions of jaxlib that have them; warns if it is too late."""
    flags = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__ not in _WRONG_FUSIONS or "ynn_fusion_type" in flags:
        return
    os.environ["XLA_FLAGS"] = f"{flags} {_WITHOUT_THEM}".strip()
    from jax._src import xla_bridge  # private, but of these versions alone

    if xla_bridge.backends_are_initialized() and jax.default_backend() == "cpu":
        warnings.warn(
            f"jaxlib {jaxlib.__version__} computes some sums wrongly on CPUs, and jax was in use before brh_jax could switch "
            f"that off: import brh_jax before jax is used, or set XLA_FLAGS={_WITHOUT_THEM} in the environment",
            stacklevel=3,
        )


def check_devices() -> None:
    """Raises UserError where jax finds none of the devices that it is told to use."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion, where the platform is not even installed
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        why = (str(error).strip().splitlines() or ["its plugin is not installed"])[0]
        raise UserError(
            f"jax finds no device where JAX_PLATFORMS is {asked!r} ({why}): install JAX for it, pip install 'jax[cuda13]' for "
            "NVIDIA GPUs or 'jax[tpu]' for TPUs, or unset JAX_PLATFORMS to use what there is"
        ) from None


def peak_flops() -> float | None:
    """bfloat16 peak of all devices of the run together, or None where it is not known (CPUs, other models)."""
    kind = jax.devices()[0].device_kind
    for name, flops in PEAK_FLOPS.items():
        if kind.startswith(name):
            return flops * jax.device_count()
    return None


def memory() -> dict:
    """`host_memory_gb` of this process; `memory_gb` and `peak_memory_gb` of its fullest device where the platform tells them."""
    host = _host_memory()
    devices = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"memory_gb": "bytes_in_use", "peak_memory_gb": "peak_bytes_in_use"} if devices else {}
    used = {ours: max(s.get(theirs, 0) for s in devices) / 1e9 for ours, theirs in names.items()}
    return ({} if host is None else {"host_memory_gb": host / 1e9}) | used


def _host_memory() -> int | None:
    """Bytes that this process holds; its peak where the platform tells no more, None where it tells nothing."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    status = pathlib.Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
