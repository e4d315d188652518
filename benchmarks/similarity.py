"""Layer-layer similarity over a stream of images, as what it adds to the forward pass that it needs anyway.

python -m benchmarks similarity --weights=weights.onnx --num-images=320
"""

from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import measure, models
from brh_jax import phases
from brh_jax.models.cost import vit_flops


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("similarity", __doc__, repeats=3)
    models.add_options(parser)
    parser.add_argument("--num-images", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--scale", type=int, default=10_000, help="number of images that times are scaled to")
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.num_images, arguments.batch_size, arguments.repeats = 8, 4, 2
    arguments.num_images -= arguments.num_images % arguments.batch_size
    report = measure.Report("similarity", arguments)
    encoder = models.from_options(arguments)
    layout, pixels = encoder.layout, models.random_pixels(arguments.num_images, arguments.size)
    batches = [encoder.normalize_pixels(part) for part in np.split(pixels, len(pixels) // arguments.batch_size)]
    valid = np.ones(arguments.batch_size, bool)

    def forward():
        for batch in batches:
            states = jax.block_until_ready(encoder.trajectory(batch))
        return states

    def with_similarity():
        return phases.streaming_dissimilarity(((encoder.trajectory(batch), valid) for batch in batches), layout)[0]

    held = encoder.trajectory(batches[0])

    def alone():
        return phases.streaming_dissimilarity([(held, valid)], layout)[0]

    expected = np.mean([_by_hand(encoder, batch) for batch in batches], axis=0)
    report.agree("dissimilarities of the stream and in float64", with_similarity(), expected, 1e-4)
    sides = {"forward pass": measure.ours(forward), "forward pass and similarity": measure.ours(with_similarity)}
    times = measure.measure_with_ceiling(
        report, sides | {"similarity of one batch": measure.ours(alone)}, arguments.repeats, "float32", size=256 * arguments.tiny
    )
    one = times.pop("similarity of one batch")
    count = arguments.num_images
    for name, found in times.items():
        scaled = f"{arguments.scale:,} images, scaled: {np.median(found) * arguments.scale / count:,.1f} s"
        report.row(name, found, images=count, flops=count * vit_flops(encoder.config, layout), remark=scaled)
    scaled = np.median(one) * arguments.scale / arguments.batch_size
    report.row(
        "similarity of one batch", one, images=arguments.batch_size, remark=f"{arguments.scale:,} images, scaled: {scaled:,.1f} s"
    )
    before, after = (float(np.median(found)) for found in times.values())
    report.note(
        f"overhead over the forward pass: {float(np.median(one)) * len(batches) / before:.2%} from the similarity alone, "
        f"{after / before - 1:.1%} as the difference of the two passes, which is noisier"
    )
    report.ratio("forward pass / forward pass and similarity", before / after)
    return report.finish()


def _by_hand(encoder, batch):
    """The definition, in float64: mean over images and over [cls, mean patch] of 1 - cosine."""
    outputs = np.asarray(encoder.trajectory(batch), np.float64)[1:]
    parts = encoder.layout.split(outputs)
    total = []
    for vectors in (parts.cls.mean(2), parts.patches.mean(2)):
        unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        total.append(1 - np.einsum("lbd,mbd->lm", unit, unit) / len(batch))
    return np.mean(total, axis=0)
