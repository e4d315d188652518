"""A stage-2 step of a Raptor: time beside a PyTorch step, peak memory of both, how long ours compiles at three depths, and what
operations it spends its time on.

Ours runs the frozen teacher inside the step. PyTorch (torch_raptor.py) takes the teacher's states from memory, which is kinder
than the paper's way over disk, or runs the teacher too.

python -m benchmarks raptor_step --arch=vits14_reg --parts=speed
python -m benchmarks raptor_step --parts=memory,compile
python -m benchmarks raptor_step --arch=vits14_reg --parts=operations --threads=1    # by jax's profiler
python -m benchmarks raptor_step --parts=speed --batch-size=64 --dtype=bfloat16    # on a GPU
"""

import dataclasses
import functools
import json
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, models, operations
from brh_jax.distill import Joint, JointSettings, init_blocks
from brh_jax.distill.losses import token_weights
from brh_jax.distill.trainer import make_update
from brh_jax.models import RaptorConfig, ViT
from brh_jax.models.cost import vit_flops
from brh_jax.models.encoder import init_params
from brh_jax.models.raptor import Blocks
from brh_jax.models.remat import NAMES
from brh_jax.phases import Partition

PARTS = ("speed", "memory", "compile", "operations")
IMAGES = 20_000_000  # the paper's 312,500 steps of 64
# The published settings, but for the warm-up: a step that changes nothing could not be compared.
OBJECTIVE = Joint(JointSettings(warmup_steps=0))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("raptor_step", __doc__)
    parser.add_argument("--arch", default="vitb14_reg", help="the teacher, a name of brh_jax.models.ARCHITECTURES")
    parser.add_argument("--partition", default="7,3,2", help="layers of each phase")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", default="auto", choices=NAMES)
    parser.add_argument("--plain-attention", action="store_true", help="also ours without cuDNN's kernel of attention")
    parser.add_argument("--compile", action="store_true", help="also a PyTorch step through torch.compile")
    parser.add_argument("--depths", default="6,12,24", help="of the teachers that the step is compiled for")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--alone", default="", choices=("", "ours", "torch"), help="print that side's peak memory as JSON, no more"
    )
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.batch_size, arguments.size, arguments.repeats = 4, 28, 2
        arguments.partition, arguments.depths = "2,1", "3"
    if arguments.alone:
        print(json.dumps(_alone(arguments)))
        return 0
    report = measure.Report("raptor_step", arguments)
    parts = {"speed": _speed, "memory": _memory, "compile": _compile, "operations": _operations}
    for part in arguments.parts.split(","):
        if part not in PARTS:
            parser.error(f"unknown part {part!r}: expected some of {', '.join(PARTS)}")
        parts[part](report, arguments)
    return report.finish()


class _Ours:
    """Our step, with its training state."""

    def __init__(self, teacher, config, blocks, arguments, *, fused=True):
        self.teacher = teacher
        self.update, optimiser = make_update(OBJECTIVE, teacher, config, seed=0, remat=arguments.remat, fused=fused)
        copied = jax.tree.map(jnp.copy, blocks)
        self.state = {"params": copied, "opt_state": optimiser.init(copied)}

    def __call__(self, batch):
        self.state, metrics = self.update(self.state, self.teacher.params, batch, 0, OBJECTIVE.variant(0))
        return metrics["loss"]


def _models(arguments):
    teacher = models.random_vit(arguments.arch, arguments.size, tiny=arguments.tiny, dtype=arguments.dtype)
    config = RaptorConfig(teacher.config, Partition(tuple(int(n) for n in arguments.partition.split(","))))
    blocks = init_blocks(config, teacher.layout, jax.random.key(0))
    return teacher, config, blocks


def _torch_step(config, blocks, layout, arguments, **options):
    torch = measure.load_torch("transformers")
    from benchmarks import torch_raptor

    weights = token_weights(layout, OBJECTIVE.settings.token_weights)
    kind = {"device": measure.torch_device(), "dtype": getattr(torch, arguments.dtype)}
    return torch_raptor.Step(config, blocks, weights, OBJECTIVE.settings, **kind, **options)


def _torch_teacher(teacher, pixels, dtype):
    """A function without arguments that gives the teacher's states in torch, of uint8 images that are on the device."""
    import torch

    model = models.in_transformers(teacher, dtype)
    images = torch.from_numpy(pixels).to(measure.torch_device())
    mean, std = (torch.tensor(v, device=images.device) for v in (teacher.preprocessing.mean, teacher.preprocessing.std))

    def states():
        with torch.no_grad():
            normalised = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)
            return models.states_in_torch(model, normalised.to(getattr(torch, dtype)))

    return states


def _speed(report, arguments):
    teacher, config, blocks = _models(arguments)
    batch, pixels = arguments.batch_size, models.random_pixels(arguments.batch_size, arguments.size)
    images = {"image": jax.device_put(pixels), "row": np.arange(batch)}
    trajectory = jax.jit(lambda params, images: teacher.module.apply({"params": params}, images))
    states = np.moveaxis(np.asarray(trajectory(teacher.params, teacher.normalize_pixels(pixels))), 0, 1)
    kept = {"states": jax.device_put(states), "row": np.arange(batch)}
    step, step_kept = (_Ours(teacher, config, blocks, arguments) for _ in range(2))
    losses = [[float(step(images)) for _ in range(3)]]
    for _ in range(3):
        step_kept(kept)
    names = ["brh_jax, teacher inside", "brh_jax, states from memory"]
    sides = {names[0]: measure.ours(lambda: step(images)), names[1]: measure.ours(lambda: step_kept(kept))}
    if arguments.plain_attention:
        plain = _Ours(teacher, config, blocks, arguments, fused=False)
        plain(images)  # here, before PyTorch takes the memory
        sides["brh_jax, plain attention, teacher inside"] = measure.ours(lambda: plain(images))
    skipped: dict[str, Exception] = {}
    try:
        measure.load_torch("transformers")
        states_of = _torch_teacher(teacher, pixels, arguments.dtype)
        with measure.enough_memory():
            held = [state.clone() for state in states_of()]
            peers = [_torch_step(config, blocks, teacher.layout, arguments) for _ in range(2)]
            losses.append([float(peers[1](states_of())) for _ in range(3)])
        sides["PyTorch, states from memory"] = measure.theirs(lambda: peers[0](held))
        sides["PyTorch, teacher inside"] = measure.theirs(lambda: peers[1](states_of()))
        report.agree("losses of three steps", *losses, measure.tolerance(arguments.dtype))
        if arguments.compile:
            compiled = _torch_step(config, blocks, teacher.layout, arguments, compiled=True)
            sides["PyTorch torch.compile, states from memory"] = measure.theirs(lambda: compiled(held))
    except measure.Skipped as reason:
        skipped["PyTorch"] = reason
    size = 256 if arguments.tiny else 0
    times = measure.measure_with_ceiling(report, sides, arguments.repeats, arguments.dtype, size=size)
    watched, student = batch * vit_flops(teacher.config, teacher.layout), 3 * batch * vit_flops(config, teacher.layout)
    for name, found in times.items():
        inside = "inside" in name
        remark = ""
        if name not in names and not inside:
            remark = f"beside ours with states from memory too: ratio {np.median(found) / np.median(times[names[1]]):.2f}"
        flops = student + (watched if inside else 0)
        report.row(name, found, images=batch, flops=flops, against=None if name in names else times[names[0]], remark=remark)
    for name, why in skipped.items():
        report.skip(name, why)
    rate = batch / float(np.median(times[names[0]]))
    report.note(f"{IMAGES:,} images at {rate:,.4g} images/s, derived: {IMAGES / rate / 3600:,.4g} hours of this machine")


def _operations(report, arguments):
    teacher, config, blocks = _models(arguments)
    images = {"image": models.random_pixels(arguments.batch_size, arguments.size), "row": np.arange(arguments.batch_size)}
    step = _Ours(teacher, config, blocks, arguments)
    compiled = step.update.lower(step.state, teacher.params, images, 0, OBJECTIVE.variant(0)).compile()
    times = measure.in_turns({"step": measure.ours(lambda: step(images))}, arguments.repeats)["step"]
    report.row("the step, teacher inside", times, images=arguments.batch_size)
    found = operations.by_operation(lambda: step(images), compiled.as_text())
    total = sum(found.values())
    for (purpose, kind), seconds in sorted(found.items(), key=lambda item: -item[1]):
        if seconds >= 0.01 * total:
            report.row(f"{purpose}: {kind}", [seconds], remark=f"{seconds / total:.0%} of all operations")
    report.note(f"all operations: {total:.3g} s, added up over threads; those below 1 % are left out")


def _memory(report, arguments):
    options = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in ("arch", "partition", "batch-size", "size")]
    options += [f"--dtype={arguments.dtype}", f"--remat={arguments.remat}", *(["--tiny"] if arguments.tiny else [])]
    found = {}
    for side in ("ours", "torch"):
        name = f"peak of the process, {'brh_jax' if side == 'ours' else 'PyTorch'}, teacher inside"
        try:
            found[side] = measure.in_a_process("raptor_step", f"--alone={side}", *options)
        except measure.Skipped as reason:
            report.skip(name, reason)
            continue
        report.row(name, peak_gb=found[side]["peak_gb"], remark=f"{found[side]['before_gb']:.2f} GB before the first step")
    if len(found) == 2:
        report.ratio("peak memory, PyTorch / ours", found["torch"]["peak_gb"] / found["ours"]["peak_gb"])


def _alone(arguments) -> dict:
    """Peak memory of three steps in this process, and what it holds before them."""
    teacher, config, blocks = _models(arguments)
    pixels = models.random_pixels(arguments.batch_size, arguments.size)
    if arguments.alone == "ours":
        step, batch = _Ours(teacher, config, blocks, arguments), {"image": pixels, "row": np.arange(len(pixels))}
        del blocks
        measure.forget_peak()
        before = measure.peak_gb()
        for _ in range(3):
            jax.block_until_ready(step(batch))
    else:
        step = _torch_step(config, blocks, teacher.layout, arguments)
        states = _torch_teacher(teacher, pixels, arguments.dtype)
        del teacher, blocks
        measure.forget_peak()
        before = measure.peak_gb()
        for _ in range(3):
            step(states())
    return {"peak_gb": measure.peak_gb(), "before_gb": before}


def _compile(report, arguments):
    """Cold: without jax's cache on disk, every program a new one."""
    cached = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        found = {int(depth): _compile_seconds(int(depth), arguments) for depth in arguments.depths.split(",")}
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    for depth, (lowering, compiling) in found.items():
        report.row(
            f"the step compiles, {depth} layers", [lowering + compiling], remark=f"{lowering:.1f} s of it tracing and lowering"
        )
    totals = [sum(seconds) for seconds in found.values()]
    report.note(f"longest over shortest: {max(totals) / min(totals):.2f}")


def _compile_seconds(depth, arguments):
    """(seconds of tracing and lowering, seconds of compiling) of the step, from shapes alone."""
    config = dataclasses.replace(models.config_of(arguments.arch, arguments.tiny), depth=depth)
    teacher = models.random_vit("", 28, tiny=True, dtype=arguments.dtype).replace(config=config, params={})
    teacher = teacher.at_size(arguments.size)
    raptor = RaptorConfig(config, Partition((depth - 2 * (depth // 3), depth // 3, depth // 3)))
    update, optimiser = make_update(OBJECTIVE, teacher, raptor, seed=0, remat=arguments.remat)
    size, batch = arguments.size, arguments.batch_size
    key = jax.random.key(0)
    teacher_params = jax.eval_shape(functools.partial(init_params, ViT(config)), key, teacher.image_shape())
    state = jax.ShapeDtypeStruct((1, teacher.layout.num_tokens, config.dim), jnp.float32)
    blocks = jax.eval_shape(lambda key, x: init_params(Blocks(raptor), key, x, method="rollout"), key, state)
    training = {"params": blocks, "opt_state": jax.eval_shape(optimiser.init, blocks)}
    images = {"image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8), "row": jax.ShapeDtypeStruct((batch,), jnp.int32)}
    begun = time.perf_counter()
    lowered = update.lower(training, teacher_params, images, 0, OBJECTIVE.variant(0))
    between = time.perf_counter()
    lowered.compile()
    return between - begun, time.perf_counter() - between
