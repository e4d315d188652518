"""Every state of a ViT, ours and transformers' DINOv2 in PyTorch: eager with SDPA, and torch.compile.

python -m benchmarks teacher
python -m benchmarks teacher --arch=vitb14 --batch-size=256 --dtype=bfloat16    # on a GPU
"""

import os
import shutil
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import measure, models
from brh_jax.models.cost import vit_flops


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("teacher", __doc__)
    parser.add_argument("--arch", default="vits14,vitb14", help="names of brh_jax.models.ARCHITECTURES")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--plain-attention", action="store_true", help="also ours without cuDNN's kernel of attention")
    parser.add_argument("--eager-only", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.arch, arguments.batch_size, arguments.size, arguments.repeats = "tiny", 4, 28, 2
    report = measure.Report("teacher", arguments)
    for arch in arguments.arch.split(","):
        _measure(report, arch, arguments)
    return report.finish()


def _measure(report, arch, arguments):
    dtype, batch = arguments.dtype, arguments.batch_size
    encoder = models.random_vit(arch, arguments.size, tiny=arguments.tiny, dtype=dtype)
    images = jax.device_put(encoder.normalize_pixels(models.random_pixels(batch, arguments.size)))
    # As the training step runs it.
    forward = _forward(encoder.module.clone(fused=True))
    name = f"{arch}, brh_jax"
    sides = {name: measure.ours(lambda: forward(encoder.params, images))}
    if arguments.plain_attention:
        plain = _forward(encoder.module)
        sides[f"{name}, plain attention"] = measure.ours(lambda: plain(encoder.params, images))
    skipped: dict[str, Exception] = {}
    try:
        sides |= _torch_sides(encoder, images, forward, report, arch, arguments, skipped)
    except measure.Skipped as reason:
        skipped[f"{arch}, PyTorch"] = reason
    times = measure.measure_with_ceiling(report, sides, arguments.repeats, dtype, size=256 if arguments.tiny else 0)
    work = {"images": batch, "flops": batch * vit_flops(encoder.config, encoder.layout)}
    for side, found in times.items():
        report.row(side, found, **work, against=None if side == name else times[name])
    for side, why in skipped.items():
        report.skip(side, why)


def _forward(module):
    return jax.jit(lambda params, images: module.apply({"params": params}, images))


def _torch_sides(encoder, images, forward, report, arch, arguments, skipped):
    model = models.in_transformers(encoder, arguments.dtype)
    import torch

    pixels = models.as_torch_images(images, arguments.dtype)

    def eager():
        with torch.inference_mode():
            return models.states_in_torch(model, pixels)

    expected = models.to_numpy(eager())
    report.agree(f"{arch}: states", forward(encoder.params, images), expected, measure.tolerance(arguments.dtype))
    sides = {f"{arch}, PyTorch eager, SDPA": measure.theirs(eager)}
    name = f"{arch}, PyTorch torch.compile"
    if arguments.tiny or arguments.eager_only:
        skipped[name] = "not asked for"
        return sides
    try:
        compiled = compiled_states(model)
        report.agree(
            f"{arch}: states of torch.compile", models.to_numpy(compiled(pixels)), expected, measure.tolerance(arguments.dtype)
        )
        sides[name] = measure.theirs(lambda: compiled(pixels))
    except measure.Skipped as reason:
        skipped[name] = reason
    return sides


def compiled_states(model: Any):
    """`models.states_in_torch` of a model through torch.compile.

    Raises:
        measure.Skipped: there is no C++ compiler.
    """
    import torch

    if measure.torch_device() == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise measure.Skipped("torch.compile needs a C++ compiler")
    compiled = torch.compile(lambda pixels: models.states_in_torch(model, pixels))

    def run(pixels):
        with torch.no_grad():
            try:
                return compiled(pixels)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise measure.Skipped(f"torch.compile failed: {str(error).splitlines()[0][:200]}") from None

    return run
