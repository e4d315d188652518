"""Layers between a ViT's and a Raptor's: what is exact is exact, and a factor of low rank is the nearest there is."""

import jax
import numpy as np
import pytest

from brh_jax.distill import init_blocks, raptor_encoder
from brh_jax.distill.low_rank import LowRank, input_moments, unrolled
from brh_jax.errors import UserError
from brh_jax.models import RaptorConfig, ViTConfig
from brh_jax.models.cost import rank_of_size
from brh_jax.models.encoder import Encoder, count_params, init_params
from brh_jax.models.layers import KERNELS
from brh_jax.partition import Partition
from brh_jax.preprocessing import Preprocessing


def vit(**changes) -> Encoder:
    """A ViT whose layers do something."""
    config = ViTConfig(dim=16, depth=3, num_heads=2, mlp_dim=24, patch_size=4, position_grid=(2, 2), num_registers=1, **changes)
    params = init_params(config.module(), jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    rng = np.random.default_rng(0)
    params["blocks"] = jax.tree.map(lambda p: (p + 0.3 * rng.normal(size=p.shape)).astype(np.float32), params["blocks"])
    return Encoder(config, params, Preprocessing((8, 8), None, (0.5,) * 3, (0.5,) * 3), name="a ViT")


@pytest.fixture(
    scope="module", params=[{}, {"layer_scale": False, "qkv_bias": False}, {"mlp": "swiglu"}], ids=["plain", "bare", "gated"]
)
def teacher(request) -> Encoder:
    return vit(**request.param)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(8, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(teacher, images):
    """Config, blocks and moments."""
    config, blocks = unrolled(teacher)
    states = teacher.trajectory(images)
    return config, blocks, input_moments(config, blocks, [states[:, :4], states[:, 4:]], teacher.layout)


def test_an_unrolled_vit_is_the_vit(teacher, whole, images):
    config, blocks, _ = whole
    assert config.partition.k == teacher.depth
    np.testing.assert_allclose(
        raptor_encoder(config, blocks, teacher, "").trajectory(images), teacher.trajectory(images), atol=1e-6
    )
    with pytest.raises(UserError, match="is a Raptor: expected a ViT"):
        unrolled(raptor_encoder(config, blocks, teacher, "k3"))


def test_moments_are_of_what_a_layer_reads(teacher, whole, images):
    config, blocks, moments = whole
    state, norm = np.asarray(teacher.trajectory(images)[1]), blocks["phase_2"]["norm1"]
    centred = state - state.mean(-1, keepdims=True)
    read = centred / np.sqrt(centred.var(-1, keepdims=True) + config.layer_norm_eps) * norm["scale"] + norm["bias"]
    rows = read.reshape(-1, 16)
    np.testing.assert_allclose(moments["attn", "qkv", "kernel"][1], rows.T @ rows / len(rows), atol=1e-4)
    assert {path: m.shape for path, m in moments.items()} == {
        path: (3, *(2 * (24 if path[1] == "fc2" else 16,))) for path in KERNELS
    }


def test_at_full_rank_it_is_the_teacher(teacher, whole, images):
    config, blocks, moments = whole
    low_rank = LowRank(config, 16)
    made = low_rank.blocks(low_rank.start(blocks, moments))
    np.testing.assert_allclose(
        raptor_encoder(config, made, teacher, "").trajectory(images), teacher.trajectory(images), rtol=1e-4, atol=1e-4
    )


def test_a_factor_is_the_nearest_there_is(teacher, whole):
    """Of rank r on what the layer reads: what is lost are the smallest singular values of E[x xᵀ]^(1/2) W."""
    config, blocks, moments = whole
    low_rank, path = LowRank(config, 3), ("mlp", "fc2", "kernel")
    made = low_rank.blocks(low_rank.start(blocks, moments))
    for layer, name in enumerate(blocks):
        lost = np.asarray(blocks[name]["mlp"]["fc2"]["kernel"] - made[name]["mlp"]["fc2"]["kernel"], np.float64)
        moment = moments[path][layer]
        values, vectors = np.linalg.eigh(moment)
        root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
        sizes = np.linalg.svd(root @ blocks[name]["mlp"]["fc2"]["kernel"], compute_uv=False)
        assert np.trace(lost.T @ moment @ lost) == pytest.approx(np.sum(sizes[3:] ** 2), rel=1e-3)


def test_what_is_shared_is_added(teacher, whole):
    config, blocks, moments = whole
    partition = Partition((2, 1))
    low_rank, alone = LowRank(config, 2, partition), LowRank(config, 2)
    params = low_rank.start(blocks, moments)
    begun, apart = low_rank.blocks(params), alone.blocks(alone.start(blocks, moments))
    jax.tree.map(np.testing.assert_array_equal, begun, apart)  # what is shared begins as zero
    shared = RaptorConfig(config.teacher, partition, mlp=config.mlp, mlp_dim=24, depth_scaling=False)
    fresh = init_blocks(shared, teacher.layout, jax.random.key(1))
    for first, second, _ in KERNELS:
        params["shared"][first][second]["kernel"] = np.stack([fresh[f"phase_{i}"][first][second]["kernel"] for i in (1, 2)])
        params["a"][first][second]["kernel"] *= 0
    made = low_rank.blocks(params)
    for name, phase in {"phase_1": 1, "phase_2": 1, "phase_3": 2}.items():
        for first, second, last in KERNELS:
            np.testing.assert_array_equal(made[name][first][second][last], fresh[f"phase_{phase}"][first][second][last])


def test_the_rank_of_a_size(teacher, whole):
    config, blocks, moments = whole
    for params in (8_000, 5_000):
        rank = rank_of_size(config, params)
        counted = [count_params(LowRank(config, r).start(blocks, moments)) for r in (rank, rank + 1)]
        assert counted[0] <= params < counted[1]
    with pytest.raises(UserError, match="rank 1 have .* parameters, more than the 10 of the shared blocks"):
        rank_of_size(config, 10)
    with pytest.raises(UserError, match="rank is 17: expected 1 to 16"):
        LowRank(config, 17)
    assert rank_of_size(config, 10**9) == 16
