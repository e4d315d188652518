"""Partition: how depth is divided into phases that share one block each."""

import dataclasses
import itertools
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from brh_jax.errors import UserError


class Run(NamedTuple):
    """Consecutive layers of one phase: layers `start` ... `stop - 1`, counted from 0."""

    phase: int
    start: int
    stop: int

    def __str__(self) -> str:
        """Its layers counted from 1: `1-7`, or `8` for one layer."""
        return f"{self.start + 1}-{self.stop}" if self.stop - self.start > 1 else f"{self.stop}"


@dataclasses.dataclass(frozen=True)
class Partition:
    """Depth as runs of consecutive layers, each run belonging to a phase.

    `Partition((7, 3, 2))` is layers 1-7 | 8-10 | 11-12, one phase per run. A fragmented partition, in which a phase comes
    back later, names the phase of each run: `Partition((2, 1, 2), phases=(0, 1, 0))`.

    Attributes:
        lengths: number of layers in each run, in order of depth.
        phases: phase of each run, numbered from 0 in order of first appearance.

    Raises:
        UserError: no runs, an empty one, or phases that are not numbered as said.
    """

    lengths: tuple[int, ...]
    phases: tuple[int, ...] = None  # type: ignore[assignment]  # filled in below: a phase per run

    def __post_init__(self):
        lengths = tuple(int(n) for n in self.lengths)
        phases = tuple(range(len(lengths))) if self.phases is None else tuple(int(p) for p in self.phases)
        if not lengths or min(lengths) < 1:
            raise UserError(f"a partition needs one or more runs of at least one layer, got lengths {self.lengths}")
        if len(phases) != len(lengths):
            raise UserError(f"{len(lengths)} runs but {len(phases)} phases: give one phase per run")
        if sorted(set(phases)) != list(dict.fromkeys(phases)) or phases[0] != 0 or set(phases) != set(range(max(phases) + 1)):
            raise UserError(f"phases must be numbered 0, 1, ... in order of first appearance, got {phases}")
        if any(a == b for a, b in itertools.pairwise(phases)):
            raise UserError(f"neighbouring runs of one phase must be one run, got phases {phases}")
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "phases", phases)

    @classmethod
    def from_labels(cls, labels: Iterable[Hashable]) -> "Partition":
        """The partition in which layer l has phase `labels[l]` (any hashable labels; phases are numbered as they appear)."""
        labels = list(labels)
        numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        lengths, phases = [], []
        for label in labels:
            if phases and phases[-1] == numbers[label]:
                lengths[-1] += 1
            else:
                lengths.append(1)
                phases.append(numbers[label])
        return cls(tuple(lengths), tuple(phases))

    @property
    def k(self) -> int:
        """Number of phases, hence of shared blocks."""
        return max(self.phases) + 1

    @property
    def depth(self) -> int:
        """Number of layers."""
        return sum(self.lengths)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Number of layers above each cut: (7, 10) for 1-7 | 8-10 | 11-12."""
        return tuple(sum(self.lengths[:i]) for i in range(1, len(self.lengths)))

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs in order of depth."""
        edges = (0, *self.boundaries, self.depth)
        return tuple(Run(p, a, b) for p, a, b in zip(self.phases, edges, edges[1:], strict=False))

    @property
    def labels(self) -> tuple[int, ...]:
        """Phase of each layer, from 0."""
        return tuple(run.phase for run in self.runs for _ in range(run.start, run.stop))

    @property
    def contiguous(self) -> bool:
        """Whether every phase is one run."""
        return self.k == len(self.lengths)

    def __str__(self) -> str:
        """Layers counted from 1: `1-7 | 8-10 | 11-12`; fragments of a phase are joined by commas."""
        return " | ".join(",".join(str(r) for r in self.runs if r.phase == phase) for phase in range(self.k))
