"""The teacher's states on disk."""

import jax
import numpy as np
import pytest

from brh_jax.data.sources import ArraySource
from brh_jax.distill.states import StatesBatches, bytes_needed, open_states
from brh_jax.errors import UserError
from brh_jax.train.parallel import make_mesh


@pytest.fixture
def source():
    return ArraySource(np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8), name="ten images")


def opened(teacher, source, folder, limit_gb=1.0):
    return open_states(teacher, source, folder, limit_gb=limit_gb, batch_size=8, mesh=make_mesh())


def test_every_epoch_reads_the_teachers_states(tiny_encoder, source, tmp_path):
    store = opened(tiny_encoder, source, tmp_path / "states")
    expected = np.moveaxis(np.asarray(tiny_encoder.trajectory(tiny_encoder.normalize_pixels(source.images))), 0, 1)
    batches = StatesBatches(store, 5, seed=3)
    for _ in range(2):
        found = np.concatenate([next(batches)["states"] for _ in range(2)])
        order = [int(np.argmin(np.abs(expected - f).reshape(10, -1).max(1))) for f in found]
        assert sorted(order) == list(range(10))
        np.testing.assert_allclose(found, expected[order], atol=1e-5)
    third = next(batches)["states"]
    batches.seek(4)
    np.testing.assert_array_equal(next(batches)["states"], third)


def test_made_once_and_anew_for_another_teacher(tiny_encoder, source, tmp_path, capsys):
    folder = tmp_path / "states"
    opened(tiny_encoder, source, folder)
    assert "teacher's states" in capsys.readouterr().out
    opened(tiny_encoder, source, folder)
    assert capsys.readouterr().out == ""
    other = tiny_encoder.replace(params=jax.tree.map(lambda x: x * 1.01, tiny_encoder.params))
    opened(other, source, folder)
    assert "teacher's states" in capsys.readouterr().out


def test_too_large_says_how_large(tiny_encoder, source, tmp_path):
    assert bytes_needed(tiny_encoder, 10) == 4 * 10 * 7 * 19 * 16
    with pytest.raises(UserError, match=r"the 10 images of ten images take 8.51e-05 GB, limit_gb is 1e-05"):
        opened(tiny_encoder, source, tmp_path / "states", limit_gb=1e-5)
    assert not (tmp_path / "states").exists()


def test_damage_is_noticed(tiny_encoder, source, tmp_path):
    store = opened(tiny_encoder, source, tmp_path / "states")
    for file in (tmp_path / "states" / "states" / "c").rglob("*"):
        if file.is_file():
            content = bytearray(file.read_bytes())
            content[40] ^= 4
            file.write_bytes(content)
    with pytest.raises(UserError, match="states are damaged .*remove"):
        next(StatesBatches(store, 5, seed=0))
