"""What a report of a fault should say of the machine: python -m brh_jax.info

Versions, devices, folders of caches, compilers, and the environment variables that matter; the home folder is written as ~.
"""

import functools
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from brh_jax import __version__
from brh_jax.command import Parser, run_command
from brh_jax.files import cache_folder

REQUIRED = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scipy",
    "matfree",
    "huggingface_hub",
    "safetensors",
)
OPTIONAL = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "torch", "onnx", "onnxruntime", "transformers", "h5py")
COMPILERS = ("cc", "ptxas", "nvcc")
# No tokens, no paths of other programs.
VARIABLES = ("JAX_", "XLA_", "BRH_JAX_", "HF_HOME", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "TORCH_HOME", "SLURM_NTASKS")


def lines() -> Iterator[str]:
    """`what: value`, a line each."""
    yield f"brh_jax: {__version__} in {_short(pathlib.Path(__file__).parent)}"
    yield f"Python: {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    yield f"packages: {', '.join(f'{name} {_version(name)}' for name in REQUIRED)}"
    yield f"optional: {', '.join(f'{name} {_version(name)}' for name in OPTIONAL)}"
    yield f"devices: {_said(_devices)}"
    yield f"NVIDIA: {_said(_nvidia)}"
    yield f"compilers: {', '.join(f'{name} {_said(functools.partial(_compiler, name))}' for name in COMPILERS)}"
    yield f"conversions: {_said(lambda: _folder(cache_folder()))}"
    yield f"hub: {_said(_hub)}"
    yield f"compiled programs: {_said(_compiled)}"
    named = {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)}
    yield f"environment: {' '.join(f'{name}={_short(value)}' for name, value in named.items()) or 'nothing set'}"


def _said(ask: Callable[[], str]) -> str:
    """What it gives, or why it gives nothing: a machine with a fault is what this is for."""
    try:
        return ask()
    except Exception as error:  # of drivers, backends, file systems
        return f"cannot tell ({type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    import jax

    kinds = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    counted = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return f"{counted} ({' '.join(jax.devices()[0].client.platform_version.split())})"


def _nvidia() -> str:
    """What the driver says; a GPU here that is none of the devices above is one that jax cannot use."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    return "; ".join(_output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"))


def _compiler(name: str) -> str:
    if shutil.which(name) is None:
        return "not installed"
    said = _output(name, "--version")
    return next((line for line in said if "release" in line), said[0]).strip()


def _output(*command: str) -> Sequence[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip().splitlines() or ["no answer"]


def _folder(path: pathlib.Path) -> str:
    """Where it is, and how many GB of how many entries lie there."""
    if not path.is_dir():
        return f"{_short(path)}, not there yet"
    held, free = sum(_sizes(path)) / 1e9, shutil.disk_usage(path).free / 1e9
    return f"{_short(path)}, {len(list(path.iterdir()))} entries, {held:.2f} GB; {free:.0f} GB free"


def _sizes(path: pathlib.Path) -> Iterable[int]:
    return (file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def _hub() -> str:
    from huggingface_hub import constants

    return _folder(pathlib.Path(constants.HF_HUB_CACHE))


def _compiled() -> str:
    import jax

    kept = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return _folder(pathlib.Path(kept)) if kept else "not kept between runs (JAX_COMPILATION_CACHE_DIR names a folder)"


def _short(path: str | os.PathLike) -> str:
    """The home folder, which tells a name, as ~."""
    home = os.path.expanduser("~")
    return str(path).replace(home, "~") if len(home) > 1 else str(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Parser("brh_jax.info", __doc__), lambda arguments: print("\n".join(lines())), argv)


if __name__ == "__main__":
    sys.exit(main())
