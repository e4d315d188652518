"""What every benchmark needs: sides timed in turns, outputs compared, the ceiling of the machine, a table that is also JSON."""

import argparse
import contextlib
import json
import math
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from brh_jax.command import Parser

# Two libraries share a GPU: neither may take all of its memory at the start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

PACKAGES = ("jax", "flax", "torch", "transformers", "scikit-learn", "grain", "numpy", "scipy", "PyDMD")


class Disagreement(Exception):
    """Ours and the peer computed different things: their times mean nothing."""


class Skipped(Exception):
    """A peer that cannot run here, with the reason."""


class Side(NamedTuple):
    """One of the things compared.

    Attributes:
        run: does the work once; may return before it is done.
        wait: takes what `run` gave and returns when the work is done.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], Any] = lambda result: result


def ours(run: Callable[[], Any]) -> Side:
    """A side in jax."""
    return Side(run, jax.block_until_ready)


def theirs(run: Callable[[], Any]) -> Side:
    """A side in PyTorch."""
    import torch

    return Side(run, (lambda result: torch.cuda.synchronize()) if torch.cuda.is_available() else lambda result: result)


def in_turns(
    sides: dict[str, Side], repeats: int, *, least_seconds: float = 0.2, pause: float = 0.05, already_warm: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Seconds per call of each side, `[repeats]`: A B A B ..., so that whatever else the machine does hits all alike.

    Args:
        least_seconds: a turn calls its side as often as this takes, waiting once at the end.
        already_warm: sides that have run before, and need not do so twice before they are timed.
        pause: before each turn; threads of the other library that wait for work by spinning go to sleep in it.
    """
    calls = {}
    for name, side in sides.items():
        seconds = _seconds(side, 1)  # compiles
        if name not in already_warm:
            seconds = _seconds(side, 1)
        calls[name] = max(1, math.ceil(least_seconds / max(seconds, 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            time.sleep(pause)
            found[name].append(_seconds(side, calls[name]))
    return {name: np.array(times) for name, times in found.items()}


def _seconds(side: Side, calls: int) -> float:
    begun = time.perf_counter()
    for _ in range(calls):
        result = side.run()
    side.wait(result)
    return (time.perf_counter() - begun) / calls


def parser(name: str, doc: str, *, repeats: int = 5) -> argparse.ArgumentParser:
    """A command line with the options that all benchmarks have."""
    made = Parser(f"benchmarks {name}", doc)
    made.add_argument("--repeats", type=int, default=repeats, help="turns of each side")
    made.add_argument("--threads", type=int, default=0, help="cores that either side may use; 0 for all there are")
    made.add_argument("--json", default="", metavar="FILE", help="write the table there too")
    made.add_argument("--tiny", action="store_true", help="so small that it only shows whether it runs")
    return made


class Report:
    """Rows, printed as they come and kept for `--json`.

    A ratio is a peer's median time over ours: above 1 ours is faster.
    """

    COLUMNS = (
        ("what", "", 52, "{}"),
        ("seconds", "median s", 10, "{:.4g}"),
        ("quartiles", "quartiles", 17, "{0[0]:.3g} - {0[1]:.3g}"),
        ("per_second", "images/s", 9, "{:,.4g}"),
        ("gflop", "GFLOP", 9, "{:,.4g}"),
        ("gflop_per_second", "GFLOP/s", 9, "{:,.4g}"),
        ("of_ceiling", "of ceiling", 10, "{:.0%}"),
        ("peak_gb", "peak GB", 8, "{:.2f}"),
        ("ratio", "ratio", 7, "{:.2f}"),
    )

    def __init__(self, name: str, arguments: argparse.Namespace):
        """Binds the process to `--threads` cores; must come before jax is used."""
        if arguments.threads and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
        self.name, self.file = name, arguments.json
        self.arguments = {key: value for key, value in vars(arguments).items() if key != "json"}
        self.ceiling: float | None = None
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        print(f"{name}: {machine()}", flush=True)
        print(" ".join(f"{title:>{width}}" for _, title, width, _ in self.COLUMNS), flush=True)

    def row(
        self,
        what: str,
        times: Sequence[float] | np.ndarray | None = None,
        *,
        images: int | None = None,
        flops: float | None = None,
        against: Sequence[float] | np.ndarray | None = None,
        peak_gb: float | None = None,
        remark: str = "",
    ) -> None:
        """Prints a row and keeps it.

        Args:
            times: seconds of each turn.
            images, flops: of one call.
            against: times of ours, on a peer's row.
            remark: printed below the row.
        """
        found: dict[str, Any] = {"what": what, "remark": remark}
        if times is not None:
            seconds = float(np.median(times))
            found |= {"seconds": seconds, "quartiles": [float(q) for q in np.percentile(times, (25, 75))]}
            found["times"] = [float(t) for t in times]
            if images:
                found["per_second"] = images / seconds
            if flops:
                found |= {"gflop": flops / 1e9, "gflop_per_second": flops / 1e9 / seconds}
                if self.ceiling:
                    found["of_ceiling"] = flops / seconds / self.ceiling
            if against is not None:
                found["ratio"] = seconds / float(np.median(against))
        if peak_gb is not None:
            found["peak_gb"] = peak_gb
        self._print(found)

    def ratio(self, what: str, value: float, remark: str = "") -> None:
        """A ratio that is not one of times on one row."""
        self._print({"what": what, "ratio": value, "remark": remark})

    def figures(self, what: str, values: dict[str, float], remark: str) -> None:
        """Figures of other kinds than time and memory, by their names; `remark` says them to people."""
        self._print({"what": what} | values | {"remark": remark})

    def skip(self, what: str, reason: Exception | str) -> None:
        """A row that could not be measured here."""
        self._print({"what": what, "skipped": str(reason), "remark": f"skipped: {reason}"})

    def note(self, text: str) -> None:
        """A line below the rows so far."""
        self.notes.append(text)
        print(f"  {text}", flush=True)

    def agree(self, what: str, ours: ArrayLike, theirs: ArrayLike, tolerance: float) -> None:
        """Notes |ours - theirs| / |theirs| over all entries.

        Raises:
            Disagreement: it is above `tolerance`.
        """
        ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
        if ours.shape != theirs.shape:
            raise Disagreement(f"{what}: shapes {ours.shape} and {theirs.shape}")
        difference = float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), np.finfo(float).tiny))
        if not difference <= tolerance:
            raise Disagreement(f"{what} differ by {difference:.1e} of their size, above {tolerance:.0e}")
        self.note(f"{what} agree to {difference:.0e} of their size (at most {tolerance:.0e})")

    def finish(self) -> int:
        """Writes the file asked for; the exit status."""
        if self.file:
            about: dict[str, Any] = {"benchmark": self.name, "machine": machine(), "versions": versions()}
            about |= {"arguments": self.arguments, "ceiling_flops": self.ceiling, "rows": self.rows, "notes": self.notes}
            pathlib.Path(self.file).write_text(json.dumps(about, indent=2) + "\n")
        return 0

    def _print(self, row: dict) -> None:
        self.rows.append({key: value for key, value in row.items() if value != ""})
        cells = [form.format(row[key]) if key in row else "" for key, _, _, form in self.COLUMNS]
        first, *rest = (width for _, _, width, _ in self.COLUMNS)
        aligned = [f"{cells[0]:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells[1:], rest, strict=True))]
        print(" ".join(aligned).rstrip(), flush=True)
        if row.get("remark"):
            print(f"    {row['remark']}", flush=True)


def measure_with_ceiling(
    report: Report, sides: dict[str, Side], repeats: int, dtype: str, *, size: int = 0
) -> dict[str, np.ndarray]:
    """`in_turns`, with a large matrix product of each library among the sides: the best of them is the report's ceiling."""
    size = size or (8192 if jax.default_backend() != "cpu" else 2048)
    products = _products(dtype, size)
    times = in_turns(products | sides, repeats)
    best = {name: 2 * size**3 / float(np.median(times[name])) for name in products}
    report.ceiling = max(best.values())
    report.note(
        f"ceiling, products of {size} x {size} {dtype}: " + ", ".join(f"{n} {f / 1e9:,.0f} GFLOP/s" for n, f in best.items())
    )
    return {name: times[name] for name in sides}


def _products(dtype, size):
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    multiply = jax.jit(lambda a: a @ a)
    sides = {"jax": ours(lambda: multiply(matrix))}
    try:
        torch = load_torch()
    except Skipped:
        return sides
    same = torch.randn(size, size, dtype=getattr(torch, dtype), device=torch_device())
    return sides | {"torch": theirs(lambda: same @ same)}


def load_torch(*others: str, device: str = "") -> Any:
    """torch, with as many threads as this process may use.

    Args:
        others: packages that are needed with it.
        device: where torch is to work; by default where jax does.

    Raises:
        Skipped: it, or one of `others`, is not installed, or jax has a GPU and torch has not.
    """
    try:
        import torch

        for name in others:
            __import__(name)
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed") from None
    if (device or torch_device()) == "cpu":
        torch.set_num_threads(cores())
    elif not torch.cuda.is_available():
        raise Skipped(f"jax runs on {jax.devices()[0].device_kind}, this torch cannot")
    return torch


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Raises Skipped where torch has not enough beside what jax has taken."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise Skipped("the GPU has not enough memory for both in one process") from None


def torch_device() -> str:
    """Where torch works: on the same kind of device as jax."""
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def tolerance(dtype: str) -> float:
    """How far states of two libraries may lie apart; float32 products on a GPU may be made of fewer digits."""
    return 5e-2 if dtype != "float32" else 1e-4 if jax.default_backend() == "cpu" else 1e-2


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forget_peak() -> None:
    """From here on `peak_gb` starts anew, where the platform can do that."""
    if jax.default_backend() == "cpu" and pathlib.Path("/proc/self/clear_refs").exists():
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_gb() -> float:
    """Largest memory so far, in GB: of the GPU that jax or torch works on, else of this process."""
    if jax.default_backend() != "cpu":
        torch = sys.modules.get("torch")
        by_torch = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else 0
        return max(by_torch, (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)) / 1e9
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start at that of the process which started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def in_a_process(name: str, *options: str) -> dict:
    """What `python -m benchmarks NAME OPTIONS` prints as its last line, as JSON: for peaks of memory.

    Raises:
        Skipped: it failed.
    """
    command, environment = as_process(name, *options)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Skipped((done.stderr.strip().splitlines() or ["it printed nothing"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def as_process(name: str, *options: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of `python -m benchmarks NAME OPTIONS`."""
    root = pathlib.Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    return [sys.executable, "-m", "benchmarks", name, *options], environment


def versions() -> dict[str, str]:
    """Versions of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The device and the versions that matter, in a line."""
    there = versions()
    libraries = ", ".join(f"{name} {there[name]}" for name in ("jax", "torch") if name in there)
    device = f"{cores()} cores, {_processor()}" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
    return f"{device}; {libraries}; {time.strftime('%Y-%m-%d')}"


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if names and names[0] != "unknown":
            return names[0]
    return platform.machine()
