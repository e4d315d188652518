"""All measures of a system at once, and of a surrogate beside the system that it stands for (paper, section 8)."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.dynamics.basins import AngularBasins, angular_basins, image_directions
from brh_jax.dynamics.directions import Directions, direction_measures
from brh_jax.dynamics.dmd import dmd
from brh_jax.dynamics.influence import JacobianStructure, jacobian_structure
from brh_jax.dynamics.jacobian import jacobian_singular_values
from brh_jax.dynamics.lyapunov import Lyapunov, lyapunov_exponents
from brh_jax.dynamics.perturbation import PerturbationGrowth, perturbation_growth
from brh_jax.dynamics.rank import UpdateRank, gram_rank, num_update_directions, principal_angles, update_grams
from brh_jax.dynamics.statistics import summarize
from brh_jax.dynamics.system import DepthSystem
from brh_jax.parallel import to_host
from brh_jax.phases.partition import Partition
from brh_jax.tokens import ByToken


@dataclasses.dataclass(frozen=True)
class PortraitSettings:
    """How much is measured.

    Attributes:
        tangent_images: images that perturbations, exponents and Jacobians are measured on: the first ones. 0 leaves those out.
        linear_images: images that linear models are fitted to: the first ones, whose trajectories are held together.
        relative_sizes, num_directions: see `perturbation_growth`; the middle size is the one in `curves`.
        num_exponents: see `lyapunov_exponents`.
        num_values: see `jacobian_singular_values`.
        num_probes: see `jacobian_structure`.
        num_angles: dimension of the subspaces of updates, see `principal_angles`; fewer where the states are narrower.
        rank: of the linear models, see `dmd`; fewer where there are not as many independent states.
    """

    tangent_images: int = 8
    linear_images: int = 64
    relative_sizes: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    num_directions: int = 8
    num_exponents: int = 8
    num_values: int = 8
    num_probes: int = 16
    num_angles: int = 4
    rank: int = 32


class Portrait(NamedTuple):
    """What a system does along depth. Arrays are numpy; images are in the order in which they came.

    Attributes:
        start: a_0 of the tangent images, laid over devices as the first batch was; None without.
        directions: of every image.
        rank: of angular updates, over all tokens of all images.
        turn: largest angle between the subspaces of neighbouring layers' updates, ByToken `[depth - 1]`, radians.
        basins: of the classes that have two images or more, or, where no two classes have, of clusters of the last directions of
            the first system; None where images fall into no clusters.
        growth: of isotropic perturbations of a_0, by size; this and the next four are None without tangent images.
        exponents: Lyapunov exponents of the raw map.
        direction_exponents: of the map of directions.
        singular_values: the largest of each layer's map of directions, `[depth, tangent images, num_values]`.
        structure: of each layer's map of directions, `[depth, tangent images]` each.
        modes: for each phase, per token type the linear model of its layers; None for a type that the model lacks or that
            hardly varies.
    """

    start: jax.Array | None
    directions: Directions
    rank: UpdateRank
    turn: ByToken
    basins: AngularBasins | None
    growth: PerturbationGrowth | None
    exponents: Lyapunov | None
    direction_exponents: Lyapunov | None
    singular_values: np.ndarray | None
    structure: JacobianStructure | None
    modes: tuple[ByToken, ...]


class Distance(NamedTuple):
    """How far two curves are apart, means over images compared.

    Attributes:
        absolute: root mean square difference along the curve, in the curve's unit.
        relative: |difference| / |first curve|, Euclidean norms along the curve.
    """

    absolute: float
    relative: float


class Comparison(NamedTuple):
    """A system, its surrogate, and how far apart they are by each curve of `curves`."""

    first: Portrait
    second: Portrait
    distance: dict[str, Distance]


def portrait(system: DepthSystem, first_states: Iterable, *, key, **options) -> Portrait:
    """The measures of this package along depth of one system; arguments as for `portraits`."""
    return portraits({"system": system}, first_states, key=key, **options)["system"]


def compare(first: DepthSystem, second: DepthSystem, first_states: Iterable, *, key, **options) -> Comparison:
    """The portraits of two systems from the same first states, and their distance: a surrogate is as good as its dynamics.

    Args:
        first, second: a teacher and its Raptor, say.
        first_states, key, options: as for `portraits`.
    """
    both = portraits({"first": first, "second": second}, first_states, key=key, **options)
    return Comparison(both["first"], both["second"], distance(both["first"], both["second"]))


def portraits(
    systems: Mapping[str, DepthSystem],
    first_states: Iterable,
    *,
    key,
    partition: Partition | None = None,
    settings: PortraitSettings = PortraitSettings(),
) -> dict[str, Portrait]:
    """The measures of this package along depth of several systems, from the same first states.

    Args:
        systems: by name; of one layout and depth.
        first_states: batches of a_0, `[batch, tokens, dim]`, or pairs of such a batch and its images' classes, integers from 0
            (below: not known). They are gone through once, and only one batch of trajectories is held, besides those of
            `settings.linear_images`.
        key: of perturbations and probes, the same ones for all systems.
        partition: phases that linear models are fitted to; None for all of depth as one.
        settings: how much is measured.

    Raises:
        ValueError: no images, states that do not fit the systems, or states that are zero or not finite.
    """
    gathered = {name: _Gathered() for name in systems}
    partition = partition or Partition((next(iter(systems.values())).depth,))
    for name, system in systems.items():
        if system.depth != partition.depth or system.layout != next(iter(systems.values())).layout:
            raise ValueError(
                f"{name} has {system.depth} layers and {system.layout}: expected {partition.depth} layers, those of the "
                f"partition {partition}, and the same tokens as the other systems"
            )
    beginning, labels, held, placed = [], [], 0, None
    for batch in first_states:
        state, classes = batch if isinstance(batch, tuple) else (batch, None)
        labels.append(classes)
        for name, system in systems.items():
            states = system.rollout(jnp.asarray(state))
            gathered[name].add(states, system.layout, max(0, settings.linear_images - held))
        placed = state if placed is None else placed
        if held < settings.tangent_images:
            beginning.append(to_host(state)[: settings.tangent_images - held])
        held += len(state)
    if not held:
        raise ValueError("no images: portraits need at least one batch of first states [batch, tokens, dim]")
    start = _placed(np.concatenate(beginning), like=placed) if beginning else None
    means = {name: _join(one.means) for name, one in gathered.items()}
    labels = _classes(labels, next(iter(means.values())), next(iter(systems.values())).layout)
    num_angles = _num_angles(gathered.values(), settings.num_angles)
    return {
        name: Portrait(
            start=start,
            basins=_basins(means[name], labels, system.layout),
            **gathered[name].result(system.layout, partition, num_angles, settings),
            **_tangent(system, start, key, settings),
        )
        for name, system in systems.items()
    }


def distance(first: Portrait, second: Portrait) -> dict[str, Distance]:
    """How far two portraits are apart, by each of their `curves`."""
    ours, theirs = curves(first), curves(second)
    return {name: _distance(_mean(ours[name]), _mean(theirs[name])) for name in ours if name in theirs}


def curves(portrait: Portrait) -> dict[str, np.ndarray]:
    """A portrait as curves along depth: name -> `[points, images]`, or `[points]` for what is measured of all images together.

    Names are those of the measures, with the token type behind where there is one: `speed_cls`, `stable_rank_patches`,
    `growth_cls` (angle to the clean trajectory over the injected one), `exponents` (one point for each exponent), `gain`
    (largest singular value of each layer's map of directions), `antisymmetric` (share of that map's squared norm),
    `from_identity` (|J - I| / |J|).
    """
    found = {}

    def add(name, values: ByToken):
        found.update({f"{name}_{token}": np.asarray(v) for token, v in values._asdict().items() if v.size})

    for name in ("convergence", "speed", "acceleration", "norm"):
        add(name, getattr(portrait.directions, name))
    if portrait.directions.coherence.size:
        found["coherence_patches"] = portrait.directions.coherence
    add("stable_rank", portrait.rank.stable)
    add("effective_rank", portrait.rank.effective)
    add("participation", portrait.rank.participation)
    add("turn", portrait.turn)
    if portrait.basins:
        for name in ("within", "between", "separation", "silhouette", "accuracy"):
            add(name, getattr(portrait.basins, name))
    if portrait.growth is None:
        return found
    add("growth", jax.tree.map(_relative_growth, portrait.growth.angle))
    found["recovery"] = portrait.growth.recovery
    found["exponents"] = portrait.exponents.exponents.T
    found["direction_exponents"] = portrait.direction_exponents.exponents.T
    found["gain"] = portrait.singular_values[..., 0]
    found["from_identity"] = portrait.structure.from_identity / portrait.structure.norm
    found["antisymmetric"] = (portrait.structure.antisymmetric / portrait.structure.norm) ** 2
    return found


def bands(curves: Mapping[str, np.ndarray]) -> dict[str, dict[str, list[float]]]:
    """Curves as JSON can hold them and the figures of brh_jax.report take them.

    Args:
        curves: name -> `[points, images]` or `[points]`, see `curves`.

    Returns:
        name -> {"mean": `[points]`, None where it is not finite} and, of two images or more, the 10 and 90 %
        quantiles of images as "low" and "high" and the bootstrap band of the mean as "mean_low" and "mean_high".
    """
    found = {}
    for name, values in curves.items():
        found[name] = {"mean": [value if np.isfinite(value) else None for value in np.atleast_1d(_mean(values)).tolist()]}
        if values.ndim > 1 and values.shape[1] > 1 and np.isfinite(values).all():
            summary = summarize(values, quantiles=(0.1, 0.9))
            low, high = summary.quantiles
            band = {"low": low, "high": high, "mean_low": summary.low, "mean_high": summary.high}
            found[name] |= {side: edge.tolist() for side, edge in band.items()}
    return found


def _relative_growth(angles):
    if not angles.size:
        return angles
    middle = angles[len(angles) // 2]
    return middle / middle[0]


class _Gathered:
    """What one pass over the images leaves of a system: measures of each image, sums, and a few whole trajectories."""

    def __init__(self):
        self.directions, self.means, self.grams, self.trajectories = [], [], None, []

    def add(self, states, layout, num_held: int):
        self.directions.append(direction_measures([states], layout))
        self.means.append(image_directions([states], layout))
        grams = update_grams([states], layout)
        self.grams = grams if self.grams is None else jax.tree.map(np.add, self.grams, grams)
        if num_held:
            self.trajectories.append(to_host(states[:, :num_held]))

    def result(self, layout, partition, num_angles: ByToken, settings) -> dict:
        return {
            "directions": _join(self.directions),
            "rank": gram_rank(self.grams),
            "turn": _turn(self.grams, num_angles),
            "modes": tuple(_modes(self.trajectories, run, layout, settings.rank) for run in partition.runs),
        }


def _placed(images, like):
    """Laid over several devices as another batch is, where they divide the images."""
    sharding = getattr(like, "sharding", None)
    if sharding is None or len(sharding.device_set) == 1:
        return jnp.asarray(images)
    try:
        sharding.shard_shape(images.shape)
    except ValueError:
        return jnp.asarray(images)
    return jax.device_put(images, sharding)


def _join(parts):
    return jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *parts)


def _turn(grams: ByToken, num_angles: ByToken) -> ByToken:
    """Largest principal angle, token type by token type, as one may move in fewer directions than another."""

    def of_type(gram, number):
        if len(gram) < 2 or not number:
            return np.zeros(0)
        return principal_angles(ByToken(gram, gram[:0], gram[:0]), num_directions=int(number)).cls[:, -1]

    return ByToken(*map(of_type, grams, num_angles))


def _num_angles(gathered, most: int) -> ByToken:
    """As many directions as every layer of every system moves a type of token in, so that angles compare."""
    directions = [num_update_directions(one.grams) for one in gathered]
    return ByToken(*(min([most, *(int(d.min()) for d in of_type if d.size)]) for of_type in zip(*directions, strict=True)))


def _classes(labels: list, means: ByToken, layout):
    """Class of each image, -1 for those that are left out; clusters of the first system's last directions where no two classes
    have two images. None where images fall into no clusters."""
    if not any(batch is None for batch in labels):
        labels = np.concatenate(labels)
        classes, sizes = np.unique(labels, return_counts=True)
        several = classes[(sizes > 1) & (classes >= 0)]
        if len(several) > 1:
            return np.where(np.isin(labels, several), labels, -1)
    if means.cls.shape[1] < 4:
        return None
    try:
        return angular_basins(means, None, layout).labels
    except ValueError:  # every number of clusters leaves an image alone
        return None


def _basins(means: ByToken, labels, layout):
    if labels is None:
        return None
    known = labels >= 0
    return angular_basins(jax.tree.map(lambda m: m[:, known], means), labels[known], layout)


def _modes(trajectories, run, layout, rank: int) -> ByToken:
    def of_type(token, count):
        if not (count and trajectories):
            return None
        return dmd(trajectories, (run.start + 1, run.stop), rank, layout=layout, token=token, clip_rank=True)

    return ByToken(*(of_type(token, count) for token, count in layout.counts._asdict().items()))


def _tangent(system, state, key, settings: PortraitSettings) -> dict:
    if state is None:
        return dict.fromkeys(("growth", "exponents", "direction_exponents", "singular_values", "structure"))
    options = {"relative_size": settings.relative_sizes, "num_directions": settings.num_directions}
    growth = to_host(perturbation_growth(system, state, key, 0, **options))
    tokens, dim = state.shape[1:]
    num_exponents = min(settings.num_exponents, tokens * (dim - 1))
    states = system.rollout(state)
    values, structures = [], []
    for layer in range(system.depth):
        found = jacobian_singular_values(system, states[layer], layer, min(settings.num_values, tokens * dim), sphere=True)
        values.append(to_host(found.values))
        structure = jacobian_structure(system, states[layer], layer, num_probes=settings.num_probes, key=key, sphere=True)
        structures.append(to_host(structure._replace(standard_error=None)))
    return {
        "growth": growth,
        "exponents": to_host(lyapunov_exponents(system, state, num_exponents)),
        "direction_exponents": to_host(lyapunov_exponents(system, state, num_exponents, sphere=True)),
        "singular_values": np.stack(values),
        "structure": jax.tree.map(lambda *leaves: np.stack(leaves), *structures),
    }


def _mean(values):
    return values.mean(-1) if values.ndim > 1 else values


def _distance(first, second) -> Distance:
    size = np.linalg.norm(first)
    difference = np.linalg.norm(second - first)
    relative = float(difference / size) if size else float(difference > 0)
    return Distance(float(difference / np.sqrt(max(first.size, 1))), relative)
