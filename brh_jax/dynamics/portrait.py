"""All measures of a system at once (paper, section 8)."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.dynamics.drawing import drawn
from brh_jax.dynamics.measure import Measure, PortraitSettings, Seen
from brh_jax.dynamics.measures import MEASURES
from brh_jax.partition import Partition
from brh_jax.statistics import num_groups
from brh_jax.system import DepthSystem
from brh_jax.tokens import TokenLayout
from brh_jax.train.parallel import to_host
from brh_jax.types import LabelBatch, Labels, RandomKey, State, StateBatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FirstStates = StateBatch | tuple[StateBatch, LabelBatch] | tuple[StateBatch, LabelBatch, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Portrait:
    """What a system does along depth: `portrait["directions"].speed.cls`.

    Attributes:
        results: name of the measure -> what it found; see the files in `brh_jax/dynamics/measures/`. Measures that were left out,
            or found nothing to measure, are not there. Arrays are numpy; images are in the order in which they came.
        layout: of its states.
        partition: the phases that exponents by phase and iterated blocks are of.
        num_images, tangent_images: how many images were measured; of the latter perturbations and derivatives were taken.
        photographs: `[num_images]`, of which photograph each is a view: what intervals draw.
    """

    results: dict[str, Any]
    layout: TokenLayout
    partition: Partition
    num_images: int
    tangent_images: int
    photographs: np.ndarray

    @property
    def num_photographs(self) -> int:
        """How many photographs the images are views of."""
        return num_groups(self.photographs, self.num_images)

    def __getitem__(self, measure: str) -> Any:
        return self.results[measure]

    def plot(self, figure: str = "summary", name: str = "system") -> "Figure":
        """A figure of it, by default all of the dynamics in one, with its phases; see `dynamics.draw` for what there is.

        Args:
            figure: summary, dynamics, coherence, ranks, basins, projections, ...
            name: of the system, in the legend; "teacher" is drawn in black.

        Raises:
            ValueError: no figure of that name, or nothing measured that it shows.
        """
        return drawn(figure, {name: self}, {name: self.partition})

    def __repr__(self) -> str:
        """What was measured of how many images; `portrait["directions"]` says it with numbers and units."""
        views = "" if self.num_photographs == self.num_images else f" (views of {self.num_photographs} photographs)"
        tangent = f", perturbations and derivatives of {self.tangent_images}" if self.tangent_images else ""
        fields = {f'["{name}"]': ", ".join(getattr(result, "_fields", ())) for name, result in self.results.items()}
        width = max(map(len, fields), default=0)
        title = f"Portrait of {self.num_images} images{views}{tangent}: {self.partition.depth} layers, {self.partition}"
        return "\n  ".join([title, *(f"{name.ljust(width)}  {found}".rstrip() for name, found in fields.items())])


def portrait(system: DepthSystem, first_states: Iterable[FirstStates], *, key: RandomKey, **options) -> Portrait:
    """The measures of this package along depth of one system; arguments as for `portraits`."""
    return portraits({"system": system}, first_states, key=key, **options)["system"]


def portraits(
    systems: Mapping[str, DepthSystem],
    first_states: Iterable[FirstStates],
    *,
    key: RandomKey,
    of_classes: Iterable[FirstStates] | None = None,
    partition: Partition | Mapping[str, Partition] | None = None,
    settings: PortraitSettings | None = None,
    sublayers: Mapping[str, DepthSystem] | None = None,
    watch: Callable[[str, int, int], Any] | None = None,
) -> dict[str, Portrait]:
    """Everything in MEASURES along depth of several systems, from the same first states.

    Args:
        systems: by name; of one layout and depth.
        first_states: batches of a_0, `[batch, tokens, dim]`; or such a batch with its images' classes, integers from 0 (below:
            not known), and perhaps with the photographs that they are views of, any integers. They are gone through once, and
            only one batch of trajectories is held, besides those of `settings.linear_images`.
        key: of perturbations and probes, the same ones for all systems.
        of_classes: the same of other images, with classes, as many of each: class basins are measured on these. None: on the
            classes of all images, as far as these have some.
        partition: the phases, of all systems or of each by name; None for all of depth as one. Linear models are of the finest
            of them in every system, so that they compare.
        settings: how much is measured; None for the defaults.
        sublayers: the same systems with attention and feed-forward as two layers, where their speeds are wanted apart.
        watch: called once the images are seen, before each measure of each system, with what comes ("jacobians of teacher"), how
            many are done and how many there are; and once more when all are.

    Raises:
        ValueError: no systems or no images, a system without a partition, classes that are not one for each image, states that
            do not fit the systems, or states that are zero or not finite.
    """
    phases, settings = _phases(systems, partition), settings or PortraitSettings()
    everything, classes = (
        [m for m in MEASURES.values() if (m.on == "classes") == with_classes] for with_classes in (False, True)
    )
    images = _Images(settings, everything + ([] if of_classes is not None else classes))
    for batch in first_states:
        images.add(batch, systems)
    if not images.number:
        raise ValueError("no images: portraits need at least one batch of first states [batch, tokens, dim]")
    labelled = _Images(dataclasses.replace(settings, linear_images=0, tangent_images=0), classes)
    for batch in of_classes or ():
        labelled.add(batch, systems)
    labelled = labelled if labelled.number else images
    seen = {
        name: Seen(
            system=system,
            sublayers=(sublayers or {}).get(name),
            partition=phases[name],
            finest=max(phases.values(), key=lambda p: len(p.runs)),
            reference=name == next(iter(systems)),
            settings=settings,
            key=key,
            classes=images.classes(),
            photographs=images.photographs(),
            trajectories=images.trajectories[name],
            start=images.start(),
        )
        for name, system in systems.items()
    }
    known, views = labelled.classes(), labelled.photographs()
    of_labelled = {name: dataclasses.replace(one, classes=known, photographs=views) for name, one in seen.items()}
    total, done = len(MEASURES) * len(systems), itertools.count()

    def before(measure: str, system: str) -> None:
        if watch is not None:
            watch(f"{measure} of {system}", next(done), total)

    results = {
        measure.name: _results(
            measure, *((of_labelled, labelled.gathered) if measure in classes else (seen, images.gathered)), before
        )
        for measure in MEASURES.values()
    }
    if watch is not None:
        watch("", total, total)
    num_tangent = min(settings.tangent_images, images.number)
    return {
        name: Portrait(
            {measure: found[name] for measure, found in results.items() if found.get(name) is not None},
            system.layout,
            phases[name],
            images.number,
            num_tangent,
            images.photographs(),
        )
        for name, system in systems.items()
    }


def _phases(systems, partition) -> dict[str, Partition]:
    """The partition of each system. Raises ValueError where systems do not go together."""
    if not systems:
        raise ValueError("no systems: expected at least one DepthSystem by its name")
    one = next(iter(systems.values()))
    partition = partition or Partition((one.depth,))
    if isinstance(partition, Partition):
        partition = dict.fromkeys(systems, partition)
    if missing := [name for name in systems if name not in partition]:
        raise ValueError(
            f"no partition for {', '.join(missing)}: partition has {', '.join(map(str, partition))}, "
            "one is needed for each system"
        )
    for name, system in systems.items():
        if system.depth != partition[name].depth or system.depth != one.depth or system.layout != one.layout:
            raise ValueError(
                f"{name} has {system.depth} layers and {system.layout}: expected {partition[name].depth} layers, those of the "
                f"partition {partition[name]}, and the same tokens as the other systems"
            )
    return {name: partition[name] for name in systems}


class _Images:
    """What one pass over the images leaves: what measures gather of each system, a few whole trajectories and first states."""

    def __init__(self, settings: PortraitSettings, measures: Sequence[Measure]):
        self.settings, self.measures, self.number, self.gathered, self.trajectories = settings, measures, 0, {}, {}
        self._labels, self._photographs, self._beginning, self._placed = [], [], [], None

    def add(self, batch, systems) -> None:
        state, classes, photographs = (*batch, None, None)[:3] if isinstance(batch, tuple) else (batch, None, None)
        for what, values in (("classes", classes), ("photographs", photographs)):
            if values is not None and np.shape(values) != (len(state),):
                raise ValueError(
                    f"{what} have shape {np.shape(values)}, expected ({len(state)},): one for each image of the batch"
                )
        self._labels.append(classes)
        self._photographs.append(photographs)
        held = max(0, self.settings.linear_images - self.number)
        for name, system in systems.items():
            states = system.rollout(jnp.asarray(state))
            for measure in self.measures:
                if measure.gather is not None:
                    part, place = measure.gather(states, system.layout), (measure.name, name)
                    self.gathered[place] = measure.merge(self.gathered[place], part) if place in self.gathered else part
            self.trajectories.setdefault(name, []).extend([to_host(states[:, :held])] if held else [])
        self._placed = state if self._placed is None else self._placed
        if self.number < self.settings.tangent_images:
            self._beginning.append(to_host(state)[: self.settings.tangent_images - self.number])
        self.number += len(state)

    def classes(self) -> Labels | None:
        return None if any(batch is None for batch in self._labels) else np.concatenate(self._labels)

    def photographs(self) -> np.ndarray:
        if any(batch is None for batch in self._photographs):
            return np.arange(self.number)
        return np.concatenate(self._photographs)

    def start(self) -> State | None:
        """The tangent images, laid over several devices as the first batch was, where they divide the images."""
        if not self._beginning:
            return None
        images, sharding = np.concatenate(self._beginning), getattr(self._placed, "sharding", None)
        if sharding is None or len(sharding.device_set) == 1:
            return jnp.asarray(images)
        try:
            sharding.shard_shape(images.shape)
        except ValueError:
            return jnp.asarray(images)
        return jax.device_put(images, sharding)


def _results(measure: Measure, seen: dict[str, Seen], gathered: dict, before: Callable[[str, str], None]) -> dict[str, Any]:
    """The results of each system; empty where there are not the images that the measure is on."""
    any_system = next(iter(seen.values()))
    if (measure.on == "tangent" and any_system.start is None) or (measure.on == "trajectories" and not any_system.trajectories):
        return {}
    own = {name: dataclasses.replace(one, gathered=gathered.get((measure.name, name))) for name, one in seen.items()}
    shared = measure.share(list(own.values())) if measure.share else None
    found = {}
    for name, one in own.items():
        before(measure.name, name)
        found[name] = measure.compute(dataclasses.replace(one, shared=shared))
    return found
