import json

import jax
import numpy as np
import pytest

from brh_jax.errors import UserError
from brh_jax.train import parallel
from brh_jax.train.parallel import differences, gathered, make_mesh, shard, shard_batch, together


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


def test_what_processes_differ_in_is_named(monkeypatch):
    """Of three processes, one of which has another version and a setting that the others do not know."""
    here = {"jax": "0.10.2", "config.seed": 0, "config.phases.k": [2, 3]}
    assert differences(here) == {}  # a process alone
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    other = {"jax": "0.11.0", "config.seed": 0, "config.phases.k": [2, 3], "config.new": "é"}
    monkeypatch.setattr(parallel, "_texts", lambda text: [text, text, json.dumps(other)])
    said = {"jax": '"0.10.2" in process 0, "0.11.0" in process 2', "config.new": 'nothing in process 0, "é" in process 2'}
    assert differences(here) == said


def test_items_of_all_processes_each_once(monkeypatch):
    assert gathered({"a": "torn"}) == {"a": "torn"}  # a process alone
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(parallel, "_texts", lambda text: [text, "{}", json.dumps({"a": "torn", "é": "empty"})])
    assert gathered({"a": "torn", "b": "gone"}) == {"a": "torn", "b": "gone", "é": "empty"}


def test_where_one_process_is_refused_all_are(monkeypatch):
    def refused():
        raise UserError("no such folder")

    assert together(lambda: 3) == 3
    with pytest.raises(UserError, match="no such folder"):
        together(refused)
    monkeypatch.setattr(parallel, "agree", lambda flag: True)
    with pytest.raises(UserError, match="another process of this run cannot go on: see what it says"):
        together(lambda: 3)
