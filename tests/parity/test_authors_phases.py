"""The paper's authors' own matrix, and the phases that they publish for it."""

import numpy as np
import pytest

from brh_jax import phases

# 1 - cosine of the layers of DINOv2 ViT-B/14 with registers over 10,000 ImageNet images, to two decimals, as in their notebook.
MATRIX = np.array(
    [
        [0.00, 0.08, 0.20, 0.26, 0.32, 0.37, 0.45, 0.63, 0.70, 0.81, 0.82, 1.08],
        [0.08, 0.00, 0.11, 0.16, 0.21, 0.27, 0.36, 0.54, 0.64, 0.75, 0.75, 1.09],
        [0.20, 0.11, 0.00, 0.05, 0.15, 0.19, 0.32, 0.56, 0.70, 0.81, 0.79, 1.11],
        [0.26, 0.16, 0.05, 0.00, 0.09, 0.15, 0.28, 0.52, 0.67, 0.78, 0.76, 1.11],
        [0.32, 0.21, 0.15, 0.09, 0.00, 0.09, 0.20, 0.39, 0.53, 0.65, 0.69, 1.07],
        [0.37, 0.27, 0.19, 0.15, 0.09, 0.00, 0.10, 0.30, 0.45, 0.58, 0.62, 1.06],
        [0.45, 0.36, 0.32, 0.28, 0.20, 0.10, 0.00, 0.17, 0.30, 0.45, 0.54, 1.04],
        [0.63, 0.54, 0.56, 0.52, 0.39, 0.30, 0.17, 0.00, 0.14, 0.30, 0.45, 0.94],
        [0.70, 0.64, 0.70, 0.67, 0.53, 0.45, 0.30, 0.14, 0.00, 0.16, 0.35, 0.86],
        [0.81, 0.75, 0.81, 0.78, 0.65, 0.58, 0.45, 0.30, 0.16, 0.00, 0.25, 0.81],
        [0.82, 0.75, 0.79, 0.76, 0.69, 0.62, 0.54, 0.45, 0.35, 0.25, 0.00, 0.75],
        [1.08, 1.09, 1.11, 1.11, 1.07, 1.06, 1.04, 0.94, 0.86, 0.81, 0.75, 0.00],
    ]
)


@pytest.mark.parametrize(
    ("threshold", "k", "partition"),
    [(0.2, 2, "1-7 | 8-12"), (0.10, 3, "1-7 | 8-10 | 11-12"), (0.09, 4, "1-4 | 5-7 | 8-10 | 11-12")],
)
def test_their_bisection(threshold, k, partition):
    assert str(phases.recursive_bisection(MATRIX, threshold)) == partition
    found = phases.bisection(MATRIX)
    assert str(found.partition(k)) == partition
    assert found.thresholds[k - 2] >= threshold


def test_what_the_exact_objectives_give_for_three_phases():
    assert str(phases.max_cut(MATRIX, 3)) == "1-5 | 6-9 | 10-12"
    assert str(phases.contrast_cut(MATRIX, 3, min_length=2)) == "1-7 | 8-10 | 11-12"
    assert str(phases.contrast_cut(MATRIX, 3)) == "1-7 | 8-11 | 12"  # the last layer is far from all: two layers keep it in


def test_the_flagship_configuration_cuts_as_they_do():
    from experiments.configs import dinov2
    from experiments.settings import read
    from experiments.stages.phases.run import PhaseSettings, partitions_of

    settings = read(PhaseSettings, dinov2.get_config("k=2+3+4").phases, "config.phases")
    assert [str(p) for p in partitions_of(MATRIX, settings).values()] == [
        "1-7 | 8-12",
        "1-7 | 8-10 | 11-12",
        "1-4 | 5-7 | 8-10 | 11-12",
    ]
