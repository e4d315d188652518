"""Stage 1, the k blocks side by side from one teacher pass, beside k separate runs of one block each.

A separate run has a teacher of its own, cut off after the last layer that its phase needs, and trains its block by the same code.

python -m benchmarks stage1
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, models
from brh_jax.distill import Blockwise, BlockwiseSettings, init_blocks
from brh_jax.distill.trainer import make_update
from brh_jax.models import RaptorConfig, ViT
from brh_jax.models.cost import vit_flops
from brh_jax.phases import Partition


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("stage1", __doc__)
    parser.add_argument("--arch", default="vits14_reg", help="the teacher, a name of brh_jax.models.ARCHITECTURES")
    parser.add_argument("--partition", default="7,3,2", help="layers of each phase")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.batch_size, arguments.size, arguments.repeats, arguments.partition = 4, 28, 2, "2,1"
    report = measure.Report("stage1", arguments)
    teacher = models.random_vit(arguments.arch, arguments.size, tiny=arguments.tiny, dtype=arguments.dtype)
    config = RaptorConfig(teacher.config, Partition(tuple(int(n) for n in arguments.partition.split(","))))
    blocks = init_blocks(config, teacher.layout, jax.random.key(0))
    pixels, settings = models.random_pixels(arguments.batch_size, arguments.size), BlockwiseSettings(warmup_steps=0)

    sides, names = {}, []
    kinds = (True,) if arguments.tiny else (True, False)  # whether there is a teacher-forced pass
    for forced in kinds:
        when = "first quarter of the steps" if forced else "the other steps"
        names.append((f"side by side, {when}", f"{config.partition.k} separate runs, {when}"))
        together = _together(teacher, config, blocks, pixels, settings, forced)
        apart = [_apart(teacher, config, phase, blocks, pixels, settings, forced) for phase in range(config.partition.k)]
        report.agree(f"losses of the blocks, {when}", together(), np.concatenate(_each(apart)), 1e-4)
        sides[names[-1][0]] = measure.ours(together)
        sides[names[-1][1]] = measure.ours(functools.partial(_each, apart))
    size = 256 if arguments.tiny else 0
    times = measure.measure_with_ceiling(report, sides, arguments.repeats, arguments.dtype, size=size)
    layers = arguments.batch_size / config.depth
    student, watched = (layers * vit_flops(c, teacher.layout) for c in (config, teacher.config))
    for (one, many), forced in zip(names, kinds, strict=True):
        trained = 3 * config.depth * student * (1 + forced)
        work = {"images": arguments.batch_size}
        report.row(one, times[one], **work, flops=trained + config.depth * watched)
        flops = trained + sum(run.stop for run in config.partition.runs) * watched
        report.row(many, times[many], **work, flops=flops, against=times[one])
    if len(kinds) == 1:
        return report.finish()
    means = [
        sum(share * float(np.median(times[pair[side]])) for pair, share in zip(names, (0.25, 0.75), strict=True))
        for side in (0, 1)
    ]
    report.ratio("a whole stage, a quarter of its steps with teacher forcing", means[1] / means[0])
    return report.finish()


def _each(runs: list[Callable[[], Any]]) -> list:
    return [run() for run in runs]


def _together(teacher, config, blocks, pixels, settings, forced):
    """A function that does one step of all blocks and gives their losses, `[k]`."""
    update, optimiser = make_update(Blockwise(settings), teacher, config, seed=0)
    batch = {"image": jax.device_put(pixels), "row": np.arange(len(pixels))}
    return _stepping(update, optimiser, blocks, lambda: (teacher.params, batch), forced)


def _apart(teacher, config, phase, blocks, pixels, settings, forced):
    """The same for one block: the phase is all the depth of a small Raptor that is fed the states of its layers."""
    run = config.partition.runs[phase]
    shorter = dataclasses.replace(teacher.config, depth=run.stop)
    params = teacher.params | {"blocks": jax.tree.map(lambda p: p[: run.stop], teacher.params["blocks"])}
    module = ViT(shorter, teacher.dtype, fused=True)

    @jax.jit
    def states(params, images):
        found: Any = module.apply({"params": params}, teacher.normalize_pixels(images))
        return jnp.moveaxis(found[run.start :], 1, 0)

    one = RaptorConfig(dataclasses.replace(teacher.config, depth=run.stop - run.start), Partition((run.stop - run.start,)))
    if phase < config.partition.k - 1:  # plain mean over tokens
        settings = dataclasses.replace(settings, token_weights=tuple(teacher.layout.counts))
    update, optimiser = make_update(Blockwise(settings), teacher.replace(config=one.teacher), one, seed=0)
    images = jax.device_put(pixels)
    block = {"phase_1": _counted_from_zero(blocks[f"phase_{phase + 1}"], run.start)}
    return _stepping(
        update, optimiser, block, lambda: ({}, {"states": states(params, images), "row": np.arange(len(pixels))}), forced
    )


def _counted_from_zero(block, start):
    """The block whose depth scaling gives at depth d what this one's gives at d + start."""
    first = block["depth_scaling"]["fc1"]
    shifted = {"kernel": first["kernel"], "bias": first["bias"] + start * first["kernel"][0]}
    return block | {"depth_scaling": block["depth_scaling"] | {"fc1": shifted}}


def _stepping(update, optimiser, blocks, inputs, forced):
    held = jax.tree.map(jnp.copy, blocks)
    held = {"params": held, "opt_state": optimiser.init(held)}

    def step():
        nonlocal held
        params, batch = inputs()
        held, metrics = update(held, params, batch, 0, forced)
        return jnp.stack([value for name, value in sorted(metrics.items()) if name.startswith("loss_")])

    return step
