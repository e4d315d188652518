import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax.dynamics import rank
from brh_jax.dynamics.directions import over_batches
from brh_jax.dynamics.rank import gram_rank, principal_angles, update_grams, update_rank
from brh_jax.tokens import TokenLayout
from brh_jax.train.parallel import make_mesh

LAYOUT = TokenLayout(1, 2, (3, 3))
WIDER = TokenLayout(1, 3, (2, 5))
PATCHES = TokenLayout(0, 0, (4, 4))


def ranks_of(u):
    """Stable, effective and participation rank of a matrix, by its singular values."""
    sigma = np.linalg.svd(np.asarray(u, np.float64), compute_uv=False)
    shares = sigma[sigma > 0] / sigma.sum()
    return (sigma**2).sum() / sigma[0] ** 2, np.exp(-(shares * np.log(shares)).sum()), (sigma**2).sum() ** 2 / (sigma**4).sum()


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def moving(updates, layout=PATCHES):
    """Raw updates [depth, batch, tokens, dim] summed up from a first state far from zero."""
    start = jnp.ones((1, *updates.shape[1:]), updates.dtype)
    return jnp.concatenate([start, start + jnp.cumsum(jnp.asarray(updates), axis=0)])


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("kind", ["angular", "raw"])
def test_ranks_are_those_of_the_whole_matrices(kind, center):
    states = jax.random.normal(jax.random.key(0), (4, 3, 14, 8)) + 2.0 * jnp.arange(4.0)[:, None, None, None]
    over_images, over_tokens = (update_rank(states, WIDER, kind=kind, over=over, center=center) for over in ("images", "tokens"))
    updates = np.diff(unit(states) if kind == "angular" else np.asarray(states, np.float64), axis=0)
    for name, tokens in WIDER.split(updates)._asdict().items():
        for layer, u in enumerate(tokens):
            flat = u.reshape(-1, 8)
            for measured, expected in zip(over_images, ranks_of(flat - center * flat.mean(0)), strict=True):
                np.testing.assert_allclose(getattr(measured, name)[layer], expected, rtol=1e-6)
            if name != "cls":
                u = u - center * u.mean(1, keepdims=True)
                for measured, expected in zip(over_tokens, np.mean([ranks_of(image) for image in u], axis=0), strict=True):
                    np.testing.assert_allclose(getattr(measured, name)[layer], expected, rtol=1e-6)
    # One token per image spans one direction whatever the model does.
    assert over_tokens.stable.cls.shape == (0,)
    assert over_tokens.stable.patches.shape == (3,)


def test_two_centred_tokens_span_one_direction_whatever_the_model_does():
    states = jax.random.normal(jax.random.key(0), (4, 3, 12, 8))
    assert update_rank(states, LAYOUT, over="tokens").stable.registers.shape == (0,)
    assert update_rank(states, LAYOUT, over="tokens", center=False).stable.registers.shape == (3,)


def test_a_large_update_that_all_tokens_share_hides_the_others():
    # Along eight axes by one, and all of them along a ninth by ten.
    updates = np.tile(np.eye(20, dtype=np.float32)[:8], (2, 1, 2, 1)) + 10 * np.eye(20, dtype=np.float32)[9]
    states = moving(updates)
    for over in ("images", "tokens"):
        options = {"kind": "raw", "over": over}
        np.testing.assert_allclose(update_rank(states, PATCHES, **options).stable.patches, [7, 7], rtol=1e-4)
        assert update_rank(states, PATCHES, center=False, **options).stable.patches.max() < 1.1


def test_an_update_that_all_tokens_share_is_none():
    states = jax.random.normal(jax.random.key(0), (2, 2, 16, 20))
    states = states.at[1].set(states[0] + jax.random.normal(jax.random.key(1), (20,)))
    for over in ("images", "tokens"):
        options = {"kind": "raw", "over": over}
        assert update_rank(states, PATCHES, **options).effective.patches == 0
        assert update_rank(states, PATCHES, center=False, **options).effective.patches == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("center", [True, False])
def test_tokens_that_are_zero_have_no_angular_update(center):
    states = jax.random.normal(jax.random.key(0), (3, 2, 14, 8)).at[0, :, 1:4].set(0)  # registers that begin as zero
    states = states.at[0, 0, 5].set(0)
    patches = np.delete(np.diff(unit(states.at[0, 0, 5].set(1)), axis=0)[0, :, 4:].reshape(-1, 8), 1, axis=0)
    expected = ranks_of(patches - center * patches.mean(0))
    for over in ("images", "tokens"):
        found = update_rank(states, WIDER, over=over, center=center)
        assert np.isnan(found.stable.registers[0]) and found.stable.registers[1] > 1
        assert np.isfinite(found.effective.patches).all()
        if over == "images":
            np.testing.assert_allclose([values.patches[0] for values in found], expected, rtol=1e-6)
    angles = principal_angles(update_grams([states], WIDER), num_directions=1, center=center)
    assert np.isnan(angles.registers).all() and np.isfinite(angles.patches).all()
    assert np.isfinite(update_rank(states, WIDER, kind="raw", center=center).stable.registers).all()


def test_small_singular_values_count_although_the_states_are_float32():
    # 1, 1e-1, 1e-2 ... in random directions: squared in float32, those below 3e-4 would drown in noise.
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(64, 64)))[0] for _ in range(2))
    u = ((left * np.geomspace(1, 1e-6, 64)) @ right).reshape(1, 4, 16, 64)
    states = jnp.concatenate([jnp.zeros((1, 4, 16, 64)), jnp.asarray(u, jnp.float32)])
    measured = update_rank(states, PATCHES, kind="raw")
    flat = u.reshape(64, 64)
    np.testing.assert_allclose([values.patches[0] for values in measured], ranks_of(flat - flat.mean(0)), rtol=1e-4)


@pytest.mark.parametrize("over", ["images", "tokens"])
def test_equal_orthogonal_updates_have_their_number_as_rank(over):
    # In each layer, every image's 16 tokens move along r axes, equally often.
    for r in (1, 2, 4, 8):
        updates = np.broadcast_to(np.tile(np.eye(20, dtype=np.float32)[:r], (16 // r, 1)), (2, 3, 16, 20))
        for measured in update_rank(moving(updates), PATCHES, kind="raw", over=over, center=False):
            np.testing.assert_allclose(measured.patches, [r, r], rtol=1e-5)


def test_a_layer_that_changes_nothing_has_rank_zero():
    states = jax.random.normal(jax.random.key(0), (3, 2, 16, 20))
    states = states.at[1].set(1.3 * states[0])  # other norms, and the same directions but for rounding
    for over in ("images", "tokens"):
        for measured in update_rank(states, PATCHES, over=over):
            assert measured.patches[0] == 0
            assert measured.patches[1] > 1


def test_a_stream_is_its_whole(tiny_encoder, tiny_images):
    states, layout = tiny_encoder.trajectory(tiny_images), tiny_encoder.layout
    batches = [states[:, :3], states[:, 3:6], states[:, 6:]]
    grams = update_grams(iter(batches), layout)
    assert grams.gram.cls.shape == (6, 16, 16)
    assert grams.gram.cls.dtype == np.float64
    chex.assert_trees_all_close(gram_rank(grams), update_rank(states, layout), rtol=1e-5)
    of_images = functools.partial(update_rank, over="tokens", per_image=True)
    per_image = over_batches(of_images, batches, layout)
    assert per_image.effective.patches.shape == (6, 8)
    chex.assert_trees_all_close(
        jax.tree.map(lambda v: v.mean(1), per_image), update_rank(states, layout, over="tokens"), rtol=1e-5
    )


def test_streams_are_read_outside_of_float64():
    def batches():
        for _ in range(2):
            states = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 16, 5)))
            assert states.dtype == jnp.float32
            yield states

    update_grams(batches(), PATCHES)


def test_equal_shapes_compile_once():
    before = rank._grams._cache_size(), rank._image_grams._cache_size()
    for key in range(3):
        states = jax.random.normal(jax.random.key(key), (5, 2, 16, 7))
        update_rank(states, PATCHES)
        update_rank(states, PATCHES, over="tokens")
    assert (rank._grams._cache_size(), rank._image_grams._cache_size()) == (before[0] + 1, before[1] + 1)


def test_a_batch_over_eight_devices_has_the_same_ranks():
    states = jax.random.normal(jax.random.key(1), (3, 8, 12, 6))
    sharded = jax.device_put(states, jax.NamedSharding(make_mesh(), jax.P(None, ("data", "fsdp"))))
    for over in ("images", "tokens"):
        chex.assert_trees_all_close(update_rank(sharded, LAYOUT, over=over), update_rank(states, LAYOUT, over=over), rtol=1e-6)


def test_principal_angles_of_known_subspaces():
    tilt = 0.3
    axes = np.eye(20, dtype=np.float32)
    tilted = np.cos(tilt) * axes[0] + np.sin(tilt) * axes[5]
    layers = [(axes[0], axes[1]), (tilted, axes[1]), (axes[7], axes[1])]
    updates = np.stack([np.tile(np.stack(layer), (8, 1)) for layer in layers])[:, None]
    # A third, weak direction that is not among the leading two.
    updates[:, :, 0] += 0.1 * axes[9]
    grams = update_grams([moving(updates.astype(np.float32))], PATCHES, kind="raw")
    angles = principal_angles(grams, num_directions=2, center=False)
    np.testing.assert_allclose(angles.patches, [[0, tilt], [0, np.pi / 2]], atol=2e-2)
    assert angles.cls.shape == (0, 2)


def test_the_angle_of_a_rotated_subspace_is_exact():
    rng = np.random.default_rng(0)
    for turn in (1e-4, 0.5):
        first = rng.normal(size=(16, 3)).astype(np.float32)
        updates = np.zeros((2, 1, 16, 20), np.float32)
        updates[0, 0, :, :3], updates[1, 0, :, :3] = first, first
        updates[1, 0, :, 2], updates[1, 0, :, 3] = np.cos(turn) * first[:, 2], np.sin(turn) * first[:, 2]
        states = jnp.concatenate([jnp.zeros((1, 1, 16, 20)), jnp.cumsum(jnp.asarray(updates), 0)])
        angles = principal_angles(update_grams([states], PATCHES, kind="raw"), num_directions=3, center=False).patches
        np.testing.assert_allclose(angles, [[0, 0, turn]], atol=1e-6)


def test_bad_arguments():
    states = jnp.ones((3, 2, 16, 20))
    with pytest.raises(ValueError, match='kind=\'spherical\': expected "angular" or "raw"'):
        update_rank(states, PATCHES, kind="spherical")
    with pytest.raises(ValueError, match="over='batch'"):
        update_rank(states, PATCHES, over="batch")
    with pytest.raises(ValueError, match='per_image=True, but over="images"'):
        update_rank(states, PATCHES, per_image=True)
    with pytest.raises(ValueError, match="expected 16 tokens"):
        update_rank(states[:, :, 1:], PATCHES)
    with pytest.raises(ValueError, match="a trajectory of one state has no updates"):
        update_rank(states[:1], PATCHES)
    with pytest.raises(ValueError, match="no batches"):
        update_grams([], PATCHES)
    for over in ("images", "tokens"):
        with pytest.raises(ValueError, match="not finite: look for the layer"):
            update_rank(states.at[1, 0, 3].set(np.nan), PATCHES, over=over)
    grams = update_grams([jnp.concatenate([states, 2 * states.at[..., 0].set(5)])], PATCHES, kind="raw")
    with pytest.raises(ValueError, match="num_directions 21 is out of range"):
        principal_angles(grams, num_directions=21)
    with pytest.raises(ValueError, match="layer 0 moves patches in 0 directions only"):
        principal_angles(grams, num_directions=1)
