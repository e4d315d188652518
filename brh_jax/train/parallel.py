"""The mesh that everything runs on, how batches and parameters are laid over it, and what several processes need.

A step is written as if there were one device; `jax.jit` splits it after the layout of what it is given. Axes: `data` splits
batches; `fsdp` splits batches and parameters (gathered as they are used); `tensor` splits heads and hidden widths.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from brh_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# Models name the dimensions of their parameters (`nn.with_logical_partitioning` beside each); these are split, all others whole.
SPLIT = {"embed": "fsdp", "heads": "tensor", "hidden": "tensor"}


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices of all processes; one axis may be -1 and takes what is left.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp, tensor]
    known = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) > 1 or known < 1 or (-1 in shape and len(devices) % known):
        raise UserError(
            f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not divide {len(devices)} devices; one axis may be -1"
        )
    shape = [len(devices) // known if n == -1 else n for n in shape]
    if int(np.prod(shape)) != len(devices):
        raise UserError(f"mesh data={data}, fsdp={fsdp}, tensor={tensor} has {np.prod(shape)} places for {len(devices)} devices")
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def shardings(tree: Any, mesh: Mesh, specs: Any = None) -> Any:
    """The layout of every leaf of parameters or of a training state.

    Args:
        tree: arrays or anything with a shape.
        specs: names of the dimensions of every leaf, a PartitionSpec of keys of SPLIT and None; dimensions that the mesh does not
            divide are whole on every device. None: everything is.
    """
    if specs is None:
        return jax.tree.map(lambda leaf: NamedSharding(mesh, P()), tree)
    return jax.tree.map(lambda leaf, spec: NamedSharding(mesh, _split(leaf.shape, spec, mesh)), tree, specs)


def _split(shape: tuple[int, ...], spec: P, mesh: Mesh) -> P:
    axes = (SPLIT.get(name) for name in spec)
    return P(*(axis if axis and size % mesh.shape[axis] == 0 else None for size, axis in zip(shape, axes, strict=False)))


def shard(tree: Any, mesh: Mesh, specs: Any = None) -> Any:
    """Parameters or a training state onto the mesh, as `shardings` says; every process gives the same values."""
    return jax.tree.map(_put, tree, shardings(tree, mesh, specs))


def _put(leaf, sharding):
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """A process's part of a batch onto the mesh, split over ("data", "fsdp") along the first axis.

    Raises:
        UserError: the batch does not divide by the devices that share it.
    """
    sharding = NamedSharding(mesh, BATCH)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]

    if jax.process_count() > 1 and ways < len(jax.devices()):
        devices = mesh.devices.reshape(ways, -1)
        if any(len({device.process_index for device in row}) > 1 for row in devices):
            raise UserError(
                f"mesh {dict(mesh.shape)}: its tensor axis goes across processes, which would have to read the same images: "
                "keep tensor within the devices of one process"
            )

    def place(array):
        if (len(array) * jax.process_count()) % ways:
            raise UserError(f"a batch of {len(array) * jax.process_count()} images does not divide over {ways} devices")
        return jax.make_array_from_process_local_data(sharding, np.asarray(array))

    return jax.tree.map(place, batch)


def to_host(tree: Any) -> Any:
    """numpy arrays of all values, also of what other processes hold; all processes must ask together."""

    def fetch(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return np.asarray(leaf.addressable_data(0))
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process has come here: what one has written the others may read."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def agree(flag: bool) -> bool:
    """Whether any process says so; all processes must ask together."""
    if jax.process_count() == 1:
        return flag
    return bool(np.max(multihost_utils.process_allgather(jnp.asarray(flag))))


def start_processes(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a run: by these arguments, or by what a TPU pod or SLURM says; nothing where there is one process.

    Must come before anything else asks jax for devices. Processes other than the first stop printing.

    Raises:
        UserError: arguments that do not go together, or a coordinator that does not answer.
    """
    given = [bool(coordinator), num_processes > 0, process_id >= 0]
    if any(given) and not all(given):
        raise UserError("coordinator=HOST:PORT, num_processes=N and process_id=I go together: give all three or none")
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    pod = len([host for host in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]) > 1
    if not (any(given) or slurm or pod):
        return
    try:
        if any(given):
            if jax.config.jax_platforms == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
                jax.config.update("jax_cpu_collectives_implementation", "gloo")
            jax.distributed.initialize(coordinator, num_processes, process_id)
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the {num_processes or ''} processes of this run did not find each other ({str(error).splitlines()[0]}): check that "
            "every one is started, with the same coordinator=HOST:PORT, which must be reachable from all of them"
        ) from None
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - kept open for as long as the process lives
