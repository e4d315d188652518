"""Phases of depth: layer-layer dissimilarity over many images, and the partitions cut from it."""

import pathlib

import numpy as np

from brh_jax import phases
from brh_jax.errors import UserError
from experiments.context import Context


def run(context: Context, folder: pathlib.Path) -> dict:
    """Leaves the matrix in `dissimilarity.npz`."""
    config, encoder = context.config, context.teacher()
    settings = config.phases
    partitions_of(np.zeros((encoder.depth,) * 2), settings)  # a k that does not fit is said before any image is read
    source = context.source(config.data.train)
    batches = context.measuring_batches(source, encoder.preprocessing, settings, "similarity of layers")
    trajectories = ((encoder.trajectory(encoder.normalize_pixels(b["image"])), b["valid"]) for b in batches)
    dissimilarity, count = phases.streaming_dissimilarity(trajectories, encoder.layout)
    context.save_arrays(folder / "dissimilarity.npz", dissimilarity=dissimilarity)
    partitions = partitions_of(dissimilarity, settings)
    for k, partition in partitions.items():
        print(f"phases: k = {k}: {partition}", flush=True)
    return {
        "method": settings.method,
        "num_images": count,
        "dissimilarity": dissimilarity.round(6).tolist(),
        "partitions": {
            str(k): {
                "text": str(p),
                "lengths": p.lengths,
                "phases": p.phases,
                "cut_weight": phases.cut_weight(dissimilarity, p),
                "structure": phases.phase_structure(dissimilarity, p, min_length=_least(p, settings))._asdict(),
            }
            for k, p in partitions.items()
        },
        "skipped": source.skipped,
    }


def _least(partition: phases.Partition, settings) -> int:
    """`min_length`, where the method held to it."""
    return min(settings.min_length, *partition.lengths)


def partitions_of(dissimilarity, settings) -> dict[int, phases.Partition]:
    """The partitions that `config.phases` asks for, by number of phases.

    Raises:
        UserError: a k or given lengths that do not fit the depth.
    """
    depth = len(dissimilarity)
    if settings.method == "given":
        found = [phases.Partition(tuple(settings.lengths))]
        if found[0].depth != depth:
            raise UserError(
                f"config.phases.lengths {tuple(settings.lengths)} add up to {found[0].depth}, the teacher has {depth} layers"
            )
    elif settings.method == "recursive_bisection":
        found = [phases.recursive_bisection(dissimilarity, settings.threshold)]
    elif settings.method == "random_contiguous":
        found = [phases.random_contiguous(depth, k, settings.seed, settings.min_length) for k in settings.k]
    else:
        cut = phases.contrast_cut if settings.method == "contrast_cut" else phases.max_cut
        found = [cut(dissimilarity, k, settings.min_length) for k in settings.k]
        if settings.method == "random_fragmented":
            found = [phases.random_fragmented(p.lengths, settings.seed) for p in found]
    return {p.k: p for p in found}
