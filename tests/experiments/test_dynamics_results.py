"""The dynamics of a model whose registers begin as zero, as transformers initialises them, down to the file that scripts read."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from brh_jax import dynamics
from brh_jax.data.sources import ArraySource
from brh_jax.errors import UserError
from brh_jax.partition import Partition
from brh_jax.tokens import TokenLayout
from experiments.results import to_json
from experiments.stages.dynamics.results import model_result
from experiments.stages.dynamics.run import DynamicsSettings, Settings, _first_states, _of_classes, reads, ready

LAYOUT = TokenLayout(1, 3, (2, 2))


def mixing(state, layer):
    """Tokens turn towards their mean, each a little differently."""
    turned = jnp.roll(state, 1, axis=-1) * (1 + 0.1 * jnp.arange(8.0)[:, None])
    return state + 0.3 * jnp.tanh(turned + state.mean(1, keepdims=True))


@pytest.mark.filterwarnings("error:.*:RuntimeWarning")
def test_registers_that_begin_as_zero():
    state = jax.random.normal(jax.random.key(0), (6, 8, 12)).at[:, 1:4].set(0)
    settings = dynamics.PortraitSettings(tangent_images=2, linear_images=4, num_exponents=2, num_values=2, rank=2, num_angles=2)
    system = dynamics.DepthSystem(mixing, 4, LAYOUT)
    with pytest.warns(UserWarning, match="tokens that are zero"):
        found = dynamics.portrait(
            system, [(state, np.arange(6) % 2)], key=jax.random.key(1), settings=settings, partition=Partition((1, 3))
        )
    speed, ranks = found["directions"].speed, found["ranks"]
    assert np.isnan(speed.registers[0]).all() and np.isfinite(speed.registers[1:]).all()
    assert np.isnan(ranks.angular.stable.registers[0]) and (ranks.angular.stable.registers[1:] > 0).all()
    assert np.isnan(found["basins"].within.registers[0]) and np.isfinite(found["basins"].within.registers[1:]).all()
    for name, exponents in found["exponents"]._asdict().items():
        if hasattr(exponents, "exponents"):
            assert np.isfinite(exponents.exponents).all(), name
    result = model_result(found, found, classes=True)
    text = json.dumps(to_json(result), allow_nan=False)
    assert "speed_registers" in text
    registers = result.tokens["registers"]
    assert registers.speed[0] is None and registers.speed[1] > 0 and all(v is not None for v in registers.stable_rank[1:])
    assert result.tokens["patches"].speed[0] > 0


def test_classes_of_one_image_each_are_no_classes(tiny_encoder, capsys):
    """A thousand images of ImageNet, one of each class: basins are of clusters, and are not called those of classes."""
    pixels = np.zeros((40, 8, 8, 3), np.uint8)
    context = types.SimpleNamespace(measuring_batches=lambda source, transform, **options: iter(()), mesh=None)
    settings = Settings()
    single = ArraySource(pixels, np.arange(40), "single")
    assert _of_classes(context, settings, tiny_encoder, single) is None
    assert "class basins left out: of the 10 classes drawn from single no two have two images" in capsys.readouterr().out
    several = ArraySource(pixels, np.arange(40) // 4, "several")
    assert _of_classes(context, settings, tiny_encoder, several) is not None


def test_images_for_class_basins_are_looked_at_before_anything_runs(tmp_path):
    settings = Settings(dynamics=DynamicsSettings(class_images=f"folder:{tmp_path}/none"))
    of_classes = reads(settings)[-1]
    with pytest.raises(UserError, match=r"config.dynamics.class_images: .*none.*; or leave .*class_images empty for"):
        of_classes.check()


def test_images_for_class_basins_must_be_several_of_a_class(tmp_path):
    for name in "abc":
        (tmp_path / "single" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "single" / name / "only.png")
    with pytest.raises(UserError, match="config.dynamics.class_images: of the 3 classes drawn from .* no two have two images"):
        ready(Settings(dynamics=DynamicsSettings(class_images=f"folder:{tmp_path}/single")))
    ready(Settings())  # nothing named, nothing to look at


def test_where_class_basins_are_left_out_no_image_has_a_class(tiny_encoder):
    """The measures would take two images of one class that happen to be there for basins of classes."""
    batch = {
        "image": np.zeros((4, 8, 8, 3), np.uint8),
        "valid": np.ones(4, bool),
        "label": np.arange(4),
        "photograph": np.arange(4),
    }
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), devices=jax.devices()[:1])
    context = types.SimpleNamespace(measuring_batches=lambda source, transform, **options: iter([batch]), mesh=mesh)
    for known, expected in ((True, [0, 1, 2, 3]), (False, [-1] * 4)):
        [(_, classes, _)] = _first_states(context, Settings(), tiny_encoder, None, 4, known)
        assert classes.tolist() == expected
