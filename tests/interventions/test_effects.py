"""Plans against loops written by hand over the model's own layers."""

import jax
import numpy as np
import pytest

from brh_jax.errors import UserError
from brh_jax.interventions import apply_plans, delete, effects, repeat, replace, unchanged
from brh_jax.models import Encoder, Raptor, RaptorConfig, ViT, ViTConfig
from brh_jax.models.encoder import init_params, pooled_features
from brh_jax.phases import Partition
from brh_jax.preprocessing import Preprocessing
from brh_jax.train.parallel import make_mesh, shard_batch

PARTITION = Partition((3, 2, 1))
PLANS = (
    unchanged(6),
    replace(6, (2,), (4,)),
    replace(6, (0, 3), (1, 5), "attention"),
    delete(6, 0),
    delete(6, 5, "mlp"),
    repeat(6, 3),
    repeat(6, 5, "attention"),
)


@pytest.fixture(scope="module")
def raptor(tiny_encoder, tiny_config):
    """A Raptor of the tiny teacher whose blocks do something."""
    config = RaptorConfig(tiny_config, PARTITION, layer_scale_init=0.5)
    params = init_params(Raptor(config), jax.random.key(5), np.zeros((1, 8, 8, 3), np.float32))
    params |= {name: tiny_encoder.params[name] for name in ("embedding", "norm")}
    return Encoder(config, params, tiny_encoder.preprocessing, name="raptor")


@pytest.fixture(scope="module")
def start(tiny_encoder, tiny_images):
    return tiny_encoder.embed(tiny_images)


def by_hand(encoder, start, plan, guest=None):
    """A Python loop over halves, on numpy's side of `step`."""
    state = start
    for half in plan:
        owner, layer = (encoder, half // 2) if half < 2 * encoder.depth else (guest, half // 2 - encoder.depth)
        part = ("attention", "mlp")[half % 2]
        state = owner.module.apply({"params": owner.params}, state, layer, owner.layout.grid, part, method="step")
    return np.asarray(encoder.features(state), np.float64)


def expected(final, target, layout):
    """The measures by numpy alone."""
    pooled, wanted = (np.asarray(pooled_features(x, layout)) for x in (final, target))

    def cosine(a, b):
        return np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))

    flat, flat_target = (x.reshape(len(x), -1) for x in (final, target))
    return {
        "change": 1 - cosine(pooled, wanted),
        "distance": np.linalg.norm(pooled - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1),
        "token_change": 1 - cosine(final, target).mean(-1),
        "token_distance": np.linalg.norm(flat - flat_target, axis=-1) / np.linalg.norm(flat_target, axis=-1),
    }, pooled


def check(encoder, start, plans, found, guest=None, head=None):
    target = np.asarray(encoder.features(encoder.rollout(start)[-1]), np.float64)
    for row, plan in enumerate(plans):
        values, pooled = expected(by_hand(encoder, start, plan, guest), target, encoder.layout)
        for name, value in values.items():
            np.testing.assert_allclose(getattr(found, name)[row], value, atol=5e-6, err_msg=f"{name} of {plan}")
        if head is not None:
            np.testing.assert_array_equal(found.predicted[row], np.argmax(pooled @ head["kernel"] + head["bias"], -1))


def test_plans_equal_loops_by_hand(tiny_encoder, start):
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(32, 5)).astype(np.float32), "bias": rng.normal(size=5).astype(np.float32)}
    found = apply_plans(tiny_encoder, start, PLANS, head=head)
    assert found.change.shape == found.predicted.shape == (len(PLANS), 8)
    check(tiny_encoder, start, PLANS, found, head=head)
    # The unchanged plan is nothing but rounding away from the teacher.
    np.testing.assert_allclose(found.change[0], np.zeros(8), atol=1e-6)
    np.testing.assert_allclose(found.token_distance[0], np.zeros(8), atol=1e-6)
    assert (np.asarray(found.distance[1:]) > 1e-2).all()


def test_last_states_of_any_size_have_the_same_effects(tiny_encoder, start):
    """Squares of states of 1e19 and more overflow float32, which once gave distances that are NaN."""
    found = []
    for scale in (1.0, 2.0**64):
        norm = jax.tree.map(lambda leaf, scale=scale: leaf * scale, tiny_encoder.params["norm"])
        found.append(apply_plans(tiny_encoder.replace(params=tiny_encoder.params | {"norm": norm}), start, PLANS))
    for a, b in zip(found[1][:-1], found[0][:-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_hybrids_equal_loops_by_hand(tiny_encoder, raptor, start):
    second = (3, 4)
    plans = (
        replace(6, range(6), range(6, 12)),
        replace(6, second, [6 + layer for layer in second]),
        replace(6, (0, 1, 2, 5), (6, 7, 8, 11)),
    )
    found = apply_plans(tiny_encoder, start, plans, guest=raptor)
    check(tiny_encoder, start, plans, found, guest=raptor)
    assert found.predicted is None
    whole = np.asarray(tiny_encoder.features(raptor.rollout(start)[-1]), np.float64)
    target = np.asarray(tiny_encoder.features(tiny_encoder.rollout(start)[-1]), np.float64)
    np.testing.assert_allclose(found.distance[0], expected(whole, target, tiny_encoder.layout)[0]["distance"], atol=5e-6)


def test_a_raptor_is_intervened_on_like_a_teacher(raptor, start):
    plans = (unchanged(6), replace(6, (3,), (4,)), delete(6, 2))
    check(raptor, start, plans, apply_plans(raptor, start, plans))


def test_rotary_positions_no_cls_and_a_grid_that_is_no_square():
    config = ViTConfig(16, 3, 2, 32, 2, None, num_cls=0, num_registers=1, rope_periods=(1.0, 4.0), pre_norm=True)
    images = np.random.default_rng(2).normal(size=(3, 4, 8, 3)).astype(np.float32)
    params = init_params(ViT(config), jax.random.key(0), images)
    encoder = Encoder(config, params, Preprocessing((4, 8), None, (0.5,) * 3, (0.5,) * 3))
    plans = (replace(3, (0,), (2,)), repeat(3, 1))
    state = encoder.embed(images)
    check(encoder, state, plans, apply_plans(encoder, state, plans))


def test_sharded_over_eight_devices_equals_one(tiny_encoder, start):
    alone = apply_plans(tiny_encoder, start, PLANS)
    mesh = make_mesh(data=4, fsdp=1, tensor=2)
    encoder = tiny_encoder.on(mesh)
    spread = apply_plans(encoder, shard_batch(np.asarray(start), mesh), PLANS)
    assert len(spread.change.sharding.device_set) == 8
    for a, b in zip(alone[:-1], spread[:-1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_other_plans_of_as_many_are_not_compiled_again(tiny_encoder, start):
    apply_plans(tiny_encoder, start, (unchanged(6), delete(6, 1), delete(6, 2)))
    before = effects._run._cache_size()
    apply_plans(tiny_encoder, start + 1, (replace(6, (1,), (2,)), delete(6, 5, "mlp"), unchanged(6)))
    assert effects._run._cache_size() == before


def test_what_does_not_fit_is_refused(tiny_encoder, tiny_config, start):
    with pytest.raises(UserError, match="no plans"):
        apply_plans(tiny_encoder, start, ())
    with pytest.raises(UserError, match=r"names 12: expected half layers from 0 to 11, 2 l for the attention"):
        apply_plans(tiny_encoder, start, ((0, 12),))
    with pytest.raises(UserError, match=r"names 0.5: expected half layers"):
        apply_plans(tiny_encoder, start, ((0.5,),))
    with pytest.raises(UserError, match=r"the head reads 16 features, tiny has 32: expected a head on \[cls, mean patch\]"):
        apply_plans(tiny_encoder, start, PLANS, head={"kernel": np.zeros((16, 5)), "bias": np.zeros(5)})
    with pytest.raises(UserError, match="states do not fit"):
        apply_plans(tiny_encoder, start, PLANS, guest=tiny_encoder.at_size(16))
    with pytest.raises(ValueError, match="expected 19 tokens|expected 18 tokens|do not fit the layout"):
        apply_plans(tiny_encoder, start[:, 1:], PLANS)
