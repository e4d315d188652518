"""What a run will take: python -m experiments.plan --arch=vitg14 --partition=10,10,10,10 --mesh=1,8,1 --batch_size=64

Compiles a step of joined blocks (stage 2) from shapes alone, for as many devices as the mesh has, on a CPU, and prints
parameters, operations, and the memory of each device as the compiler counts it. No weights, no accelerator.
"""

import argparse
import functools
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from brh_jax.command import Parser, run_command
from brh_jax.distill import Joint, init_blocks
from brh_jax.distill.trainer import make_update, state_specs
from brh_jax.errors import UserError
from brh_jax.models import Encoder, RaptorConfig, architecture, count_params
from brh_jax.models.cost import vit_flops
from brh_jax.models.encoder import boxed_params, param_specs
from brh_jax.models.remat import POLICIES
from brh_jax.partition import Partition
from brh_jax.preprocessing import Preprocessing
from brh_jax.train.parallel import BATCH, make_mesh, shardings


def plan(
    arch: str,
    lengths: Sequence[int],
    mesh_shape: tuple[int, int, int],
    batch_size: int,
    *,
    image_size: int = 0,
    compute_dtype: str = "float32",
    remat: str = "dots",
) -> dict[str, int | float]:
    """Compiles and counts; jax must have as many devices as the mesh.

    Returns:
        parameters, operations per image, seconds of compilation, and GB per device.
    """
    found = architecture(arch)
    for name, value in (("batch_size", batch_size), ("image_size", image_size or 1)):
        if value < 1:
            raise UserError(f"{name} is {value}: expected a positive number")
    size, mesh = image_size or found.image_size, make_mesh(*mesh_shape)
    if batch_size % (mesh_shape[0] * mesh_shape[1]):
        raise UserError(f"a batch of {batch_size} images does not divide over {mesh_shape[0] * mesh_shape[1]} devices")
    dtype = None if compute_dtype == "float32" else jnp.dtype(compute_dtype)
    teacher = Encoder(found.config, {}, Preprocessing((size, size)), dtype=dtype)
    raptor, objective = RaptorConfig(found.config, Partition(tuple(lengths))), Joint()
    update, optimiser = make_update(objective, teacher, raptor, seed=0, remat=remat)

    module, image = teacher.module, teacher.image_shape()
    watched = nn.unbox(boxed_params(module, image))
    blocks = jax.eval_shape(functools.partial(init_blocks, raptor, teacher.layout), jax.random.key(0))
    training = {"params": blocks, "opt_state": jax.eval_shape(optimiser.init, blocks)}
    pixels = jax.ShapeDtypeStruct((batch_size, *image.shape[1:]), jnp.uint8, sharding=NamedSharding(mesh, BATCH))
    begun = time.monotonic()
    compiled = update.lower(
        _placed(training, mesh, state_specs(raptor, teacher, optimiser)),
        _placed(watched, mesh, param_specs(module, image)),
        {"image": pixels},
        0,
        objective.variant(0),
    ).compile()
    seconds, memory = time.monotonic() - begun, compiled.memory_analysis()
    forward, student = vit_flops(found.config, teacher.layout), vit_flops(raptor, teacher.layout)
    return {
        "teacher parameters": count_params(watched),
        "Raptor block parameters": count_params(blocks),
        "teacher forward, GFLOP per image": forward / 1e9,
        "step, GFLOP per image": (forward + 3 * student) / 1e9,
        "compile seconds": seconds,
        "parameters and state, GB per device": memory.argument_size_in_bytes / 1e9,
        "temporaries, GB per device": memory.temp_size_in_bytes / 1e9,
    }


def _placed(shapes: Any, mesh: Mesh, specs: Any) -> Any:
    """Shapes with the layout that arrays of them would have."""

    def place(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, shapes, shardings(shapes, mesh, specs))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = Parser("experiments.plan", __doc__)
    parser.add_argument("--arch", required=True, help="a name of brh_jax.models.ARCHITECTURES, vitb14_reg say")
    parser.add_argument("--partition", type=_numbers, required=True, help="layers of each phase, 7,3,2 say")
    parser.add_argument("--mesh", type=_numbers, default=(1, 1, 1), help="data,fsdp,tensor")
    parser.add_argument("--batch_size", type=int, default=64, help="images of a step, on all devices")
    parser.add_argument("--image_size", type=int, default=0, help="pixels; the architecture's own by default")
    parser.add_argument("--compute_dtype", default="float32", choices=("float32", "bfloat16"), help="of matrix products")
    # Not auto, which would choose for the CPU that this compiles on.
    parser.add_argument("--remat", default="dots", choices=POLICIES, help="what the backward pass computes again")
    return run_command(parser, _print, argv)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers: expected 7,3,2 say") from None


def _print(arguments: argparse.Namespace) -> None:
    mesh = arguments.mesh
    if len(mesh) != 3 or min(mesh) < 1:
        raise UserError(f"--mesh is {mesh}: expected three numbers, data,fsdp,tensor")
    # Before jax looks for devices.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={math.prod(mesh)}"
    jax.config.update("jax_platforms", "cpu")
    options = {name: getattr(arguments, name) for name in ("image_size", "compute_dtype", "remat")}
    for name, value in plan(arguments.arch, arguments.partition, mesh, arguments.batch_size, **options).items():
        print(f"{name:<38} {value:,}" if isinstance(value, int) else f"{name:<38} {value:,.2f}")


if __name__ == "__main__":
    sys.exit(main())
