"""Stable and effective ranks of what layers add to tokens: streamed through Gram matrices, and by SVD of the stacked updates.

python -m benchmarks ranks --weights=weights.onnx --num-images=64
"""

from collections.abc import Sequence

import numpy as np
import scipy.linalg

from benchmarks import measure, models
from brh_jax.dynamics.rank import gram_rank, update_grams


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("ranks", __doc__, repeats=3)
    models.add_options(parser)
    parser.add_argument("--num-images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--layers", default="1,6,11", help="layers (from 1) on which the peers are run; ours runs on all of them")
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.num_images, arguments.batch_size, arguments.repeats, arguments.layers = 32, 16, 2, "1,2"
    report = measure.Report("ranks", arguments)
    encoder = models.from_options(arguments)
    layers = [int(n) for n in arguments.layers.split(",")]
    pixels = models.random_pixels(arguments.num_images, arguments.size)
    batches = np.split(pixels, range(arguments.batch_size, len(pixels), arguments.batch_size))
    states = [encoder.trajectory(encoder.normalize_pixels(batch)) for batch in batches]

    def streamed():
        return gram_rank(update_grams(states, encoder.layout))

    held = np.concatenate([np.asarray(encoder.layout.split(s).patches) for s in states], axis=1)

    def stacked(singular_values):
        return np.array([_ranks(singular_values(_updates(held, layer))) for layer in layers])

    peers = {
        "scikit-learn, TruncatedSVD of all components": lambda: stacked(_sklearn),
        "scipy.linalg.svdvals": lambda: stacked(scipy.linalg.svdvals),
    }
    found = streamed()
    ours = np.stack([[rank.patches[layer - 1] for layer in layers] for rank in (found.stable, found.effective)], axis=1)
    for name, run in peers.items():
        report.agree(f"stable and effective ranks of patches and those of {name}", ours, run(), 1e-6)
    name = f"brh_jax, all {encoder.depth} layers, all tokens"
    sides = {name: measure.Side(streamed)} | {
        f"{peer}, {len(layers)} layers, patches": measure.Side(run) for peer, run in peers.items()
    }
    times = measure.in_turns(sides, arguments.repeats, already_warm=sides)
    for label, seconds in times.items():
        if label == name:
            report.row(label, seconds, images=arguments.num_images)
            continue
        report.row(label, seconds)
        per_layer = float(np.median(seconds)) / len(layers) / (float(np.median(times[name])) / encoder.depth)
        report.ratio(
            "    per layer", per_layer, "ours has the ranks of every token type in its time, the peer those of patches alone"
        )
    return report.finish()


def _updates(states, layer):
    """Angular updates of a layer (from 1) about their mean, one row for each token, in float64."""
    before, after = (np.asarray(states[i], np.float64) for i in (layer - 1, layer))
    before, after = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (before, after))
    updates = (after - before).reshape(-1, states.shape[-1])
    return updates - updates.mean(0)


def _sklearn(updates):
    from sklearn.decomposition import TruncatedSVD

    # With all components nothing is truncated, so no power iterations are needed.
    components = min(updates.shape)
    return (
        TruncatedSVD(components, algorithm="randomized", n_iter=0, n_oversamples=1, random_state=0).fit(updates).singular_values_
    )


def _ranks(singular_values):
    squares = singular_values**2
    shares = singular_values / singular_values.sum()
    shares = shares[shares > 0]
    return squares.sum() / squares.max(), np.exp(-(shares * np.log(shares)).sum())
