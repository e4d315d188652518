"""Attention weights of every layer, against the formula; and the figure that shows them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax.dynamics import draw_attention
from brh_jax.errors import UserError
from brh_jax.models import Encoder, Raptor, RaptorConfig, ViTConfig
from brh_jax.models.encoder import init_params
from brh_jax.models.rotary import periods
from brh_jax.partition import Partition
from brh_jax.preprocessing import Preprocessing
from brh_jax.tokens import TokenLayout


def layer_norm(x, params, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * params["scale"] + params["bias"]


def by_hand(state, block, eps):
    """softmax(q k^T / sqrt d) of the normalised state, in numpy."""
    x = layer_norm(np.asarray(state), block["norm1"], eps)
    qkv = np.einsum("btd,dphe->pbhte", x, block["attn"]["qkv"]["kernel"]) + block["attn"]["qkv"]["bias"][:, None, :, None]
    logits = np.einsum("bhqe,bhke->bhqk", qkv[0], qkv[1]) / np.sqrt(qkv.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_of_a_vit(tiny_encoder, tiny_images):
    maps, states = tiny_encoder.attention(tiny_images), tiny_encoder.trajectory(tiny_images)
    assert maps.shape == (6, 8, 2, 19, 19)
    blocks = tiny_encoder.params["blocks"]
    for layer in range(6):
        block = jax.tree.map(lambda leaf, layer=layer: np.asarray(leaf[layer]), blocks)
        np.testing.assert_allclose(maps[layer], by_hand(states[layer], block, 1e-6), atol=2e-6)


@pytest.mark.parametrize(
    ("partition", "once"), [(Partition((2, 4)), False), (Partition((1, 2, 3), (0, 1, 0)), False), (Partition((2, 4)), True)]
)
def test_of_a_raptor(tiny_config, tiny_encoder, tiny_images, partition, once):
    config = RaptorConfig(tiny_config, partition, layer_scale_init=0.5, once=once)
    params = init_params(Raptor(config), jax.random.key(3), tiny_images)
    raptor = Encoder(config, params, tiny_encoder.preprocessing)
    maps, states = raptor.attention(tiny_images), raptor.trajectory(tiny_images)
    for run in partition.runs:
        block = jax.tree.map(np.asarray, params["blocks"][f"phase_{run.phase + 1}"])
        for layer in range(run.start, run.stop):
            entered = states[run.start if once else layer]
            np.testing.assert_allclose(maps[layer], by_hand(entered, block, 1e-5), atol=2e-6)


def test_rotary_weights_sum_to_one_and_turn_with_the_grid():
    config = ViTConfig(16, 2, 2, 32, 2, None, rope_periods=periods(8, 100.0), num_registers=1)
    images = jax.random.normal(jax.random.key(1), (2, 4, 12, 3))
    encoder = Encoder(config, init_params(config.module(), jax.random.key(0), images), Preprocessing((8, 8)))
    maps = encoder.attention(images)
    assert maps.shape == (2, 2, 2, 14, 14)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)


def test_the_figure_shows_what_the_class_token_looks_at():
    """The first model's class token looks at the first patch alone, the second's at all alike."""
    layout = TokenLayout(1, 0, (2, 3))
    first = np.zeros((3, 2, 2, 7, 7), np.float32)
    first[..., 1] = 1
    maps = {"teacher": first, "Raptor": np.full_like(first, 1 / 7)}
    pixels = np.zeros((4, 6, 3), np.uint8)
    figure = draw_attention(maps, layout, image=1, layers=(0, 2), pixels=pixels)
    axes = figure.axes[:6]
    assert [axis.get_title() for axis in axes[:3]] == ["", "layer 1", "layer 3"]
    assert [axes[0].get_ylabel(), axes[3].get_ylabel()] == ["teacher", "Raptor"]
    np.testing.assert_array_equal(axes[1].images[0].get_array(), [[1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(axes[4].images[0].get_array(), np.full((2, 3), 1 / 7), rtol=1e-6)
    assert len(draw_attention(maps, layout, token="patches", head=1).axes) == 7  # three layers of two models, and the scale


def test_what_cannot_be_drawn():
    layout, maps = TokenLayout(1, 0, (2, 2)), {"teacher": jnp.ones((3, 1, 2, 5, 5))}
    for options, message in (
        ({"image": 1}, "image is 1: expected one from 0 to 0"),
        ({"head": 2}, "head is 2: expected one from 0 to 1"),
        ({"layers": (3,)}, "layer is 3"),
        ({"token": "registers"}, "no tokens 'registers'"),
    ):
        with pytest.raises(UserError, match=message):
            draw_attention(maps, layout, **options)
    with pytest.raises(UserError, match=r"attention maps Raptor of shape .*: expected \[3, batch, heads, 5, 5\]"):
        draw_attention(maps | {"Raptor": jnp.ones((2, 1, 2, 5, 5))}, layout)


def test_logits_are_the_classifier_on_what_it_reads(tiny_encoder, tiny_images):
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(16, 3)).astype(np.float32), "bias": np.arange(3, dtype=np.float32)}
    features = np.asarray(tiny_encoder.features(tiny_encoder.trajectory(tiny_images)[-1]))
    found = tiny_encoder.replace(head=head).logits(tiny_images)
    np.testing.assert_allclose(found, features[:, 0] @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
    found = tiny_encoder.replace(head=head, head_reads="patches").logits(tiny_images)
    np.testing.assert_allclose(found, features[:, 3:].mean(1) @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="tiny has no classifier"):
        tiny_encoder.logits(tiny_images)
    wrong = {"kernel": np.zeros((7, 3)), "bias": np.zeros(3)}
    with pytest.raises(UserError, match="reads 7 features"):
        tiny_encoder.replace(head=wrong).logits(tiny_images)
