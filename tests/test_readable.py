"""Results say what they hold: shape, values or their range, unit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax import dynamics
from brh_jax.partition import Partition
from brh_jax.readable import readable
from brh_jax.system import DepthSystem
from brh_jax.tokens import ByToken, TokenLayout


@readable(speed="rad per layer")
class Found(NamedTuple):
    speed: ByToken
    spread: np.ndarray
    modes: np.ndarray
    name: str
    missing: None = None


def test_a_line_for_each_field():
    speed = ByToken(jnp.array([0.5, 1.25]), jnp.zeros(0), jnp.linspace(0, 2, 50).reshape(5, 10))
    found = Found(speed, np.array([[1.0, np.nan, 3.0]]), np.array([3j, 4.0] * 10), "k = 2")
    assert repr(found).splitlines() == [
        "Found",
        "  speed.cls      [2]      0.5 1.25               rad per layer",
        "  speed.patches  [5, 10]  0 ... 2                rad per layer",
        "  spread         [1, 3]   1 ... 3, 1 not finite",
        "  modes          [20]     modulus 3 ... 4",
        "  name                    k = 2",
    ]
    assert "[2]" in repr(speed) and "registers" not in repr(speed)


def test_a_traced_result_can_be_printed():
    shown = []

    @jax.jit
    def step(x):
        shown.append(repr(ByToken(x, jnp.zeros(0), x)))
        return x

    step(jnp.ones(3))
    assert "[3]" in shown[0] and "traced" in shown[0]


def test_nothing_prints_its_parameters(tiny_encoder):
    assert repr(tiny_encoder).splitlines() == [
        "tiny: ViT, 6 layers of width 16, 2 heads, 13,904 parameters",
        "  8 x 8 pixels = 1 cls + 2 registers + 4 x 4 patches of 2 pixels",
    ]
    head = {"kernel": np.zeros((32, 5)), "bias": np.zeros(5)}
    assert repr(tiny_encoder.replace(head=head)).endswith("; a classifier of 5 classes")
    assert repr(tiny_encoder.system()).startswith("DepthSystem of 6 layers on TokenLayout(num_cls=1")


def test_a_portrait_and_a_comparison():
    """Of layers that halve every number and of ones that quarter it: norms are apart, directions are not."""
    layout = TokenLayout(1, 0, (1, 2))
    systems = [DepthSystem(lambda state, layer, rate=rate: rate * state, 3, layout) for rate in (0.5, 0.25)]
    state = jax.random.normal(jax.random.key(0), (4, 3, 8))
    settings = dynamics.PortraitSettings(tangent_images=0, linear_images=0)
    both = dynamics.compare(*systems, [state], key=jax.random.key(1), partition=Partition((2, 1)), settings=settings)
    lines = repr(both.first).splitlines()
    assert lines[0] == "Portrait of 4 images: 3 layers, 1-2 | 3"
    assert any('["directions"]' in line and "convergence, speed" in line for line in lines)
    lines = {line.split()[0]: line for line in repr(both).splitlines()[1:]}
    assert float(lines["norm_cls"].split()[1]) > 10
    assert float(lines["convergence_cls"].split()[1]) == 0
