import jax
import numpy as np
import pytest

from brh_jax.errors import UserError
from brh_jax.train.parallel import make_mesh, shard, shard_batch


def test_the_open_axis_takes_what_is_left():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(data=-1, fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert make_mesh(devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize("shape", [{"data": 3}, {"data": -1, "fsdp": 3}, {"data": -1, "fsdp": -1}, {"data": 2, "fsdp": 2}])
def test_axes_that_do_not_fit(shape):
    with pytest.raises(UserError, match="8 devices"):
        make_mesh(**shape)


def test_batches_are_split_and_parameters_are_not():
    mesh = make_mesh(data=4, fsdp=2)
    batch = shard_batch({"image": np.arange(16.0).reshape(16, 1)}, mesh)["image"]
    assert [s.data.shape for s in batch.addressable_shards] == [(2, 1)] * 8
    np.testing.assert_array_equal(batch, np.arange(16.0).reshape(16, 1))
    assert all(s.data.shape == (3,) for s in shard({"norm": np.ones(3)}, mesh)["norm"].addressable_shards)
    with pytest.raises(UserError, match="a batch of 9 images does not divide over 8 devices"):
        shard_batch({"image": np.zeros(9)}, mesh)
