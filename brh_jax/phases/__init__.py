"""Phases of depth: layer-layer similarity and partitions."""

from brh_jax.phases.cuts import (
    all_contiguous,
    contrast_cut,
    cut_weight,
    max_cut,
    random_contiguous,
    random_fragmented,
    recursive_bisection,
)
from brh_jax.phases.partition import Partition
from brh_jax.phases.similarity import layer_dissimilarity, layer_similarity, streaming_dissimilarity
from brh_jax.phases.structure import PhaseStructure, phase_structure

__all__ = [
    "Partition",
    "PhaseStructure",
    "all_contiguous",
    "contrast_cut",
    "cut_weight",
    "layer_dissimilarity",
    "layer_similarity",
    "max_cut",
    "phase_structure",
    "random_contiguous",
    "random_fragmented",
    "recursive_bisection",
    "streaming_dissimilarity",
]
