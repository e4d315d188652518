"""Singular values, eigenvalues and structure of every layer's Jacobian."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from brh_jax.curves import Curve
from brh_jax.dynamics.influence import JacobianStructure, jacobian_structure
from brh_jax.dynamics.jacobian import Eigenvalues, jacobian_eigenvalues, jacobian_singular_values
from brh_jax.dynamics.measure import Measure, Picture, Seen, Shown, side_by_side, styled
from brh_jax.readable import readable
from brh_jax.train.parallel import to_host
from brh_jax.types import LayerSpectra


@readable()
class Jacobians(NamedTuple):
    """What the Jacobian of each layer does at each tangent image.

    Attributes:
        singular_values: the largest of the map of directions, `[depth, images, n]`.
        residuals: how far they have converged, of the same shape, see `jacobian_singular_values`.
        raw_singular_values: of the raw map, of the same shape.
        eigenvalues: the largest of the map of directions, `[depth, images, n]` each.
        structure: of the map of directions, `[depth, images]` each, with its standard error.
    """

    singular_values: np.ndarray
    residuals: np.ndarray
    raw_singular_values: np.ndarray
    eigenvalues: Eigenvalues
    structure: JacobianStructure


def _compute(seen: Seen) -> Jacobians:
    tokens, dim = seen.start.shape[1:]
    number = min(seen.settings.num_values, tokens * dim)
    layers = [_layer(seen, layer, number) for layer in range(seen.system.depth)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)


def _layer(seen: Seen, layer: int, number: int) -> Jacobians:
    """Results go to the host one by one: many programs in flight over several CPU devices can wait for one another for ever."""
    system, state = seen.system, seen.states[layer]
    singular = jacobian_singular_values(system, state, layer, number, sphere=True)
    values, residual = to_host((singular.values, singular.residual))
    raw = to_host(jacobian_singular_values(system, state, layer, number).values)
    eigenvalues = to_host(jacobian_eigenvalues(system, state, layer, number, sphere=True))
    structure = jacobian_structure(system, state, layer, num_probes=seen.settings.num_probes, key=seen.key, sphere=True)
    return Jacobians(values, residual, raw, eigenvalues, to_host(structure))


def _curves(jacobians: Jacobians) -> dict[str, Curve]:
    structure = jacobians.structure
    values = {
        "gain": jacobians.singular_values[..., 0],
        "raw_gain": jacobians.raw_singular_values[..., 0],
        "spectral_radius": np.abs(jacobians.eigenvalues.values[..., 0]),
        "from_identity": structure.from_identity / structure.norm,
        "antisymmetric": (structure.antisymmetric / structure.norm) ** 2,
    }
    return {name: Curve(of_layers, "layers") for name, of_layers in values.items()}


@styled
def eigenvalues(values: Mapping[str, LayerSpectra]):
    """Leading eigenvalues of each layer in the complex plane, coloured by layer, with the unit circle.

    Args:
        values: system -> complex `[depth, images, n]`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from brh_jax.report.values import GUIDE

    figure = Figure(figsize=(3.1 * len(values) + 1.0, 3.3), layout="constrained")
    axes = figure.subplots(1, len(values), squeeze=False, sharex=True, sharey=True)[0]
    turn = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    for axis, (system, spectrum) in zip(axes, values.items(), strict=True):
        axis.plot(turn.real, turn.imag, color="#bbbbbb", lw=0.8, gid=GUIDE)
        layers = np.broadcast_to(np.arange(1, len(spectrum) + 1)[:, None, None], spectrum.shape)
        points = axis.scatter(spectrum.real, spectrum.imag, c=layers, s=7, cmap="viridis", linewidths=0)
        axis.set_title(system)
        axis.set_xlabel("real part")
        axis.set_aspect("equal")
    axes[0].set_ylabel("imaginary part")
    figure.colorbar(points, ax=axes, label="layer", shrink=0.85, ticks=MaxNLocator(6, integer=True))
    return figure


def _eigenvalues(shown: Shown):
    values = shown.each("jacobians/eigenvalues")
    return eigenvalues(values) if values else None


MEASURE = Measure(
    "jacobians",
    on="tangent",
    compute=_compute,
    curves=_curves,
    arrays=lambda found: {"eigenvalues": found.eigenvalues.values},
    figures=(
        Picture(
            "jacobians",
            "Jacobians of the layers",
            "A layer above one stretches the most sensitive direction. Of each layer's map of directions, all tokens "
            "together, {tangent_images} images: the factor by which that direction grows, how far the map is from leaving all "
            "directions as they are, and how far from a symmetric one.",
            side_by_side(
                ("gain", "largest singular value", "log"),
                ("from_identity", "|J - I| / |J|", "linear"),
                ("antisymmetric", "antisymmetric share of |J|²", "linear"),
            ),
        ),
        Picture(
            "eigenvalues",
            "Eigenvalues of the layers",
            "Inside the circle a direction contracts, on the real axis it does not turn. The largest by modulus of each "
            "layer's map of directions, all tokens together, {tangent_images} images.",
            _eigenvalues,
        ),
    ),
)
