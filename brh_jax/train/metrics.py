"""Figures of a run as it goes: a JSONL file for scripts, a progress line for people."""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator

from brh_jax.train.parallel import is_main


class MetricsFile:
    """Rows of `{"step": ..., name: value}` appended to a JSONL file.

    Only the first process of a run writes.

    Args:
        path: the file.
        resume_step: rows after this step are dropped, so that a run that goes on repeats none.
        tensorboard: also write events for TensorBoard, into `tensorboard/` beside the file.
    """

    def __init__(self, path: str | os.PathLike, resume_step: int = 0, *, tensorboard: bool = False):
        self.path = pathlib.Path(path)
        self._file = self._events = None
        if not is_main():
            return
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=resume_step + 1)
        kept = [row for row in read_metrics(self.path) if row["step"] <= resume_step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.with_name(f".{self.path.name}.tmp")
        whole.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(whole, self.path)
        self._file = self.path.open("a")

    def write(self, step: int, values: dict) -> None:
        """Appends a row; on disk at once."""
        if self._file is not None:
            self._write({"step": step} | values)
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Ends the file."""
        for file in (self._file, self._events):
            if file is not None:
                file.close()

    def _write(self, row):
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The rows of a metrics file; none where there is no file. What is no row, cut off by a crash say, is left out."""
    rows = []
    path = pathlib.Path(path)
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


class Progress:
    """A line that says what runs, how far it is, at what rate, and how long it will take.

    On a terminal and in a notebook one line is rewritten, with a bar; in a log file a new line comes every `interval` seconds.

    Args:
        label: what runs.
        total: number of steps.
        unit: what `rate` counts, "images" say; `per_step` of them pass in a step. Empty where steps differ so much that neither
            a rate nor the time left says anything; the time gone by is told instead.
    """

    def __init__(self, label: str, total: int, *, unit: str = "images", per_step: int = 1, interval: float = 10.0):
        self.label, self.total, self.unit, self.per_step, self.interval = label, total, unit, per_step, interval
        self.begun = time.monotonic()
        # (time, step) after the first step: compilation does not count towards the rate.
        self._first: tuple[float, int] | None = None
        self._shown = 0.0
        self._width = 0

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done meanwhile speaks on lines of its own, and does not count towards the rate."""
        if sys.stdout.isatty() and self._width:
            print(flush=True)
        begun = time.monotonic()
        yield
        if self._first is not None:
            self._first = (self._first[0] + time.monotonic() - begun, self._first[1])

    def update(self, step: int, text: str = "") -> float | None:
        """Shows the state after `step` steps; returns the rate in units per second, once it is known."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, step)
            rate = None
        else:
            elapsed, steps = now - self._first[0], step - self._first[1]
            rate = self.per_step * steps / elapsed if elapsed > 0 and steps else None
        done = step >= self.total
        tty = sys.stdout.isatty() or type(sys.stdout).__module__.startswith("ipykernel")
        if not (tty or done or now - self._shown >= self.interval):
            return rate
        self._shown = now
        bar = f" {_bar(step / max(self.total, 1))}" if tty else ""
        parts = [f"{self.label:<24}{bar} {step:>{len(str(self.total))}}/{self.total}", text]
        if not self.unit:
            parts += [] if done else [f"after {clock(now - self.begun)}"]
        elif rate:
            parts.append(f"{rate:,.1f} {self.unit}/s")
            if not done:
                parts.append(f"{clock(self.per_step * (self.total - step) / rate)} left")
        if done:
            parts.append(f"took {clock(now - self.begun)}")
        line = "  ".join(p for p in parts if p)
        self._width = max(self._width, len(line))
        print(
            ("\r" if tty else "") + line.ljust(self._width if tty else 0),
            end="\n" if done or not tty else "",
            flush=True,
        )
        return rate


def _bar(share: float) -> str:
    """Twenty places, as many of them full as is done."""
    full = min(20, int(20 * share))
    return f"[{'#' * full}{'.' * (20 - full)}]"


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:05:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
