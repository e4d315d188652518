"""One linear map per span of layers: brh_jax.dynamics.dmd beside PyDMD, of the same rank on the same snapshots.

python -m benchmarks dmd --num-images=16
"""

import warnings
from collections.abc import Sequence

import numpy as np

from benchmarks import measure, models
from brh_jax import dynamics


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("dmd", __doc__, repeats=3)
    models.add_options(parser)
    parser.add_argument("--num-images", type=int, default=4)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--span", default="1,7", help="first and last layer, from 1")
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.num_images, arguments.rank, arguments.repeats, arguments.span = 16, 4, 2, "1,3"
    report = measure.Report("dmd", arguments)
    encoder = models.from_options(arguments)
    first, last = (int(n) for n in arguments.span.split(","))
    states = np.asarray(encoder.trajectory(encoder.normalize_pixels(models.random_pixels(arguments.num_images, arguments.size))))
    rank = arguments.rank

    def ours():
        return dynamics.dmd(states, (first, last), rank, layout=encoder.layout)

    found = ours()
    name = f"brh_jax.dynamics.dmd, rank {rank}"
    sides = {name: measure.Side(ours)}
    try:
        from pydmd import DMD

        dim = encoder.dim
        before, after = (states[a : a + last - first + 1].reshape(-1, dim).T.astype(np.float64) for a in (first - 1, first))

        def theirs():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return DMD(svd_rank=rank, exact=False).fit(before, after)

        moduli = np.sort(np.abs(theirs().eigs))
        report.agree("moduli of the eigenvalues and those of PyDMD", np.sort(np.abs(found.eigenvalues)), moduli, 1e-4)
        sides[f"PyDMD, rank {rank}"] = measure.Side(theirs)
    except ImportError as error:
        report.skip("PyDMD", f"{error.name} is not installed")
    times = measure.in_turns(sides, arguments.repeats)
    for label, seconds in times.items():
        report.row(label, seconds, against=None if label == name else times[name])
    pairs = (last - first + 1) * arguments.num_images * encoder.layout.num_tokens
    report.note(f"{pairs:,} pairs of {encoder.dim} numbers; peak so far {measure.peak_gb():.2f} GB")
    return report.finish()
