"""The best cut of depth into k phases, by dynamic programming and by trying all cuts.

python -m benchmarks partition --depth=24 --k=2,3,4,6,8
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from benchmarks import measure
from brh_jax import phases


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("partition", __doc__)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--k", default="2,3,4,6,8", help="numbers of phases")
    parser.add_argument("--matrices", type=int, default=5, help="random matrices on which the cuts are compared")
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.depth, arguments.k, arguments.repeats = 8, "2,3", 2
    report = measure.Report("partition", arguments)
    matrices = [_random(arguments.depth, seed) for seed in range(arguments.matrices)]
    for k in (int(n) for n in arguments.k.split(",")):
        for d in matrices:
            ours, theirs = phases.max_cut(d, k), phases.Partition(brute_force(d, k))
            if ours != theirs:
                raise measure.Disagreement(f"max_cut gives {ours}, brute force {theirs}")
        d = matrices[0]
        names = f"k = {k}, phases.max_cut", f"k = {k}, brute force"
        sides = {
            names[0]: measure.Side(functools.partial(phases.max_cut, d, k)),
            names[1]: measure.Side(functools.partial(brute_force, d, k)),
        }
        times = measure.in_turns(sides, arguments.repeats)
        report.row(names[0], times[names[0]])
        report.row(names[1], times[names[1]], against=times[names[0]], remark=f"the same cuts of {len(matrices)} random matrices")
    return report.finish()


def _random(depth, seed):
    """Dissimilarities of layers along a noisy walk."""
    walk = np.random.default_rng(seed).normal(size=(depth, 8)).cumsum(0)
    return np.linalg.norm(walk[:, None] - walk[None], axis=-1)


def brute_force(dissimilarity: np.ndarray, k: int) -> tuple[int, ...]:
    """Lengths of the phases of the best of all cuts, all of them weighed in one numpy expression."""
    depth = len(dissimilarity)
    above = np.zeros((depth + 1, depth + 1))
    above[1:, 1:] = dissimilarity.cumsum(0).cumsum(1)
    edges = np.array(list(itertools.combinations(range(1, depth), k - 1))).reshape(-1, k - 1)
    edges = np.pad(edges, ((0, 0), (1, 1)), constant_values=((0, 0), (0, depth)))
    a, b = edges[:, :-1], edges[:, 1:]
    within = (above[b, b] - above[a, b] - above[b, a] + above[a, a]).sum(1)
    return tuple(int(n) for n in np.diff(edges[np.argmin(within)]))
