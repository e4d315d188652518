"""What needs float64 is never asked of a device that has none (a TPU): the eighth CPU device stands for one here."""

import jax
import numpy as np
import pytest

from brh_jax.distill.baselines import fit_baselines
from brh_jax.dynamics.dmd import dmd
from brh_jax.dynamics.rank import update_grams, update_rank
from brh_jax.errors import UserError
from brh_jax.tokens import TokenLayout
from brh_jax.train import float64

LAYOUT = TokenLayout(1, 0, (2, 2))
WORK = {
    "ranks": lambda states: update_grams([states], LAYOUT),
    "ranks of each image": lambda states: update_rank(states, LAYOUT, over="tokens"),
    "dmd": lambda states: dmd(states, (1, 3), 4)._replace(modes=0),
    "baselines": lambda states: fit_baselines([(states, np.ones(len(states[0]), bool))], LAYOUT)["linear"](states[0]),
}


@pytest.fixture
def tpu(monkeypatch):
    """A device that has no float64."""
    device = jax.devices()[7]

    def platforms(tree):
        return {"tpu" if device in leaf.devices() else "cpu" for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)}

    monkeypatch.setattr(float64, "_platforms", platforms)
    return device


@pytest.mark.parametrize("name", WORK)
def test_what_needs_float64_is_done_on_the_host(tpu, name, monkeypatch):
    asked = []
    states = jax.random.normal(jax.random.key(0), (4, 6, 5, 8))
    expected = WORK[name](states)
    on_tpu = jax.device_put(states, tpu)
    put = jax.device_put

    def watched(tree, device=None, **options):
        asked.append(device)
        return put(tree, device, **options)

    monkeypatch.setattr(jax, "device_put", watched)
    with jax.default_device(tpu):
        found = WORK[name](on_tpu)
    assert asked and tpu not in asked
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_context_moves_arrays_of_such_a_device_alone(tpu):
    with float64.float64(jax.device_put(np.ones(3, np.float32), tpu)) as moved:
        assert moved.devices() == {jax.local_devices(backend="cpu")[0]}
        assert (jax.numpy.ones(2) * moved[:2].astype(float)).devices() == moved.devices()
        assert jax.numpy.ones(2).dtype == np.float64
    stays = jax.device_put(np.ones(3, np.float32), jax.devices()[3])
    with float64.float64(stays) as same:
        assert same is stays


def test_no_cpu_at_hand_is_said(tpu, monkeypatch):
    def none(backend):
        raise RuntimeError("unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(UserError, match="set JAX_PLATFORMS=cpu,cpu"), float64.float64(jax.device_put(np.ones(3), tpu)):
        pass
