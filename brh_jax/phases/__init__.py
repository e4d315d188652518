"""Phases of depth: layer-layer similarity and partitions."""

from brh_jax.partition import Partition
from brh_jax.phases.bootstrap import METRICS, UNIT, LayerSamples, Stability, layer_samples, stability
from brh_jax.phases.cuts import (
    Bisection,
    all_contiguous,
    bisection,
    contrast_cut,
    cut_weight,
    max_cut,
    random_contiguous,
    random_fragmented,
    recursive_bisection,
)
from brh_jax.phases.drawing import plot
from brh_jax.phases.random_cuts import RandomCuts, random_cuts
from brh_jax.phases.similarity import layer_dissimilarity, layer_similarity, streaming_dissimilarity
from brh_jax.phases.structure import PhaseStructure, phase_structure

__all__ = [
    "METRICS",
    "UNIT",
    "Bisection",
    "LayerSamples",
    "Partition",
    "PhaseStructure",
    "RandomCuts",
    "Stability",
    "all_contiguous",
    "bisection",
    "contrast_cut",
    "cut_weight",
    "layer_dissimilarity",
    "layer_samples",
    "layer_similarity",
    "max_cut",
    "phase_structure",
    "plot",
    "random_contiguous",
    "random_cuts",
    "random_fragmented",
    "recursive_bisection",
    "stability",
    "streaming_dissimilarity",
]
