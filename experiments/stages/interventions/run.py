"""Interventions on the teacher's depth: swaps, deletions, repetitions, and hybrids with every Raptor."""

import dataclasses

import numpy as np

from brh_jax import interventions as causal
from brh_jax.data.sources import Source
from brh_jax.errors import UserError, expect, expect_positive
from brh_jax.interventions import PARTS, Effects
from brh_jax.models import Encoder
from brh_jax.partition import Partition
from brh_jax.train.parallel import to_host
from brh_jax.types import Labels, Valid
from experiments.data import AllImages, ImageSet
from experiments.settings import Common, without_effect
from experiments.stage import Context
from experiments.stages.accuracy.run import MeasuringSettings
from experiments.stages.distill.run import read_models
from experiments.stages.interventions.head import Head, find_head
from experiments.stages.interventions.plans import UNCHANGED, Groups, layer_groups, swap_groups
from experiments.stages.interventions.results import (
    MEASURES,
    Draws,
    InterventionsResult,
    Measured,
    SwapsResult,
    effects_of,
    hybrid_result,
    layers_result,
    swaps_result,
)
from experiments.stages.phases.run import read_partitions


@dataclasses.dataclass(frozen=True)
class InterventionSettings:
    """Layers swapped, deleted and repeated, Raptors' blocks in the teacher's place.

    Attributes:
        images: as data.train names them; empty for data.eval. With labels there are accuracies.
        num_images: images to measure on; 0 for no interventions.
        batch_size: images at a time.
        num_layers: numbers of layers replaced at a time.
        parts: of the layers, whole or half of them: some of layer, attention, mlp.
        num_swaps: of each sort at most, drawn evenly over distances; 0 for all (132 single ones with 12 layers).
        num_permutations: shuffles of a test.
    """

    images: str = ""
    num_images: int = 256
    batch_size: int = without_effect(32)
    num_layers: tuple[int, ...] = (1, 2, 3)
    parts: tuple[str, ...] = tuple(PARTS)
    num_swaps: int = 132
    num_permutations: int = 10_000

    def __post_init__(self):
        expect_positive(self, "batch_size", "num_permutations")
        for name in ("num_images", "num_swaps"):
            expect(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        expect(self.num_images != 1, "num_images", self.num_images, "0, or two or more for intervals over images")
        numbers = bool(self.num_layers) and all(isinstance(n, int) and n > 0 for n in self.num_layers)
        expect(numbers, "num_layers", self.num_layers, "numbers such as (1,2,3)")
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise UserError(f"parts names {unknown[0]!r}: expected some of {', '.join(PARTS)}")


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """Sections that the stage uses."""

    data: AllImages = AllImages()
    eval: MeasuringSettings = MeasuringSettings()
    interventions: InterventionSettings = InterventionSettings()


def reads(settings: Settings) -> list[ImageSet]:
    """What is run through changed depths; nothing where there are to be none."""
    own, data = settings.interventions, settings.data
    if not own.num_images:
        return []
    return [ImageSet("interventions.images", own.images, data.data_dir)] if own.images else data.named("eval")


def run(context: Context, settings: Settings) -> InterventionsResult:
    """Leaves the effects of every plan on every image in `arrays.npz`."""
    own, data, seed = settings.interventions, settings.data, settings.seed
    if not own.num_images:
        print("interventions: config.interventions.num_images is 0, nothing to do", flush=True)
        return InterventionsResult()
    models, partitions = read_models(context, settings.compute_dtype), read_partitions(context)
    teacher, finest = models["teacher"], partitions[max(partitions)]
    groups = Groups(
        teacher.depth,
        swap_groups(finest, own.parts, own.num_layers, own.num_swaps, seed),
        layer_groups(own.parts),
        {name: model.config.partition for name, model in models.items() if model is not teacher},
    )
    source = context.source(own.images or data.eval, data.data_dir)
    head, origin = find_head(context, teacher, source, data, settings.eval, seed)
    measured, labels, photographs = _measure(context, settings, source, models, groups, head)
    arrays = _arrays(groups, measured) | {"labels": labels, "photographs": photographs}
    context.save_arrays(context.folder / "arrays.npz", **arrays)
    draws = Draws(seed, photographs, own.num_permutations)
    swaps = [swaps_result(g, measured[g.name], partitions, draws) for g in groups.swaps]
    for group in swaps:
        _tell(group, finest)
    return InterventionsResult(
        images=source.name,
        num_images=len(labels),
        num_photographs=len(np.unique(photographs)),
        num_plans=sum(map(len, (groups.alone | groups.hybrids).values())),
        head=origin,
        unchanged=effects_of(measured[UNCHANGED], draws)[0],
        swaps=swaps,
        layers=[layers_result(g, measured[g.name], draws) for g in groups.layers],
        hybrids={name: hybrid_result(p, effects_of(measured[name], draws)) for name, p in groups.raptors.items()},
    )


def _measure(
    context: Context, settings: Settings, source: Source, models: dict[str, Encoder], groups: Groups, head: Head | None
) -> tuple[dict[str, Measured], Labels, np.ndarray]:
    """The effects of each group of plans, the labels, and the photographs that the images are views of."""
    own, data, teacher, hybrids = settings.interventions, settings.data, models["teacher"], groups.hybrids
    counts = {name: len(plans) for name, plans in (groups.alone | hybrids).items()}
    batches = context.measuring_batches(
        source,
        # A classifier sees images as it was trained on them, whatever views of few images the states are measured on.
        data.transform(data.eval_augment if head is None else "center_crop", teacher.preprocessing),
        num_images=own.num_images,
        batch_size=own.batch_size,
        label=f"interventions, {sum(counts.values())} plans",
        seed=settings.seed,
        threads=data.threads,
    )
    alone, pieces = [plan for plans in groups.alone.values() for plan in plans], []
    labels, photographs = [], []
    for batch in batches:
        start, valid = teacher.embed(teacher.normalize_pixels(batch["image"])), batch["valid"]
        effects = [causal.apply_plans(teacher, start, alone, head=head)]
        effects += [causal.apply_plans(teacher, start, plans, guest=models[name], head=head) for name, plans in hybrids.items()]
        labels.append(batch["label"][valid])
        photographs.append(batch["photograph"][valid])
        pieces.append([_by_measure(one, valid, labels[-1]) for one in effects])
    measured: dict[str, Measured] = {name: {} for name in counts}
    for measure in pieces[0][0]:
        values = np.concatenate([np.concatenate([one[measure] for one in piece]) for piece in pieces], axis=1)
        for name, of_group in zip(counts, np.split(values, np.cumsum(list(counts.values()))[:-1]), strict=True):
            measured[name][measure] = of_group
    return measured, np.concatenate(labels), np.concatenate(photographs)


def _arrays(groups: Groups, measured: dict[str, Measured]) -> dict[str, np.ndarray]:
    """What `arrays.npz` holds: the effects, `[plans, images]` as GROUP/MEASURE, and which layers ran at which places."""
    arrays = {f"{name}/{measure}": values for name, of_group in measured.items() for measure, values in of_group.items()}
    for group in groups.swaps:
        for what in ("places", "layers"):
            arrays[f"{group.name}/{what}"] = np.array([getattr(swap, what) for swap in group.swaps])
    return arrays


def _by_measure(effects: Effects, valid: Valid, labels: Labels) -> Measured:
    values = [to_host(v)[:, valid] for v in effects[:4]]
    if effects.predicted is not None:
        values.append((to_host(effects.predicted)[:, valid] != labels).astype(np.float32))
    return dict(zip(MEASURES, values, strict=False))


def _tell(group: SwapsResult, partition: Partition) -> None:
    tests = group.partitions[partition.k].tests
    measure = "error" if "error" in tests else "change"
    contrast = tests[measure].distance
    if contrast is None:
        print(f"interventions: {group.name}: no distance at which swaps both within and across phases exist", flush=True)
        return
    print(
        f"interventions: swaps of {group.name}: {measure} {contrast.intra:.3f} within phases, {contrast.inter:.3f} across; "
        f"at equal distance {contrast.difference:+.3f} ({contrast.low:+.3f} to {contrast.high:+.3f}), p {contrast.p_value:.4f}",
        flush=True,
    )
