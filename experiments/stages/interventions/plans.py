"""What runs in place of the trained order: groups of plans of one sort each."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Sequence

from brh_jax import interventions as causal
from brh_jax.interventions import Swap
from brh_jax.partition import Partition

Plan = tuple[int, ...]
UNCHANGED = "unchanged"
# What is done to every layer by itself.
ACTIONS: dict[str, Callable[[int, int, str], Plan]] = {"delete": causal.delete, "repeat": causal.repeat}


@dataclasses.dataclass(frozen=True)
class SwapGroup:
    """Layers, or halves of them, replaced by others of the teacher.

    Attributes:
        num_layers: replaced at a time.
        part: of the layers, a key of `brh_jax.interventions.PARTS`.
        swaps: what replaces what.
    """

    num_layers: int
    part: str
    swaps: tuple[Swap, ...]

    @property
    def name(self) -> str:
        """What people call the group, and its arrays are called by."""
        return f"{self.num_layers} layer{'s' * (self.num_layers > 1)}" if self.part == "layer" else self.part

    def plans(self, depth: int) -> list[Plan]:
        """A plan for each swap."""
        return [causal.replace(depth, swap.places, swap.layers, self.part) for swap in self.swaps]


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """Every layer by itself, or half of it, left out or applied twice.

    Attributes:
        action: a key of ACTIONS.
        part: of the layer, a key of `brh_jax.interventions.PARTS`.
    """

    action: str
    part: str

    @property
    def name(self) -> str:
        """What people call the group, and its arrays are called by."""
        return f"{self.action} {self.part}"

    def plans(self, depth: int) -> list[Plan]:
        """A plan for each layer."""
        return [ACTIONS[self.action](depth, layer, self.part) for layer in range(depth)]


@dataclasses.dataclass(frozen=True)
class Groups:
    """All plans that are run, by group.

    Attributes:
        depth: of the teacher.
        swaps, layers: of the teacher alone.
        raptors: partitions of the Raptors that make hybrids with it, by name.
    """

    depth: int
    swaps: list[SwapGroup]
    layers: list[LayerGroup]
    raptors: dict[str, Partition]

    @property
    def alone(self) -> dict[str, list[Plan]]:
        """Plans of the teacher alone by group, the trained order first."""
        groups: list[SwapGroup | LayerGroup] = [*self.swaps, *self.layers]
        plans = {group.name: group.plans(self.depth) for group in groups}
        return {UNCHANGED: [causal.unchanged(self.depth)]} | plans

    @property
    def hybrids(self) -> dict[str, list[Plan]]:
        """Plans of teacher and Raptor together, by Raptor."""
        return {name: hybrid_plans(partition) for name, partition in self.raptors.items()}


def swap_groups(
    partition: Partition, parts: Sequence[str], num_layers: Iterable[int], num_swaps: int, seed: int
) -> list[SwapGroup]:
    """Whole layers, so many at a time, and single halves of them; no group where the depth is too small for any swap."""
    numbers = [number for number in num_layers if number <= partition.depth] if "layer" in parts else []
    sorts = [(number, "layer") for number in numbers] + [(1, part) for part in parts if part != "layer"]
    swaps = {number: causal.layer_swaps(partition, number, most=num_swaps, seed=seed) for number in {n for n, _ in sorts}}
    return [SwapGroup(number, part, swaps[number]) for number, part in sorts if swaps[number]]


def layer_groups(parts: Sequence[str]) -> list[LayerGroup]:
    """Every action on every part."""
    return [LayerGroup(action, part) for part in parts for action in ACTIONS]


def hybrid_plans(partition: Partition) -> list[Plan]:
    """The Raptor alone; for each phase its block in the teacher; for each phase the teacher in the Raptor."""
    depth, labels = partition.depth, partition.labels

    def plan(of_raptor: Callable[[int], bool]) -> Plan:
        places = [layer for layer in range(depth) if of_raptor(labels[layer])]
        return causal.replace(depth, places, [depth + layer for layer in places])

    phases = range(partition.k)
    return [
        plan(lambda phase: True),
        *(plan(functools.partial(operator.eq, this)) for this in phases),
        *(plan(functools.partial(operator.ne, this)) for this in phases),
    ]
