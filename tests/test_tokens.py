import jax.numpy as jnp
import pytest

from brh_jax.tokens import TokenLayout, check_trajectory


def test_split_gives_cls_registers_patches_in_order():
    layout = TokenLayout(1, 4, (2, 3))
    states = jnp.arange(11)[:, None] * jnp.ones((5, 11, 7))
    cls, registers, patches = layout.split(states)
    assert layout.num_tokens == 11
    assert cls[0, :, 0].tolist() == [0]
    assert registers[0, :, 0].tolist() == [1, 2, 3, 4]
    assert patches[0, :, 0].tolist() == [5, 6, 7, 8, 9, 10]


def test_any_part_may_be_empty():
    parts = TokenLayout(0, 0, (2, 2)).split(jnp.zeros((4, 3)))
    assert [p.shape for p in parts] == [(0, 3), (0, 3), (4, 3)]


def test_states_of_another_size_are_refused_with_both_counts():
    with pytest.raises(ValueError, match=r"expected 17 tokens.*1 cls \+ 0 registers \+ 4 x 4"):
        TokenLayout(1, 0, (4, 4)).split(jnp.zeros((2, 5, 3)))
    with pytest.raises(ValueError, match="expected a trajectory"):
        check_trajectory(jnp.zeros((2, 17, 3)), TokenLayout(1, 0, (4, 4)))
