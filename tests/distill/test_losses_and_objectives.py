import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from brh_jax.distill import Blockwise, BlockwiseSettings, Joint, JointSettings, init_blocks, losses, objectives
from brh_jax.distill.objectives import Target
from brh_jax.distill.trainer import clipped_optimizer
from brh_jax.errors import UserError
from brh_jax.models import RaptorConfig
from brh_jax.models.raptor import Blocks, Noise, Restarts
from brh_jax.phases import Partition
from brh_jax.tokens import TokenLayout

LAYOUT = TokenLayout(1, 2, (4, 4))


def states(seed, depth=6):
    return jax.random.normal(jax.random.key(seed), (depth + 1, 3, 19, 16))


def test_plain_loss_is_the_mean_squared_error_of_each_layer():
    a, b = states(0), states(1)
    weights = losses.token_weights(LAYOUT)
    np.testing.assert_allclose(
        losses.mean_squared_error(a, b, weights, LAYOUT), jnp.mean((a - b) ** 2, axis=(1, 2, 3)), rtol=1e-5
    )


def test_weighted_loss_is_the_weighted_sum_of_each_types_error():
    a, b = states(0), states(1)
    found = losses.mean_squared_error(a, b, losses.token_weights(LAYOUT, (0.45, 0.10, 0.45)), LAYOUT)
    mse = [jnp.mean((x - y) ** 2, axis=(1, 2, 3)) for x, y in zip(LAYOUT.split(a), LAYOUT.split(b), strict=True)]
    np.testing.assert_allclose(found, 0.45 * mse[0] + 0.10 * mse[1] + 0.45 * mse[2], rtol=1e-5)


def test_weights_of_missing_types_are_shared_out():
    weights = losses.token_weights(TokenLayout(1, 0, (2, 2)), (0.45, 0.10, 0.45))
    np.testing.assert_allclose(weights, [0.5, *[0.125] * 4])
    with pytest.raises(ValueError, match="put nothing on the tokens"):
        losses.token_weights(TokenLayout(0, 0, (2, 2)), (1.0, 1.0, 0.0))


def test_teacher_forcing_is_annealed_over_the_first_quarter():
    objective = Blockwise(BlockwiseSettings(steps=400))
    share = [float(objective.share(s)) for s in (0, 25, 50, 100, 399)]
    assert [objective.variant(s) for s in (0, 99, 100)] == [True, True, False]
    np.testing.assert_allclose(share, [1.0, 0.75, 0.5, 0.0, 0.0])


def test_by_phase_is_the_mean_over_its_layers():
    values = jnp.arange(6.0)
    np.testing.assert_allclose(objectives.by_phase(values, Partition((3, 2, 1))), [1.0, 3.5, 5.0])
    np.testing.assert_allclose(objectives.by_phase(values, Partition((2, 1, 3), (0, 1, 0))), [(0 + 1 + 3 + 4 + 5) / 5, 2.0])


@pytest.fixture(scope="module")
def blocks(request):
    from brh_jax.models import ViTConfig

    vit = ViTConfig(dim=16, depth=6, num_heads=2, mlp_dim=32, patch_size=2, position_grid=(4, 4), num_registers=2)
    config = RaptorConfig(vit, Partition((3, 2, 1)))
    return Blocks(config), init_blocks(config, LAYOUT, jax.random.key(0))


def blockwise(blocks, share, forced=True, **settings):
    module, params = blocks
    objective = Blockwise(BlockwiseSettings(**settings))
    losses_of = jax.jit(lambda params, target: objective.losses(module, params, target, LAYOUT, share, forced))
    return losses_of(params, states(2))


def test_blockwise_mixes_teacher_forcing_and_autoregression(blocks):
    forced, rolled, half = (blockwise(blocks, s) for s in (1.0, 0.0, 0.5))
    np.testing.assert_allclose(half, (forced + rolled) / 2, rtol=1e-5)
    np.testing.assert_allclose(blockwise(blocks, 0.0, forced=False), rolled, rtol=1e-6)
    np.testing.assert_allclose(blockwise(blocks, 1.0, teacher_forcing="throughout"), forced, rtol=1e-6)
    # The last phase has one layer: there is nothing to roll out, both are the same.
    assert forced[2] == pytest.approx(float(rolled[2]), rel=1e-5)
    assert abs(forced[0] - rolled[0]) > 1e-3


def test_a_blocks_loss_depends_on_no_other_block(blocks):
    module, params = blocks
    by_loss = jax.jit(jax.jacrev(lambda params: blockwise((module, params), 0.5)))(params)  # losses of phases come first
    for phase in range(3):
        grads = jax.tree.map(lambda g, phase=phase: g[phase], by_loss)
        norms = {name: float(optax.tree.norm(g)) for name, g in grads.items()}
        assert norms[f"phase_{phase + 1}"] > 0
        assert sum(norms.values()) == norms[f"phase_{phase + 1}"]


def test_noise_is_added_before_every_application(blocks):
    module, params = blocks
    target, noise = states(2), Noise(0.3, jax.random.key(5))

    def apply(state, layer):
        return module.apply({"params": params}, noise.on(state, layer + 1), layer, method="step")

    rolled, by_run, forced = [target[0]], [], []
    for layer in range(6):
        rolled.append(apply(rolled[-1], layer))
        by_run.append(apply(target[layer] if layer in (0, 3, 5) else by_run[-1], layer))
        forced.append(apply(target[layer], layer))
    for method, start, expected in (
        ("rollout", target[0], rolled),
        ("rollout_runs", target, by_run),
        ("teacher_forced", target, forced),
    ):
        found = module.apply({"params": params}, start, None, noise, method=method)
        np.testing.assert_allclose(found, np.stack(expected), atol=2e-5)
    assert not np.allclose(noise.on(target[0], 1), noise.on(target[0], 2), atol=0.1)


def test_both_objectives_take_the_noise(blocks):
    module, params = blocks
    target, key = states(2), jax.random.key(1)
    for objective, settings in ((Blockwise, BlockwiseSettings), (Joint, JointSettings)):
        both = objective(settings(noise=0.3)), objective(settings())
        found = [
            float(jax.jit(lambda p, o=o: o.loss(module, p, Target(target, LAYOUT), 1, key, o.variant(1))[0])(params))
            for o in both
        ]
        assert abs(found[0] - found[1]) > 1e-4
    joint = Joint(JointSettings(noise=0.3))
    predicted = module.apply({"params": params}, target[0], None, Noise(0.3, key), method="rollout")[1:]
    weights = losses.token_weights(LAYOUT, (0.45, 0.10, 0.45))
    expected = float(jnp.mean(losses.mean_squared_error(predicted, target[1:], weights, LAYOUT)))
    assert float(joint.loss(module, params, Target(target, LAYOUT), 1, key, False)[0]) == pytest.approx(expected, rel=1e-6)


def test_decisions_add_the_divergence_of_the_classes_as_restarts_give_way(blocks):
    module, params = blocks
    target, key, weight = states(2), jax.random.key(1), np.random.default_rng(0).normal(size=(16, 5))

    def classify(state):
        return jnp.asarray(state)[:, 0] @ weight

    def loss_of(decisions):
        objective = Joint(JointSettings(steps=100, restarts=0.5, decisions=decisions))
        return jax.jit(lambda step: objective.loss(module, params, Target(target, LAYOUT, classify), step, key, True))

    plain, joint = loss_of(0.0), loss_of(0.3)
    for step, share in ((0, 0.0), (25, 0.5), (80, 1.0)):
        total, metrics = joint(step)
        without, none = plain(step)
        assert float(total - without) == pytest.approx(0.3 * share * float(metrics["decisions"]), abs=1e-5)
        assert "decisions" not in none
    predicted = module.apply({"params": params}, target[0], method="rollout")[-1]  # no image restarts any more
    p, q = (np.asarray(jax.nn.softmax(classify(state)), np.float64) for state in (target[-1], predicted))
    assert float(metrics["decisions"]) == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4)


def test_joint_compares_every_state_of_the_joined_rollout(blocks):
    module, params = blocks
    target = states(2)
    predicted = module.apply({"params": params}, target[0], method="rollout")[1:]
    found, metrics = Joint().loss(module, params, Target(target, LAYOUT), 0, jax.random.key(0), False)
    expected = jnp.mean(
        losses.mean_squared_error(predicted, target[1:], losses.token_weights(LAYOUT, (0.45, 0.10, 0.45)), LAYOUT)
    )
    assert float(found) == float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-6)


def test_gradients_are_clipped_block_by_block_or_jointly():
    """With plain SGD in AdamW's place the update would be the clipped gradient; here the first moment of AdamW shows it."""
    params = {"phase_1": jnp.zeros(4), "phase_2": jnp.zeros(4)}
    grads = {"phase_1": jnp.full(4, 50.0), "phase_2": jnp.full(4, 0.1)}  # norms 100 and 0.2
    for objective, expected in ((Blockwise(), (0.5, 0.1)), (Joint(), (0.5, 0.001))):
        transform, _ = clipped_optimizer(objective, list(params))
        _, state = transform.update(grads, transform.init(params), params)
        moments = [s.mu for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]
        assert len(moments) == 1
        for name, clipped in zip(params, expected, strict=True):
            np.testing.assert_allclose(moments[0][name], np.full(4, 0.1 * clipped), rtol=1e-3)


def test_schedule_is_the_papers():
    _, schedule = clipped_optimizer(Joint(), ["phase_1"])
    chex.assert_trees_all_close(
        [float(schedule(s)) for s in (0, 5_000, 10_000, 312_500)], [0.0, 1.5e-4, 3e-4, 1e-6], rtol=1e-4, atol=1e-12
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": float("nan")}, "learning_rate is nan: expected a positive number"),
        ({"warmup_steps": -1}, "warmup_steps is -1: expected 0 or more"),
        ({"loss": "mae"}, "loss is 'mae': expected one of mse"),
        ({"token_weights": (1.0,)}, "token_weights is .*: expected three, of cls, registers, patches"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        JointSettings(**settings)


def test_log_error_is_the_mean_of_each_types_logarithm():
    a, b = states(0), states(1)
    found = losses.log_error(a, b, losses.token_weights(LAYOUT, (0.45, 0.10, 0.45)), LAYOUT)
    expected = 0.0
    for weight, x, y in zip((0.45, 0.10, 0.45), LAYOUT.split(a), LAYOUT.split(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        variance = ((y - y.mean((1, 2), keepdims=True)) ** 2).mean((1, 2, 3))
        expected += weight * np.log(((x - y) ** 2).mean((1, 2, 3)) + losses.NEGLIGIBLE * variance)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # The scale of a layer's states moves its loss by a constant, and its gradient not at all.
    scale = 30.0
    grad = jax.grad(lambda x, s: losses.log_error(s * x, s * b, losses.token_weights(LAYOUT), LAYOUT).sum())
    np.testing.assert_allclose(grad(a, scale), grad(a, 1.0), rtol=1e-3, atol=1e-7)
    # Neither an error of zero nor a state that does not vary is infinitely good.
    zero, plain = jnp.zeros_like(b), losses.token_weights(LAYOUT)
    for x, y in ((b, b), (zero, zero)):
        assert np.isfinite(losses.log_error(x, y, plain, LAYOUT)).all()
        assert np.isfinite(jax.grad(lambda x, y=y: losses.log_error(x, y, plain, LAYOUT).sum())(x)).all()


def test_restarts_turn_a_rollout_into_teacher_forcing(blocks):
    module, params = blocks
    target = states(2)

    def rollout(where):
        return module.apply({"params": params}, target[0], None, None, Restarts(target, where), method="rollout")

    forced = module.apply({"params": params}, target, method="teacher_forced")
    np.testing.assert_allclose(rollout(np.ones((6, 3), bool))[1:], forced, atol=2e-5)
    np.testing.assert_allclose(
        rollout(np.zeros((6, 3), bool)), module.apply({"params": params}, target[0], method="rollout"), atol=2e-5
    )
    # One image restarts at the fourth layer: from there on it goes the teacher's way, what was before and the others stay.
    where = np.zeros((6, 3), bool)
    where[3, 1] = True
    mixed, free = rollout(where), rollout(np.zeros((6, 3), bool))
    np.testing.assert_allclose(mixed[:4], free[:4], atol=2e-5)
    np.testing.assert_allclose(mixed[:, [0, 2]], free[:, [0, 2]], atol=2e-5)
    np.testing.assert_allclose(mixed[4, 1], forced[3, 1], atol=2e-5)


def test_restarts_give_way_over_their_share_of_the_steps():
    objective, target = Joint(JointSettings(steps=100, restarts=0.5)), jnp.zeros((7, 4000, 1, 1))
    assert [objective.variant(step) for step in (0, 99)] == [True, True] and not Joint().variant(0)
    shares = [float(objective.restarts(target, step, jax.random.key(0)).where.mean()) for step in (0, 25, 49, 50, 99)]
    np.testing.assert_allclose(shares, [1.0, 0.5, 0.02, 0.0, 0.0], atol=0.02)
    assert shares[-2:] == [0.0, 0.0]


def test_muon_moves_every_matrix_by_an_orthogonal_step(blocks):
    """Of queries, keys, values and each kernel as one matrix: all singular values of an update are about equal."""
    config = blocks[0].config
    optimiser, _ = clipped_optimizer(
        Joint(JointSettings(steps=10, warmup_steps=0, optimizer="muon", learning_rate=1.0, weight_decay=0.0)), ["phase_1"]
    )
    params = init_blocks(config, LAYOUT, jax.random.key(1))
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    update = jax.jit(optimiser.update)(grads, jax.jit(optimiser.init)(params), params)[0]["phase_1"]
    kernels = {
        "queries": update["attn"]["qkv"]["kernel"][:, 0].reshape(16, -1),
        "values": update["attn"]["qkv"]["kernel"][:, 2].reshape(16, -1),
        "projection": update["attn"]["proj"]["kernel"].reshape(-1, 16),
        "gates": update["mlp"]["fc1"]["kernel"][:, 0],
        "second": update["mlp"]["fc2"]["kernel"],
    }
    for name, matrix in kernels.items():
        values = np.linalg.svd(np.asarray(matrix), compute_uv=False)
        largest = max(1.0, matrix.shape[1] / matrix.shape[0]) ** 0.5
        assert 0.6 * largest < values.min() < values.max() < 1.25 * largest, name
    # The first step of Adam with Nesterov's momentum: (0.1 + 0.9 * 0.1 / (1 + 0.9)) / 0.1 learning rates, whatever the gradient.
    np.testing.assert_allclose(np.abs(update["norm1"]["scale"]), np.full(16, (1 + 0.9 / 1.9) * 1e-3), rtol=0.01)
