"""The mesh that everything runs on, how batches and parameters are laid over it, and what several processes need.

A step is written as if there were one device; `jax.jit` splits it after the layout of what it is given. Axes: `data` splits
batches; `fsdp` splits batches and parameters (gathered as they are used); `tensor` splits heads and hidden widths.
"""

import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from brh_jax.errors import UserError, expect

T = TypeVar("T")

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


def together(do: Callable[[], T]) -> T:
    """What `do` gives here; where it raises a UserError in one process, all raise one. All must come together."""
    found: Any = None
    refused: UserError | None = None
    try:
        found = do()
    except UserError as error:
        refused = error
    if agree(refused is not None):
        raise refused or UserError("another process of this run cannot go on: see what it says")
    return found


def differences(items: Mapping[str, Any]) -> dict[str, str]:
    """Which of the items, as JSON, are not the same in every process -> how; empty where all are. All must ask together."""
    if jax.process_count() == 1:
        return {}
    everyone = [json.loads(text) for text in _texts(json.dumps(items))]
    found = {}
    for name in dict.fromkeys(name for one in everyone for name in one):
        first: dict[str, int] = {}  # value -> the first process that has it
        for process, one in enumerate(everyone):
            first.setdefault(json.dumps(one[name], ensure_ascii=False) if name in one else "nothing", process)
        if len(first) > 1:
            found[name] = ", ".join(f"{value} in process {process}" for value, process in list(first.items())[:3])
    return found


def gathered(items: Mapping[str, Any]) -> dict[str, Any]:
    """The items of all processes, as JSON, each name once; all must ask together."""
    everyone = [items] if jax.process_count() == 1 else map(json.loads, _texts(json.dumps(items)))
    return {name: value for one in everyone for name, value in one.items()}


def _texts(text: str) -> list[str]:
    """The text of every process, by its number."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(data))))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]


def start_processes(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a run: by these arguments, or where jax finds several by itself (TPU slice, SLURM, Open MPI).

    Must come before anything else asks jax for devices. Processes other than the first stop printing.

    Raises:
        UserError: arguments that do not go together, a coordinator's port that is in use, or no answer from it.
    """
    given = [coordinator != "", num_processes != 0, process_id != -1]
    if any(given):
        _check_place(coordinator, num_processes, process_id, all(given))
        here: dict[str, Any] = dict(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
    elif cluster := _cluster():
        port = os.environ.get("JAX_COORDINATOR_PORT")
        num_processes, process_id = cluster.get_process_count(), cluster.get_process_id()
        # The first process asks for its own address, which needs no waiting.
        coordinator = "" if process_id else cluster.get_coordinator_address(timeout_secs=60, override_coordinator_port=port)
        here = {}  # jax's own detection also finds the devices that a task of SLURM has for itself
    else:
        return
    if process_id == 0:
        _check_port(coordinator)
    if jax.config.jax_platforms == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":  # type: ignore[attr-defined]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**here)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the {num_processes} processes of this run did not find each other ({str(error).splitlines()[0]}): check that "
            "every one is started, with the same coordinator=HOST:PORT, which must be reachable from all of them"
        ) from None
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - kept open for as long as the process lives


def _check_place(coordinator: str, num_processes: int, process_id: int, complete: bool) -> None:
    """Raises UserError unless the arguments describe a place among the processes of a run."""
    if not complete:
        raise UserError("coordinator=HOST:PORT, num_processes=N and process_id=I go together: give all three or none")
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"coordinator is {coordinator!r}: expected HOST:PORT of the first process, 10.0.0.1:5000 say")
    expect(num_processes > 0, "num_processes", num_processes, "a positive number")
    expect(0 <= process_id < num_processes, "process_id", process_id, f"0 to {num_processes - 1}, another in every process")


def _check_port(coordinator: str) -> None:
    """Raises UserError where the port that others will look for this process at is taken: jax would crash."""
    port = int(coordinator.rpartition(":")[2])
    family, everywhere = (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0")
    with socket.socket(family, socket.SOCK_STREAM) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
        if family == socket.AF_INET6:
            free.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            free.bind((everywhere, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise UserError(
                f"port {port} of this machine, where the processes of the run are to meet, cannot be had ({error.strerror}): "
                f"another run may have it; choose another port for coordinator ({coordinator}), or set JAX_COORDINATOR_PORT "
                "where none was given"
            ) from None


def _cluster() -> Any:
    """What jax finds that started several processes, of `jax._src.clusters`; None for a single one.

    `jax.distributed.initialize` itself would start on a single host too, and there give a task of SLURM one GPU of all.
    """
    from jax._src import clusters

    for cluster in clusters.ClusterEnv._cluster_types:  # in the order in which jax asks them
        try:
            if not cluster.opt_in_only_method and cluster.is_env_present():
                return cluster if cluster.get_process_count() > 1 else None
        except Exception as error:  # of a metadata server, of Kubernetes: each has its own
            why = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"warning: {cluster.__name__} cannot tell how many processes there are ({why}); going on as one", flush=True)
            return None
    return None
