"""Plans of depth: which layers run, in which order, where the trained order is 0, 1, 2, ...

A plan is a sequence of half layers, as `Encoder.system(sublayers=True)` counts them: 2 l is the attention of layer l (from 0),
2 l + 1 its feed-forward part.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from brh_jax.errors import UserError
from brh_jax.partition import Partition

# Parts of a layer that an intervention can act on, as offsets of its halves.
PARTS = {"layer": (0, 1), "attention": (0,), "mlp": (1,)}


class Swap(NamedTuple):
    """Layers replaced by others, all as far away as each other: at `places[n]` runs `layers[n]`, both from 0."""

    places: tuple[int, ...]
    layers: tuple[int, ...]

    @property
    def distance(self) -> int:
        """How far from its place the layer comes from, |place - layer|."""
        return abs(self.places[0] - self.layers[0])

    def is_inter(self, partition: Partition) -> bool | None:
        """Whether the replacements come from other phases than the layers that they replace; None where some do."""
        labels = partition.labels
        other = {labels[i] != labels[j] for i, j in zip(self.places, self.layers, strict=True)}
        return other.pop() if len(other) == 1 else None


def unchanged(depth: int) -> tuple[int, ...]:
    """The trained order of `depth` layers."""
    return tuple(range(2 * depth))


def replace(depth: int, places: Sequence[int], layers: Sequence[int], part: str = "layer") -> tuple[int, ...]:
    """Runs `layers[n]` at `places[n]`; a layer from `depth` on is one of the guest's (see `apply_plans`).

    Raises:
        UserError: an unknown part, a place that is not there or twice, or not as many layers as places.
    """
    halves = _halves(part)
    if len(places) != len(layers) or len(set(places)) < len(places):
        raise UserError(f"places {tuple(places)} and layers {tuple(layers)}: expected different places and one layer for each")
    plan = list(unchanged(depth))
    for place, layer in zip(places, layers, strict=True):
        _check_layer(place, depth)
        for half in halves:
            plan[2 * place + half] = 2 * layer + half
    return tuple(plan)


def delete(depth: int, layer: int, part: str = "layer") -> tuple[int, ...]:
    """Leaves a layer, or half of it, out: its input is handed on. Raises UserError as `replace` does."""
    _check_layer(layer, depth)
    gone = {2 * layer + half for half in _halves(part)}
    return tuple(half for half in unchanged(depth) if half not in gone)


def repeat(depth: int, layer: int, part: str = "layer") -> tuple[int, ...]:
    """Runs a layer, or half of it, twice in succession. Raises UserError as `replace` does."""
    _check_layer(layer, depth)
    halves = [2 * layer + half for half in _halves(part)]
    plan = unchanged(depth)
    return (*plan[: halves[-1] + 1], *halves, *plan[halves[-1] + 1 :])


def layer_swaps(partition: Partition, num_layers: int = 1, *, most: int = 0, seed: int = 0) -> tuple[Swap, ...]:
    """Swaps of `num_layers` layers at a time, within phases and across them, at every distance |i - j|.

    All replacements of a swap are equally far away, and all are of the replaced layer's own phase or none is: otherwise
    neither its distance nor its kind would be defined.

    Args:
        most: at most so many, about the same number for each distance and kind as far as there are; 0 for all of them.
        seed: of the draw.

    Raises:
        UserError: a number that is negative, or not from 1 to the number of layers.
    """
    if not 1 <= num_layers <= partition.depth or most < 0:
        raise UserError(
            f"{most} swaps of {num_layers} layers: expected a number of layers from 1 to {partition.depth}, and of swaps from 0"
        )
    rng = np.random.default_rng(seed)
    strata = [
        stratum
        for distance in range(1, partition.depth)
        for inter in (False, True)
        if len(stratum := _replacements(partition.labels, distance, inter)) >= num_layers
    ]
    counts = [_count(stratum, num_layers) for stratum in strata]
    share = max(counts, default=0)
    if most and sum(counts) > most:
        share = max((s for s in range(1, most) if sum(min(c, s) for c in counts) <= most), default=1)
    return tuple(swap for s, count in zip(strata, counts, strict=True) for swap in _draw(s, count, num_layers, share, rng))


def _replacements(labels, distance: int, inter: bool) -> dict[int, list[int]]:
    """Place -> the layers at a distance that are of another phase (`inter`) or of the same; places without any are left out."""
    depth, found = len(labels), {}
    for i in range(depth):
        layers = [j for j in (i - distance, i + distance) if 0 <= j < depth and (labels[i] != labels[j]) == inter]
        if layers:
            found[i] = layers
    return found


def _count(stratum, num_layers: int) -> int:
    """How many swaps of so many layers there are: the elementary symmetric polynomial of the numbers of replacements."""
    totals = [1] + [0] * num_layers
    for layers in stratum.values():
        for n in range(num_layers, 0, -1):
            totals[n] += totals[n - 1] * len(layers)
    return totals[num_layers]


def _draw(stratum, count: int, num_layers: int, share: int, rng) -> list[Swap]:
    """`share` of the swaps of a stratum, all with the same probability, or all of them where there are no more."""
    if count <= share:
        return [
            Swap(places, layers)
            for places in itertools.combinations(stratum, num_layers)
            for layers in itertools.product(*(stratum[place] for place in places))
        ]
    single = [(place, layer) for place, layers in stratum.items() for layer in layers]
    drawn = set()
    while len(drawn) < share:
        chosen = sorted(single[n] for n in rng.choice(len(single), num_layers, replace=False))
        places, layers = zip(*chosen, strict=True)
        if len(set(places)) == num_layers:
            drawn.add(Swap(places, layers))
    return sorted(drawn)


def _check_layer(layer: int, depth: int) -> None:
    if not 0 <= layer < depth:
        raise UserError(f"layer {layer} is out of range: layers are counted from 0, there are {depth}")


def _halves(part: str) -> tuple[int, ...]:
    if part not in PARTS:
        raise UserError(f"unknown part {part!r} of a layer: expected one of {', '.join(PARTS)}")
    return PARTS[part]
