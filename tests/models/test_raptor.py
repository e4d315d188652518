import chex
import jax
import jax.numpy as jnp
import pytest

from brh_jax.errors import UserError
from brh_jax.models import Raptor, RaptorBlock, RaptorConfig, count_params
from brh_jax.models.encoder import init_params
from brh_jax.models.raptor import Blocks
from brh_jax.phases import Partition

PARTITIONS = [Partition((6,)), Partition((3, 2, 1)), Partition((2, 1, 3), (0, 1, 0)), Partition((1,) * 6)]


def make(tiny_config, tiny_images, partition, **options):
    """A Raptor with parameters far from their start: fresh ones are nearly the identity and would hide mistakes."""
    module = Raptor(RaptorConfig(tiny_config, partition, **options))
    params = init_params(module, jax.random.key(0), tiny_images)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return module, jax.tree.unflatten(tree, noisy)


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("depth_scaling", [True, False])
def test_equals_a_python_loop_over_the_same_blocks(tiny_config, tiny_images, partition, mlp, depth_scaling):
    module, params = make(tiny_config, tiny_images, partition, mlp=mlp, depth_scaling=depth_scaling)
    states = module.apply({"params": params}, tiny_images)
    block = RaptorBlock(module.config)
    x = states[0]
    for layer, phase in enumerate(partition.labels):
        x = block.apply({"params": params["blocks"][f"phase_{phase + 1}"]}, x, float(layer + 1))
        chex.assert_trees_all_close(x, states[layer + 1], atol=2e-4, rtol=1e-4)
        step = module.apply({"params": params}, states[layer], layer, method="step")
        chex.assert_trees_all_close(step, states[layer + 1], atol=2e-4, rtol=1e-4)


def test_parameters_do_not_grow_with_repeats(tiny_config, tiny_images):
    counts = {p: count_params(make(tiny_config, tiny_images, p)[1]["blocks"]) for p in PARTITIONS}
    one = counts[PARTITIONS[0]]
    assert [counts[p] for p in PARTITIONS] == [one, 3 * one, 2 * one, 6 * one]


def test_depth_scaling_depends_on_depth_and_starts_near_one(tiny_config):
    config = RaptorConfig(tiny_config, Partition((6,)))
    x = jax.random.normal(jax.random.key(0), (2, 19, 16))
    block = RaptorBlock(config)
    params = init_params(block, jax.random.key(1), x, 1.0)
    # LayerScale 1e-5 and gains near one: a fresh block is nearly the identity.
    chex.assert_trees_all_close(block.apply({"params": params}, x, 6.0), x, atol=2e-2)
    params["depth_scaling"]["fc2"]["kernel"] += 0.3
    a, b = (block.apply({"params": params}, x, d) for d in (1.0, 6.0))
    assert float(jnp.abs(a - b).max()) > 0.1
    # A depth per sample gives what single depths give.
    chex.assert_trees_all_close(block.apply({"params": params}, x, jnp.array([1.0, 6.0])), jnp.stack([a[0], b[1]]), atol=1e-5)


@pytest.mark.parametrize("partition", PARTITIONS[1:3], ids=str)
def test_teacher_forcing_and_run_rollouts_against_single_steps(tiny_config, tiny_images, partition):
    module, params = make(tiny_config, tiny_images, partition)
    teacher = jax.random.normal(jax.random.key(5), (7, 3, 19, 16))
    blocks = Blocks(module.config)
    forced = blocks.apply({"params": params["blocks"]}, teacher, method="teacher_forced")
    runs = blocks.apply({"params": params["blocks"]}, teacher, method="rollout_runs")
    step = jax.jit(lambda x, layer: module.apply({"params": params}, x, layer, method="step"))
    starts = {run.start for run in partition.runs}
    x = None
    for layer in range(6):
        chex.assert_trees_all_close(forced[layer], step(teacher[layer], layer), atol=2e-4, rtol=1e-4)
        x = step(teacher[layer] if layer in starts else x, layer)
        chex.assert_trees_all_close(runs[layer], x, atol=2e-4, rtol=1e-4)


def test_partition_of_another_depth_is_refused(tiny_config):
    with pytest.raises(UserError, match=r"1-3 \| 4-5 covers 5 layers, the teacher has 6"):
        RaptorConfig(tiny_config, Partition((3, 2)))
