"""Dynamics of teacher and Raptors from the same first states."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.data.classes import balanced, draw_classes
from brh_jax.data.sources import Source
from brh_jax.dynamics import PortraitSettings, curves, portraits
from brh_jax.dynamics.drawing import arrays_of
from brh_jax.dynamics.measures import MEASURES
from brh_jax.dynamics.portrait import FirstStates
from brh_jax.errors import UserError, expect, expect_positive
from brh_jax.models import Encoder
from brh_jax.train.metrics import Progress
from brh_jax.train.parallel import shard_batch, to_host
from brh_jax.types import State
from experiments.data import EvalImages, ImageSet
from experiments.settings import Common, without_effect
from experiments.stage import Context
from experiments.stages.distill.run import DistillResult, read_models
from experiments.stages.dynamics.results import DynamicsResult, model_result
from experiments.stages.phases.run import PhasesResult


@dataclasses.dataclass(frozen=True)
class DynamicsSettings(PortraitSettings):
    """Directions, ranks and basins of all images; of some of them linear models, perturbations, exponents and Jacobians.

    Attributes:
        num_images: images to measure on.
        batch_size: images at a time.
        class_images: labelled images that class basins are of, as data.train names them; empty for data.eval.
        classes: that class basins are of, drawn at random, where images have classes; 0 for all.
        per_class: images of each of them, every photograph once. 1,000 images of ImageNet would be about one of each class.
    """

    num_images: int = 1000
    batch_size: int = without_effect(32)
    class_images: str = ""
    classes: int = 10
    per_class: int = 24

    def __post_init__(self):
        super().__post_init__()
        expect_positive(self, "num_images", "batch_size")
        for name, wrong in (("classes", 1), ("per_class", 1)):
            value = getattr(self, name)
            least = "two or more" + (", or 0 for all" if name == "classes" else "")
            expect(value >= 0 and value != wrong and (value or name == "classes"), name, value, least)


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """Sections that the stage uses."""

    data: EvalImages = EvalImages()
    dynamics: DynamicsSettings = DynamicsSettings()


def reads(settings: Settings) -> list[ImageSet]:
    """What first states are made of."""
    return [*settings.data.named("eval"), *_class_images(settings)]


def _class_images(settings: Settings) -> list[ImageSet]:
    """What class basins are of, where it is not data.eval."""
    name, images = "dynamics.class_images", settings.dynamics.class_images
    otherwise = f"leave config.{name} empty for data.eval"
    return [ImageSet(name, images, settings.data.data_dir, labelled=True, otherwise=otherwise)] if images else []


def ready(settings: Settings) -> None:
    """Raises UserError where the images that class basins are to be of have no two of two classes."""
    for one in _class_images(settings):
        source = one.check()
        if few := _too_few(_drawn(source, settings), source):
            raise UserError(f"config.{one.setting}: {few}: expected two or more of each class; or {one.otherwise}")


def run(context: Context, settings: Settings) -> DynamicsResult:
    """Leaves every image's curves, and what figures take besides, in `arrays.npz`, as MODEL/CURVE and MODEL/MEASURE/ARRAY."""
    models, phases = read_models(context, settings.compute_dtype), context.result(PhasesResult, "phases")
    distilled = context.results.get(DistillResult)
    raptors = {name: phases.partition_of(raptor.k) for name, raptor in distilled.raptors.items()} if distilled else {}
    source = context.source(settings.data.eval, settings.data.data_dir)
    # Small differences would drown in the rounding of bfloat16: dynamics are measured in the precision of the parameters.
    models = {name: encoder.replace(dtype=None) for name, encoder in models.items()}
    labelled = context.source(settings.dynamics.class_images or settings.data.eval, settings.data.data_dir)
    of_classes = _of_classes(context, settings, models["teacher"], labelled)
    states = _first_states(context, settings, models["teacher"], source, settings.dynamics.num_images, of_classes is not None)
    # Every measure on a line: some take seconds, some take most of the time.
    progress = Progress("dynamics", len(MEASURES) * len(models), unit="", interval=0.0)
    measured = portraits(
        {name: encoder.system() for name, encoder in models.items()},
        states,
        key=jax.random.key(settings.seed),
        of_classes=of_classes,
        partition={"teacher": phases.finest} | raptors,
        settings=settings.dynamics,
        sublayers={name: encoder.system(sublayers=True) for name, encoder in models.items()},
        watch=lambda what, done, total: progress.update(done, what),
    )
    arrays: dict[str, Any] = {
        f"{name}/{array}": values for name, one in measured.items() for array, values in arrays_of(one).items()
    }
    arrays |= {f"{name}/{curve}": c.values for name, one in measured.items() for curve, c in curves(one).items()}
    context.save_arrays(context.folder / "arrays.npz", **arrays)
    teacher = measured["teacher"]
    results = {name: model_result(portrait, teacher, of_classes is not None) for name, portrait in measured.items()}
    return DynamicsResult(teacher.num_images, teacher.num_photographs, teacher.tangent_images, results)


def _of_classes(context: Context, settings: Settings, teacher: Encoder, source: Source) -> Iterator[FirstStates] | None:
    """Images of some classes, as many of each; None where images have no classes, or no two of these have two images."""
    if len(source.classes) < 2:
        return None
    some = _drawn(source, settings)
    if few := _too_few(some, source):
        print(
            f"class basins left out: {few}, so basins are of clusters; for basins of classes name images with more of each by "
            "config.dynamics.class_images",
            flush=True,
        )
        return None
    return _first_states(context, settings, teacher, some, len(some), True, "class basins")


def _drawn(source: Source, settings: Settings) -> Source:
    own = settings.dynamics
    return balanced(source, draw_classes(source, own.classes, settings.seed), own.per_class, settings.seed)


def _too_few(some: Source, source: Source) -> str:
    """What is wrong with the images drawn; empty where two classes have two of them, so that there is a mean beside each."""
    sizes = np.unique([some.label(index) for index in range(len(some))], return_counts=True)[1]
    if np.count_nonzero(sizes > 1) >= 2:
        return ""
    return f"of the {len(sizes)} classes drawn from {source.name} no two have two images"


def _first_states(
    context: Context,
    settings: Settings,
    teacher: Encoder,
    source: Source,
    num_images: int,
    with_classes: bool,
    label: str = "dynamics",
) -> Iterator[FirstStates]:
    """The first states of the images, their classes (or -1, not known), and the photographs that they are views of."""
    data, own = settings.data, settings.dynamics
    batches = context.measuring_batches(
        source,
        data.transform(data.eval_augment, teacher.preprocessing),
        num_images=num_images,
        batch_size=own.batch_size,
        label=label,
        seed=settings.seed,
        threads=data.threads,
    )
    for batch in batches:
        state = to_host(teacher.embed(teacher.normalize_pixels(batch["image"])))[batch["valid"]]
        labels = batch["label"][batch["valid"]]
        yield (
            _place(state, context.mesh),
            labels if with_classes else np.full_like(labels, -1),
            batch["photograph"][batch["valid"]],
        )


def _place(state: State, mesh: jax.sharding.Mesh) -> State:
    """Laid over the devices of one process where they divide it; several processes each compute the whole."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    return shard_batch(state, mesh) if jax.process_count() == 1 and len(state) % ways == 0 else jnp.asarray(state)
