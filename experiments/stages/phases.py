"""Phases of depth: layer-layer dissimilarity over many images, the partitions cut from it, and how sure these are."""

import functools
import pathlib
from collections.abc import Callable

import numpy as np
from sklearn.metrics import adjusted_rand_score

from brh_jax import phases
from brh_jax.errors import UserError
from experiments.context import Context

_LARGEST_K = 6  # of the max cuts that are compared with random partitions
_SHOWN = 5  # partitions of resampled images, the most frequent


def run(context: Context, folder: pathlib.Path) -> dict:
    """Leaves the matrix of each metric in `dissimilarity.npz`; partitions are cut from the one of cosines."""
    config, encoder = context.config, context.teacher()
    settings = config.phases
    partitions_of(np.zeros((encoder.depth,) * 2), settings)  # a k that does not fit is said before any image is read
    source = context.source(config.data.train)
    batches = context.measuring_batches(source, encoder.preprocessing, settings, "similarity of layers")
    trajectories = ((encoder.trajectory(encoder.normalize_pixels(b["image"])), b["valid"]) for b in batches)
    samples = phases.layer_samples(trajectories, encoder.layout, _metrics(settings))
    matrices = {metric: sample.dissimilarity() for metric, sample in samples.items()}
    dissimilarity = matrices["cosine"]
    context.save_arrays(folder / "dissimilarity.npz", dissimilarity=dissimilarity, **matrices)
    partitions = partitions_of(dissimilarity, settings)
    for k, partition in partitions.items():
        print(f"phases: k = {k}: {partition}", flush=True)
    return {
        "method": settings.method,
        "num_images": samples["cosine"].num_units,
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
        "bootstrap": {metric: _bootstrap(sample, partitions, settings) for metric, sample in samples.items()},
        "random": _against_random(samples["cosine"], settings),
        "skipped": source.skipped,
    }


def _metrics(settings) -> tuple[str, ...]:
    """Those of the bootstrap; the partitions need cosines."""
    return tuple(dict.fromkeys(("cosine", *(settings.metrics if _resamples(settings) else ()))))


def _resamples(settings) -> bool:
    """Whether the partitions come from the images, so that other images could give others."""
    return bool(settings.bootstrap) and settings.method in ("max_cut", "contrast_cut", "recursive_bisection")


def _bootstrap(sample, partitions, settings) -> dict:
    """By k: how the partitions of resampled images agree with that of all of them, and that with the one of the run."""
    if not _resamples(settings) or sample.metric not in settings.metrics:
        return {}
    matrices, out = sample.resampled(settings.bootstrap, settings.seed), {}
    for k, cut in zip(partitions, cuts_of(settings), strict=True):
        found = cut(sample.dissimilarity())
        result = phases.stability(matrices, cut, found)
        modal = next(iter(result.frequencies))
        out[str(k)] = {
            "found": str(found),
            "boundaries": found.boundaries,
            "modal": str(modal),
            "boundary_frequency": result.boundary_frequency.round(6).tolist(),
            "frequencies": {str(p): share for p, share in list(result.frequencies.items())[:_SHOWN]},
            "num_partitions": len(result.frequencies),
            "rand_index": float(result.rand_index.mean()),
            "rand_index_to_used": adjusted_rand_score(found.labels, partitions[k].labels),
            "num_units": sample.num_units,
            "num_resamples": settings.bootstrap,
        }
        print(
            f"phases: {sample.metric}, k = {k}: {modal} in {100 * result.frequencies[modal]:.0f} % of {settings.bootstrap} "
            f"resamples, adjusted Rand index {result.rand_index.mean():.2f}",
            flush=True,
        )
    return out


def _against_random(sample, settings) -> dict:
    """The max cut for k = 2 ... 6 against random partitions, on all images, and that of one half of them on the other half."""
    if sample.num_units < 2:
        return {}
    whole, (first, second) = sample.dissimilarity(), (half.dissimilarity() for half in sample.halves())
    out = {}
    for k in range(2, min(_LARGEST_K, len(whole)) + 1):
        compared = phases.random_cuts(whole, phases.max_cut(whole, k), seed=settings.seed)
        other = phases.random_cuts(second, phases.max_cut(first, k), seed=settings.seed)
        out[str(k)] = {
            "weight": compared.weight,
            "rank_on_other_images": other.rank,
            **{
                kind: {
                    "mean": float(weights.mean()),
                    "std": float(weights.std()),
                    **dict(zip(("low", "high"), np.quantile(weights, (0.025, 0.975)).tolist(), strict=True)),
                    "num": len(weights),
                }
                for kind, weights in (("contiguous", compared.contiguous), ("fragmented", compared.fragmented))
            },
        }
    return out


def _least(partition: phases.Partition, settings) -> int:
    """`min_length`, where the method held to it."""
    return min(settings.min_length, *partition.lengths)


def partitions_of(dissimilarity, settings) -> dict[int, phases.Partition]:
    """The partitions that `config.phases` asks for, by number of phases.

    Raises:
        UserError: a k or given lengths that do not fit the depth.
    """
    depth = len(dissimilarity)
    found = [cut(dissimilarity) for cut in cuts_of(settings)]
    if found[0].depth != depth:
        raise UserError(
            f"config.phases.lengths {tuple(settings.lengths)} add up to {found[0].depth}, the teacher has {depth} layers"
        )
    return {p.k: p for p in found}


def cuts_of(settings) -> list[Callable]:
    """How `config.phases` cuts: functions from a matrix of dissimilarities to a Partition, one for each that it asks for."""
    if settings.method == "given":
        given = phases.Partition(tuple(settings.lengths))
        return [lambda matrix: given]
    if settings.method == "recursive_bisection":
        return [functools.partial(phases.recursive_bisection, threshold=settings.threshold)]

    def cut(matrix, k):
        if settings.method == "random_contiguous":
            return phases.random_contiguous(len(matrix), k, settings.seed, settings.min_length)
        if settings.method == "random_fragmented":
            return phases.random_fragmented(phases.max_cut(matrix, k, settings.min_length).lengths, settings.seed)
        exact = phases.contrast_cut if settings.method == "contrast_cut" else phases.max_cut
        return exact(matrix, k, settings.min_length)

    return [functools.partial(cut, k=k) for k in dict.fromkeys(settings.k)]
