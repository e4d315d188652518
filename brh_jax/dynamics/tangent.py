"""What becomes of small differences: every measure of a few images that needs derivatives or perturbed trajectories."""

from typing import NamedTuple

import jax
import numpy as np

from brh_jax.dynamics.extrapolation import Extrapolation, extrapolated_depth
from brh_jax.dynamics.influence import JacobianStructure, jacobian_structure
from brh_jax.dynamics.jacobian import Eigenvalues, jacobian_eigenvalues, jacobian_singular_values
from brh_jax.dynamics.lyapunov import Lyapunov, lyapunov_exponents
from brh_jax.dynamics.perturbation import PerturbationGrowth, perturbation_growth
from brh_jax.partition import Partition
from brh_jax.system import DepthSystem
from brh_jax.train.parallel import to_host


class Tangent(NamedTuple):
    """Of each tangent image; arrays are numpy.

    Attributes:
        start: a_0 of the images, `[images, tokens, dim]`, laid over devices as they came.
        growth: what becomes of perturbations of a_0, by what is perturbed: every token by a random vector (`isotropic`), by its
            own update (`along`), towards the next image's (`towards`, of two images or more); by random vectors the class
            tokens (`cls`), the registers (`registers`) or the middle patch (`patch`) alone.
        exponents: Lyapunov exponents of the raw map.
        direction_exponents: of the map of directions.
        singular_values: the largest of each layer's map of directions, `[depth, images, n]`.
        singular_residuals: how far they have converged, of the same shape, see `jacobian_singular_values`.
        raw_singular_values: of each layer's raw map, of the same shape.
        eigenvalues: the largest of each layer's map of directions, `[depth, images, n]` each.
        structure: of each layer's map of directions, `[depth, images]` each, with its standard error.
        extrapolation: of the last layer of each run of the partition, iterated beyond its place; empty where none was asked for.
    """

    start: jax.Array
    growth: dict[str, PerturbationGrowth]
    exponents: Lyapunov
    direction_exponents: Lyapunov
    singular_values: np.ndarray
    singular_residuals: np.ndarray
    raw_singular_values: np.ndarray
    eigenvalues: Eigenvalues
    structure: JacobianStructure
    extrapolation: tuple[Extrapolation, ...]


def tangent_measures(system: DepthSystem, state, key, partition: Partition, settings) -> Tangent:
    """All of them from a_0, `[images, tokens, dim]`; `settings` as PortraitSettings has them."""
    tokens, dim = state.shape[1:]
    num_exponents = min(settings.num_exponents, tokens * (dim - 1))
    num_values = min(settings.num_values, tokens * dim)
    states = system.rollout(state)
    layers = [_layer(system, states[layer], layer, num_values, key, settings) for layer in range(system.depth)]
    singular, eigenvalues, structure = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    steps = settings.extrapolated_steps
    return Tangent(
        start=state,
        growth=_growth(system, state, key, settings),
        exponents=to_host(lyapunov_exponents(system, state, num_exponents)),
        direction_exponents=to_host(lyapunov_exponents(system, state, num_exponents, sphere=True)),
        singular_values=singular[0],
        singular_residuals=singular[1],
        raw_singular_values=singular[2],
        eigenvalues=eigenvalues,
        structure=structure,
        extrapolation=tuple(
            to_host(extrapolated_depth(system, states[run.stop], run.stop - 1, steps)) for run in partition.runs if steps
        ),
    )


def _layer(system, state, layer: int, num_values: int, key, settings):
    """To the host one by one: on a CPU many programs in flight over several devices can wait for each other for ever."""
    singular = jacobian_singular_values(system, state, layer, num_values, sphere=True)
    singular = to_host((singular.values, singular.residual))
    raw = to_host(jacobian_singular_values(system, state, layer, num_values).values)
    eigenvalues = to_host(jacobian_eigenvalues(system, state, layer, num_values, sphere=True))
    structure = jacobian_structure(system, state, layer, num_probes=settings.num_probes, key=key, sphere=True)
    return (*singular, raw), eigenvalues, to_host(structure)


def _growth(system, state, key, settings) -> dict[str, PerturbationGrowth]:
    layout, sizes = system.layout, settings.relative_sizes
    middle = layout.num_cls + layout.num_registers + layout.grid[0] // 2 * layout.grid[1] + layout.grid[1] // 2
    kinds = {"isotropic": {}, "along": {"kind": "along"}}
    if len(state) > 1:
        kinds["towards"] = {"kind": "towards"}
    tokens = {"cls": "cls", "registers": "registers", "patch": middle}
    present = zip(tokens.items(), layout.counts, strict=True)
    kinds |= {name: {"token": token} for (name, token), count in present if 0 < count < layout.num_tokens}
    options = {"relative_size": sizes, "num_directions": settings.num_directions}
    return {name: to_host(perturbation_growth(system, state, key, 0, **options, **kind)) for name, kind in kinds.items()}
