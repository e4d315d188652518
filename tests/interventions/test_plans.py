import itertools

import pytest

from brh_jax.errors import UserError
from brh_jax.interventions import Swap, delete, layer_swaps, repeat, replace, unchanged
from brh_jax.phases import Partition

PARTITION = Partition((3, 2, 1))


def test_plans_spelled_out():
    assert unchanged(3) == (0, 1, 2, 3, 4, 5)
    assert replace(3, (0, 2), (1, 0)) == (2, 3, 2, 3, 0, 1)
    assert replace(3, (1,), (4,), "attention") == (0, 1, 8, 3, 4, 5)
    assert replace(3, (1,), (0,), "mlp") == (0, 1, 2, 1, 4, 5)
    assert delete(3, 1) == (0, 1, 4, 5)
    assert delete(3, 1, "mlp") == (0, 1, 2, 4, 5)
    assert repeat(3, 1) == (0, 1, 2, 3, 2, 3, 4, 5)
    assert repeat(3, 1, "attention") == (0, 1, 2, 2, 3, 4, 5)
    assert repeat(3, 2, "mlp") == (0, 1, 2, 3, 4, 5, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: delete(3, 3), r"layer 3 is out of range: layers are counted from 0, there are 3"),
        (lambda: repeat(3, -1), r"layer -1 is out of range"),
        (lambda: replace(3, (0,), (1,), "norm"), r"unknown part 'norm' of a layer: expected one of layer, attention, mlp"),
        (lambda: replace(3, (0, 0), (1, 2)), r"places \(0, 0\) and layers \(1, 2\): expected different places and one layer"),
        (lambda: replace(3, (0, 1), (1,)), r"expected different places and one layer for each"),
        (lambda: layer_swaps(PARTITION, 7), r"swaps of 7 layers: expected a number of layers from 1 to 6"),
        (lambda: layer_swaps(PARTITION, most=-1), r"-1 swaps of 1 layers"),
    ],
)
def test_wrong_plans_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_all_swaps_of_one_layer_are_all_pairs():
    swaps = layer_swaps(PARTITION)
    assert {(s.places[0], s.layers[0]) for s in swaps} == set(itertools.permutations(range(6), 2))
    assert len(swaps) == 30
    assert all(s.is_inter(PARTITION) == (PARTITION.labels[s.places[0]] != PARTITION.labels[s.layers[0]]) for s in swaps)


@pytest.mark.parametrize("num_layers", [2, 3])
def test_all_swaps_of_several_layers_against_brute_force(num_layers):
    wanted = set()
    for places in itertools.combinations(range(6), num_layers):
        for layers in itertools.product(range(6), repeat=num_layers):
            distances = {abs(i - j) for i, j in zip(places, layers, strict=True)}
            if len(distances) == 1 and 0 not in distances and Swap(places, layers).is_inter(PARTITION) is not None:
                wanted.add(Swap(places, layers))
    found = layer_swaps(PARTITION, num_layers)
    assert set(found) == wanted and len(found) == len(wanted) > 0


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_sample_is_seeded_distinct_and_balanced(num_layers):
    everything = layer_swaps(PARTITION, num_layers)
    drawn = layer_swaps(PARTITION, num_layers, most=20, seed=3)
    assert drawn == layer_swaps(PARTITION, num_layers, most=20, seed=3) != layer_swaps(PARTITION, num_layers, most=20, seed=4)
    assert set(drawn) <= set(everything) and len(set(drawn)) == len(drawn) <= 20

    def strata(swaps):
        return [(s.distance, s.is_inter(PARTITION)) for s in swaps]

    assert set(strata(drawn)) == set(strata(everything))
    share = max(strata(drawn).count(s) for s in set(strata(drawn)))
    for stratum in set(strata(everything)):
        assert strata(drawn).count(stratum) == min(share, strata(everything).count(stratum))
    assert layer_swaps(PARTITION, num_layers, most=10_000) == everything


def test_kinds_of_fragmented_and_mixed_swaps():
    fragmented = Partition((2, 1, 1), (0, 1, 0))
    assert Swap((0,), (3,)).is_inter(fragmented) is False
    assert Swap((0, 3), (2, 1)).is_inter(fragmented) is None
    assert {s.is_inter(Partition((4,))) for s in layer_swaps(Partition((4,)))} == {False}
    assert Swap((1, 2), (4, 5)).distance == 3
