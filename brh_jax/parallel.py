"""The mesh that everything runs on, and how batches and parameters are laid over it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from brh_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over all devices; one axis may be -1 and takes what is left.

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


def replicate(tree, mesh: Mesh):
    """Every leaf whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard_batch(batch, mesh: Mesh):
    """A process's part of a batch onto the mesh, split over ("data", "fsdp") along the first axis.

    Raises:
        UserError: the batch does not divide by the devices that share it.
    """
    sharding = NamedSharding(mesh, P(("data", "fsdp")))
    ways = mesh.shape["data"] * mesh.shape["fsdp"]

    def place(array):
        if (len(array) * jax.process_count()) % ways:
            raise UserError(f"a batch of {len(array) * jax.process_count()} images does not divide over {ways} devices")
        return jax.make_array_from_process_local_data(sharding, np.asarray(array))

    return jax.tree.map(place, batch)
