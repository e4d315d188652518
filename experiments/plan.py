"""What a run will take: python -m experiments.plan --arch=vitg14 --partition=10,10,10,10 --mesh=1,8,1 --batch_size=64

Compiles the training step of stage 2 from shapes alone, for as many devices as the mesh has, on a CPU, and prints parameters,
operations, and the memory of each device as the compiler counts it. No weights, no accelerator.
"""

import argparse
import math
import os
import sys
import time

import jax

from brh_jax.command import run_command
from brh_jax.errors import UserError


def plan(
    arch: str, lengths, mesh_shape, batch_size: int, *, image_size: int = 0, compute_dtype: str = "float32", remat: str = "dots"
):
    """Compiles and counts; jax must have as many devices as the mesh.

    Returns:
        A dictionary of figures: parameters, operations per image, seconds of compilation, and GB per device.
    """
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from brh_jax.distill.trainer import STAGE2, make_update
    from brh_jax.models import Encoder, RaptorConfig, architecture, count_params
    from brh_jax.models.cost import vit_flops
    from brh_jax.models.raptor import Blocks
    from brh_jax.models.vit import ViT
    from brh_jax.phases import Partition
    from brh_jax.preprocessing import Preprocessing
    from brh_jax.train.parallel import BATCH, make_mesh, shardings

    found = architecture(arch)
    size = image_size or found.image_size
    dtype = None if compute_dtype == "float32" else jnp.dtype(compute_dtype)
    teacher = Encoder(found.config, {}, Preprocessing((size, size)), dtype=dtype)
    raptor = RaptorConfig(found.config, Partition(tuple(lengths)))
    update, optimiser = make_update(2, teacher, raptor, STAGE2, seed=0, remat=remat)

    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    teacher_params = jax.eval_shape(ViT(found.config).init, jax.random.key(0), image)["params"]
    state = jax.ShapeDtypeStruct((1, teacher.layout.num_tokens, found.config.dim), jnp.float32)
    init = lambda key, x: Blocks(raptor).init(key, x, teacher.layout.grid, method="rollout")  # noqa: E731
    blocks = jax.eval_shape(init, jax.random.key(0), state)["params"]
    training = {"params": blocks, "opt_state": jax.eval_shape(optimiser.init, blocks)}

    mesh = make_mesh(*mesh_shape)
    if batch_size % (mesh_shape[0] * mesh_shape[1]):
        raise UserError(f"a batch of {batch_size} images does not divide over {mesh_shape[0] * mesh_shape[1]} devices")

    def placed(tree):
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings(tree, mesh)
        )

    batch = {"image": jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8, sharding=NamedSharding(mesh, BATCH))}
    begun = time.monotonic()
    compiled = update.lower(placed(training), placed(teacher_params), batch, 0, forced=False).compile()
    seconds = time.monotonic() - begun
    memory = compiled.memory_analysis()
    forward, student = vit_flops(found.config, teacher.layout), vit_flops(raptor, teacher.layout)
    return {
        "teacher parameters": count_params(teacher_params),
        "Raptor block parameters": count_params(blocks),
        "teacher forward, GFLOP per image": forward / 1e9,
        "step, GFLOP per image": (forward + 3 * student) / 1e9,
        "compile seconds": seconds,
        "parameters and state, GB per device": memory.argument_size_in_bytes / 1e9,
        "temporaries, GB per device": memory.temp_size_in_bytes / 1e9,
    }


def main(argv=None) -> int:
    """Command line; returns the exit status."""
    numbers = lambda text: tuple(int(n) for n in text.split(","))  # noqa: E731
    parser = argparse.ArgumentParser(prog="python -m experiments.plan", description=__doc__.split("\n")[0])
    parser.add_argument("--arch", required=True, help="a name of brh_jax.models.ARCHITECTURES, vitb14_reg say")
    parser.add_argument("--partition", type=numbers, required=True, help="layers of each phase, 7,3,2 say")
    parser.add_argument("--mesh", type=numbers, default=(1, 1, 1), help="data,fsdp,tensor")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--image_size", type=int, default=0)
    parser.add_argument("--compute_dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", default="dots")
    return run_command(parser, _print_plan, argv)


def _print_plan(arguments) -> None:
    if len(arguments.mesh) != 3 or min(arguments.mesh) < 1:
        raise UserError(f"--mesh is {arguments.mesh}: expected three numbers, data,fsdp,tensor")
    # Before jax looks for devices.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={math.prod(arguments.mesh)}"
    )
    jax.config.update("jax_platforms", "cpu")
    figures = plan(
        arguments.arch,
        arguments.partition,
        arguments.mesh,
        arguments.batch_size,
        image_size=arguments.image_size,
        compute_dtype=arguments.compute_dtype,
        remat=arguments.remat,
    )
    for name, value in figures.items():
        print(f"{name:<38} {value:,}" if isinstance(value, int) else f"{name:<38} {value:,.2f}")


if __name__ == "__main__":
    sys.exit(main())
