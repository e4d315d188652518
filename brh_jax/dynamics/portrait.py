"""All measures of a system at once (paper, section 8)."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.dynamics.basins import AngularBasins, angular_basins, image_directions
from brh_jax.dynamics.directions import Directions, direction_measures
from brh_jax.dynamics.dmd import dmd, dmd_horizon
from brh_jax.dynamics.rank import (
    UpdateRank,
    gram_rank,
    num_update_directions,
    principal_angles,
    update_grams,
    update_rank_per_image,
)
from brh_jax.dynamics.tangent import Tangent, tangent_measures
from brh_jax.partition import Partition
from brh_jax.system import DepthSystem
from brh_jax.tokens import ByToken, TokenLayout
from brh_jax.train.parallel import to_host

# Layers ahead that linear models of a phase are held to, as far as it has as many, and their ridge: tokens of few images span
# fewer dimensions than they have, and the free linear maps beside them would not be defined.
_HORIZON, _RIDGE = (1, 2, 3, 4), 1e-3


@dataclasses.dataclass(frozen=True)
class PortraitSettings:
    """How much is measured.

    Attributes:
        tangent_images: images that perturbations, exponents, Jacobians and iterated blocks are measured on: the first ones. 0
            leaves those out.
        linear_images: images that linear models and the ranks over the tokens of each image are of: the first ones. Their
            trajectories are held together for each system, (depth + 1) x tokens x dim numbers an image: 10 MB of a ViT-B at
            224 px. 0 leaves those out.
        relative_sizes, num_directions: see `perturbation_growth`; the middle size is the one in `curves`.
        num_exponents: see `lyapunov_exponents`.
        num_values: of singular values and eigenvalues, see `jacobian_singular_values`.
        num_probes: see `jacobian_structure`.
        num_angles: dimension of the subspaces of updates, see `principal_angles`; fewer where the states are narrower.
        rank: of the linear models, see `dmd`; fewer where there are not as many independent states.
        extrapolated_steps: how often the last layer of each phase is applied beyond its place, see `extrapolated_depth`; 0: none.
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
    extrapolated_steps: int = 200


class Portrait(NamedTuple):
    """What a system does along depth. Arrays are numpy; images are in the order in which they came.

    Attributes:
        layout: of its states.
        partition: the phases that exponents by phase and iterated blocks are of.
        directions: of every image.
        rank: of angular updates, over all tokens of all images.
        raw_rank: the same of raw updates.
        token_rank: of angular updates, over the tokens of each of the linear images; None without.
        turn: largest angle between the subspaces of neighbouring layers' updates, ByToken `[depth - 1]`, radians.
        basins: of the classes that have two images or more, or, where no two classes have, of clusters of the last directions of
            the first system; None where images fall into no clusters.
        tangent: perturbations, exponents, Jacobians and iterated blocks of the tangent images; None without.
        modes: for each phase, per token type the linear model of its layers; None for a type that the model lacks.
        horizons: for each phase, per token type how far ahead a linear model of the first half of the linear images
            predicts the others; None for a type that the model lacks, and with fewer than two linear images.
    """

    layout: TokenLayout
    partition: Partition
    directions: Directions
    rank: UpdateRank
    raw_rank: UpdateRank
    token_rank: UpdateRank | None
    turn: ByToken
    basins: AngularBasins | None
    tangent: Tangent | None
    modes: tuple[ByToken, ...]
    horizons: tuple[ByToken, ...]


def portrait(system: DepthSystem, first_states: Iterable, *, key, **options) -> Portrait:
    """The measures of this package along depth of one system; arguments as for `portraits`."""
    return portraits({"system": system}, first_states, key=key, **options)["system"]


def portraits(
    systems: Mapping[str, DepthSystem],
    first_states: Iterable,
    *,
    key,
    partition: Partition | Mapping[str, Partition] | None = None,
    settings: PortraitSettings = PortraitSettings(),
) -> dict[str, Portrait]:
    """The measures of this package along depth of several systems, from the same first states.

    Args:
        systems: by name; of one layout and depth.
        first_states: batches of a_0, `[batch, tokens, dim]`, or pairs of such a batch and its images' classes, integers from 0
            (below: not known). They are gone through once, and only one batch of trajectories is held, besides those of
            `settings.linear_images`.
        key: of perturbations and probes, the same ones for all systems.
        partition: the phases, of all systems or of each by name; None for all of depth as one. Linear models are of the finest
            of them in every system, so that they compare.
        settings: how much is measured.

    Raises:
        ValueError: no systems or no images, a system without a partition, classes that are not one for each image, states that
            do not fit the systems, or states that are zero or not finite.
    """
    if not systems:
        raise ValueError("no systems: expected at least one DepthSystem by its name")
    gathered = {name: _Gathered() for name in systems}
    one = next(iter(systems.values()))
    partition = partition or Partition((one.depth,))
    if isinstance(partition, Partition):
        partition = dict.fromkeys(systems, partition)
    if missing := [name for name in systems if name not in partition]:
        raise ValueError(
            f"no partition for {', '.join(missing)}: partition has {', '.join(map(str, partition))}, "
            "one is needed for each system"
        )
    phases = {name: partition[name] for name in systems}
    finest = max(phases.values(), key=lambda p: len(p.runs))
    for name, system in systems.items():
        if system.depth != phases[name].depth or system.depth != one.depth or system.layout != one.layout:
            raise ValueError(
                f"{name} has {system.depth} layers and {system.layout}: expected {phases[name].depth} layers, those of the "
                f"partition {phases[name]}, and the same tokens as the other systems"
            )
    beginning, labels, held, placed = [], [], 0, None
    for batch in first_states:
        state, classes = batch if isinstance(batch, tuple) else (batch, None)
        if classes is not None and np.shape(classes) != (len(state),):
            raise ValueError(f"classes have shape {np.shape(classes)}, expected ({len(state)},): one for each image of the batch")
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
    means = {name: _join(of_system.means) for name, of_system in gathered.items()}
    labels = _classes(labels, next(iter(means.values())), one.layout)
    num_angles = _num_angles(gathered.values(), settings.num_angles)
    return {
        name: Portrait(
            layout=system.layout,
            partition=phases[name],
            basins=_basins(means[name], labels, system.layout),
            tangent=None if start is None else tangent_measures(system, start, key, phases[name], settings),
            **gathered[name].result(system.layout, finest, num_angles, settings.rank),
        )
        for name, system in systems.items()
    }


class _Gathered:
    """What one pass over the images leaves of a system: measures of each image, sums, and a few whole trajectories."""

    def __init__(self):
        self.directions, self.means, self.trajectories, self.token_ranks = [], [], [], []
        self.grams, self.raw_grams = None, None

    def add(self, states, layout, num_held: int):
        self.directions.append(direction_measures([states], layout))
        self.means.append(image_directions([states], layout))
        self.grams = _plus(self.grams, update_grams([states], layout))
        self.raw_grams = _plus(self.raw_grams, update_grams([states], layout, kind="raw"))
        if num_held:
            held = to_host(states[:, :num_held])
            self.trajectories.append(held)
            self.token_ranks.append(update_rank_per_image(jnp.asarray(held), layout))

    def result(self, layout, partition, num_angles: ByToken, rank: int) -> dict:
        return {
            "directions": _join(self.directions),
            "rank": gram_rank(self.grams),
            "raw_rank": gram_rank(self.raw_grams),
            "token_rank": _join(self.token_ranks) if self.token_ranks else None,
            "turn": _turn(self.grams, num_angles),
            "modes": tuple(_modes(self.trajectories, run, layout, rank) for run in partition.runs),
            "horizons": tuple(_horizon(self.trajectories, run, layout, rank) for run in partition.runs),
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


def _plus(total, more):
    return more if total is None else jax.tree.map(np.add, total, more)


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


def _horizon(trajectories, run, layout, rank: int) -> ByToken:
    total = sum(t.shape[1] for t in trajectories)
    before = np.cumsum([0, *(t.shape[1] for t in trajectories)])
    train = [t[:, : total // 2 - b] for t, b in zip(trajectories, before, strict=False) if b < total // 2]
    test = [t[:, max(total // 2 - b, 0) :] for t, b in zip(trajectories, before, strict=False) if b + t.shape[1] > total // 2]
    steps = tuple(p for p in _HORIZON if p <= run.stop - run.start)

    def of_type(token, count):
        if not count or total < 2:
            return None
        options = {"steps": steps, "ridge": _RIDGE, "layout": layout, "token": token, "clip_rank": True}
        return dmd_horizon(train, test, (run.start + 1, run.stop), rank, **options)

    return ByToken(*(of_type(token, count) for token, count in layout.counts._asdict().items()))
