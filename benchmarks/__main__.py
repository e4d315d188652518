"""python -m benchmarks NAME [options]: one kind of work, ours beside a peer, in turns; --help after the name tells more.

Names: teacher, raptor_step, stage1, similarity, partition, jacobian, ranks, dynamics, dmd, input, convert, parity, fidelity;
accelerator runs those that a GPU is for, in so many minutes.
"""

import importlib
import sys
from collections.abc import Sequence

NAMES = (
    "teacher",
    "raptor_step",
    "stage1",
    "similarity",
    "partition",
    "jacobian",
    "ranks",
    "dynamics",
    "dmd",
    "input",
    "convert",
    "parity",
    "fidelity",
    "accelerator",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    from brh_jax.errors import UserError, did_you_mean

    if not argv or argv[0] not in NAMES:
        hint = did_you_mean(argv[0], NAMES) if argv else ""
        print(f"error: {hint}name one of {', '.join(NAMES)}: python -m benchmarks {NAMES[0]}", file=sys.stderr)
        return 2
    from benchmarks.measure import Disagreement

    try:
        return importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Disagreement as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
