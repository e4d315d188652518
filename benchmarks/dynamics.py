"""Directions, ranks and basins of a ViT's states, each as a share of the forward pass that gives the states.

python -m benchmarks dynamics --weights=weights.onnx --images=photos/test
"""

import time
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import measure, models
from brh_jax import dynamics
from brh_jax.data.pipeline import measuring_batches
from brh_jax.data.sources import open_source
from brh_jax.data.transforms import RandomResizedCrop
from brh_jax.dynamics.basins import image_directions
from brh_jax.dynamics.rank import gram_rank, principal_angles, update_grams
from brh_jax.models.cost import vit_flops

RANKS = {
    "angular": "ranks of angular updates over all tokens of all images",
    "raw": "ranks of raw updates over all tokens of all images",
}
ANGLES = "angles between neighbouring layers' updates"
BASINS = "angular basins of 4 classes"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("dynamics", __doc__, repeats=3)
    models.add_options(parser)
    parser.add_argument("--images", default="", help="folder of photographs, one folder per class; random pixels without")
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.num_images, arguments.batch_size, arguments.repeats, arguments.images = 8, 4, 2, ""
    report = measure.Report("dynamics", arguments)
    encoder = models.from_options(arguments)
    batches = _crops(encoder, arguments)

    _pass(encoder, [batches[0], batches[-1]])  # compiled, for the last batch too, which may be smaller
    passes = [_pass(encoder, batches) for _ in range(arguments.repeats)]
    times = {name: np.array([one[name] for one in passes]) for name in passes[0]}
    forward, count = times.pop("forward pass"), sum(map(len, batches))
    report.row("forward pass", forward, images=count, flops=count * vit_flops(encoder.config, encoder.layout))
    times["all of them"] = np.sum(list(times.values()), axis=0)
    for name, seconds in times.items():
        report.row(name, seconds, images=count, remark=f"{np.median(seconds) / np.median(forward):.2f} of the forward pass")
    return report.finish()


def _crops(encoder, arguments) -> list[np.ndarray]:
    """Preprocessed batches in memory, so that reading images is not measured."""
    if not arguments.images:
        pixels = models.random_pixels(arguments.num_images, arguments.size)
        parts = np.split(pixels, range(arguments.batch_size, arguments.num_images, arguments.batch_size))
        return [encoder.normalize_pixels(part) for part in parts]
    source = open_source(f"folder:{arguments.images}")
    crop = RandomResizedCrop((arguments.size, arguments.size))
    found = measuring_batches(source, crop, arguments.batch_size, num_images=arguments.num_images)
    return [encoder.normalize_pixels(batch["image"][batch["valid"]]) for batch in found]


def _pass(encoder, batches) -> dict[str, float]:
    """Seconds of the forward pass and of each group of measures on the trajectories that it leaves, over all images."""
    layout = encoder.layout
    measures = {
        "directions": lambda states: dynamics.direction_measures([states], layout),
        RANKS["angular"]: lambda states: update_grams([states], layout),
        RANKS["raw"]: lambda states: update_grams([states], layout, kind="raw"),
        "ranks of angular updates over the tokens of each image": lambda states: dynamics.update_rank(
            states, layout, over="tokens", per_image=True
        ),
        BASINS: lambda states: image_directions([states], layout),
    }
    spent = dict.fromkeys(("forward pass", *measures, ANGLES), 0.0)
    kept = {name: [] for name in measures}

    def timed(name, function):
        begun = time.perf_counter()
        result = jax.block_until_ready(function())
        spent[name] += time.perf_counter() - begun
        return result

    for batch in batches:
        states = timed("forward pass", lambda batch=batch: encoder.trajectory(batch))
        for name, measured in measures.items():
            kept[name].append(timed(name, lambda measured=measured, states=states: measured(states)))
    for kind, name in RANKS.items():
        grams = jax.tree.map(lambda *parts: sum(parts), *kept[name])
        timed(name, lambda grams=grams: gram_rank(grams))
        if kind == "angular":
            timed(ANGLES, lambda grams=grams: principal_angles(grams, num_directions=4))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *kept[BASINS])
    labels = np.arange(joined.patches.shape[1]) % 4
    timed(BASINS, lambda: dynamics.angular_basins(joined, labels, layout))
    return spent
