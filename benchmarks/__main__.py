"""python -m benchmarks NAME [options]: measures one kind of work and prints a table; --help after the name tells more.

Names: dynamics.
"""

import importlib
import sys

NAMES = ("dynamics",)


def main(argv=None) -> int:
    """Command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in NAMES:
        print(f"error: name one of {', '.join(NAMES)}: python -m benchmarks {NAMES[0]}", file=sys.stderr)
        return 2
    return importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
