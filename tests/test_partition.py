import pytest

from brh_jax.phases import Partition


def test_lengths_boundaries_and_text():
    p = Partition((7, 3, 2))
    assert str(p) == "1-7 | 8-10 | 11-12"
    assert (p.k, p.depth, p.boundaries, p.contiguous) == (3, 12, (7, 10), True)
    assert p.labels == (0,) * 7 + (1,) * 3 + (2,) * 2
    assert [tuple(r) for r in p.runs] == [(0, 0, 7), (1, 7, 10), (2, 10, 12)]


def test_fragmented():
    p = Partition.from_labels("aababb")
    assert p == Partition((2, 1, 1, 2), (0, 1, 0, 1))
    assert str(p) == "1-2,4 | 3,5-6"
    assert (p.k, p.contiguous) == (2, False)


@pytest.mark.parametrize(
    ("lengths", "phases", "fault"),
    [
        ((), None, "at least one layer"),
        ((3, 0), None, "at least one layer"),
        ((3, 1), (0,), "one phase per run"),
        ((3, 1), (1, 0), "order of first appearance"),
        ((3, 1), (0, 2), "order of first appearance"),
        ((3, 1), (0, 0), "must be one run"),
    ],
)
def test_what_is_no_partition(lengths, phases, fault):
    with pytest.raises(ValueError, match=fault):
        Partition(lengths, phases)
