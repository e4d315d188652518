"""Every state of a ViT, ours and PyTorch's in float32: how far they lie apart.

Ours at the highest precision of matrix products, which must agree, and at jax's default, which on a GPU has fewer digits.
PyTorch works on jax's device, or on the CPU where it has no such device.

python -m benchmarks parity --weights=weights.onnx
"""

from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import measure, models

TOLERANCE = 1e-4


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("parity", __doc__, repeats=1)
    models.add_options(parser)
    parser.add_argument("--num-images", type=int, default=8)
    arguments = parser.parse_args(argv)
    report = measure.Report("parity", arguments)
    encoder = models.from_options(arguments)
    images = encoder.normalize_pixels(models.random_pixels(arguments.num_images, arguments.size))
    found = {}
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            found[precision] = np.asarray(encoder.trajectory(images))
    name, count = encoder.name, arguments.num_images
    try:
        expected, peer = _in_torch(encoder, images)
    except measure.Skipped as reason:
        report.skip(f"{name}, PyTorch", reason)
        expected, peer = found["highest"], "ours at the highest precision"
    else:
        report.agree(f"{name}: states at the highest precision and those of {peer}", found["highest"], expected, TOLERANCE)
        _row(report, f"{name}: {count} images, highest precision", found["highest"], expected, peer)
    _row(report, f"{name}: {count} images, jax's default precision", found["default"], expected, peer)
    return report.finish()


def _row(report, what, states, expected, peer):
    """The largest difference of a layer, as a share of its states' size."""
    apart = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(states, expected, strict=True)]
    worst = int(np.argmax(apart))
    remark = f"differs from {peer} by at most {apart[worst]:.1e} of the states' size, at a_{worst}"
    report.figures(what, {"difference": apart[worst], "layer": worst, "differences": apart}, remark)


def _in_torch(encoder, images):
    """(states `[depth + 1, batch, tokens, dim]`, where PyTorch computed them)."""
    torch = measure.load_torch("transformers", device="cpu")
    device = measure.torch_device() if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fewer digits than float32 has
    model = models.in_transformers(encoder, device=device)
    with torch.inference_mode():
        states = models.states_in_torch(model, models.as_torch_images(images, device=device))
    return models.to_numpy(states), f"PyTorch on {device}"
